"""Convolutions of the tails: from maps to maps, from maps to pixels, and the last one of three planes.

A map is (height · width, inputs), in the type of the tail. `inputs` and `outputs` are multiples of the tiles: what a
network does not have is padded with zeros.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import operand, sigmoid


@triton.jit
def convolve_taps(
    maps,
    weight,
    rows,
    columns,
    top,
    left,
    side,
    height,
    width,
    inputs,
    outputs,
    DEPTH: tl.constexpr,
):
    """Return the products of side × side tokens, summed, for a weight (side² · inputs, outputs) of rows (tap, channel).

    The first tap of a token is `top` rows and `left` columns from it. Tokens outside the map are 0.
    """
    y, x = rows // width + top, rows % width + left
    steps = inputs // DEPTH
    total = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for step in range(side * side * steps):
        tap = step // steps
        row, column = y + tap // side, x + tap % side
        present = (rows < height * width) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        channels = step % steps * DEPTH + tl.arange(0, DEPTH)
        at = maps + (row * width + column)[:, None] * inputs + channels[None, :]
        tokens = tl.load(at, mask=present[:, None], other=0.0)
        terms = step * DEPTH + tl.arange(0, DEPTH)
        w = tl.load(weight + terms[:, None] * outputs + columns[None, :])
        total = tl.dot(operand(tokens), operand(w), total)
    return total


@triton.jit
def convolve_maps(
    maps,
    weight,
    bias,
    slopes,
    out,
    height,
    width,
    inputs,
    outputs,
    side,
    step,
    gated,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A convolution with `side` taps a side and leaky ReLU, to a map `step` times as high and as wide.

    Each of the step² pixels that a token becomes has a matrix and a bias: weight (step², side² · inputs, outputs), bias
    (step², outputs). With two taps a side, they are the upper (left) ones of a token in the first half of its pixels,
    and the lower (right) ones in the other. Negative values are multiplied by `slopes` (outputs). If `gated`, the
    result is before that the token itself, times the sigmoid of the convolution; it then has as many channels.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    phase = tl.program_id(2)
    a, b = phase // step, phase % step
    even = 1 - side % 2
    top, left = even * (2 * a // step) - side // 2, even * (2 * b // step) - side // 2
    matrix = weight + phase * side * side * inputs * outputs
    total = convolve_taps(maps, matrix, rows, columns, top, left, side, height, width, inputs, outputs, DEPTH)
    total += tl.load(bias + phase * outputs + columns)[None, :]
    inside = (rows < height * width)[:, None]
    if gated != 0:
        tokens = tl.load(maps + rows[:, None] * inputs + columns[None, :], mask=inside, other=0.0)
        total = tokens.to(tl.float32) * sigmoid(total)
    total = tl.where(total < 0, total * tl.load(slopes + columns)[None, :], total)
    places = (rows // width * step + a) * (width * step) + rows % width * step + b
    at = out + places[:, None] * outputs + columns[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def convolve_pixels(
    maps,
    weight,
    bias,
    planes,
    height,
    width,
    inputs,
    outputs,
    count,
    side,
    step,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """A convolution with `side` taps a side, odd, and a pixel shuffle by `step`, to planes in fp32.

    weight (side² · inputs, outputs), bias (outputs). Of the columns, which are (plane, row, column) of the shuffle, the
    first `count` are written: planes (count / step², step · height, step · width).
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = -(side // 2)
    total = convolve_taps(maps, weight, rows, columns, first, first, side, height, width, inputs, outputs, DEPTH)
    total += tl.load(bias + columns)[None, :]
    plane, phase = columns // (step * step), columns % (step * step)
    row = (rows // width * step)[:, None] + (plane * (height * step) + phase // step)[None, :]
    column = (rows % width * step)[:, None] + (phase % step)[None, :]
    inside = (rows < height * width)[:, None] & (columns < count)[None, :]
    tl.store(planes + row * (width * step) + column, total, mask=inside)


@triton.jit
def convolve_planes(planes, weight, bias, image, height, width, PIXELS: tl.constexpr):
    """3×3 convolution of three planes (3, height, width) in fp32: weight (3, 3, 3, 3), bias (3)."""
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixels // width, pixels % width
    red = tl.zeros((PIXELS,), tl.float32) + tl.load(bias)
    green = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 1)
    blue = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 2)
    for step in range(9):
        row, column = y + step // 3 - 1, x + step % 3 - 1
        present = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        for plane in tl.static_range(3):
            value = tl.load(planes + (plane * height + row) * width + column, mask=present, other=0.0)
            red += tl.load(weight + plane * 9 + step) * value
            green += tl.load(weight + 27 + plane * 9 + step) * value
            blue += tl.load(weight + 54 + plane * 9 + step) * value
    inside = y < height
    tl.store(image + pixels, red, mask=inside)
    tl.store(image + height * width + pixels, green, mask=inside)
    tl.store(image + 2 * height * width + pixels, blue, mask=inside)
