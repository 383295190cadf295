"""Window attention against NumPy in float64, both ways round."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_tokens import window_order
from tests.kernels.interpreter import Case, Runner, cdiv, softmax, stats

PLACES = 300


def cases() -> Iterator[Case]:
    yield from attend_windows(Runner(96, "fp16", 1), (10, 30), (20, 30), 30)
    yield from attend_windows(Runner(128, "fp16", 2), (30, 10), (30, 20), 1)
    yield from attend_windows(Runner(192, "bf16", 3), (10, 30), (10, 30), 1)


def attend_windows(run: Runner, window: tuple[int, int], size: tuple[int, int], sharp: float) -> Iterator[Case]:
    """`sharp` multiplies queries: with 30, nearly all of a row's weight is on one key."""
    c, (height, width) = run.channels, size
    count, heads, padded = height * width, c // 32, run.constant("attend_windows", "PADDED")
    qkv = run.random(count, 3 * c)
    qkv[:, :c] = run.rounded(qkv[:, :c] * 32**-0.5 * np.log2(np.e) * sharp)
    table = run.generator.standard_normal((heads, PLACES, PLACES)) * np.log2(np.e) * sharp
    table = np.asarray(table.astype(np.float16), np.float64)
    bias = np.zeros((heads, padded, padded))
    bias[:, :PLACES, :PLACES] = table
    bias[:, :, PLACES:] = -np.inf
    projection, projection_bias = run.random(c, c, scale=0.1), run.random(c)
    gate, local, t = run.generator.random(c), run.random(count, c), run.random(count, c)
    got = run.run(
        "attend_windows",
        (cdiv(PLACES, run.constant("attend_windows", "ROWS")), count // PLACES),
        {"out": (count, c), "stats": (count, 2)},
        qkv=qkv,
        bias=bias,
        projection=projection,
        projection_bias=projection_bias,
        gate=gate,
        local=local,
        tokens=t,
        height=height,
        width=width,
        window_height=window[0],
        window_width=window[1],
    )
    # (windows, T, 3, h, d) -> (3, windows, h, T, d)
    q, k, v = qkv.reshape(-1, PLACES, 3, heads, 32).transpose(2, 0, 3, 1, 4)
    shares = softmax((q @ k.transpose(0, 1, 3, 2) + table) * np.log(2))
    attention = np.empty((count, c))
    attention[window_order(height, width, window)] = (shares @ v).transpose(0, 2, 1, 3).reshape(count, c)
    expected = t + (attention @ projection + projection_bias) * gate + local
    name = f"attend_windows {c} {run.precision} {window} {sharp}"
    yield Case(name, got["out"], expected, run.limit)
    yield Case(f"{name} stats", got["stats"], stats(got["out"]), 1e-5)
    # What attention alone added, whose errors the residual hides
    added = got["out"] - t - local
    yield Case(f"{name} added", added, expected - t - local, 3 * run.limit)
