"""The tails that sample at computed positions: ``dysample``, and ``lda``, where each pixel attends to nine positions.

`upscale` is the factor of the tail: the output has upscale · height rows and upscale · width columns. Along each axis a
position lies between two tokens; its fraction is its distance from the first of them.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import load_rgb_bias, sigmoid, store_rgb


@triton.jit
def linear_weight(SECOND: tl.constexpr, fraction):
    """Return the linear interpolation weight of the first (SECOND = 0) or the second token (SECOND = 1) on an axis."""
    return fraction if SECOND else 1.0 - fraction


# dysample


@triton.jit
def sample_offset(planes, init_positions, channel, token, num_tokens, num_offsets, mask):
    """Return how far sampled positions are from their token on one axis: init_positions + offset · sigmoid(scope).

    See `dysample` for the planes. The scope of an offset is `num_offsets` planes after the offset.
    """
    offset = tl.load(planes + channel * num_tokens + token, mask=mask, other=0.0)
    scope = tl.load(planes + (num_offsets + channel) * num_tokens + token, mask=mask, other=0.0)
    return offset * sigmoid(scope) + tl.load(init_positions + channel, mask=mask, other=0.0)


@triton.jit
def clamped_neighbors(position, length):
    """Return the tokens before and after positions on an axis of `length` tokens, and the fractions.

    Positions outside the axis are clamped to its ends.
    """
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    # Clamp the integers too, because converting NaN may give any integer.
    first = tl.minimum(tl.maximum(position.to(tl.int32), 0), length - 1)
    return first, tl.minimum(first + 1, length - 1), position - first.to(tl.float32)


@triton.jit
def dysample(planes, init_positions, bias, image, height, width, upscale, BLOCK_PIXELS: tl.constexpr):
    """Sample the three planes of each of four groups bilinearly at learned positions; sum the groups, add `bias` (3).

    planes (16 · upscale² + 12, height, width): first the offsets (axis, group, y, x) with the x axis first, then their
    scopes in the same order, then the planes to sample (group, plane). init_positions (8 · upscale²); see
    `sample_offset`. image (3, upscale · height, upscale · width).
    """
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    num_tokens, num_subpixels = height * width, upscale * upscale
    out_width = width * upscale
    out_y, out_x = pixels // out_width, pixels % out_width
    mask = out_y < height * upscale
    y, x = out_y // upscale, out_x // upscale
    token, subpixel = y * width + x, out_y % upscale * upscale + out_x % upscale
    num_offsets = 8 * num_subpixels
    red, green, blue = load_rgb_bias(bias, BLOCK_PIXELS)
    for group in range(4):
        x_channel = group * num_subpixels + subpixel
        x_offset = sample_offset(planes, init_positions, x_channel, token, num_tokens, num_offsets, mask)
        left, right, x_fraction = clamped_neighbors(x + x_offset, width)
        y_channel = x_channel + 4 * num_subpixels
        y_offset = sample_offset(planes, init_positions, y_channel, token, num_tokens, num_offsets, mask)
        top, bottom, y_fraction = clamped_neighbors(y + y_offset, height)
        values = planes + (16 * num_subpixels + 3 * group) * num_tokens
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                pointers = values + (bottom if dy else top) * width + (right if dx else left)
                weight = linear_weight(dy, y_fraction) * linear_weight(dx, x_fraction)
                red += weight * tl.load(pointers, mask=mask, other=0.0)
                green += weight * tl.load(pointers + num_tokens, mask=mask, other=0.0)
                blue += weight * tl.load(pointers + 2 * num_tokens, mask=mask, other=0.0)
    store_rgb(image, pixels, height * upscale * out_width, red, green, blue, mask)


# lda


@triton.jit
def normalize_maps(maps, out, num_tokens, channels, padded_channels, BLOCK_ROWS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Normalize the first `channels` channels of each token of a map (num_tokens, padded_channels); the rest becomes 0.

    This is a LayerNorm whose weights are folded into the layer after it.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = (rows < num_tokens)[:, None]
    mean = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, padded_channels, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        pointers = maps + rows[:, None] * padded_channels + columns[None, :]
        x = tl.load(pointers, mask=row_mask & (columns < channels)[None, :], other=0.0).to(tl.float32)
        mean += tl.sum(x, 1)
    mean = mean / channels
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, padded_channels, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        pointers = maps + rows[:, None] * padded_channels + columns[None, :]
        x = tl.load(pointers, mask=row_mask & (columns < channels)[None, :], other=0.0).to(tl.float32)
        x = tl.where((columns < channels)[None, :], x - mean[:, None], 0.0)
        squares += tl.sum(x * x, 1)
    rstd = tl.rsqrt(squares / channels + 1e-6)
    for start in range(0, padded_channels, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        offsets = rows[:, None] * padded_channels + columns[None, :]
        x = tl.load(maps + offsets, mask=row_mask & (columns < channels)[None, :], other=0.0).to(tl.float32)
        x = tl.where((columns < channels)[None, :], (x - mean[:, None]) * rstd[:, None], 0.0)
        tl.store(out + offsets, x.to(out.dtype.element_ty), mask=row_mask)


@triton.jit
def source_coordinate(out_coordinate, length, last_pixel):
    """Return the token before each output pixel on an axis, and the fraction, for upsampling with aligned corners.

    Pixel 0 lies on the first of `length` tokens, and pixel `last_pixel` on the last one.
    """
    first = out_coordinate * (length - 1) // last_pixel
    return first, (out_coordinate * (length - 1) - first * last_pixel).to(tl.float32) / last_pixel


@triton.jit
def lda_offset_features(
    planes,
    weight,
    norm_weight,
    norm_bias,
    out,
    height,
    width,
    upscale,
    group_channels,
    padded_channels,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Upsample the queries; apply a depthwise 3×3 convolution, a norm and SiLU: the input of the offset convolution.

    The first planes (any, height, width) are the queries of two groups of `group_channels` channels. `group_channels`
    is an eighth of the tail's channels, whose number is stored in 8 bits, so it is at most BLOCK_C. Both groups use the
    same weight (9, group_channels), norm_weight and norm_bias (group_channels). out (upscale² · height · width,
    padded_channels). The program with group 2 writes the zeros of the padding.
    """
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    group = tl.program_id(1)
    columns = tl.arange(0, BLOCK_C)  # channels of the group
    column_mask = columns < tl.where(group < 2, group_channels, 0)
    out_height, out_width = height * upscale, width * upscale
    y, x = pixels // out_width, pixels % out_width
    pixel_mask = y < out_height
    query_planes = planes + (group * group_channels + columns)[None, :] * (height * width)
    acc = tl.zeros((BLOCK_PIXELS, BLOCK_C), tl.float32)
    for tap in range(9):
        tap_y, tap_x = y + tap // 3 - 1, x + tap % 3 - 1
        tap_mask = pixel_mask & (tap_y >= 0) & (tap_y < out_height) & (tap_x >= 0) & (tap_x < out_width)
        top, y_fraction = source_coordinate(tap_y, height, out_height - 1)
        left, x_fraction = source_coordinate(tap_x, width, out_width - 1)
        value = tl.zeros((BLOCK_PIXELS, BLOCK_C), tl.float32)
        for dy in tl.static_range(2):
            for dx in tl.static_range(2):
                bilinear = linear_weight(dy, y_fraction) * linear_weight(dx, x_fraction)
                offsets = tl.minimum(top + dy, height - 1) * width + tl.minimum(left + dx, width - 1)
                mask = tap_mask[:, None] & column_mask[None, :]
                value += bilinear[:, None] * tl.load(query_planes + offsets[:, None], mask=mask, other=0.0)
        acc += value * tl.load(weight + tap * group_channels + columns, mask=column_mask, other=0.0)[None, :]
    mean = tl.sum(acc, 1) / group_channels
    acc = tl.where(column_mask[None, :], acc - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(acc * acc, 1) / group_channels + 1e-6)
    acc = acc * rstd[:, None] * tl.load(norm_weight + columns, mask=column_mask, other=0.0)[None, :]
    acc += tl.load(norm_bias + columns, mask=column_mask, other=0.0)[None, :]
    acc = acc * sigmoid(acc)
    store_mask = columns < tl.where(group < 2, group_channels, padded_channels - 2 * group_channels)
    pointers = out + pixels[:, None] * padded_channels + (group * group_channels + columns)[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=pixel_mask[:, None] & store_mask[None, :])


