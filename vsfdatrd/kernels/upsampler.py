"""Convolutions of the tails: map to map, map to planes, planes to RGB, and the two kernels of ``transpose+conv`` at 4×.

A map is (height · width, channels), in the type of the tail. `in_channels` and `out_channels` are padded with zeros to
multiples of the tile sizes.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import add_rgb_tap, gelu, load_rgb_bias, round_to_tf32, sigmoid, store_rgb


@triton.jit
def conv_columns(
    maps,
    weight,
    rows,
    columns,
    first_y,
    first_x,
    kernel_size,
    height,
    width,
    in_channels,
    out_channels,
    BLOCK_K: tl.constexpr,
):
    """Return output channels `columns` of a convolution, without its bias: (rows, columns) in fp32.

    weight (kernel_size² · in_channels, out_channels) has rows (tap, channel). `first_y` and `first_x` are the position
    of the first tap relative to the output token. Tokens outside the map are 0.
    """
    y, x = rows // width + first_y, rows % width + first_x
    steps = in_channels // BLOCK_K
    acc = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for step in range(kernel_size * kernel_size * steps):
        tap = step // steps
        tap_y, tap_x = y + tap // kernel_size, x + tap % kernel_size
        mask = (rows < height * width) & (tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width)
        channels = step % steps * BLOCK_K + tl.arange(0, BLOCK_K)
        pointers = maps + (tap_y * width + tap_x)[:, None] * in_channels + channels[None, :]
        tokens = tl.load(pointers, mask=mask[:, None], other=0.0)
        weight_rows = step * BLOCK_K + tl.arange(0, BLOCK_K)
        w = tl.load(weight + weight_rows[:, None] * out_channels + columns[None, :])
        acc = tl.dot(round_to_tf32(tokens), round_to_tf32(w), acc)
    return acc


@triton.jit
def conv_maps(
    maps,
    weight,
    bias,
    negative_slopes,
    out,
    height,
    width,
    in_channels,
    out_channels,
    kernel_size,
    upscale,
    gated,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Convolution and leaky ReLU, with an output map that is `upscale` times as high and wide as the input.

    Each of the upscale² subpixels of a token has its own matrix and bias: weight (upscale², kernel_size² · in_channels,
    out_channels), bias (upscale², out_channels). If kernel_size is 2, subpixels in the upper (left) half of a token
    read the token and the one above it (to the left), and the others read the token and the one below it (to the
    right). Negative values are multiplied by `negative_slopes` (out_channels). If `gated`, the input of the leaky ReLU
    is the token itself times the sigmoid of the convolution; in_channels and out_channels are then equal.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    subpixel = tl.program_id(2)
    sub_y, sub_x = subpixel // upscale, subpixel % upscale
    even = 1 - kernel_size % 2
    first_y = even * (2 * sub_y // upscale) - kernel_size // 2
    first_x = even * (2 * sub_x // upscale) - kernel_size // 2
    matrix = weight + subpixel * kernel_size * kernel_size * in_channels * out_channels
    acc = conv_columns(
        maps, matrix, rows, columns, first_y, first_x, kernel_size, height, width, in_channels, out_channels, BLOCK_K
    )
    acc += tl.load(bias + subpixel * out_channels + columns)[None, :]
    mask = (rows < height * width)[:, None]
    if gated != 0:
        tokens = tl.load(maps + rows[:, None] * in_channels + columns[None, :], mask=mask, other=0.0)
        acc = tokens.to(tl.float32) * sigmoid(acc)
    acc = tl.where(acc < 0, acc * tl.load(negative_slopes + columns)[None, :], acc)
    out_rows = (rows // width * upscale + sub_y) * (width * upscale) + rows % width * upscale + sub_x
    pointers = out + out_rows[:, None] * out_channels + columns[None, :]
    tl.store(pointers, acc.to(out.dtype.element_ty), mask=mask)


@triton.jit
def conv_pixel_shuffle(
    maps,
    weight,
    bias,
    planes,
    height,
    width,
    in_channels,
    out_channels,
    used_channels,
    kernel_size,
    upscale,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Convolution with an odd kernel size and pixel shuffle by `upscale`, with planes in fp32 as output.

    weight (kernel_size² · in_channels, out_channels), bias (out_channels). Output channels are (plane, y, x) of the
    shuffle. Only the first `used_channels` of them are written: planes (used_channels / upscale², upscale · height,
    upscale · width).
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    first = -(kernel_size // 2)
    acc = conv_columns(
        maps, weight, rows, columns, first, first, kernel_size, height, width, in_channels, out_channels, BLOCK_K
    )
    acc += tl.load(bias + columns)[None, :]
    plane, subpixel = columns // (upscale * upscale), columns % (upscale * upscale)
    y = (rows // width * upscale)[:, None] + (plane * (height * upscale) + subpixel // upscale)[None, :]
    x = (rows % width * upscale)[:, None] + (subpixel % upscale)[None, :]
    mask = (rows < height * width)[:, None] & (columns < used_channels)[None, :]
    tl.store(planes + y * (width * upscale) + x, acc, mask=mask)


@triton.jit
def conv_rgb(planes, weight, bias, image, height, width, BLOCK_PIXELS: tl.constexpr):
    """3×3 convolution in fp32 of planes (3, height, width), with weight (3, 3, 3, 3) and bias (3)."""
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    y, x = pixels // width, pixels % width
    red, green, blue = load_rgb_bias(bias, BLOCK_PIXELS)
    for tap in range(9):
        tap_y, tap_x = y + tap // 3 - 1, x + tap % 3 - 1
        mask = (tap_y >= 0) & (tap_y < height) & (tap_x >= 0) & (tap_x < width)
        for plane in tl.static_range(3):
            value = tl.load(planes + (plane * height + tap_y) * width + tap_x, mask=mask, other=0.0)
            red, green, blue = add_rgb_tap(red, green, blue, weight, plane, tap, value)
    store_rgb(image, pixels, height * width, red, green, blue, y < height)


@triton.jit
def conv_transpose_products(
    maps,
    weight,
    bias,
    second_weight,
    products,
    height,
    width,
    mid_channels,
    C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """First 4×4 transposed convolution with stride 2, GELU, and the products of the second one before they are summed.

    A program computes one of the four subpixels of each token. A subpixel depends on 2×2 tokens: weight (4 subpixels,
    4 · C, mid_channels) has rows (token, channel). second_weight (mid_channels, 64) has columns (plane · 16 + tap); the
    last 16 are padding. products (4N, 48) has a row for each pixel of the map at twice the size.
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    subpixel = tl.program_id(1)
    y, x = rows // width, rows % width
    row_mask = rows < height * width
    product_columns = tl.arange(0, 64)
    acc = tl.zeros((BLOCK_ROWS, 64), tl.float32)
    matrix = weight + subpixel * (4 * C) * mid_channels
    first_y, first_x = subpixel // 2 - 1, subpixel % 2 - 1
    for start in range(0, mid_channels, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        hidden = conv_columns(maps, matrix, rows, columns, first_y, first_x, 2, height, width, C, mid_channels, BLOCK_K)
        hidden = gelu(hidden + tl.load(bias + columns)[None, :]).to(second_weight.dtype.element_ty)
        w = tl.load(second_weight + columns[:, None] * 64 + product_columns[None, :])
        acc = tl.dot(round_to_tf32(hidden), round_to_tf32(w), acc)
    out_rows = (2 * y + subpixel // 2) * (2 * width) + 2 * x + subpixel % 2
    pointers = products + out_rows[:, None] * 48 + product_columns[None, :]
    tl.store(pointers, acc, mask=row_mask[:, None] & (product_columns < 48)[None, :])


@triton.jit
def sum_products_conv_last(
    products, transpose_bias, conv_weight, conv_bias, image, height, width, BLOCK_PIXELS: tl.constexpr
):
    """Sum the products of `conv_transpose_products` (second transposed convolution) and apply the last 3×3 convolution.

    Everything is computed in fp32. transpose_bias (3) belongs to the second transposed convolution, and conv_weight (3,
    3, 3, 3) and conv_bias (3) to the last convolution. image (3, 4 · height, 4 · width).
    """
    pixels = tl.program_id(0) * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    out_height, out_width = 4 * height, 4 * width
    y, x = pixels // out_width, pixels % out_width
    red, green, blue = load_rgb_bias(conv_bias, BLOCK_PIXELS)
    for tap in range(9):
        tap_y, tap_x = y + tap // 3 - 1, x + tap % 3 - 1
        mask = (tap_y >= 0) & (tap_y < out_height) & (tap_x >= 0) & (tap_x < out_width)
        for plane in tl.static_range(3):
            value = tl.zeros((BLOCK_PIXELS,), tl.float32) + tl.load(transpose_bias + plane)
            # The 2×2 pixels of the map at twice the size on which this pixel depends
            for dy in tl.static_range(2):
                for dx in tl.static_range(2):
                    in_y, in_x = tap_y // 2 + dy - 1 + tap_y % 2, tap_x // 2 + dx - 1 + tap_x % 2
                    in_mask = mask & (in_y >= 0) & (in_y < 2 * height) & (in_x >= 0) & (in_x < 2 * width)
                    transpose_tap = 4 * (3 - tap_y % 2 - 2 * dy) + 3 - tap_x % 2 - 2 * dx
                    pointers = products + (in_y * (2 * width) + in_x) * 48 + plane * 16 + transpose_tap
                    value += tl.load(pointers, mask=in_mask, other=0.0)
            value = tl.where(mask, value, 0.0)
            red, green, blue = add_rgb_tap(red, green, blue, conv_weight, plane, tap, value)
    store_rgb(image, pixels, out_height * out_width, red, green, blue, y < out_height)
