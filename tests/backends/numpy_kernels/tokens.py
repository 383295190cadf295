"""The kernels of `vsfdatrd.kernels.tokens` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    Constants,
    Flat,
    Grid,
    covers,
    depthwise,
    gelu,
    normalized,
    read,
    sigmoid,
    view,
    windows,
    write_tokens,
)


def norm_qkv(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    weight: Flat,
    bias: Flat,
    qkv: Flat,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
) -> None:
    c, n = constants["C"], height * width
    covers(grid, -(-n // constants["ROWS"]))
    values = normalized(tokens, stats, n, c) @ read(weight, c, 3 * c) + view(bias, 3 * c)
    view(qkv, n, 3 * c)[:] = windows(values, height, width, window_height, window_width)


def mix_local(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    weight: Flat,
    shift: Flat,
    local: Flat,
    sums: Flat,
    height: int,
    width: int,
    tiles: int,
) -> None:
    c, n, length = constants["C"], height * width, constants["ROWS"] * tiles
    parts = -(-n // length)
    covers(grid, parts, c // constants["BLOCK"])
    normal = normalized(tokens, stats, n, c)
    values = gelu(depthwise(normal, view(weight, 9, c), view(shift, 9, c), height, width))
    view(local, n, c)[:] = values
    view(sums, parts, c)[:] = [values[i * length : (i + 1) * length].sum(0) for i in range(parts)]


def gate_pool(
    constants: Constants,
    grid: Grid,
    sums: Flat,
    narrow: Flat,
    wide: Flat,
    gate: Flat,
    count: int,
    parts: int,
    hidden_width: int,
) -> None:
    c = constants["C"]
    covers(grid, 1)
    mean = view(sums, parts, c).sum(0) / np.float32(count)
    view(gate, c)[:] = sigmoid(view(wide, c, hidden_width) @ gelu(view(narrow, hidden_width, c) @ mean))


def feed_in(
    constants: Constants, grid: Grid, tokens: Flat, stats: Flat, weight: Flat, bias: Flat, hidden: Flat, count: int
) -> None:
    c, f = constants["C"], 2 * constants["C"]
    covers(grid, -(-count // constants["ROWS"]))
    values = normalized(tokens, stats, count, c) @ read(weight, c, f) + view(bias, f)
    view(hidden, count, f)[:] = gelu(values)


def feed_out(
    constants: Constants,
    grid: Grid,
    hidden: Flat,
    mix: Flat,
    weight: Flat,
    tokens: Flat,
    out: Flat,
    stats: Flat,
    height: int,
    width: int,
) -> None:
    c, f, n = constants["C"], 2 * constants["C"], height * width
    covers(grid, -(-n // constants["ROWS"]))
    mixed = depthwise(read(hidden, n, f), view(mix, 9, f), None, height, width)
    write_tokens(mixed @ read(weight, f, c) + read(tokens, n, c), out, stats)
