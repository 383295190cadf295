"""Plan how the CUDA kernels compute a tail, from the map of tokens to the output."""

from dataclasses import dataclass

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda.launches import Buffer, LaunchList
from vsfdatrd.backends.cuda.plan import ActiveParts, Frame
from vsfdatrd.backends.cuda.tails import (
    LDA_GROUPS,
    POSITIONS,
    TAPS_PER_PIXEL,
    Convolution,
    count_dysample_planes,
    describe,
    is_fused,
    padded,
)


@dataclass(frozen=True, slots=True)
class _Map:
    """A map of tokens."""

    values: Buffer
    height: int
    width: int
    channels: int
    """Channels of a token in memory, padded."""

    @property
    def count(self) -> int:
        """Number of tokens."""
        return self.height * self.width


def plan_tail(
    launches: LaunchList, config: FdatRdConfig, active: ActiveParts, tokens: Buffer, height: int, width: int
) -> None:
    """Add the launches of the tail.

    Args:
        launches: The launches so far.
        config: The network.
        active: Its active parts.
        tokens: The tail's input, (N, C).
        height: Height of the map of tokens.
        width: Width of the map of tokens.
    """
    x = _Map(tokens, height, width, config.embed_dim)
    if is_fused(config):
        _plan_transposed(launches, active, x)
        return
    tail, scale, frame = describe(config), config.tail_scale, Frame(is_output=True)
    for layer in tail.maps:
        x = _plan_convolution(launches, layer, x)
    if tail.sampling and not tail.last:
        _plan_dysample(launches, tail.sampling, x, scale)
    elif tail.sampling:
        x = _plan_lda(launches, tail.sampling, x, scale, config.mid_dim)
    if tail.last and tail.planes:
        planes = launches.new_floats(3, scale**2 * x.count)
        _plan_projection(launches, tail.last, x, planes)
        size = scale * height, scale * width
        grid = (launches.count_blocks("convolve_planes", "PIXELS", scale**2 * x.count),)
        launches.add_launch("convolve_planes", tail.planes, grid, planes, "weight", "bias", frame, *size)
    elif tail.last:
        _plan_projection(launches, tail.last, x, frame)


def _plan_transposed(launches: LaunchList, active: ActiveParts, x: _Map) -> None:
    """Plan ``transpose+conv``, 4 times."""
    middle = padded(active.middle, launches.tile_size("spread", "COLUMNS"))
    taps = launches.new_floats(4 * x.count, TAPS_PER_PIXEL)
    size = x.height, x.width
    grid: tuple[int, ...] = (launches.count_blocks("spread", "ROWS", x.count), 4)
    launches.add_launch("spread", "upsampler", grid, x.values, "weight", "bias", "last", taps, *size, middle)
    grid = (launches.count_blocks("gather", "PIXELS", 16 * x.count),)
    out = Frame(is_output=True)
    launches.add_launch("gather", "upsampler", grid, taps, "bias", "weight", "last_bias", out, *size)


def _plan_convolution(launches: LaunchList, layer: Convolution, x: _Map) -> _Map:
    """Convolve a map."""
    columns = launches.tile_size("convolve_maps", "COLUMNS")
    outputs, step = padded(layer.outputs, columns), layer.step
    out = _Map(launches.new_map(step**2 * x.count, outputs), step * x.height, step * x.width, outputs)
    grid = (launches.count_blocks("convolve_maps", "ROWS", x.count), outputs // columns, step**2)
    weights = ("weight", "bias", "slopes")
    form = (x.channels, outputs, layer.side, step, int(layer.form == "gate"))
    launches.add_launch("convolve_maps", layer.module, grid, x.values, *weights, out.values, x.height, x.width, *form)
    return out


def _plan_projection(launches: LaunchList, layer: Convolution, x: _Map, planes: Buffer | Frame) -> None:
    """Convolve a map to planes in fp32."""
    columns, count = launches.tile_size("convolve_pixels", "COLUMNS"), layer.step**2 * layer.outputs
    outputs = padded(count, columns)
    grid = (launches.count_blocks("convolve_pixels", "ROWS", x.count), outputs // columns)
    form = (x.channels, outputs, count, layer.side, layer.step)
    size = x.height, x.width
    launches.add_launch("convolve_pixels", layer.module, grid, x.values, "weight", "bias", planes, *size, *form)


def _plan_dysample(launches: LaunchList, module: str, x: _Map, scale: int) -> None:
    """Plan a tail that samples colors, which are computed from the tokens before, at learned positions."""
    count = count_dysample_planes(scale)
    planes = launches.new_floats(count, x.count)
    # "gate" because it is 1×1: a projection to planes applies no gate
    _plan_projection(launches, Convolution(module, count, "gate"), x, planes)
    grid = (launches.count_blocks("sample_pixels", "PIXELS", scale**2 * x.count),)
    out = Frame(is_output=True)
    launches.add_launch("sample_pixels", module, grid, planes, "start", "bias", out, x.height, x.width, scale)


def _plan_lda(launches: LaunchList, module: str, x: _Map, scale: int, channels: int) -> _Map:
    """Plan the attention of pixels to positions."""
    size, pixels = (x.height, x.width), scale**2 * x.count
    normal = launches.new_map(x.count, x.channels)
    grid: tuple[int, ...] = (launches.count_blocks("normalize_maps", "ROWS", x.count),)
    launches.add_launch("normalize_maps", module, grid, x.values, normal, x.count, channels, x.channels)
    planes = launches.new_floats(channels // 2, x.count)  # queries and keys
    # "gate" because it is 1×1: a projection to planes applies no gate
    _plan_projection(launches, Convolution(module, channels // 2, "gate"), _Map(normal, *size, x.channels), planes)

    part = channels // (4 * LDA_GROUPS)
    width = padded(LDA_GROUPS * part, launches.tile_size("convolve_pixels", "DEPTH"))
    moved = _Map(launches.new_map(pixels, width), scale * x.height, scale * x.width, width)
    grid = (launches.count_blocks("move_queries", "PIXELS", pixels), LDA_GROUPS + 1)
    weights = ("weight", "scale", "shift")
    launches.add_launch("move_queries", module, grid, planes, *weights, moved.values, *size, scale, part, width)
    count = 2 * POSITIONS * LDA_GROUPS
    offsets = launches.new_floats(count, pixels)
    _plan_projection(launches, Convolution(f"{module}.conv_offset", count), moved, offsets)

    out = _Map(launches.new_map(pixels, x.channels), moved.height, moved.width, x.channels)
    grid = (launches.count_blocks("attend_positions", "PIXELS", pixels),)
    inputs = (x.values, planes, offsets, "table")
    launches.add_launch("attend_positions", module, grid, *inputs, out.values, *size, scale, channels, x.channels)
    return out
