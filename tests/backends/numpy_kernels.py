"""What the CUDA kernels compute, in NumPy: a function for each kernel, by its name.

Each takes the kernel's compile-time constants, its grid, and its arguments. Pointers are flat arrays that begin there,
of the parameter's type, and may be longer than what is there. Sums are float32 or better; what is stored is rounded to
the type of its array. The kernels themselves are compared with float64 elsewhere; these serve to evaluate plans.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

type Flat = NDArray[Any]
type Constants = Mapping[str, int]
type Grid = tuple[int, int, int]

HEAD = 32
PLACES = 300
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


def _view(flat: Flat, *shape: int) -> Flat:
    count = math.prod(shape)
    assert len(flat) >= count, f"an array of {len(flat)} values is taken for one of {shape}"
    return flat[:count].reshape(shape)


def _read(flat: Flat, *shape: int) -> Flat:
    return _view(flat, *shape).astype(np.float32)


def _covers(grid: Grid, *needed: int) -> None:
    assert grid == (*needed, 1, 1)[:3], f"the grid is {grid}, not {needed}"


def _normalized(tokens: Flat, stats: Flat, n: int, c: int) -> Flat:
    mean, deviation = _view(stats, n, 2).T[:, :, None]
    result: Flat = (_read(tokens, n, c) - mean) * deviation
    return result


def _write_tokens(values: Flat, out: Flat, stats: Flat) -> None:
    n, c = values.shape
    _view(out, n, c)[:] = values
    stored = _read(out, n, c)
    mean = stored.mean(1)
    _view(stats, n, 2)[:] = np.stack([mean, 1 / np.sqrt(stored.var(1) + EPS)], 1)


def _neighbours(maps: Flat) -> list[Flat]:
    """The nine shifted maps (H, W, C) of taps (i, j), zero beyond the edge."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    return [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]


def _depthwise(values: Flat, weight: Flat, shift: Flat | None, height: int, width: int) -> Flat:
    maps = values.reshape(height, width, -1)
    total = sum(tap * row for tap, row in zip(_neighbours(maps), weight, strict=True))
    if shift is not None:
        inside = _neighbours(np.ones((height, width, 1), np.float32))
        total = total + sum(tap * row for tap, row in zip(inside, shift, strict=True))
    return np.asarray(total).reshape(height * width, -1)


def _exp2(x: Flat) -> Flat:
    """2ˣ; NumPy's own is several times slower than its exp."""
    result: Flat = np.exp(x * np.float32(math.log(2)))
    return result


def _softmax2(scores: Flat) -> Flat:
    shares = _exp2(scores - scores.max(-1, keepdims=True))
    result: Flat = shares / shares.sum(-1, keepdims=True)
    return result


def _sigmoid(x: Flat) -> Flat:
    result: Flat = 1 / (1 + np.exp(-x))
    return result


def _convolved(values: Flat, weight: Flat, c: int, height: int, width: int) -> Flat:
    columns = np.concatenate(_neighbours(values.reshape(height, width, c)), -1)
    result: Flat = columns.reshape(height * width, 9 * c) @ weight
    return result


def _windows(values: Flat, height: int, width: int, wh: int, ww: int, back: bool = False) -> Flat:
    """Tokens in row-major order to window order, or back."""
    rows, cols = height // wh, width // ww
    shape = (rows, cols, wh, ww, -1) if back else (rows, wh, cols, ww, -1)
    return values.reshape(shape).transpose(0, 2, 1, 3, 4).reshape(height * width, -1)


# ends


