"""Plan how the CUDA kernels compute a tail, from the map of tokens to the output."""

from dataclasses import dataclass

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda.launches import Buffer, LaunchList
from vsfdatrd.backends.cuda.plan import ActiveParts, Frame
from vsfdatrd.backends.cuda.tails import (
    LDA_GROUPS,
    POSITIONS,
    PRODUCTS_PER_PIXEL,
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
    """Channels of a token in memory, including padding."""

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
    if tail.sampling and not tail.to_planes:
        _plan_dysample(launches, tail.sampling, x, scale)
    elif tail.sampling:
        x = _plan_lda(launches, tail.sampling, x, scale, config.mid_dim)
    if tail.to_planes and tail.rgb_conv:
        planes = launches.new_floats(3, scale**2 * x.count)
        _plan_conv_pixel_shuffle(launches, tail.to_planes, x, planes)
        size = scale * height, scale * width
        grid = (launches.count_blocks("conv_rgb", "BLOCK_PIXELS", scale**2 * x.count),)
        launches.add_launch("conv_rgb", tail.rgb_conv, grid, planes, "weight", "bias", frame, *size)
    elif tail.to_planes:
        _plan_conv_pixel_shuffle(launches, tail.to_planes, x, frame)


def _plan_transposed(launches: LaunchList, active: ActiveParts, x: _Map) -> None:
    """Plan ``transpose+conv`` at scale 4."""
    kernel = "conv_transpose_products"
    mid_channels = padded(active.mid_channels, launches.tile_size(kernel, "BLOCK_COLUMNS"))
    products = launches.new_floats(4 * x.count, PRODUCTS_PER_PIXEL)
    size = x.height, x.width
    grid: tuple[int, ...] = (launches.count_blocks(kernel, "BLOCK_ROWS", x.count), 4)
    weights = ("weight", "bias", "second_weight")
    launches.add_launch(kernel, "upsampler", grid, x.values, *weights, products, *size, mid_channels)
    kernel = "sum_products_conv_last"
    grid = (launches.count_blocks(kernel, "BLOCK_PIXELS", 16 * x.count),)
    weights = ("transpose_bias", "conv_weight", "conv_bias")
    launches.add_launch(kernel, "upsampler", grid, products, *weights, Frame(is_output=True), *size)


def _plan_convolution(launches: LaunchList, layer: Convolution, x: _Map) -> _Map:
    """Plan a convolution whose output is a map."""
    columns = launches.tile_size("conv_maps", "BLOCK_COLUMNS")
    out_channels, upscale = padded(layer.out_channels, columns), layer.upscale
    values = launches.new_map(upscale**2 * x.count, out_channels)
    out = _Map(values, upscale * x.height, upscale * x.width, out_channels)
    grid = (launches.count_blocks("conv_maps", "BLOCK_ROWS", x.count), out_channels // columns, upscale**2)
    weights = ("weight", "bias", "negative_slopes")
    form = (x.channels, out_channels, layer.kernel_size, upscale, int(layer.form == "gate"))
    launches.add_launch("conv_maps", layer.module, grid, x.values, *weights, out.values, x.height, x.width, *form)
    return out


def _plan_conv_pixel_shuffle(launches: LaunchList, layer: Convolution, x: _Map, out: Buffer | Frame) -> None:
    """Plan a convolution whose output is planes in fp32."""
    kernel = "conv_pixel_shuffle"
    columns, used_channels = launches.tile_size(kernel, "BLOCK_COLUMNS"), layer.upscale**2 * layer.out_channels
    out_channels = padded(used_channels, columns)
    grid = (launches.count_blocks(kernel, "BLOCK_ROWS", x.count), out_channels // columns)
    form = (x.channels, out_channels, used_channels, layer.kernel_size, layer.upscale)
    size = x.height, x.width
    launches.add_launch(kernel, layer.module, grid, x.values, "weight", "bias", out, *size, *form)


def _plan_dysample(launches: LaunchList, module: str, x: _Map, scale: int) -> None:
    """Plan ``dysample``: a 1×1 convolution to planes, then sampling of colors at learned positions."""
    count = count_dysample_planes(scale)
    planes = launches.new_floats(count, x.count)
    # The form "gate" is used for its kernel size of 1; `conv_pixel_shuffle` applies no gate.
    _plan_conv_pixel_shuffle(launches, Convolution(module, count, "gate"), x, planes)
    grid = (launches.count_blocks("dysample", "BLOCK_PIXELS", scale**2 * x.count),)
    out = Frame(is_output=True)
    launches.add_launch("dysample", module, grid, planes, "init_positions", "bias", out, x.height, x.width, scale)


def _plan_lda(launches: LaunchList, module: str, x: _Map, scale: int, channels: int) -> _Map:
    """Plan ``lda``: the attention of each output pixel to nine sampled positions."""
    size, pixels = (x.height, x.width), scale**2 * x.count
    normalized = launches.new_map(x.count, x.channels)
    grid: tuple[int, ...] = (launches.count_blocks("normalize_maps", "BLOCK_ROWS", x.count),)
    launches.add_launch("normalize_maps", module, grid, x.values, normalized, x.count, channels, x.channels)
    planes = launches.new_floats(channels // 2, x.count)  # queries and keys
    # The form "gate" is used for its kernel size of 1; `conv_pixel_shuffle` applies no gate.
    queries_keys = Convolution(module, channels // 2, "gate")
    _plan_conv_pixel_shuffle(launches, queries_keys, _Map(normalized, *size, x.channels), planes)

    group_channels = channels // (4 * LDA_GROUPS)
    width = padded(LDA_GROUPS * group_channels, launches.tile_size("conv_pixel_shuffle", "BLOCK_K"))
    features = _Map(launches.new_map(pixels, width), scale * x.height, scale * x.width, width)
    kernel = "lda_offset_features"
    grid = (launches.count_blocks(kernel, "BLOCK_PIXELS", pixels), LDA_GROUPS + 1)
    weights = ("weight", "norm_weight", "norm_bias")
    form = (*size, scale, group_channels, width)
    launches.add_launch(kernel, module, grid, planes, *weights, features.values, *form)
    count = 2 * POSITIONS * LDA_GROUPS
    offsets = launches.new_floats(count, pixels)
    _plan_conv_pixel_shuffle(launches, Convolution(f"{module}.conv_offset", count), features, offsets)

    out = _Map(launches.new_map(pixels, x.channels), features.height, features.width, x.channels)
    grid = (launches.count_blocks("lda_attention", "BLOCK_PIXELS", pixels),)
    inputs = (x.values, planes, offsets, "position_bias")
    launches.add_launch("lda_attention", module, grid, *inputs, out.values, *size, scale, channels, x.channels)
    return out
