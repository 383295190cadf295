"""The kernels of `vsfdatrd.kernels.dictionary_attention` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    EPS,
    HEAD_DIM,
    Constants,
    Flat,
    Grid,
    assert_grid,
    exp2,
    normalized,
    read,
    softmax2,
    view,
    write_tokens,
)


def refine_dictionary_parts(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    norm_weight: Flat,
    norm_bias: Flat,
    queries: Flat,
    key_weight: Flat,
    value_weight: Flat,
    part_values: Flat,
    part_max: Flat,
    part_sum: Flat,
    num_tokens: int,
    tiles_per_part: int,
    dict_tokens: int,
) -> None:
    c, h, length = constants["C"], constants["C"] // HEAD_DIM, constants["BLOCK_ROWS"] * tiles_per_part
    parts = -(-num_tokens // length)
    assert_grid(grid, parts, h, -(-dict_tokens // constants["BLOCK_DICT"]))
    normal = normalized(tokens, stats, num_tokens, c) * view(norm_weight, c) + view(norm_bias, c)
    renormalized = (normal - normal.mean(1, keepdims=True)) / np.sqrt(normal.var(1, keepdims=True) + EPS)
    k, v = (
        (renormalized @ read(w, c, c)).reshape(num_tokens, h, HEAD_DIM).transpose(1, 0, 2)
        for w in (key_weight, value_weight)
    )
    scores = read(queries, h, dict_tokens, HEAD_DIM) @ k.transpose(0, 2, 1)  # (h, M, N)
    for i in range(parts):
        part = scores[:, :, i * length : (i + 1) * length]
        row_max = part.max(-1)
        weights = exp2(part - row_max[..., None])
        view(part_max, parts, h, dict_tokens)[i] = row_max
        view(part_sum, parts, h, dict_tokens)[i] = weights.sum(-1)
        view(part_values, parts, h, dict_tokens, HEAD_DIM)[i] = weights @ v[:, i * length : (i + 1) * length]


def refine_dictionary(
    constants: Constants,
    grid: Grid,
    part_values: Flat,
    part_max: Flat,
    part_sum: Flat,
    dictionary: Flat,
    refined: Flat,
    num_parts: int,
    dict_tokens: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD_DIM
    m = dict_tokens
    assert_grid(grid, m, h)
    maxima = view(part_max, num_parts, h, m)
    weights = exp2(maxima - maxima.max(0))
    sums = (view(part_sum, num_parts, h, m) * weights).sum(0)
    values = (view(part_values, num_parts, h, m, HEAD_DIM) * weights[..., None]).sum(0) / sums[..., None]
    view(refined, m, c)[:] = view(dictionary, m, c) + values.transpose(1, 0, 2).reshape(m, c)


def dictionary_keys_values(
    constants: Constants, grid: Grid, refined: Flat, weight: Flat, keys: Flat, values: Flat, dict_tokens: int
) -> None:
    c = constants["C"]
    assert_grid(grid, -(-dict_tokens // constants["BLOCK_DICT"]), 2 * c // constants["BLOCK_COLUMNS"])
    both = view(refined, dict_tokens, c) @ view(weight, c, 2 * c)
    view(keys, dict_tokens, c)[:], view(values, dict_tokens, c)[:] = both[:, :c], both[:, c:]


def dictionary_attention(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    query_weight: Flat,
    query_bias: Flat,
    keys: Flat,
    values: Flat,
    proj_weight: Flat,
    proj_bias: Flat,
    out: Flat,
    out_stats: Flat,
    num_tokens: int,
    dict_tokens: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD_DIM
    assert_grid(grid, -(-num_tokens // constants["BLOCK_ROWS"]))
    queries = normalized(tokens, stats, num_tokens, c) @ read(query_weight, c, c) + view(query_bias, c)
    q, k, v = (
        x.reshape(-1, h, HEAD_DIM).transpose(1, 0, 2)
        for x in (queries, read(keys, dict_tokens, c), read(values, dict_tokens, c))
    )
    attention = (softmax2(q @ k.transpose(0, 2, 1)) @ v).transpose(1, 0, 2).reshape(num_tokens, c)
    projected = attention @ read(proj_weight, c, c) + view(proj_bias, c)
    write_tokens(read(tokens, num_tokens, c) + projected, out, out_stats)
