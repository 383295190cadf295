"""The kernels of `vsfdatrd.kernels.sampling` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, covers, depthwise, read, sigmoid, view

POSITIONS = 9
REACH = 11
EPS_OF_MAPS = 1e-6


def _sample(maps: Flat, y: Flat, x: Flat) -> Flat:
    """Maps (H, W, C) at positions of any shape, bilinearly, with zeros around: (..., C)."""
    height, width, _ = maps.shape
    top, left = np.floor(y), np.floor(x)
    down, across = y - top, x - left
    total: Flat = np.zeros((*y.shape, maps.shape[-1]), np.float32)
    for p in (0, 1):
        for q in (0, 1):
            row, column = (top + p).astype(int), (left + q).astype(int)
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            share = (down if p else 1 - down) * (across if q else 1 - across) * inside
            corner = maps[row.clip(0, height - 1), column.clip(0, width - 1)]
            total += share[..., None].astype(np.float32) * corner
    return total


def sample_pixels(
    constants: Constants,
    grid: Grid,
    planes: Flat,
    start: Flat,
    bias: Flat,
    image: Flat,
    height: int,
    width: int,
    step: int,
) -> None:
    covers(grid, -(-height * width * step * step // constants["PIXELS"]))
    size = step * step
    values = view(planes, 16 * size + 12, height, width)
    moved = values[: 8 * size] * sigmoid(values[8 * size : 16 * size]) + view(start, 8 * size)[:, None, None]
    x, y = moved.reshape(2, 4, step, step, height, width).transpose(0, 1, 4, 2, 5, 3)  # (group, H, a, W, b)
    x = (x + np.arange(width)[:, None]).clip(0, width - 1).reshape(4, step * height, step * width)
    y = (y + np.arange(height)[:, None, None, None]).clip(0, height - 1).reshape(4, step * height, step * width)
    colors = values[16 * size :].reshape(4, 3, height, width)
    total = sum(_sample(colors[g].transpose(1, 2, 0), y[g], x[g]) for g in range(4))
    result = np.asarray(total) + view(bias, 3)
    view(image, 3, step * height, step * width)[:] = result.transpose(2, 0, 1)


def _normalized(values: Flat) -> Flat:
    """Values normalized over the last axis."""
    centered = values - values.mean(-1, keepdims=True)
    result: Flat = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + EPS_OF_MAPS)
    return result


def normalize_maps(
    constants: Constants, grid: Grid, maps: Flat, out: Flat, count: int, channels: int, inputs: int
) -> None:
    covers(grid, -(-count // constants["ROWS"]))
    result = view(out, count, inputs)
    result[:] = 0
    result[:, :channels] = _normalized(read(maps, count, inputs)[:, :channels])


def _enlarged(planes: Flat, step: int) -> Flat:
    """Planes (C, H, W), of which the outer pixels stay where they are: (step · H, step · W, C)."""
    _, height, width = planes.shape
    y, x = (np.arange(step * side) * (side - 1) / (step * side - 1) for side in (height, width))
    return _sample(planes.transpose(1, 2, 0), *np.meshgrid(y, x, indexing="ij"))


def move_queries(
    constants: Constants,
    grid: Grid,
    planes: Flat,
    weight: Flat,
    scale: Flat,
    shift: Flat,
    out: Flat,
    height: int,
    width: int,
    step: int,
    part: int,
    outputs: int,
) -> None:
    tall, wide = step * height, step * width
    covers(grid, -(-tall * wide // constants["PIXELS"]), 3)
    assert part <= constants["LANES"]
    assert 0 <= outputs - 2 * part <= constants["LANES"]
    queries = _enlarged(view(planes, 2 * part, height, width), step).reshape(tall * wide, 2 * part)
    mixed = depthwise(queries, np.tile(view(weight, 9, part), 2), None, tall, wide).reshape(-1, 2, part)
    moved = _normalized(mixed) * view(scale, part) + view(shift, part)
    moved = (moved * sigmoid(moved)).reshape(tall * wide, 2 * part)
    result = view(out, tall * wide, outputs)
    result[:, : 2 * part], result[:, 2 * part :] = moved, 0


def attend_positions(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    planes: Flat,
    offsets: Flat,
    table: Flat,
    out: Flat,
    height: int,
    width: int,
    step: int,
    channels: int,
    inputs: int,
) -> None:
    tall, wide, hidden = step * height, step * width, channels // 4
    covers(grid, -(-tall * wide // constants["PIXELS"]))
    both = view(planes, 2 * hidden, height, width)
    queries = _enlarged(both[:hidden], step).reshape(tall, wide, 1, hidden)
    keys = np.broadcast_to(view(table, POSITIONS, hidden), (tall, wide, POSITIONS, hidden)).copy()
    values = np.empty((tall, wide, POSITIONS, channels), np.float32)
    tokens = read(maps, height * width, inputs).reshape(height, width, inputs)
    moved = REACH * np.tanh(view(offsets, 2, POSITIONS, 2, tall, wide))
    places = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(POSITIONS, 2, 1, 1)
    for group in range(2):
        y, x = (moved[group] + places).transpose(1, 2, 3, 0)  # (tall, wide, position)
        y = (y + np.arange(tall)[:, None, None]) * (height - 1) / (tall - 1)
        x = (x + np.arange(wide)[:, None]) * (width - 1) / (wide - 1)
        part = slice(group * hidden // 2, (group + 1) * hidden // 2)
        keys[..., part] += _sample(both[hidden:][part].transpose(1, 2, 0), y, x)
        part = slice(group * channels // 2, (group + 1) * channels // 2)
        values[..., part] = _sample(tokens[..., part], y, x)
    scores = (queries * keys).sum(-1) / np.float32(np.sqrt(hidden))
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    result = view(out, tall, wide, inputs)
    result[..., channels:] = 0
    result[..., :channels] = (shares[..., None] * values).sum(-2)
