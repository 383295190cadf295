"""Networks stored as ONNX files, which may take a second picture."""

from pathlib import Path
from typing import TYPE_CHECKING, override

from vsfdatrd.archs.config import from_plain
from vsfdatrd.archs.onnx import OnnxConfig, Range
from vsfdatrd.archs.registry.base import Architecture, Checkpoint
from vsfdatrd.cache.manifest import digest_of
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.weights.files import reading, refusal

if TYPE_CHECKING:
    import onnx
    from torch import nn


class Onnx(Architecture[OnnxConfig]):
    """An ONNX file of any network for pictures. It is described by running it in another process."""

    name = "ONNX"
    config = OnnxConfig
    has_tensors = False
    is_traced = False

    @override
    def is_own_file(self, path: Path) -> bool:
        with reading(path), path.open("rb") as file:
            head = file.read(9)
        # 8 is the protobuf tag of ONNX's format version; `{` would be safetensors
        return path.suffix.lower() == ".onnx" or (head[:1] == b"\x08" and head[8:] != b"{")

    @override
    def describe_file(self, path: Path, multiple: int | None, input_range: Range | None) -> tuple[OnnxConfig, int, str]:
        from vsfdatrd.archs.onnx_probe import probe

        result = probe(path, multiple, input_range)
        return from_plain(OnnxConfig, result["config"]), result["parameters"], result["dtype"]

    @override
    def has_changed(self, path: Path, config: OnnxConfig) -> bool:
        """Return whether external data of the file has changed."""
        if not config.external:
            return False
        from vsfdatrd.archs.onnx_checks import has_external_data_changed

        return has_external_data_changed(path, config)

    @override
    def module(self, config: OnnxConfig, checkpoint: Checkpoint) -> "nn.Module":
        raise refusal(checkpoint.path, "is an ONNX file and has no PyTorch module; use another backend")

    @override
    def graph(
        self, config: OnnxConfig, checkpoint: Checkpoint, size: tuple[int, int] | None, target: GraphTarget
    ) -> "onnx.ModelProto":
        """Replace the inputs and outputs with those that engines expect."""
        from vsfdatrd.archs.onnx_checks import read_model
        from vsfdatrd.graph.adapt_io import wrap_io
        from vsfdatrd.graph.half_precision import convert_precision

        if size is None:
            raise ValueError("a graph of an ONNX file is adapted to one size of frame")
        checkpoint.check_unchanged()
        if self.has_changed(checkpoint.path, config):
            raise refusal(checkpoint.path, "has external weights that were changed while in use; run the script again")
        return convert_precision(wrap_io(read_model(checkpoint.path)[0], config, *size), target)

    @override
    def graph_identity(self, config: OnnxConfig) -> str:
        return f"{super().graph_identity(config)} {digest_of(config.graph_fields())[:32]}"