def first_convolution(
    constants: Constants,
    grid: Grid,
    image: Flat,
    weight: Flat,
    bias: Flat,
    shallow: Flat,
    tokens: Flat,
    stats: Flat,
    height: int,
    width: int,
    unshuffle: int,
    terms: int,
    padded_terms: int,
) -> None:
    c, u, n = constants["C"], unshuffle, height * width
    _covers(grid, -(-n // constants["ROWS"]))
    assert padded_terms % constants["DEPTH"] == 0
    channels = terms // (9 * u * u)
    picture = np.pad(_view(image, channels, height * u, width * u), ((0, 0), (u, u), (u, u)))
    patches = np.lib.stride_tricks.sliding_window_view(picture, (3 * u, 3 * u), (1, 2))[:, ::u, ::u]
    columns = np.pad(patches.transpose(1, 2, 0, 3, 4).reshape(n, terms), ((0, 0), (0, padded_terms - terms)))
    values = columns @ _view(weight, padded_terms, c) + _view(bias, c)
    _view(shallow, n, c)[:] = values
    _write_tokens(values, tokens, stats)


def convolve_group(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    weight: Flat,
    skip: Flat,
    out: Flat,
    stats: Flat,
    height: int,
    width: int,
) -> None:
    c, n = constants["C"], height * width
    _covers(grid, -(-n // constants["ROWS"]))
    total = _convolved(_read(tokens, n, c), _read(weight, 9 * c, c), c, height, width) + _read(skip, n, c)
    _write_tokens(total, out, stats)


def convolve_after(
    constants: Constants, grid: Grid, tokens: Flat, weight: Flat, skip: Flat, out: Flat, height: int, width: int
) -> None:
    c, n = constants["C"], height * width
    _covers(grid, -(-n // constants["ROWS"]))
    total = _convolved(_read(tokens, n, c), _read(weight, 9 * c, c), c, height, width) + _read(skip, n, c)
    _view(out, n, c)[:] = total


def spread(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    last: Flat,
    taps: Flat,
    height: int,
    width: int,
    middle: int,
) -> None:
    c, n = constants["C"], height * width
    _covers(grid, -(-n // constants["ROWS"]), 4)
    assert middle % constants["COLUMNS"] == 0
    padded = np.pad(_read(maps, n, c).reshape(height, width, c), ((1, 1), (1, 1), (0, 0)))
    matrices, products = _read(weight, 4, 4 * c, middle), _read(last, middle, 64)
    assert not products[:, 48:].any()
    square = _view(taps, height, 2, width, 2, 48)
    for a in (0, 1):
        for b in (0, 1):
            four = [padded[a + p : a + p + height, b + q : b + q + width] for p in (0, 1) for q in (0, 1)]
            inputs = np.concatenate(four, -1).reshape(n, 4 * c)
            pixels = gelu(inputs @ matrices[2 * a + b] + _view(bias, middle)).astype(maps.dtype)
            square[:, a, :, b] = (pixels.astype(np.float32) @ products)[:, :48].reshape(height, width, 48)


def gather(
    constants: Constants,
    grid: Grid,
    taps: Flat,
    bias: Flat,
    weight: Flat,
    last_bias: Flat,
    image: Flat,
    height: int,
    width: int,
) -> None:
    _covers(grid, -(-16 * height * width // constants["PIXELS"]))
    tall, wide = 2 * height, 2 * width
    shares = _view(taps, tall, wide, 3, 4, 4)
    planes = np.zeros((3, 2 * tall + 2, 2 * wide + 2), np.float32)
    for ky in range(4):  # input (y, x) of a 4-wide transposed convolution adds to output (2y + ky - 1, 2x + kx - 1)
        for kx in range(4):
            planes[:, ky : ky + 2 * tall : 2, kx : kx + 2 * wide : 2] += shares[..., ky, kx].transpose(2, 0, 1)
    planes = planes[:, 1:-1, 1:-1] + _view(bias, 3)[:, None, None]
    padded, kernel = np.pad(planes, ((0, 0), (1, 1), (1, 1))), _view(weight, 3, 3, 3, 3)
    out = _view(image, 3, 2 * tall, 2 * wide)
    out[:] = _view(last_bias, 3)[:, None, None]
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + 2 * tall, j : j + 2 * wide]
            out += np.tensordot(kernel[:, :, i, j], part, 1)


# tokens


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
    _covers(grid, -(-n // constants["ROWS"]))
    values = _normalized(tokens, stats, n, c) @ _read(weight, c, 3 * c) + _view(bias, 3 * c)
    _view(qkv, n, 3 * c)[:] = _windows(values, height, width, window_height, window_width)


def mix_local(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    stats: Flat,
    weight: Flat,
    shift: Flat,
    local: Flat,
    sums: Flat,
    height: int,
    width: int,
    tiles: int,
) -> None:
    c, n, length = constants["C"], height * width, constants["ROWS"] * tiles
    parts = -(-n // length)
    _covers(grid, parts, c // constants["BLOCK"])
    normal = _normalized(tokens, stats, n, c)
    values = gelu(_depthwise(normal, _view(weight, 9, c), _view(shift, 9, c), height, width))
    _view(local, n, c)[:] = values
    _view(sums, parts, c)[:] = [values[i * length : (i + 1) * length].sum(0) for i in range(parts)]


def gate_pool(
    constants: Constants,
    grid: Grid,
    sums: Flat,
    narrow: Flat,
    wide: Flat,
    gate: Flat,
    count: int,
    parts: int,
    hidden_width: int,
) -> None:
    c = constants["C"]
    _covers(grid, 1)
    mean = _view(sums, parts, c).sum(0) / np.float32(count)
    _view(gate, c)[:] = _sigmoid(_view(wide, c, hidden_width) @ gelu(_view(narrow, hidden_width, c) @ mean))


def feed_in(
    constants: Constants, grid: Grid, tokens: Flat, stats: Flat, weight: Flat, bias: Flat, hidden: Flat, count: int
) -> None:
    c, f = constants["C"], 2 * constants["C"]
    _covers(grid, -(-count // constants["ROWS"]))
    values = _normalized(tokens, stats, count, c) @ _read(weight, c, f) + _view(bias, f)
    _view(hidden, count, f)[:] = gelu(values)


def feed_out(
    constants: Constants,
    grid: Grid,
    hidden: Flat,
    mix: Flat,
    weight: Flat,
    tokens: Flat,
    out: Flat,
    stats: Flat,
    height: int,
    width: int,
) -> None:
    c, f, n = constants["C"], 2 * constants["C"], height * width
    _covers(grid, -(-n // constants["ROWS"]))
    mixed = _depthwise(_read(hidden, n, f), _view(mix, 9, f), None, height, width)
    _write_tokens(mixed @ _read(weight, f, c) + _read(tokens, n, c), out, stats)


# windows


def attend_windows(
    constants: Constants,
    grid: Grid,
    qkv: Flat,
    bias: Flat,
    projection: Flat,
    projection_bias: Flat,
    gate: Flat,
    local: Flat,
    tokens: Flat,
    out: Flat,
    stats: Flat,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
) -> None:
    c, n, h, padded = constants["C"], height * width, constants["C"] // HEAD, constants["PADDED"]
    _covers(grid, -(-PLACES // constants["ROWS"]), n // PLACES)
    q, k, v = _read(qkv, n // PLACES, PLACES, 3, h, HEAD).transpose(2, 0, 3, 1, 4)
    places = _read(bias, h, padded, padded)
    assert (places[:, :PLACES, PLACES:] == -np.inf).all(), "keys that are not there are attended to"
    shares = _softmax2(q @ k.transpose(0, 1, 3, 2) + places[:, :PLACES, :PLACES])
    attention = (shares @ v).transpose(0, 2, 1, 3).reshape(n, c)
    values = attention @ _read(projection, c, c) + _view(projection_bias, c)
    values = _windows(values, height, width, window_height, window_width, back=True) * _view(gate, c)
    _write_tokens(_read(tokens, n, c) + values + _read(local, n, c), out, stats)


# channel


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
    _covers(grid, parts, c // constants["BLOCK"])
    normal = _normalized(tokens, stats, count, c)
    for i in range(parts):
        part = normal[i * length : (i + 1) * length]
        away = part - part[0]
        _view(references, parts, c)[i] = part[0]
        _view(sums, parts, c)[i] = away.sum(0)
        _view(moments, parts, c, c)[i] = away.T @ away


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
    _covers(grid, c // constants["SIDE"], c // constants["SIDE"])
    assert (parts - 1) * part_tokens < count <= parts * part_tokens
    lengths = np.minimum(part_tokens, count - part_tokens * np.arange(parts))[:, None].astype(np.float64)
    away, around = _view(sums, parts, c).astype(np.float64), _view(references, parts, c).astype(np.float64)
    means = around + away / lengths
    center = (means * lengths).sum(0) / count
    _view(mean, c)[:] = center
    within = _view(moments, parts, c, c).astype(np.float64).sum(0) - (away / lengths).T @ away
    between = ((means - center) * lengths).T @ (means - center)
    _view(covariance, c, c)[:] = (within + between) / count


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
    _covers(grid, h)
    q, k, v = _view(weight, 3, h, HEAD, c)
    moves = _view(shift, 3, h, HEAD)
    spread_out, center = _view(covariance, c, c), _view(mean, c)
    qs, ks = q @ spread_out, k @ spread_out
    qm, km = q @ center + moves[0], k @ center + moves[1]
    floor = 1e-24 / count
    q_norm, k_norm = (np.sqrt(np.maximum((ws * w).sum(-1) + m**2, floor)) for ws, w, m in ((qs, q, qm), (ks, k, km)))
    products = qs @ k.transpose(0, 2, 1) + qm[:, :, None] * km[:, None]
    logits = products / (q_norm[:, :, None] * k_norm[:, None]) * _view(temperature, h)[:, None, None]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    _view(mixed, h, HEAD, c)[:] = shares @ v
    _view(mixed_shift, h, HEAD)[:] = (shares @ moves[2][:, :, None])[..., 0]


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
    _covers(grid, c // constants["SIDE"], c // constants["SIDE"])
    weight = _view(projection, c, c)
    _view(matrix, c, c)[:] = (weight @ _view(mixed, c, c)).T
    _view(bias, c)[:] = weight @ _view(mixed_shift, c) + _view(projection_bias, c)


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
    _covers(grid, -(-n // constants["ROWS"]))
    normal = _normalized(tokens, stats, n, c)
    attention = normal @ _read(matrix, c, c) + _view(bias, c)
    local = gelu(_depthwise(normal, _view(weight, 9, c), _view(shift, 9, c), height, width))
    gates = _sigmoid(attention @ _view(gate, c))[:, None]
    _write_tokens(_read(tokens, n, c) + attention + local * gates, out, out_stats)


# dictionary


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
    _covers(grid, parts, h, -(-words // constants["WORDS"]))
    normal = _normalized(tokens, stats, count, c) * _view(scale, c) + _view(shift, c)
    again = (normal - normal.mean(1, keepdims=True)) / np.sqrt(normal.var(1, keepdims=True) + EPS)
    k, v = ((again @ _read(w, c, c)).reshape(count, h, HEAD).transpose(1, 0, 2) for w in (keys, values))
    scores = _read(queries, h, words, HEAD) @ k.transpose(0, 2, 1)  # (h, words, N)
    for i in range(parts):
        part = scores[:, :, i * length : (i + 1) * length]
        highest = part.max(-1)
        shares = _exp2(part - highest[..., None])
        _view(top, parts, h, words)[i] = highest
        _view(total, parts, h, words)[i] = shares.sum(-1)
        _view(found, parts, h, words, HEAD)[i] = shares @ v[:, i * length : (i + 1) * length]


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
    _covers(grid, words, h)
    tops = _view(top, parts, h, words)
    shares = _exp2(tops - tops.max(0))
    sums = (_view(total, parts, h, words) * shares).sum(0)
    joined = (_view(found, parts, h, words, HEAD) * shares[..., None]).sum(0) / sums[..., None]
    _view(refined, words, c)[:] = _view(base, words, c) + joined.transpose(1, 0, 2).reshape(words, c)


def refine_words(
    constants: Constants, grid: Grid, refined: Flat, weight: Flat, keys: Flat, values: Flat, words: int
) -> None:
    c = constants["C"]
    _covers(grid, -(-words // constants["WORDS"]), 2 * c // constants["COLUMNS"])
    both = _view(refined, words, c) @ _view(weight, c, 2 * c)
    _view(keys, words, c)[:], _view(values, words, c)[:] = both[:, :c], both[:, c:]


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
    _covers(grid, -(-count // constants["ROWS"]))
    queries = _normalized(tokens, stats, count, c) @ _read(query, c, c) + _view(query_bias, c)
    q, k, v = (
        x.reshape(-1, h, HEAD).transpose(1, 0, 2) for x in (queries, _read(keys, words, c), _read(values, words, c))
    )
    attention = (_softmax2(q @ k.transpose(0, 2, 1)) @ v).transpose(1, 0, 2).reshape(count, c)
    projected = attention @ _read(projection, c, c) + _view(projection_bias, c)
    _write_tokens(_read(tokens, count, c) + projected, out, out_stats)


KERNELS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        first_convolution,
        convolve_group,
        convolve_after,
        spread,
        gather,
        norm_qkv,
        mix_local,
        gate_pool,
        feed_in,
        feed_out,
        attend_windows,
        second_moment,
        merge_moments,
        mix_channels,
        channel_matrix,
        apply_channel,
        read_frame,
        join_words,
        refine_words,
        consult_words,
    )
}
