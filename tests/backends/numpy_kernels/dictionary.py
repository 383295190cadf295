"""The kernels of `vsfdatrd.kernels.dictionary` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    EPS,
    HEAD,
    Constants,
    Flat,
    Grid,
    covers,
    exp2,
    normalized,
    read,
    softmax2,
    view,
    write_tokens,
)


def read_frame(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    scale: Flat,
    shift: Flat,
    queries: Flat,
    keys: Flat,
    values: Flat,
    found: Flat,
    top: Flat,
    total: Flat,
    count: int,
    tiles: int,
    words: int,
) -> None:
    c, h, length = constants["C"], constants["C"] // HEAD, constants["ROWS"] * tiles
    parts = -(-count // length)
    covers(grid, parts, h, -(-words // constants["WORDS"]))
    normal = normalized(tokens, stats, count, c) * view(scale, c) + view(shift, c)
    again = (normal - normal.mean(1, keepdims=True)) / np.sqrt(normal.var(1, keepdims=True) + EPS)
    k, v = ((again @ read(w, c, c)).reshape(count, h, HEAD).transpose(1, 0, 2) for w in (keys, values))
    scores = read(queries, h, words, HEAD) @ k.transpose(0, 2, 1)  # (h, words, N)
    for i in range(parts):
        part = scores[:, :, i * length : (i + 1) * length]
        highest = part.max(-1)
        shares = exp2(part - highest[..., None])
        view(top, parts, h, words)[i] = highest
        view(total, parts, h, words)[i] = shares.sum(-1)
        view(found, parts, h, words, HEAD)[i] = shares @ v[:, i * length : (i + 1) * length]


def join_words(
    constants: Constants,
    grid: Grid,
    found: Flat,
    top: Flat,
    total: Flat,
    base: Flat,
    refined: Flat,
    parts: int,
    words: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD
    covers(grid, words, h)
    tops = view(top, parts, h, words)
    shares = exp2(tops - tops.max(0))
    sums = (view(total, parts, h, words) * shares).sum(0)
    joined = (view(found, parts, h, words, HEAD) * shares[..., None]).sum(0) / sums[..., None]
    view(refined, words, c)[:] = view(base, words, c) + joined.transpose(1, 0, 2).reshape(words, c)


def refine_words(
    constants: Constants, grid: Grid, refined: Flat, weight: Flat, keys: Flat, values: Flat, words: int
) -> None:
    c = constants["C"]
    covers(grid, -(-words // constants["WORDS"]), 2 * c // constants["COLUMNS"])
    both = view(refined, words, c) @ view(weight, c, 2 * c)
    view(keys, words, c)[:], view(values, words, c)[:] = both[:, :c], both[:, c:]


def consult_words(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    query: Flat,
    query_bias: Flat,
    keys: Flat,
    values: Flat,
    projection: Flat,
    projection_bias: Flat,
    out: Flat,
    out_stats: Flat,
    count: int,
    words: int,
) -> None:
    c, h = constants["C"], constants["C"] // HEAD
    covers(grid, -(-count // constants["ROWS"]))
    queries = normalized(tokens, stats, count, c) @ read(query, c, c) + view(query_bias, c)
    q, k, v = (
        x.reshape(-1, h, HEAD).transpose(1, 0, 2) for x in (queries, read(keys, words, c), read(values, words, c))
    )
    attention = (softmax2(q @ k.transpose(0, 2, 1)) @ v).transpose(1, 0, 2).reshape(count, c)
    projected = attention @ read(projection, c, c) + view(projection_bias, c)
    write_tokens(read(tokens, count, c) + projected, out, out_stats)
