"""The kernels of `tokens` compared with NumPy in float64, on maps whose sides are not multiples of a tile."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, gelu, normalized, stats

NETWORKS = ((96, "fp16"), (128, "fp16"), (192, "bf16"))


def tokens_of(run: Runner, count: int, kind: str) -> Array:
    """Random tokens: ordinary ones, or some of every extreme."""
    tokens = run.random(count, run.channels)
    if kind == "extreme":
        tokens[::5] = run.rounded(tokens[::5] * 1e-4)  # below the norm's eps
        tokens[1::5] = run.rounded(tokens[1::5] * 9000)
        tokens[2::5] = run.rounded(20000 + tokens[2::5] * 100)
        tokens[3::5] = 7  # no variance at all
    return tokens


def parts_of(kind: str) -> dict[str, slice]:
    """Parts of the tokens of `tokens_of` that are compared alone, as large tokens would hide the errors of others."""
    return {str(first): slice(first, None, 5) for first in range(5)} if kind == "extreme" else {"": slice(None)}


def window_order(height: int, width: int, window: tuple[int, int]) -> Array:
    """Tokens' numbers in the order of windows."""
    numbers = np.arange(height * width).reshape(height // window[0], window[0], width // window[1], window[1])
    return numbers.transpose(0, 2, 1, 3).ravel()


def cases() -> Iterator[Case]:
    for channels, precision in NETWORKS:
        yield from norm_qkv(Runner(channels, precision, 1), "extreme" if channels == 96 else "ordinary")
        yield from mix_local(Runner(channels, precision, 2), "extreme" if channels == 96 else "ordinary")
        yield from gate_pool(Runner(channels, precision, 3))
        yield from feed_in(Runner(channels, precision, 4), "extreme" if channels == 192 else "ordinary")
        yield from feed_out(Runner(channels, precision, 5))


def norm_qkv(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width = run.channels, 10, 10
    for window in ((2, 5), (5, 2)):
        t = tokens_of(run, height * width, kind)
        weight, bias = run.random(c, 3 * c, scale=0.1), run.random(3 * c)
        got = run.run(
            "norm_qkv",
            (cdiv(height * width, run.constant("norm_qkv", "ROWS")),),
            {"qkv": (height * width, 3 * c)},
            tokens=t,
            stats=stats(t),
            weight=weight,
            bias=bias,
            height=height,
            width=width,
            window_height=window[0],
            window_width=window[1],
        )
        expected = (normalized(t) @ weight + bias)[window_order(height, width, window)]
        yield Case(f"norm_qkv {c} {run.precision} {window} {kind}", got["qkv"], expected, run.limit)


def mix_local(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width, tiles = run.channels, 5, 15, 2
    t = tokens_of(run, height * width, kind)
    weight, scale, shift = run.random(9, c, scale=0.5), 1 + run.random(c, scale=0.3), run.random(c)
    parts = cdiv(height * width, run.constant("mix_local", "ROWS") * tiles)
    got = run.run(
        "mix_local",
        (parts, c // run.constant("mix_local", "BLOCK")),
        {"local": (height * width, c), "sums": (parts, c)},
        tokens=t,
        stats=stats(t),
        weight=weight * scale,
        shift=weight * shift,
        height=height,
        width=width,
        tiles=tiles,
    )
    maps = (normalized(t) * scale + shift).reshape(height, width, c)
    expected = gelu(depthwise(maps, weight)).reshape(-1, c)
    yield Case(f"mix_local {c} {run.precision} {kind}", got["local"], expected, run.limit)
    yield Case(f"mix_local sums {c} {run.precision} {kind}", got["sums"].sum(0), expected.sum(0), 2e-5)


def gate_pool(run: Runner) -> Iterator[Case]:
    c, parts, count, hidden = run.channels, 77, 4321, run.channels // 8
    sums = run.generator.standard_normal((parts, c)) * 1000
    narrow, wide = run.generator.standard_normal((hidden, c)), run.generator.standard_normal((c, hidden))
    got = run.run(
        "gate_pool",
        (1,),
        {"gate": (c,)},
        sums=sums,
        narrow=narrow,
        wide=wide,
        count=count,
        parts=parts,
        hidden_width=hidden,
    )
    expected = 1 / (1 + np.exp(-wide @ gelu(narrow @ (sums.sum(0) / count))))
    yield Case(f"gate_pool {c}", got["gate"], expected, 1e-5)


def feed_in(run: Runner, kind: str) -> Iterator[Case]:
    c, count = run.channels, 75
    t = tokens_of(run, count, kind)
    weight, bias = run.random(c, 2 * c, scale=0.2), run.random(2 * c)
    got = run.run(
        "feed_in",
        (cdiv(count, run.constant("feed_in", "ROWS")),),
        {"hidden": (count, 2 * c)},
        tokens=t,
        stats=stats(t),
        weight=weight,
        bias=bias,
        count=count,
    )
    yield Case(f"feed_in {c} {run.precision} {kind}", got["hidden"], gelu(normalized(t) @ weight + bias), run.limit)


def feed_out(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count = height * width
    hidden, t = run.random(count, 2 * c), run.random(count, c)
    hidden[3::7] *= 2**11  # as large as fp16 can be, in some places
    mix, weight = run.random(9, 2 * c, scale=0.3), run.random(2 * c, c, scale=0.05)
    got = run.run(
        "feed_out",
        (cdiv(count, run.constant("feed_out", "ROWS")),),
        {"out": (count, c), "stats": (count, 2)},
        hidden=hidden,
        mix=mix,
        weight=weight,
        tokens=t,
        height=height,
        width=width,
    )
    expected = t + depthwise(hidden.reshape(height, width, -1), mix).reshape(count, -1) @ weight
    yield Case(f"feed_out {c} {run.precision}", got["out"], expected, run.limit)
    yield Case(f"feed_out stats {c} {run.precision}", got["stats"], stats(got["out"]), 1e-5)
