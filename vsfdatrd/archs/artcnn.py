"""ArtCNN: configuration from the names and shapes of the tensors. Needs no torch.

ArtCNN (Joao Chrisostomo and Kacper Michajłow, MIT) is a family of networks of 3×3 convolutions trained on animation.
The body is wrapped in a long skip connection, and all layers run at the resolution of the input:

    a = first(x);  b = closing(body(a));  out = PixelShuffle(last(a + b))

    C4F32   the body is 4 convolutions of 32 channels, each followed by a ReLU
    R8F64   the body is 8 residual blocks of 64 channels, y + conv(ReLU(conv(ReLU(conv(y)))))

Luma doublers have one input channel and one output channel of twice the width and height. Chroma models take Y, Cb
and Cr, with the chroma upscaled to luma size beforehand and 0.5 as neutral, and output improved Cb and Cr of the same
size. A few models take and output RGB.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.errors import CheckpointError

type Shape = tuple[int, ...]

MAX_SCALE = 8
_LAST_LAYER_OF_R = "depth_to_space.upscale.0"
_CHAIN_LAYER = re.compile(r"conv(\d+)\.(?:weight|bias)")


@dataclass(frozen=True, slots=True)
class ArtCnnConfig(NetworkConfig):
    """Hyper-parameters of an ArtCNN."""

    filters: int
    """Channels of all layers between the first and the last convolution."""
    blocks: int
    """Number of convolutions in the body, or of residual blocks if `residual`."""
    residual: bool
    """True for the R family, False for the C family."""
    in_channels: int
    """1: luma; 3: Y, Cb and Cr if `out_channels` is 2, otherwise RGB."""
    out_channels: int
    """1: luma; 2: Cb and Cr; 3: RGB."""
    scale: int
    """Output pixels per input pixel, along each side."""
    kernel: int = 3
    """Kernel size of every convolution in pixels; odd."""

    accepts_chroma: ClassVar[bool] = True
    size: ClassVar[SizeRequirements] = SizeRequirements()

    @property
    def name(self) -> str:
        """Name in the style of ArtCNN's authors, such as ``ArtCNN C4F32`` or ``ArtCNN R8F64 Chroma``."""
        kind = {1: "", 2: " Chroma", 3: " RGB"}[self.out_channels]
        enlarges = f" {self.scale}x" if self.scale not in (1 if self.out_channels == 2 else 2,) else ""
        return f"ArtCNN {'R' if self.residual else 'C'}{self.blocks}F{self.filters}{kind}{enlarges}"

    @property
    def body_layers(self) -> int:
        """Number of convolutions in the body."""
        return self.blocks * (3 if self.residual else 1)

    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        """Count the values of the first feature map, of the body's, and of one convolution's input and output."""
        return ({"artcnn": self.filters * (4 if self.residual else 3)},)

    def info(self) -> dict[str, Any]:
        """See `NetworkConfig.info`."""
        return {
            "filters": self.filters,
            "residual blocks" if self.residual else "inner convolutions": self.blocks,
            "looks": f"{self.receptive_radius} pixels far",
        }

    @property
    def receptive_radius(self) -> int:
        """Radius of the receptive field in input pixels."""
        return (self.body_layers + 3) * (self.kernel // 2)

    def flops(self, height: int, width: int) -> float:
        """See `NetworkConfig.flops`.

        Args:
            height: Height of the input in pixels.
            width: Width of the input in pixels.
        """
        f = self.filters
        per_pixel = self.in_channels * f + (self.body_layers + 1) * f * f + f * self.out_channels * self.scale**2
        return 2.0 * height * width * self.kernel**2 * per_pixel


def layer_names(config: ArtCnnConfig) -> list[str]:
    """List the names of the convolutions in execution order: first, body, closing, last.

    The names are those used in the files: ``conv0``, ``conv1``, ... in the C family, traiNNer-redux's names in the R
    family.
    """
    if not config.residual:
        return [f"conv{i}" for i in range(config.blocks + 3)]
    inner = [f"res_block.{i}.conv.{part}" for i in range(config.blocks) for part in ("0.0", "1.0", "2")]
    return ["conv0", *inner, f"res_block.{config.blocks}", _LAST_LAYER_OF_R]


def tensor_shapes(config: ArtCnnConfig) -> dict[str, Shape]:
    """Map the name of every tensor of the network to its shape."""
    names, f, k = layer_names(config), config.filters, config.kernel
    widths = [config.in_channels, *[f] * (len(names) - 1), config.out_channels * config.scale**2]
    shapes: dict[str, Shape] = {}
    for name, inputs, outputs in zip(names, widths[:-1], widths[1:], strict=True):
        shapes |= {f"{name}.weight": (outputs, inputs, k, k), f"{name}.bias": (outputs,)}
    return shapes


def canonical_names(names: Collection[str]) -> dict[str, str] | None:
    """Map the tensor names used in this package to the names of the same tensors in a file.

    The layout is recognized by a name that no other layout has: ``depth_to_space.upscale.0`` is traiNNer-redux's R
    family, ``feats_conv`` and ``conv_out`` are the R and C families of ArtCNN's own notebooks. A file with nothing but
    ``conv0``, ``conv1``, ... without a gap is the plain layout of the C family.

    Args:
        names: Tensor names in the file.

    Returns:
        Name used here -> name in the file; None if the tensors are not those of an ArtCNN.
    """
    stored = set(names)
    if {"conv0.weight", f"{_LAST_LAYER_OF_R}.weight"} <= stored:
        return {name: name for name in names}
    if own_layers := _notebook_layers(stored):
        layer_of = {name: name.rpartition(".")[0] for name in names}
        return {own_layers.get(layer, layer) + name[len(layer) :]: name for name, layer in layer_of.items()}
    numbers = {int(match[1]) for name in names if (match := _CHAIN_LAYER.fullmatch(name))}
    if len(numbers) >= 4 and stored == {f"conv{i}.{part}" for i in range(len(numbers)) for part in ("weight", "bias")}:
        return {name: name for name in names}
    return None


def config_from_shapes(shapes: Mapping[str, Shape]) -> ArtCnnConfig:
    """Derive the configuration from tensor shapes.

    Args:
        shapes: Shapes of tensors that `canonical_names` recognized, by the names used here.

    Returns:
        The configuration; every tensor has been checked against it.

    Raises:
        CheckpointError: Tensors are missing or contradict each other. The message does not contain the file name.
    """
    residual = f"{_LAST_LAYER_OF_R}.weight" in shapes
    if residual:
        blocks = sum(f"res_block.{i}.conv.2.weight" in shapes for i in range(len(shapes)))
    else:
        blocks = sum(name.endswith(".weight") for name in shapes) - 3
    last = _LAST_LAYER_OF_R if residual else f"conv{blocks + 2}"
    first, final = _conv_shape(shapes, "conv0"), _conv_shape(shapes, last)
    if blocks < 1:
        raise CheckpointError("it has no body between its first convolution and its last two")
    in_channels, out_channels, scale = _derive_channels(first[1], final[0])
    config = ArtCnnConfig(first[0], blocks, residual, in_channels, out_channels, scale, first[2])
    expected = tensor_shapes(config)
    if missing := expected.keys() - shapes.keys():
        raise CheckpointError(f"it is an incomplete {config.name}: it lacks {min(missing)!r}")
    if extra := shapes.keys() - expected.keys():
        raise CheckpointError(f"it is not a known {config.name}: it also has {min(extra)!r}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"its {name!r} has shape {shapes[name]} where a {config.name} has {shape}")
    return config


def _conv_shape(shapes: Mapping[str, Shape], layer: str) -> Shape:
    shape = shapes.get(f"{layer}.weight")
    if shape is None:
        raise CheckpointError(f"it looks like an ArtCNN but has no tensor {f'{layer}.weight'!r}")
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 == 0 or 0 in shape:
        raise CheckpointError(
            f"its {f'{layer}.weight'!r} of shape {shape} is not a convolution with a square kernel of odd size"
        )
    return shape


def _derive_channels(inputs: int, features: int) -> tuple[int, int, int]:
    """Compute (input channels, output channels, scale) from the channels before and after all convolutions.

    Raises:
        CheckpointError: No ArtCNN has these numbers of channels.
    """
    outputs = 2 if (inputs, features) == (3, 2) else inputs
    scale = math.isqrt(features // outputs) if inputs in (1, 3) else 0
    if not 1 <= scale <= MAX_SCALE or outputs * scale**2 != features:
        raise CheckpointError(
            f"it turns {inputs} channels into {features} features; known are luma doublers (1 into 4), chroma models "
            "(3 into 2) and RGB models (3 into 3 or 12)"
        )
    return inputs, outputs, scale


def _notebook_layers(names: Collection[str]) -> dict[str, str]:
    """Map the layers in files of ArtCNN's own training notebooks to the names used here; empty for other files."""

    def count(pattern: str) -> int:
        return len({match[1] for name in names if (match := re.match(pattern, name))})

    if "feats_conv.weight" in names:  # the R family
        blocks = count(r"res_blocks\.(\d+)\.")
        layers = {"feats_conv": _LAST_LAYER_OF_R, "conv1": f"res_block.{blocks}"}
        for i in range(blocks):
            parts = enumerate(("0.0", "1.0", "2"))
            layers |= {f"res_blocks.{i}.conv{number}": f"res_block.{i}.conv.{part}" for number, part in parts}
        return layers
    if {"conv_skip1.weight", "conv_out.weight"} <= set(names):  # the C family
        inner = count(r"conv_inner\.(\d+)\.")
        layers = {"conv_skip1": "conv0", "conv_skip2": f"conv{inner + 1}", "conv_out": f"conv{inner + 2}"}
        return layers | {f"conv_inner.{i}": f"conv{i + 1}" for i in range(inner)}
    return {}
