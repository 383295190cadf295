"""The kernels of `vsfdatrd.kernels.window_attention` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    HEAD_DIM,
    WINDOW_TOKENS,
    Constants,
    Flat,
    Grid,
    assert_grid,
    depthwise,
    gelu,
    normalized,
    read,
    sigmoid,
    softmax2,
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
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    values = normalized(tokens, stats, n, c) @ read(weight, c, 3 * c) + view(bias, 3 * c)
    view(qkv, n, 3 * c)[:] = windows(values, height, width, window_height, window_width)


def depthwise_gelu(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    depthwise_weight: Flat,
    tap_bias: Flat,
    conv: Flat,
    part_sums: Flat,
    height: int,
    width: int,
    tiles_per_part: int,
) -> None:
    c, n, length = constants["C"], height * width, constants["BLOCK_ROWS"] * tiles_per_part
    parts = -(-n // length)
    assert_grid(grid, parts, c // constants["BLOCK_C"])
    normal = normalized(tokens, stats, n, c)
    values = gelu(depthwise(normal, view(depthwise_weight, 9, c), view(tap_bias, 9, c), height, width))
    view(conv, n, c)[:] = values
    view(part_sums, parts, c)[:] = [values[i * length : (i + 1) * length].sum(0) for i in range(parts)]


def pooled_gate(
    constants: Constants,
    grid: Grid,
    part_sums: Flat,
    reduce_weight: Flat,
    expand_weight: Flat,
    gate: Flat,
    num_tokens: int,
    num_parts: int,
    gate_dim: int,
) -> None:
    c = constants["C"]
    assert_grid(grid, 1)
    mean = view(part_sums, num_parts, c).sum(0) / np.float32(num_tokens)
    hidden = gelu(view(reduce_weight, gate_dim, c) @ mean)
    view(gate, c)[:] = sigmoid(view(expand_weight, c, gate_dim) @ hidden)


def window_attention(
    constants: Constants,
    grid: Grid,
    qkv: Flat,
    position_bias: Flat,
    proj_weight: Flat,
    proj_bias: Flat,
    gate: Flat,
    conv: Flat,
    tokens: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
) -> None:
    c, n, h, padded = constants["C"], height * width, constants["C"] // HEAD_DIM, constants["PADDED_TOKENS"]
    assert_grid(grid, -(-WINDOW_TOKENS // constants["BLOCK_QUERIES"]), n // WINDOW_TOKENS)
    q, k, v = read(qkv, n // WINDOW_TOKENS, WINDOW_TOKENS, 3, h, HEAD_DIM).transpose(2, 0, 3, 1, 4)
    biases = read(position_bias, h, padded, padded)
    assert (biases[:, :WINDOW_TOKENS, WINDOW_TOKENS:] == -np.inf).all(), "keys that are not there are attended to"
    probs = softmax2(q @ k.transpose(0, 1, 3, 2) + biases[:, :WINDOW_TOKENS, :WINDOW_TOKENS])
    attention = (probs @ v).transpose(0, 2, 1, 3).reshape(n, c)
    values = attention @ read(proj_weight, c, c) + view(proj_bias, c)
    values = windows(values, height, width, window_height, window_width, back=True) * view(gate, c)
    write_tokens(read(tokens, n, c) + values + read(conv, n, c), out, out_stats)
