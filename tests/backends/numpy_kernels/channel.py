"""The kernels of `vsfdatrd.kernels.channel` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    HEAD,
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
    write_tokens,
)


def second_moment(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    moments: Flat,
    sums: Flat,
    references: Flat,
    count: int,
    tiles: int,
) -> None:
    c, length = constants["C"], constants["ROWS"] * tiles
    parts = -(-count // length)
    covers(grid, parts, c // constants["BLOCK"])
    normal = normalized(tokens, stats, count, c)
    for i in range(parts):
        part = normal[i * length : (i + 1) * length]
        away = part - part[0]
        view(references, parts, c)[i] = part[0]
        view(sums, parts, c)[i] = away.sum(0)
        view(moments, parts, c, c)[i] = away.T @ away


def merge_moments(
    constants: Constants,
    grid: Grid,
    moments: Flat,
    sums: Flat,
    references: Flat,
    covariance: Flat,
    mean: Flat,
    count: int,
    parts: int,
    part_tokens: int,
) -> None:
    c = constants["C"]
    covers(grid, c // constants["SIDE"], c // constants["SIDE"])
    assert (parts - 1) * part_tokens < count <= parts * part_tokens
    lengths = np.minimum(part_tokens, count - part_tokens * np.arange(parts))[:, None].astype(np.float64)
    away, around = view(sums, parts, c).astype(np.float64), view(references, parts, c).astype(np.float64)
    means = around + away / lengths
    center = (means * lengths).sum(0) / count
    view(mean, c)[:] = center
    within = view(moments, parts, c, c).astype(np.float64).sum(0) - (away / lengths).T @ away
    between = ((means - center) * lengths).T @ (means - center)
    view(covariance, c, c)[:] = (within + between) / count


def mix_channels(
    constants: Constants,
    grid: Grid,
    covariance: Flat,
    mean: Flat,
    weight: Flat,
    shift: Flat,
    temperature: Flat,
    mixed: Flat,
    mixed_shift: Flat,
    count: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD
    covers(grid, h)
    q, k, v = view(weight, 3, h, HEAD, c)
    moves = view(shift, 3, h, HEAD)
    spread_out, center = view(covariance, c, c), view(mean, c)
    qs, ks = q @ spread_out, k @ spread_out
    qm, km = q @ center + moves[0], k @ center + moves[1]
    floor = 1e-24 / count
    q_norm, k_norm = (np.sqrt(np.maximum((ws * w).sum(-1) + m**2, floor)) for ws, w, m in ((qs, q, qm), (ks, k, km)))
    products = qs @ k.transpose(0, 2, 1) + qm[:, :, None] * km[:, None]
    logits = products / (q_norm[:, :, None] * k_norm[:, None]) * view(temperature, h)[:, None, None]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    view(mixed, h, HEAD, c)[:] = shares @ v
    view(mixed_shift, h, HEAD)[:] = (shares @ moves[2][:, :, None])[..., 0]


def channel_matrix(
    constants: Constants,
    grid: Grid,
    mixed: Flat,
    mixed_shift: Flat,
    projection: Flat,
    projection_bias: Flat,
    matrix: Flat,
    bias: Flat,
) -> None:
    c = constants["C"]
    covers(grid, c // constants["SIDE"], c // constants["SIDE"])
    weight = view(projection, c, c)
    view(matrix, c, c)[:] = (weight @ view(mixed, c, c)).T
    view(bias, c)[:] = weight @ view(mixed_shift, c) + view(projection_bias, c)


def apply_channel(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    matrix: Flat,
    bias: Flat,
    weight: Flat,
    shift: Flat,
    gate: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
) -> None:
    c, n = constants["C"], height * width
    covers(grid, -(-n // constants["ROWS"]))
    normal = normalized(tokens, stats, n, c)
    attention = normal @ read(matrix, c, c) + view(bias, c)
    local = gelu(depthwise(normal, view(weight, 9, c), view(shift, 9, c), height, width))
    gates = sigmoid(attention @ view(gate, c))[:, None]
    write_tokens(read(tokens, n, c) + attention + local * gates, out, out_stats)
