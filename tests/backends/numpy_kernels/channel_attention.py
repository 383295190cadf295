"""The kernels of `vsfdatrd.kernels.channel_attention` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    HEAD_DIM,
    Constants,
    Flat,
    Grid,
    assert_grid,
    depthwise,
    gelu,
    normalized,
    read,
    sigmoid,
    view,
    write_tokens,
)


def partial_moments(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    part_moments: Flat,
    part_sums: Flat,
    part_references: Flat,
    num_tokens: int,
    tiles_per_part: int,
) -> None:
    c, length = constants["C"], constants["BLOCK_ROWS"] * tiles_per_part
    parts = -(-num_tokens // length)
    assert_grid(grid, parts, c // constants["BLOCK_C"])
    normal = normalized(tokens, stats, num_tokens, c)
    for i in range(parts):
        part = normal[i * length : (i + 1) * length]
        difference = part - part[0]
        view(part_references, parts, c)[i] = part[0]
        view(part_sums, parts, c)[i] = difference.sum(0)
        view(part_moments, parts, c, c)[i] = difference.T @ difference


def merge_moments(
    constants: Constants,
    grid: Grid,
    part_moments: Flat,
    part_sums: Flat,
    part_references: Flat,
    covariance: Flat,
    mean: Flat,
    num_tokens: int,
    num_parts: int,
    tokens_per_part: int,
) -> None:
    c = constants["C"]
    assert_grid(grid, c // constants["BLOCK_C"], c // constants["BLOCK_C"])
    assert (num_parts - 1) * tokens_per_part < num_tokens <= num_parts * tokens_per_part
    lengths = np.minimum(tokens_per_part, num_tokens - tokens_per_part * np.arange(num_parts))[:, None]
    sums = view(part_sums, num_parts, c).astype(np.float64)
    means = view(part_references, num_parts, c).astype(np.float64) + sums / lengths
    total_mean = (means * lengths).sum(0) / num_tokens
    view(mean, c)[:] = total_mean
    within_parts = view(part_moments, num_parts, c, c).astype(np.float64).sum(0) - (sums / lengths).T @ sums
    between_parts = ((means - total_mean) * lengths).T @ (means - total_mean)
    view(covariance, c, c)[:] = (within_parts + between_parts) / num_tokens


def attend_value_weight(
    constants: Constants,
    grid: Grid,
    covariance: Flat,
    mean: Flat,
    qkv_weight: Flat,
    qkv_bias: Flat,
    temperature: Flat,
    attended_weight: Flat,
    attended_bias: Flat,
    num_tokens: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD_DIM
    assert_grid(grid, h)
    q, k, v = view(qkv_weight, 3, h, HEAD_DIM, c)
    q_bias, k_bias, v_bias = view(qkv_bias, 3, h, HEAD_DIM)
    moment = view(covariance, c, c)
    qs, ks = q @ moment, k @ moment
    qm, km = q @ view(mean, c) + q_bias, k @ view(mean, c) + k_bias
    floor = 1e-24 / num_tokens
    q_norm, k_norm = (np.sqrt(np.maximum((ws * w).sum(-1) + m**2, floor)) for ws, w, m in ((qs, q, qm), (ks, k, km)))
    products = qs @ k.transpose(0, 2, 1) + qm[:, :, None] * km[:, None]
    logits = products / (q_norm[:, :, None] * k_norm[:, None]) * view(temperature, h)[:, None, None]
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    view(attended_weight, h, HEAD_DIM, c)[:] = probs @ v
    view(attended_bias, h, HEAD_DIM)[:] = (probs @ v_bias[:, :, None])[..., 0]


def channel_attention_matrix(
    constants: Constants,
    grid: Grid,
    attended_weight: Flat,
    attended_bias: Flat,
    proj_weight: Flat,
    proj_bias: Flat,
    matrix: Flat,
    bias: Flat,
) -> None:
    c = constants["C"]
    assert_grid(grid, c // constants["BLOCK_C"], c // constants["BLOCK_C"])
    weight = view(proj_weight, c, c)
    view(matrix, c, c)[:] = (weight @ view(attended_weight, c, c)).T
    view(bias, c)[:] = weight @ view(attended_bias, c) + view(proj_bias, c)


def apply_channel_attention(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    matrix: Flat,
    bias: Flat,
    depthwise_weight: Flat,
    tap_bias: Flat,
    gate_weight: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
) -> None:
    c, n = constants["C"], height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    normal = normalized(tokens, stats, n, c)
    attention = normal @ read(matrix, c, c) + view(bias, c)
    conv = gelu(depthwise(normal, view(depthwise_weight, 9, c), view(tap_bias, 9, c), height, width))
    gate = sigmoid(attention @ view(gate_weight, c))[:, None]
    write_tokens(read(tokens, n, c) + attention + conv * gate, out, out_stats)
