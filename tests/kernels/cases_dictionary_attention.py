"""The kernels of `dictionary_attention` compared with NumPy in float64, for dictionaries that fill no tile."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Case, Runner, cdiv, normalized, softmax, stats
from tests.kernels.random_tokens import parts_of, tokens_of


def cases() -> Iterator[Case]:
    for channels, precision, m, kind, sharp in (
        (96, "fp16", 37, "extreme", 1.0),
        (128, "fp16", 64, "ordinary", 40.0),
        (192, "bf16", 41, "ordinary", 1.0),
    ):
        yield from refined_dictionary(Runner(channels, precision, 1), m, kind, sharp)
        yield from dictionary_attention(Runner(channels, precision, 2), m, kind, sharp)
    yield from keys_values(Runner(128, "fp16", 3), 37)
    yield from keys_values(Runner(192, "bf16", 3), 41)


def refined_dictionary(run: Runner, m: int, kind: str, sharp: float) -> Iterator[Case]:
    """`sharp` multiplies queries: with 40, each query attends to nearly one token alone."""
    c, count, tiles = run.channels, 139, 2
    heads, rows = c // 32, run.constant("refine_dictionary_parts", "BLOCK_ROWS")
    t = tokens_of(run, count, kind)
    scale, shift = 1 + run.random(c, scale=0.3), run.random(c)
    queries = run.rounded(run.random(heads, m, 32) * 32**-0.5 * np.log2(np.e) * sharp)
    keys, values = run.random(c, c, scale=c**-0.5), run.random(c, c, scale=c**-0.5)
    dictionary = run.generator.standard_normal((m, c)) * 0.1
    parts = cdiv(count, rows * tiles)
    partial = run.run(
        "refine_dictionary_parts",
        (parts, heads, cdiv(m, run.constant("refine_dictionary_parts", "BLOCK_DICT"))),
        {"part_values": (parts, heads, m, 32), "part_max": (parts, heads, m), "part_sum": (parts, heads, m)},
        tokens=t,
        stats=stats(t),
        norm_weight=scale,
        norm_bias=shift,
        queries=queries,
        key_weight=keys,
        value_weight=values,
        num_tokens=count,
        tiles_per_part=tiles,
        dict_tokens=m,
    )
    got = run.run(
        "refine_dictionary",
        (m, heads),
        {"refined": (m, c)},
        **partial,
        dictionary=dictionary,
        num_parts=parts,
        dict_tokens=m,
    )
    x = normalized(normalized(t) * scale + shift)
    # As in the kernel, products are rounded: with sharp scores, an error of a score is one of its probability.
    x = run.rounded(x)
    k, v = (run.rounded(x @ w).reshape(count, heads, 32).transpose(1, 0, 2) for w in (keys, values))
    probs = softmax(queries @ k.transpose(0, 2, 1) * np.log(2))
    expected = dictionary + (probs @ v).transpose(1, 0, 2).reshape(m, c)
    yield Case(f"refine_dictionary {c} {run.precision} {m} {kind}", got["refined"], expected, run.limit)


def keys_values(run: Runner, m: int) -> Iterator[Case]:
    c = run.channels
    refined, weight = run.generator.standard_normal((m, c)), run.generator.standard_normal((c, 2 * c))
    kernel = "dictionary_keys_values"
    grid = (cdiv(m, run.constant(kernel, "BLOCK_DICT")), 2 * c // run.constant(kernel, "BLOCK_COLUMNS"))
    shapes = {"keys": (m, c), "values": (m, c)}
    got = run.run(kernel, grid, shapes, refined=refined, weight=weight, dict_tokens=m)
    for name, expected in zip(shapes, np.split(refined @ weight, 2, 1), strict=True):
        yield Case(f"{kernel} {run.precision} {name}", got[name], expected, run.limit)


def dictionary_attention(run: Runner, m: int, kind: str, sharp: float) -> Iterator[Case]:
    c, count = run.channels, 75
    heads = c // 32
    t = tokens_of(run, count, kind)
    query_weight = run.rounded(run.random(c, c, scale=c**-0.5) * 32**-0.5 * np.log2(np.e) * sharp)
    query_bias = run.generator.standard_normal(c) * 0.1
    keys, values = run.random(m, c), run.random(m, c)
    proj_weight, proj_bias = run.random(c, c, scale=0.1), run.random(c)
    got = run.run(
        "dictionary_attention",
        (cdiv(count, run.constant("dictionary_attention", "BLOCK_ROWS")),),
        {"out": (count, c), "out_stats": (count, 2)},
        tokens=t,
        stats=stats(t),
        query_weight=query_weight,
        query_bias=query_bias,
        keys=keys,
        values=values,
        proj_weight=proj_weight,
        proj_bias=proj_bias,
        num_tokens=count,
        dict_tokens=m,
    )
    q = run.rounded(run.rounded(normalized(t)) @ query_weight + query_bias).reshape(count, heads, 32).transpose(1, 0, 2)
    k, v = (each.reshape(m, heads, 32).transpose(1, 0, 2) for each in (keys, values))
    probs = softmax(q @ k.transpose(0, 2, 1) * np.log(2))
    attention = (probs @ v).transpose(1, 0, 2).reshape(count, c)
    expected = t + attention @ proj_weight + proj_bias
    name = f"dictionary_attention {c} {run.precision} {m} {kind}"
    for part, rows in parts_of(kind).items():
        yield Case(f"{name} {part}", got["out"][rows], expected[rows], run.limit)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)
