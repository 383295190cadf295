"""ArtCNN, from weights files and from mpv shaders."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, override

from vsfdatrd.archs import artcnn
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.artcnn_glsl import GlslFile, is_shader
from vsfdatrd.archs.registry.base import Architecture, Checkpoint, TensorIndex
from vsfdatrd.errors import CheckpointError
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.weights.files import WeightsFile, refusal

if TYPE_CHECKING:
    import onnx
    from torch import nn


class ArtCnn(Architecture[ArtCnnConfig]):
    """ArtCNN, families C and R."""

    name = "ArtCNN"
    config = ArtCnnConfig
    is_traced = False

    @override
    def open_own_format(self, path: Path, head: bytes) -> WeightsFile | None:
        return GlslFile(path) if is_shader(head, path.suffix) else None

    @override
    def canonical_names(self, names: Mapping[str, str]) -> Mapping[str, str]:
        renamed = artcnn.canonical_names(names)
        return names if renamed is None else {own: names[name] for own, name in renamed.items()}

    @override
    def detect(self, tensors: TensorIndex) -> bool:
        return artcnn.canonical_names(tensors.entries) is not None

    @override
    def configure(self, tensors: TensorIndex) -> ArtCnnConfig:
        path = tensors.path
        for name, entry in tensors.entries.items():
            if not entry.is_float:
                raise refusal(path, f"stores {name!r} as {entry.dtype}; convert it to fp16, bf16 or fp32")
        try:
            return artcnn.config_from_shapes(tensors.shapes)
        except CheckpointError as error:
            raise refusal(
                path, f"cannot be used: {error}; download it again, or save it again from training"
            ) from error

    @override
    def build(self, config: ArtCnnConfig) -> "nn.Module":
        from vsfdatrd.nn import artcnn as modules

        return modules.ArtCnn(config)

    @override
    def graph(
        self, config: ArtCnnConfig, checkpoint: Checkpoint, size: tuple[int, int] | None, target: GraphTarget
    ) -> "onnx.ModelProto":
        from vsfdatrd.graph import artcnn as graphs

        return graphs.write(config, checkpoint.tensors(), size, target)
