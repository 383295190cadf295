"""The first convolution, the convolutions of groups, and the tail `transpose+conv`, 4 times."""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import (
    add_product,
    add_tokens,
    gelu,
    neighbors,
    operand,
    store_blocks,
    store_tokens,
    zeros,
)


@triton.jit
def first_convolution(
    image,
    weight,
    bias,
    shallow,
    tokens,
    stats,
    height,
    width,
    unshuffle,
    terms,
    padded_terms,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """3×3 convolution after a pixel unshuffle, as one kernel of 3 · `unshuffle` pixels a side, in fp32.

    image (planes, height · unshuffle, width · unshuffle). weight (padded_terms, C): the first `terms` rows are those of
    (plane, row, column) of the kernel, the others 0. The result is stored in fp32 (`shallow`) and as tokens.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < height * width
    side = 3 * unshuffle
    tall, wide = height * unshuffle, width * unshuffle
    y, x = rows // width * unshuffle - unshuffle, rows % width * unshuffle - unshuffle
    sums = zeros(ROWS, C, BLOCK)
    for start in range(0, padded_terms, DEPTH):
        term = start + tl.arange(0, DEPTH)
        row = y[:, None] + (term // side % side)[None, :]
        column = x[:, None] + (term % side)[None, :]
        present = inside[:, None] & (term < terms)[None, :]
        present = present & (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
        at = image + ((term // (side * side))[None, :] * tall + row) * wide + column
        pixels = tl.load(at, mask=present, other=0.0)
        added = ()
        for j in tl.static_range(C // BLOCK):
            w = tl.load(weight + term[:, None] * C + (j * BLOCK + tl.arange(0, BLOCK))[None, :])
            # Three products of tf32 are as exact as fp32: these values are a part of the image until the end.
            added = added + (tl.dot(pixels, w, sums[j], input_precision="tf32x3"),)
        sums = added
    results = ()
    for j in tl.static_range(C // BLOCK):
        results = results + (sums[j] + tl.load(bias + j * BLOCK + tl.arange(0, BLOCK))[None, :],)
    store_blocks(results, shallow, rows, inside, C, BLOCK)
    store_tokens(results, tokens, stats, rows, inside, C, BLOCK)


@triton.jit
def convolve(tokens, weight, rows, height, width, C: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr):
    """Return a 3×3 convolution of tokens, for a weight (9 · C, C) whose rows are (tap, channel)."""
    sums = zeros(rows.shape[0], C, BLOCK)
    for step in range(9 * C // DEPTH):
        places, present = neighbors(rows, step // (C // DEPTH), height, width)
        channels = step % (C // DEPTH) * DEPTH + tl.arange(0, DEPTH)
        x = tl.load(tokens + places[:, None] * C + channels[None, :], mask=present[:, None], other=0.0)
        sums = add_product(sums, x, weight, step * DEPTH + tl.arange(0, DEPTH), C, BLOCK)
    return sums


@triton.jit
def convolve_group(
    tokens,
    weight,
    skip,
    out,
    stats,
    height,
    width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """skip + the 3×3 convolution of tokens, at the end of a group: see `convolve`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < height * width
    sums = convolve(tokens, weight, rows, height, width, C, BLOCK, DEPTH)
    store_tokens(add_tokens(sums, skip, rows, inside, C, BLOCK), out, stats, rows, inside, C, BLOCK)


@triton.jit
def convolve_after(
    tokens,
    weight,
    skip,
    out,
    height,
    width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """skip + the 3×3 convolution of tokens, after all groups: skip is fp32, and out of the type of the tail."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < height * width
    sums = convolve(tokens, weight, rows, height, width, C, BLOCK, DEPTH)
    store_blocks(add_tokens(sums, skip, rows, inside, C, BLOCK), out, rows, inside, C, BLOCK)


@triton.jit
def spread(
    maps,
    weight,
    bias,
    last,
    taps,
    height,
    width,
    middle,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """First transposed 4×4 convolution with stride 2, GELU, and the products of the second one, not yet summed.

    A program computes one of the four pixels that a token becomes. Each depends on 2×2 tokens: weight (4 pixels, 4 · C,
    middle), rows (token, channel). last (middle, 64) has columns (plane · 16 + tap), and `taps` (4N, 48), in the order
    of the map of twice the size, are the products.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    phase = tl.program_id(1)
    y, x = rows // width, rows % width
    inside = rows < height * width
    lanes = tl.arange(0, 64)
    products = tl.zeros((ROWS, 64), tl.float32)
    for start in range(0, middle, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(4 * C // DEPTH):
            tap = step // (C // DEPTH)
            row, column = y + tap // 2 - 1 + phase // 2, x + tap % 2 - 1 + phase % 2
            present = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            channels = step % (C // DEPTH) * DEPTH + tl.arange(0, DEPTH)
            at = maps + (row * width + column)[:, None] * C + channels[None, :]
            tokens = tl.load(at, mask=present[:, None], other=0.0)
            terms = phase * (4 * C) + step * DEPTH + tl.arange(0, DEPTH)
            w = tl.load(weight + terms[:, None] * middle + columns[None, :])
            total = tl.dot(operand(tokens), operand(w), total)
        total = gelu(total + tl.load(bias + columns)[None, :]).to(last.dtype.element_ty)
        w = tl.load(last + columns[:, None] * 64 + lanes[None, :])
        products = tl.dot(operand(total), operand(w), products)
    places = (2 * y + phase // 2) * (2 * width) + 2 * x + phase % 2
    tl.store(taps + places[:, None] * 48 + lanes[None, :], products, mask=inside[:, None] & (lanes < 48)[None, :])


@triton.jit
def gather(taps, bias, weight, last_bias, image, height, width, PIXELS: tl.constexpr):
    """Sum the products of `spread` to the second transposed convolution, and compute the last 3×3 convolution, in fp32.

    bias (3) belongs to the transposed convolution; weight (3, 3, 3, 3) and last_bias (3) to the last. The image is (3,
    4 · height, 4 · width).
    """
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    tall, wide = 4 * height, 4 * width
    y, x = pixels // wide, pixels % wide
    red = tl.zeros((PIXELS,), tl.float32) + tl.load(last_bias)
    green = tl.zeros((PIXELS,), tl.float32) + tl.load(last_bias + 1)
    blue = tl.zeros((PIXELS,), tl.float32) + tl.load(last_bias + 2)
    for step in range(9):
        row, column = y + step // 3 - 1, x + step % 3 - 1
        inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
        for plane in tl.static_range(3):
            value = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + plane)
            for p in tl.static_range(2):
                for q in tl.static_range(2):
                    above, left = row // 2 + p - 1 + row % 2, column // 2 + q - 1 + column % 2
                    present = inside & (above >= 0) & (above < 2 * height) & (left >= 0) & (left < 2 * width)
                    tap = 4 * (3 - row % 2 - 2 * p) + 3 - column % 2 - 2 * q
                    at = taps + (above * (2 * width) + left) * 48 + plane * 16 + tap
                    value += tl.load(at, mask=present, other=0.0)
            value = tl.where(inside, value, 0.0)
            red += tl.load(weight + plane * 9 + step) * value
            green += tl.load(weight + 27 + plane * 9 + step) * value
            blue += tl.load(weight + 54 + plane * 9 + step) * value
    inside = y < tall
    tl.store(image + pixels, red, mask=inside)
    tl.store(image + tall * wide + pixels, green, mask=inside)
    tl.store(image + 2 * tall * wide + pixels, blue, mask=inside)
