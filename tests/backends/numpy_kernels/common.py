"""Helpers of the NumPy kernels: arrays behind pointers, normalization, neighbors, softmax, windows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Flat = NDArray[Any]
type Constants = Mapping[str, int]
type Grid = tuple[int, int, int]

HEAD_DIM = 32
WINDOW_TOKENS = 300
EPS = 1e-5

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Coefficients of Abramowitz and Stegun 7.1.26, from the highest."""


def gelu(x: Flat) -> Flat:
    """GELU of the exact form, to about 1e-7."""
    z = np.abs(x) * np.float32(math.sqrt(0.5))
    t = 1 / (1 + np.float32(0.3275911) * z)
    total = np.zeros_like(t)
    for coefficient in _ERF:
        total = (total + np.float32(coefficient)) * t
    erf = 1 - total * np.exp(-z * z)
    result: Flat = 0.5 * (x + np.abs(x) * erf)
    return result


def view(flat: Flat, *shape: int) -> Flat:
    count = math.prod(shape)
    assert len(flat) >= count, f"an array of {len(flat)} values is taken for one of {shape}"
    return flat[:count].reshape(shape)


def read(flat: Flat, *shape: int) -> Flat:
    return view(flat, *shape).astype(np.float32)


def assert_grid(grid: Grid, *expected: int) -> None:
    assert grid == (*expected, 1, 1)[:3], f"the grid is {grid}, not {expected}"


def normalized(tokens: Flat, stats: Flat, n: int, c: int) -> Flat:
    mean, rstd = view(stats, n, 2).T[:, :, None]
    result: Flat = (read(tokens, n, c) - mean) * rstd
    return result


def write_tokens(values: Flat, out: Flat, stats: Flat) -> None:
    n, c = values.shape
    view(out, n, c)[:] = values
    stored = read(out, n, c)
    mean = stored.mean(1)
    view(stats, n, 2)[:] = np.stack([mean, 1 / np.sqrt(stored.var(1) + EPS)], 1)


def neighbors(maps: Flat) -> list[Flat]:
    """The nine shifted maps (H, W, C) of taps (i, j), zero beyond the edge."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    return [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]


def depthwise(values: Flat, weight: Flat, tap_bias: Flat | None, height: int, width: int) -> Flat:
    maps = values.reshape(height, width, -1)
    total = sum(tap * row for tap, row in zip(neighbors(maps), weight, strict=True))
    if tap_bias is not None:
        masks = neighbors(np.ones((height, width, 1), np.float32))
        total = total + sum(mask * row for mask, row in zip(masks, tap_bias, strict=True))
    return np.asarray(total).reshape(height * width, -1)


def exp2(x: Flat) -> Flat:
    """2ˣ; NumPy's own is several times slower than its exp."""
    result: Flat = np.exp(x * np.float32(math.log(2)))
    return result


def softmax2(scores: Flat) -> Flat:
    probs = exp2(scores - scores.max(-1, keepdims=True))
    result: Flat = probs / probs.sum(-1, keepdims=True)
    return result


def sigmoid(x: Flat) -> Flat:
    result: Flat = 1 / (1 + np.exp(-x))
    return result


def conv3x3(values: Flat, weight: Flat, c: int, height: int, width: int) -> Flat:
    columns = np.concatenate(neighbors(values.reshape(height, width, c)), -1)
    result: Flat = columns.reshape(height * width, 9 * c) @ weight
    return result


def windows(values: Flat, height: int, width: int, wh: int, ww: int, back: bool = False) -> Flat:
    """Tokens in row-major order to window order, or back."""
    rows, cols = height // wh, width // ww
    shape = (rows, cols, wh, ww, -1) if back else (rows, wh, cols, ww, -1)
    return values.reshape(shape).transpose(0, 2, 1, 3, 4).reshape(height * width, -1)