@triton.jit
def deformed_coordinate(offset_pointers, out_coordinate, mask, length, last_pixel):
    """Return the token before each sampled position on an axis of `length` tokens, and the fractions.

    A position is the output pixel's, moved by 11 · tanh(offset) output pixels. It may lie outside the axis.
    """
    offset = tl.load(offset_pointers, mask=mask, other=0.0)
    position = (out_coordinate + 11.0 * (2.0 * sigmoid(2.0 * offset) - 1.0)) * ((length - 1.0) / last_pixel)
    first = tl.floor(position)
    return first.to(tl.int32), position - first


@triton.jit
def deformed_neighborhood(offsets, pixels, positions, mask, group, height, width, upscale):
    """Return y, the fraction of y, x and the fraction of x, (pixels, positions) each, of the positions of a group.

    If all offsets are 0, the nine positions are the 3×3 pixels around an output pixel.
    """
    out_height, out_width = height * upscale, width * upscale
    out_tokens = out_height * out_width
    y_pointers = offsets + (18 * group + 2 * positions)[None, :] * out_tokens + pixels[:, None]
    out_y = (pixels // out_width)[:, None] + (positions // 3 - 1)[None, :]
    out_x = (pixels % out_width)[:, None] + (positions % 3 - 1)[None, :]
    y, y_fraction = deformed_coordinate(y_pointers, out_y, mask, height, out_height - 1)
    x, x_fraction = deformed_coordinate(y_pointers + out_tokens, out_x, mask, width, out_width - 1)
    return y, y_fraction, x, x_fraction


@triton.jit
def lda_attention(
    maps,
    planes,
    offsets,
    position_bias,
    out,
    height,
    width,
    upscale,
    channels,
    padded_channels,
    BLOCK_PIXELS: tl.constexpr,
    PADDED_POSITIONS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Attention of each output pixel to nine sampled positions; each of two groups of channels has its own positions.

    planes (2 · hidden, height, width) are queries and keys. hidden = channels / 4, of which each group has half.
    offsets (36, upscale · height, upscale · width) are (group, position, axis) with the y axis first. position_bias (9,
    hidden) is added to the keys. maps (height · width, padded_channels) are the values. out (upscale² · height · width,
    padded_channels) is 0 in the padding beyond `channels`.
    """
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    positions = tl.arange(0, PADDED_POSITIONS)
    out_height, out_width, num_tokens = height * upscale, width * upscale, height * width
    out_y, out_x = pixels // out_width, pixels % out_width
    pixel_mask = out_y < out_height
    mask = pixel_mask[:, None] & (positions < 9)[None, :]
    hidden = channels // 4
    group_hidden, group_channels = hidden // 2, channels // 2

    query_y, query_y_fraction = source_coordinate(out_y, height, out_height - 1)
    query_x, query_x_fraction = source_coordinate(out_x, width, out_width - 1)
    scores = tl.zeros((BLOCK_PIXELS, PADDED_POSITIONS), tl.float32)
    for group in range(2):
        y, y_fraction, x, x_fraction = deformed_neighborhood(
            offsets, pixels, positions, mask, group, height, width, upscale
        )
        for channel in range(group * group_hidden, group * group_hidden + group_hidden):
            query = tl.zeros((BLOCK_PIXELS,), tl.float32)
            key = tl.load(position_bias + positions * hidden + channel, mask=positions < 9, other=0.0)[None, :]
            key = key + tl.zeros((BLOCK_PIXELS, PADDED_POSITIONS), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    token = tl.minimum(query_y + dy, height - 1) * width + tl.minimum(query_x + dx, width - 1)
                    weight = linear_weight(dy, query_y_fraction) * linear_weight(dx, query_x_fraction)
                    query += weight * tl.load(planes + channel * num_tokens + token, mask=pixel_mask, other=0.0)
                    key_y, key_x = y + dy, x + dx
                    key_mask = mask & (key_y >= 0) & (key_y < height) & (key_x >= 0) & (key_x < width)
                    pointers = planes + (hidden + channel) * num_tokens + key_y * width + key_x
                    weight = linear_weight(dy, y_fraction) * linear_weight(dx, x_fraction)
                    key += weight * tl.load(pointers, mask=key_mask, other=0.0)
            scores += query[:, None] * key
    scores = tl.where((positions < 9)[None, :], scores * tl.rsqrt(hidden.to(tl.float32)), float("-inf"))
    probs = tl.exp(scores - tl.max(scores, 1)[:, None])
    probs = probs / tl.sum(probs, 1)[:, None]

    for group in range(2):
        y, y_fraction, x, x_fraction = deformed_neighborhood(
            offsets, pixels, positions, mask, group, height, width, upscale
        )
        # The second group also writes the zeros of the padding beyond `channels`.
        end = group_channels + group * (padded_channels - 2 * group_channels)
        for start in range(0, end, BLOCK_C):
            columns = start + tl.arange(0, BLOCK_C)
            acc = tl.zeros((BLOCK_PIXELS, BLOCK_C), tl.float32)
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    value_y, value_x = y + dy, x + dx
                    in_map = mask & (value_y >= 0) & (value_y < height) & (value_x >= 0) & (value_x < width)
                    weight = probs * linear_weight(dy, y_fraction) * linear_weight(dx, x_fraction)
                    rows = value_y * width + value_x
                    value_channels = (group * group_channels + columns)[None, None, :]
                    value_offsets = rows[:, :, None] * padded_channels + value_channels
                    value_mask = in_map[:, :, None] & (columns < group_channels)[None, None, :]
                    values = tl.load(maps + value_offsets, mask=value_mask, other=0.0).to(tl.float32)
                    acc += tl.sum(weight[:, :, None] * values, 1)
            pointers = out + pixels[:, None] * padded_channels + (group * group_channels + columns)[None, :]
            tl.store(pointers, acc.to(out.dtype.element_ty), mask=pixel_mask[:, None] & (columns < end)[None, :])
