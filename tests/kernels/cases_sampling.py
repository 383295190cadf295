"""The kernels of `sampling` against NumPy in float64, on maps whose sides are no multiples of anything."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_maps import of_tail
from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, softmax

EPS = 1e-6


def cases() -> Iterator[Case]:
    for step, height, width, reach in ((2, 5, 9, 1), (3, 1, 7, 4), (4, 3, 2, 1e6)):
        yield from sample_pixels(Runner(128, "fp16", 1), step, height, width, reach)
    for channels, precision, used in ((96, "fp16", 96), (128, "bf16", 40), (192, "fp16", 56)):
        yield from normalize_maps(Runner(channels, precision, 2), used)
    for channels, precision, step, height, width, used in (
        (96, "fp16", 2, 5, 9, 96),
        (128, "bf16", 3, 2, 7, 40),
        (192, "fp16", 4, 3, 2, 256),
    ):
        yield from move_queries(Runner(channels, precision, 3), step, height, width, used)
        yield from attend_positions(Runner(channels, precision, 4), step, height, width, used)


def at_places(maps: Array, y: Array, x: Array, clamped: bool) -> Array:
    """Maps (H, W, ...) at positions of any shape, bilinearly; outside, the nearest token, or zeros."""
    height, width = maps.shape[:2]
    if clamped:
        y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    total = np.zeros((*y.shape, *maps.shape[2:]))
    for row in range(height):
        for column in range(width):
            share = np.maximum(0, 1 - np.abs(y - row)) * np.maximum(0, 1 - np.abs(x - column))
            total += np.multiply.outer(share, maps[row, column])
    return total


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def sample_pixels(run: Runner, step: int, height: int, width: int, reach: float) -> Iterator[Case]:
    size, draw = step * step, run.generator.standard_normal
    planes = np.asarray(draw((16 * size + 12, height, width)), np.float32).astype(np.float64)
    planes[: 8 * size] *= reach
    start, bias = np.asarray(draw(8 * size), np.float32).astype(np.float64), draw(3)
    got = run.run(
        "sample_pixels",
        (cdiv(height * width * size, run.constant("sample_pixels", "PIXELS")),),
        {"image": (3, step * height, step * width)},
        planes=planes,
        start=start,
        bias=bias,
        height=height,
        width=width,
        step=step,
    )
    moved = planes[: 8 * size] * sigmoid(planes[8 * size : 16 * size]) + start[:, None, None]
    moved = moved.reshape(2, 4, step, step, height, width)
    expected = np.zeros((3, height, step, width, step)) + bias[:, None, None, None, None]
    y, x = np.mgrid[:height, :width]
    for group, a, b in np.ndindex(4, step, step):
        colors = planes[16 * size + 3 * group :][:3].transpose(1, 2, 0)
        values = at_places(colors, y + moved[1, group, a, b], x + moved[0, group, a, b], True)
        expected[:, :, a, :, b] += values.transpose(2, 0, 1)
    expected = expected.reshape(3, step * height, step * width)
    yield Case(f"sample_pixels {step} {reach}", got["image"], expected, 1e-5)


def normalize_maps(run: Runner, used: int) -> Iterator[Case]:
    tail, count, inputs = of_tail(run), 77, cdiv(used, 64) * 64
    maps = np.full((count, inputs), np.nan)  # what is beyond is not read
    maps[:, :used] = tail.random(count, used)
    maps[::4, :used] = 7
    maps[1::4, :used] = tail.rounded(9000 + 300 * maps[1::4, :used])
    maps[2::4, :used] = tail.rounded(1e-4 * maps[2::4, :used])
    grid = (cdiv(count, run.constant("normalize_maps", "ROWS")),)
    got = run.run(
        "normalize_maps", grid, {"out": (count, inputs)}, maps=maps, count=count, channels=used, inputs=inputs
    )
    expected = np.zeros((count, inputs))
    x = maps[:, :used]
    expected[:, :used] = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS)
    name = f"normalize_maps {run.precision} {used}"
    limit = run.limit if run.precision == "fp16" else 1e-3  # a token without variance
    for part in range(4):
        yield Case(f"{name} {part}", got["out"][part::4], expected[part::4], limit if part != 1 else 2 * limit)


def enlarged(planes: Array, step: int) -> Array:
    """Planes (C, H, W), of which the outer pixels stay where they are: (step · H, step · W, C)."""
    height, width = planes.shape[1:]
    y, x = (np.arange(step * side) * (side - 1) / (step * side - 1) for side in (height, width))
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return at_places(planes.transpose(1, 2, 0), rows, columns, True)


def move_queries(run: Runner, step: int, height: int, width: int, used: int) -> Iterator[Case]:
    part, pixels = used // 8, step**2 * height * width
    outputs = cdiv(2 * part, 32) * 32
    planes = np.asarray(run.generator.standard_normal((used // 2, height, width)), np.float32).astype(np.float64)
    weight, scale, shift = (of_tail(run).random(*shape) for shape in ((9, part), (part,), (part,)))
    got = run.run(
        "move_queries",
        (cdiv(pixels, run.constant("move_queries", "PIXELS")), 3),
        {"out": (pixels, outputs)},
        planes=planes,
        weight=weight,
        scale=scale,
        shift=shift,
        height=height,
        width=width,
        step=step,
        part=part,
        outputs=outputs,
    )
    queries = enlarged(planes[: 2 * part], step)
    mixed = depthwise(queries, np.tile(weight, 2)).reshape(pixels, 2, part)
    centered = mixed - mixed.mean(-1, keepdims=True)
    moved = centered / np.sqrt(mixed.var(-1, keepdims=True) + EPS) * scale + shift
    expected = np.pad((moved * sigmoid(moved)).reshape(pixels, 2 * part), ((0, 0), (0, outputs - 2 * part)))
    limit = run.limit if run.precision == "fp16" else 1e-5
    yield Case(f"move_queries {run.precision} {step} {used}", got["out"], expected, limit)


def attend_positions(run: Runner, step: int, height: int, width: int, used: int) -> Iterator[Case]:
    tail, hidden, draw = of_tail(run), used // 4, run.generator.standard_normal
    tall, wide, inputs = step * height, step * width, cdiv(used, 64) * 64
    maps = np.full((height * width, inputs), np.nan)
    maps[:, :used] = tail.random(height * width, used)
    planes, table = draw((2 * hidden, height, width)), draw((9, hidden))
    offsets = np.asarray(draw((2, 9, 2, tall, wide)) * 0.3, np.float32).astype(np.float64)
    offsets[..., ::3] *= 100  # as far as it goes
    got = run.run(
        "attend_positions",
        (cdiv(tall * wide, run.constant("attend_positions", "PIXELS")),),
        {"out": (tall * wide, inputs)},
        maps=maps,
        planes=planes,
        offsets=offsets.reshape(36, tall, wide),
        table=table,
        height=height,
        width=width,
        step=step,
        channels=used,
        inputs=inputs,
    )
    queries = enlarged(planes[:hidden], step)
    keys, values = np.zeros((tall, wide, 9, hidden)) + table, np.zeros((tall, wide, 9, used))
    tokens = maps[:, :used].reshape(height, width, used)
    for group in range(2):
        moved = 11 * np.tanh(offsets[group]) + np.stack(np.divmod(np.arange(9), 3), 1)[:, :, None, None] - 1
        y, x = moved.transpose(1, 2, 3, 0)
        y = (y + np.arange(tall)[:, None, None]) * (height - 1) / (tall - 1)
        x = (x + np.arange(wide)[:, None]) * (width - 1) / (wide - 1)
        part = slice(group * hidden // 2, (group + 1) * hidden // 2)
        keys[..., part] += at_places(planes[hidden:][part].transpose(1, 2, 0), y, x, False)
        part = slice(group * used // 2, (group + 1) * used // 2)
        values[..., part] = at_places(tokens[..., part], y, x, False)
    shares = softmax((queries[:, :, None] * keys).sum(-1) * hidden**-0.5)
    expected = np.zeros((tall * wide, inputs))
    expected[:, :used] = (shares[..., None] * values).sum(-2).reshape(-1, used)
    limit = run.limit if run.precision == "fp16" else 1e-5
    yield Case(f"attend_positions {run.precision} {step} {used}", got["out"], expected, limit)
