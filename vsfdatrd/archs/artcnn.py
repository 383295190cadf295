"""What an ArtCNN is, found from the names and shapes of its tensors. Needs no torch.

ArtCNN (Joao Chrisostomo and Kacper Michajłow, MIT) are networks of 3×3 convolutions trained on animation. Both families
are a long skip connection around a body, and all work is done at the input's resolution:

    a = first(x);  b = closing(body(a));  out = PixelShuffle(last(a + b))

    C4F32   the body is 4 convolutions of 32 channels, each followed by a ReLU
    R8F64   the body is 8 blocks of 64 channels, y + conv(ReLU(conv(ReLU(conv(y)))))

Luma doublers take one channel and give one, twice as large. Chroma models take Y, Cb and Cr, the chroma enlarged to the
luma's size before and 0.5 being neutral, and give better Cb and Cr of the same size. A few take and give RGB.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vsfdatrd.errors import CheckpointError

type Shape = tuple[int, ...]

LARGEST_SCALE = 8
_LAST_OF_R = "depth_to_space.upscale.0"
_CHAIN = re.compile(r"conv(\d+)\.(?:weight|bias)")

# Other ways to name the same tensors -> ours. The project's own training notebooks use these.
_C_NAMES = {
    r"conv_skip1\.": "first",
    r"conv_inner\.(\d+)\.": "inner",
    r"conv_skip2\.": "closing",
    r"conv_out\.": "last",
}
_R_NAMES = {
    r"res_blocks\.(\d+)\.conv([01])\.": r"res_block.\1.conv.\2.0.",
    r"res_blocks\.(\d+)\.conv2\.": r"res_block.\1.conv.2.",
    r"feats_conv\.": f"{_LAST_OF_R}.",
}


@dataclass(frozen=True, slots=True)
class ArtCnnConfig:
    """Hyper-parameters of an ArtCNN."""

    filters: int
    """Channels between the first and the last convolution."""
    blocks: int
    """Convolutions of the body, or residual blocks if `residual`."""
    residual: bool
    """Whether it is of the R family."""
    in_channels: int
    """1 is luma; 3 is Y, Cb and Cr if `out_channels` is 2, else RGB."""
    out_channels: int
    """1 is luma, 2 is Cb and Cr, 3 is RGB."""
    scale: int
    """Output pixels per input pixel, along each side."""
    kernel: int = 3
    """Side of every convolution's kernel in pixels, odd."""

    @property
    def name(self) -> str:
        """As its authors call it, such as ``ArtCNN C4F32`` or ``ArtCNN R8F64 Chroma``."""
        kind = {1: "", 2: " Chroma", 3: " RGB"}[self.out_channels]
        enlarges = f" {self.scale}x" if self.scale not in (1 if self.out_channels == 2 else 2,) else ""
        return f"ArtCNN {'R' if self.residual else 'C'}{self.blocks}F{self.filters}{kind}{enlarges}"

    @property
    def body(self) -> int:
        """Number of convolutions of the body."""
        return self.blocks * (3 if self.residual else 1)

    @property
    def held(self) -> int:
        """Values for each pixel that have to be held at once: the first map, the body's, a convolution's input and
        its result."""
        return self.filters * (4 if self.residual else 3)

    @property
    def reach(self) -> int:
        """How far, in pixels of the input, an output pixel looks."""
        return (self.body + 3) * (self.kernel // 2)

    def work(self, height: int, width: int) -> float:
        """Operations (two for a multiply-add) for one frame."""
        f = self.filters
        per_pixel = self.in_channels * f + (self.body + 1) * f * f + f * self.out_channels * self.scale**2
        return 2.0 * height * width * self.kernel**2 * per_pixel


def layers(config: ArtCnnConfig) -> list[str]:
    """Names of the convolutions in the order in which they run: the first, the body's, the closing one, the last.

    They are those of the files: ``conv0``, ``conv1``, ... of the C family, traiNNer-redux's names of the R family.
    """
    if not config.residual:
        return [f"conv{i}" for i in range(config.blocks + 3)]
    inner = [f"res_block.{i}.conv.{part}" for i in range(config.blocks) for part in ("0.0", "1.0", "2")]
    return ["conv0", *inner, f"res_block.{config.blocks}", _LAST_OF_R]


def tensor_shapes(config: ArtCnnConfig) -> dict[str, Shape]:
    """Every tensor of the network by name."""
    names, f, k = layers(config), config.filters, config.kernel
    widths = [config.in_channels, *[f] * (len(names) - 1), config.out_channels * config.scale**2]
    shapes: dict[str, Shape] = {}
    for name, inputs, outputs in zip(names, widths[:-1], widths[1:], strict=True):
        shapes |= {f"{name}.weight": (outputs, inputs, k, k), f"{name}.bias": (outputs,)}
    return shapes


def own_names(names: Collection[str]) -> dict[str, str] | None:
    """Our names of an ArtCNN's tensors -> those of its file; None if these are no ArtCNN's.

    Told apart by a name that only one layout has: ``depth_to_space.upscale.0`` is traiNNer-redux's R family,
    ``feats_conv`` and ``conv_out`` the R and C families of the project's own notebooks; nothing but ``conv0``,
    ``conv1``, ... without a gap is the plain layout of the C family.
    """
    found = set(names)
    if {"conv0.weight", f"{_LAST_OF_R}.weight"} <= found:
        return {name: name for name in names}
    if "feats_conv.weight" in found:
        return {_renamed_r(name, names): name for name in names}
    if {"conv_skip1.weight", "conv_out.weight"} <= found:
        return _renamed_c(names)
    numbers = {int(match[1]) for name in names if (match := _CHAIN.fullmatch(name))}
    if len(numbers) >= 4 and found == {f"conv{i}.{part}" for i in range(len(numbers)) for part in ("weight", "bias")}:
        return {name: name for name in names}
    return None


def from_shapes(shapes: Mapping[str, Shape]) -> ArtCnnConfig:
    """Find the configuration from the shapes of tensors that `own_names` recognised.

    Raises CheckpointError, a reason without the file's name, where they are incomplete or contradict each other.
    """
    residual = f"{_LAST_OF_R}.weight" in shapes
    if residual:
        blocks = sum(f"res_block.{i}.conv.2.weight" in shapes for i in range(len(shapes)))
        last = _LAST_OF_R
    else:
        blocks = sum(name.endswith(".weight") for name in shapes) - 3
        last = f"conv{blocks + 2}"
    first, final = _kernel(shapes, "conv0"), _kernel(shapes, last)
    if blocks < 1:
        raise CheckpointError("it has no body between its first convolution and its last two")
    in_channels, out_channels, scale = _channels(first[1], final[0])
    config = ArtCnnConfig(first[0], blocks, residual, in_channels, out_channels, scale, first[2])
    expected = tensor_shapes(config)
    if missing := expected.keys() - shapes.keys():
        raise CheckpointError(f"it is an incomplete {config.name}: it lacks {min(missing)!r}")
    if extra := shapes.keys() - expected.keys():
        raise CheckpointError(f"it is no {config.name} that is known here: it also has {min(extra)!r}")
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(f"its {name!r} has shape {shapes[name]} where a {config.name} has {shape}")
    return config


def _kernel(shapes: Mapping[str, Shape], layer: str) -> Shape:
    shape = shapes.get(f"{layer}.weight")
    if shape is None:
        raise CheckpointError(f"it looks like an ArtCNN but has no tensor {f'{layer}.weight'!r}")
    if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 == 0 or 0 in shape:
        raise CheckpointError(f"its {f'{layer}.weight'!r} of shape {shape} is no convolution with a square, odd kernel")
    return shape


def _channels(inputs: int, features: int) -> tuple[int, int, int]:
    """(channels in, channels out, scale) of a network with so many inputs and features before the pixel shuffle."""
    outputs = 2 if (inputs, features) == (3, 2) else inputs
    scale = math.isqrt(features // outputs) if inputs in (1, 3) else 0
    if not 1 <= scale <= LARGEST_SCALE or outputs * scale**2 != features:
        raise CheckpointError(
            f"it turns {inputs} channels into {features} features; known are luma doublers (1 into 4), chroma models "
            "(3 into 2) and RGB models (3 into 3 or 12)"
        )
    return inputs, outputs, scale


def _renamed_r(name: str, names: Collection[str]) -> str:
    for pattern, ours in _R_NAMES.items():
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    if name.startswith("conv1."):  # closes the body, after as many blocks as there are
        count = len({match[1] for other in names if (match := re.match(r"res_blocks\.(\d+)\.", other))})
        return f"res_block.{count}.{name.removeprefix('conv1.')}"
    return name


def _renamed_c(names: Collection[str]) -> dict[str, str]:
    count = len({match[1] for name in names if (match := re.match(r"conv_inner\.(\d+)\.", name))})
    found: dict[str, str] = {}
    for name in names:
        for pattern, role in _C_NAMES.items():
            if match := re.match(pattern, name):
                numbers = {"first": 0, "closing": count + 1, "last": count + 2}
                number = int(match[1]) + 1 if role == "inner" else numbers[role]
                found[f"conv{number}.{name[match.end() :]}"] = name
                break
        else:
            found[name] = name
    return found
