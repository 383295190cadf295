"""The tails as sequences of convolutions, as the CUDA kernels compute them.

``transpose+conv`` at scale 4 is not among them, because it has kernels of its own. Leaky ReLU commutes with
nearest-neighbor upsampling, so each convolution includes the activation after it and the adjacent upsampling or pixel
shuffle.
"""

from dataclasses import dataclass
from typing import Literal

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.upsamplers import GROUPS, upscaling_steps

POSITIONS = 9
"""Number of positions to which a pixel attends in the tail ``lda``."""
LDA_GROUPS = 2
"""Groups of channels in the tail ``lda``, each with its own positions."""
PRODUCTS_PER_PIXEL = 48
"""Products of ``transpose+conv`` for a pixel of the map between its transposed convolutions: 16 for each color."""

type Form = Literal["plain", "shuffle", "nearest", "gate", "transposed"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution with the leaky ReLU after it and the adjacent upsampling."""

    module: str
    """Prefix of its tensors in the checkpoint."""
    out_channels: int
    """Channels of its output."""
    form: Form = "plain"
    """``plain``: 3×3. ``shuffle``: 3×3, before a pixel shuffle. ``nearest``: 3×3, after nearest-neighbor upsampling.
    ``gate``: 1×1; its sigmoid multiplies its input. ``transposed``: transposed, with a stride of `upscale`."""
    upscale: int = 1
    """Output pixels for each token along an axis."""
    negative_slope: float = 1.0
    """Factor of negative values in the leaky ReLU; 1 for none."""

    @property
    def kernel_size(self) -> int:
        """Number of tokens along each axis on which an output pixel depends."""
        if self.form == "transposed":
            return 3 if self.upscale == 2 else 1
        return {"plain": 3, "shuffle": 3, "nearest": 2, "gate": 1}[self.form]


@dataclass(frozen=True, slots=True)
class Tail:
    """The layers of a tail, in order."""

    maps: tuple[Convolution, ...]
    """Convolutions whose outputs are maps."""
    sampling: str | None = None
    """Prefix of the tensors of ``dysample`` or ``lda``; None for other tails."""
    to_planes: Convolution | None = None
    """Convolution of the last map whose output is planes."""
    rgb_conv: str | None = None
    """Prefix of the tensors of the last convolution, if its input is these planes."""


def is_fused(config: FdatRdConfig) -> bool:
    """Return whether the tail is the one with kernels of its own."""
    return (config.upsampler, config.tail_scale) == ("transpose+conv", 4)


def describe(config: FdatRdConfig) -> Tail:
    """Describe a tail.

    Args:
        config: The network, whose tail is not `is_fused`.
    """
    c, m, o, s = config.embed_dim, config.mid_dim, config.out_channels, config.tail_scale
    maps: list[Convolution] = []
    n = 0  # index of the next layer in the checkpoint

    def add(channels: int, form: Form = "plain", upscale: int = 1, slope: float = 1.0, name: str = "") -> None:
        maps.append(Convolution(f"upsampler.{n}{name}", channels, form, upscale, slope))

    match "conv" if s == 1 else config.upsampler:
        case "pixelshuffledirect":
            return Tail((), to_planes=Convolution("upsampler.0", o, "shuffle", s))
        case "transpose+conv":
            return Tail((), to_planes=Convolution("upsampler.0", o, "transposed", s), rgb_conv="upsampler.1")
        case "pixelshuffle":
            add(m, slope=0.01)
            n = 2
            for factor in upscaling_steps(s, config.upsampler):
                add(m, "shuffle", factor)
                n += 2
        case "nearest+conv":
            add(c, slope=0.2)
            for factor in upscaling_steps(s, config.upsampler):
                n += 3
                add(c, "nearest", factor, 0.2)
            n += 2
        case "pa_up":
            for factor in upscaling_steps(s, config.upsampler):
                n += 1
                add(m, "nearest", factor)
                n += 1
                add(m, "gate", slope=0.2, name=".conv.0")
                n += 2
                add(m, slope=0.2)
                n += 2
        case "dysample" | "lda":
            if m != c:
                add(m, slope=0.01)
                n = 2
            sampling = f"upsampler.{n}"
            if config.upsampler == "dysample":
                return Tail(tuple(maps), sampling)
            return Tail(tuple(maps), sampling, Convolution(f"upsampler.{n + 1}", o))
    return Tail(tuple(maps), to_planes=Convolution(f"upsampler.{n}", o))


def count_dysample_planes(upscale: int) -> int:
    """Return the number of planes from which ``dysample`` computes pixels: offsets, scopes and colors of all groups."""
    return 4 * GROUPS * upscale**2 + 3 * GROUPS


def padded(count: int, multiple: int) -> int:
    """Round a number of channels up to a multiple."""
    return -(-count // multiple) * multiple


def largest_buffer(config: FdatRdConfig, multiple: int = 64) -> int:
    """Return the number of values for each token in the largest buffer of a tail.

    Args:
        config: The network.
        multiple: Number to a multiple of which channels of maps are padded; smaller powers of two need no more memory.
    """
    size = config.tail_scale**2
    if is_fused(config):
        return 4 * PRODUCTS_PER_PIXEL
    tail, pixels, most = describe(config), 1, 3 * size
    for layer in tail.maps:
        pixels *= layer.upscale**2
        most = max(most, pixels * padded(layer.out_channels, multiple))
    if tail.sampling and tail.to_planes:
        most = max(most, size * padded(config.mid_dim, multiple), size * 2 * POSITIONS * LDA_GROUPS)
    elif tail.sampling:
        most = max(most, count_dysample_planes(config.tail_scale))
    return most
