"""The kernels of `dictionary` compared with NumPy in float64, for numbers of words that are not multiples of a tile."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_tokens import parts_of, tokens_of
from tests.kernels.interpreter import Case, Runner, cdiv, normalized, softmax, stats


def cases() -> Iterator[Case]:
    for channels, precision, words, kind, sharp in (
        (96, "fp16", 37, "extreme", 1.0),
        (128, "fp16", 64, "ordinary", 40.0),
        (192, "bf16", 41, "ordinary", 1.0),
    ):
        yield from read(Runner(channels, precision, 1), words, kind, sharp)
        yield from consult(Runner(channels, precision, 2), words, kind, sharp)
    yield from refine(Runner(128, "fp16", 3), 37)
    yield from refine(Runner(192, "bf16", 3), 41)


def read(run: Runner, words: int, kind: str, sharp: float) -> Iterator[Case]:
    """`sharp` multiplies queries: with 40, nearly all of a word's weight is on one token."""
    c, count, tiles = run.channels, 139, 2
    heads, rows = c // 32, run.constant("read_frame", "ROWS")
    t = tokens_of(run, count, kind)
    scale, shift = 1 + run.random(c, scale=0.3), run.random(c)
    queries = run.rounded(run.random(heads, words, 32) * 32**-0.5 * np.log2(np.e) * sharp)
    keys, values = run.random(c, c, scale=c**-0.5), run.random(c, c, scale=c**-0.5)
    base = run.generator.standard_normal((words, c)) * 0.1
    parts = cdiv(count, rows * tiles)
    partial = run.run(
        "read_frame",
        (parts, heads, cdiv(words, run.constant("read_frame", "WORDS"))),
        {"found": (parts, heads, words, 32), "top": (parts, heads, words), "total": (parts, heads, words)},
        tokens=t,
        stats=stats(t),
        scale=scale,
        shift=shift,
        queries=queries,
        keys=keys,
        values=values,
        count=count,
        tiles=tiles,
        words=words,
    )
    got = run.run("join_words", (words, heads), {"refined": (words, c)}, **partial, base=base, parts=parts, words=words)
    x = normalized(normalized(t) * scale + shift)
    # As in the kernel, products are rounded: with sharp scores, an error of a score is one of its share.
    x = run.rounded(x)
    k, v = (run.rounded(x @ w).reshape(count, heads, 32).transpose(1, 0, 2) for w in (keys, values))
    shares = softmax(queries @ k.transpose(0, 2, 1) * np.log(2))
    expected = base + (shares @ v).transpose(1, 0, 2).reshape(words, c)
    yield Case(f"read_frame {c} {run.precision} {words} {kind}", got["refined"], expected, run.limit)


def refine(run: Runner, words: int) -> Iterator[Case]:
    c = run.channels
    refined, weight = run.generator.standard_normal((words, c)), run.generator.standard_normal((c, 2 * c))
    grid = (cdiv(words, run.constant("refine_words", "WORDS")), 2 * c // run.constant("refine_words", "COLUMNS"))
    shapes = {"keys": (words, c), "values": (words, c)}
    got = run.run("refine_words", grid, shapes, refined=refined, weight=weight, words=words)
    for name, expected in zip(shapes, np.split(refined @ weight, 2, 1), strict=True):
        yield Case(f"refine_words {run.precision} {name}", got[name], expected, run.limit)


def consult(run: Runner, words: int, kind: str, sharp: float) -> Iterator[Case]:
    c, count = run.channels, 75
    heads = c // 32
    t = tokens_of(run, count, kind)
    query = run.rounded(run.random(c, c, scale=c**-0.5) * 32**-0.5 * np.log2(np.e) * sharp)
    query_bias = run.generator.standard_normal(c) * 0.1
    keys, values = run.random(words, c), run.random(words, c)
    projection, projection_bias = run.random(c, c, scale=0.1), run.random(c)
    got = run.run(
        "consult_words",
        (cdiv(count, run.constant("consult_words", "ROWS")),),
        {"out": (count, c), "out_stats": (count, 2)},
        tokens=t,
        stats=stats(t),
        query=query,
        query_bias=query_bias,
        keys=keys,
        values=values,
        projection=projection,
        projection_bias=projection_bias,
        count=count,
        words=words,
    )
    q = run.rounded(run.rounded(normalized(t)) @ query + query_bias).reshape(count, heads, 32).transpose(1, 0, 2)
    k, v = (each.reshape(words, heads, 32).transpose(1, 0, 2) for each in (keys, values))
    shares = softmax(q @ k.transpose(0, 2, 1) * np.log(2))
    attention = (shares @ v).transpose(1, 0, 2).reshape(count, c)
    expected = t + attention @ projection + projection_bias
    name = f"consult_words {c} {run.precision} {words} {kind}"
    for part, rows in parts_of(kind).items():
        yield Case(f"{name} {part}", got["out"][rows], expected[rows], run.limit)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)
