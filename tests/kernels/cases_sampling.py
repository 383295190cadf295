"""The kernels of `sampling` compared with NumPy in float64, on maps whose sides are no multiples of anything."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_upsampler import of_tail
from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, softmax

EPS = 1e-6


def cases() -> Iterator[Case]:
    for upscale, height, width, reach in ((2, 5, 9, 1), (3, 1, 7, 4), (4, 3, 2, 1e6)):
        yield from dysample(Runner(128, "fp16", 1), upscale, height, width, reach)
    for channels, precision, used in ((96, "fp16", 96), (128, "bf16", 40), (192, "fp16", 56)):
        yield from normalize_maps(Runner(channels, precision, 2), used)
    for channels, precision, upscale, height, width, used in (
        (96, "fp16", 2, 5, 9, 96),
        (128, "bf16", 3, 2, 7, 40),
        (192, "fp16", 4, 3, 2, 256),
    ):
        yield from lda_offset_features(Runner(channels, precision, 3), upscale, height, width, used)
        yield from lda_attention(Runner(channels, precision, 4), upscale, height, width, used)


def sampled(maps: Array, y: Array, x: Array, clamped: bool) -> Array:
    """Maps (H, W, ...) at positions of any shape, bilinearly; outside, the nearest token, or zeros."""
    height, width = maps.shape[:2]
    if clamped:
        y, x = y.clip(0, height - 1), x.clip(0, width - 1)
    total = np.zeros((*y.shape, *maps.shape[2:]))
    for row in range(height):
        for column in range(width):
            weight = np.maximum(0, 1 - np.abs(y - row)) * np.maximum(0, 1 - np.abs(x - column))
            total += np.multiply.outer(weight, maps[row, column])
    return total


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def dysample(run: Runner, upscale: int, height: int, width: int, reach: float) -> Iterator[Case]:
    size, draw = upscale * upscale, run.generator.standard_normal
    planes = np.asarray(draw((16 * size + 12, height, width)), np.float32).astype(np.float64)
    planes[: 8 * size] *= reach
    init_positions, bias = np.asarray(draw(8 * size), np.float32).astype(np.float64), draw(3)
    got = run.run(
        "dysample",
        (cdiv(height * width * size, run.constant("dysample", "BLOCK_PIXELS")),),
        {"image": (3, upscale * height, upscale * width)},
        planes=planes,
        init_positions=init_positions,
        bias=bias,
        height=height,
        width=width,
        upscale=upscale,
    )
    moved = planes[: 8 * size] * sigmoid(planes[8 * size : 16 * size]) + init_positions[:, None, None]
    moved = moved.reshape(2, 4, upscale, upscale, height, width)
    expected = np.zeros((3, height, upscale, width, upscale)) + bias[:, None, None, None, None]
    y, x = np.mgrid[:height, :width]
    for group, a, b in np.ndindex(4, upscale, upscale):
        colors = planes[16 * size + 3 * group :][:3].transpose(1, 2, 0)
        values = sampled(colors, y + moved[1, group, a, b], x + moved[0, group, a, b], True)
        expected[:, :, a, :, b] += values.transpose(2, 0, 1)
    expected = expected.reshape(3, upscale * height, upscale * width)
    yield Case(f"dysample {upscale} {reach}", got["image"], expected, 1e-5)


def normalize_maps(run: Runner, used: int) -> Iterator[Case]:
    tail, count, padded_channels = of_tail(run), 77, cdiv(used, 64) * 64
    maps = np.full((count, padded_channels), np.nan)  # what is beyond is not read
    maps[:, :used] = tail.random(count, used)
    maps[::4, :used] = 7
    maps[1::4, :used] = tail.rounded(9000 + 300 * maps[1::4, :used])
    maps[2::4, :used] = tail.rounded(1e-4 * maps[2::4, :used])
    grid = (cdiv(count, run.constant("normalize_maps", "BLOCK_ROWS")),)
    got = run.run(
        "normalize_maps",
        grid,
        {"out": (count, padded_channels)},
        maps=maps,
        num_tokens=count,
        channels=used,
        padded_channels=padded_channels,
    )
    expected = np.zeros((count, padded_channels))
    x = maps[:, :used]
    expected[:, :used] = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPS)
    name = f"normalize_maps {run.precision} {used}"
    limit = run.limit if run.precision == "fp16" else 1e-3  # a token without variance
    for part in range(4):
        yield Case(f"{name} {part}", got["out"][part::4], expected[part::4], limit if part != 1 else 2 * limit)


def upsampled(planes: Array, upscale: int) -> Array:
    """Planes (C, H, W), of which the outer pixels stay where they are: (upscale · H, upscale · W, C)."""
    height, width = planes.shape[1:]
    y, x = (np.arange(upscale * side) * (side - 1) / (upscale * side - 1) for side in (height, width))
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return sampled(planes.transpose(1, 2, 0), rows, columns, True)


def lda_offset_features(run: Runner, upscale: int, height: int, width: int, used: int) -> Iterator[Case]:
    group_channels, pixels = used // 8, upscale**2 * height * width
    padded_channels = cdiv(2 * group_channels, 32) * 32
    planes = np.asarray(run.generator.standard_normal((used // 2, height, width)), np.float32).astype(np.float64)
    weight, norm_weight, norm_bias = (
        of_tail(run).random(*shape) for shape in ((9, group_channels), (group_channels,), (group_channels,))
    )
    got = run.run(
        "lda_offset_features",
        (cdiv(pixels, run.constant("lda_offset_features", "BLOCK_PIXELS")), 3),
        {"out": (pixels, padded_channels)},
        planes=planes,
        weight=weight,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        height=height,
        width=width,
        upscale=upscale,
        group_channels=group_channels,
        padded_channels=padded_channels,
    )
    queries = upsampled(planes[: 2 * group_channels], upscale)
    mixed = depthwise(queries, np.tile(weight, 2)).reshape(pixels, 2, group_channels)
    centered = mixed - mixed.mean(-1, keepdims=True)
    features = centered / np.sqrt(mixed.var(-1, keepdims=True) + EPS) * norm_weight + norm_bias
    expected = np.pad(
        (features * sigmoid(features)).reshape(pixels, 2 * group_channels),
        ((0, 0), (0, padded_channels - 2 * group_channels)),
    )
    limit = run.limit if run.precision == "fp16" else 1e-5
    yield Case(f"lda_offset_features {run.precision} {upscale} {used}", got["out"], expected, limit)


def lda_attention(run: Runner, upscale: int, height: int, width: int, used: int) -> Iterator[Case]:
    tail, hidden, draw = of_tail(run), used // 4, run.generator.standard_normal
    out_height, out_width, padded_channels = upscale * height, upscale * width, cdiv(used, 64) * 64
    maps = np.full((height * width, padded_channels), np.nan)
    maps[:, :used] = tail.random(height * width, used)
    planes, position_bias = draw((2 * hidden, height, width)), draw((9, hidden))
    offsets = np.asarray(draw((2, 9, 2, out_height, out_width)) * 0.3, np.float32).astype(np.float64)
    offsets[..., ::3] *= 100  # as far as it goes
    got = run.run(
        "lda_attention",
        (cdiv(out_height * out_width, run.constant("lda_attention", "BLOCK_PIXELS")),),
        {"out": (out_height * out_width, padded_channels)},
        maps=maps,
        planes=planes,
        offsets=offsets.reshape(36, out_height, out_width),
        position_bias=position_bias,
        height=height,
        width=width,
        upscale=upscale,
        channels=used,
        padded_channels=padded_channels,
    )
    queries = upsampled(planes[:hidden], upscale)
    keys, values = (
        np.zeros((out_height, out_width, 9, hidden)) + position_bias,
        np.zeros((out_height, out_width, 9, used)),
    )
    tokens = maps[:, :used].reshape(height, width, used)
    for group in range(2):
        moved = 11 * np.tanh(offsets[group]) + np.stack(np.divmod(np.arange(9), 3), 1)[:, :, None, None] - 1
        y, x = moved.transpose(1, 2, 3, 0)
        y = (y + np.arange(out_height)[:, None, None]) * (height - 1) / (out_height - 1)
        x = (x + np.arange(out_width)[:, None]) * (width - 1) / (out_width - 1)
        part = slice(group * hidden // 2, (group + 1) * hidden // 2)
        keys[..., part] += sampled(planes[hidden:][part].transpose(1, 2, 0), y, x, False)
        part = slice(group * used // 2, (group + 1) * used // 2)
        values[..., part] = sampled(tokens[..., part], y, x, False)
    probs = softmax((queries[:, :, None] * keys).sum(-1) * hidden**-0.5)
    expected = np.zeros((out_height * out_width, padded_channels))
    expected[:, :used] = (probs[..., None] * values).sum(-2).reshape(-1, used)
    limit = run.limit if run.precision == "fp16" else 1e-5
    yield Case(f"lda_attention {run.precision} {upscale} {used}", got["out"], expected, limit)
