"""The kernels of `vsfdatrd.kernels.sampling` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, assert_grid, depthwise, read, sigmoid, view

POSITIONS = 9
REACH = 11
EPS_OF_MAPS = 1e-6


def _sample(maps: Flat, y: Flat, x: Flat) -> Flat:
    """Maps (H, W, C) at positions of any shape, bilinearly, with zeros around: (..., C)."""
    height, width, _ = maps.shape
    top, left = np.floor(y), np.floor(x)
    y_fraction, x_fraction = y - top, x - left
    total: Flat = np.zeros((*y.shape, maps.shape[-1]), np.float32)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = (top + dy).astype(int), (left + dx).astype(int)
            mask = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = (y_fraction if dy else 1 - y_fraction) * (x_fraction if dx else 1 - x_fraction) * mask
            corner = maps[row.clip(0, height - 1), column.clip(0, width - 1)]
            total += weight[..., None].astype(np.float32) * corner
    return total


def dysample(
    constants: Constants,
    grid: Grid,
    planes: Flat,
    init_positions: Flat,
    bias: Flat,
    image: Flat,
    height: int,
    width: int,
    upscale: int,
) -> None:
    assert_grid(grid, -(-height * width * upscale * upscale // constants["BLOCK_PIXELS"]))
    size = upscale * upscale
    values = view(planes, 16 * size + 12, height, width)
    moved = values[: 8 * size] * sigmoid(values[8 * size : 16 * size]) + view(init_positions, 8 * size)[:, None, None]
    x, y = moved.reshape(2, 4, upscale, upscale, height, width).transpose(0, 1, 4, 2, 5, 3)  # (group, H, a, W, b)
    x = (x + np.arange(width)[:, None]).clip(0, width - 1).reshape(4, upscale * height, upscale * width)
    y = (y + np.arange(height)[:, None, None, None]).clip(0, height - 1).reshape(4, upscale * height, upscale * width)
    colors = values[16 * size :].reshape(4, 3, height, width)
    total = sum(_sample(colors[g].transpose(1, 2, 0), y[g], x[g]) for g in range(4))
    result = np.asarray(total) + view(bias, 3)
    view(image, 3, upscale * height, upscale * width)[:] = result.transpose(2, 0, 1)


def _normalized(values: Flat) -> Flat:
    """Values normalized over the last axis."""
    centered = values - values.mean(-1, keepdims=True)
    result: Flat = centered / np.sqrt(np.square(centered).mean(-1, keepdims=True) + EPS_OF_MAPS)
    return result


def normalize_maps(
    constants: Constants, grid: Grid, maps: Flat, out: Flat, num_tokens: int, channels: int, padded_channels: int
) -> None:
    assert_grid(grid, -(-num_tokens // constants["BLOCK_ROWS"]))
    result = view(out, num_tokens, padded_channels)
    result[:] = 0
    result[:, :channels] = _normalized(read(maps, num_tokens, padded_channels)[:, :channels])


def _upsampled(planes: Flat, upscale: int) -> Flat:
    """Planes (C, H, W), of which the outer pixels stay where they are: (upscale · H, upscale · W, C)."""
    _, height, width = planes.shape
    y, x = (np.arange(upscale * side) * (side - 1) / (upscale * side - 1) for side in (height, width))
    return _sample(planes.transpose(1, 2, 0), *np.meshgrid(y, x, indexing="ij"))


def lda_offset_features(
    constants: Constants,
    grid: Grid,
    planes: Flat,
    weight: Flat,
    norm_weight: Flat,
    norm_bias: Flat,
    out: Flat,
    height: int,
    width: int,
    upscale: int,
    group_channels: int,
    padded_channels: int,
) -> None:
    out_height, out_width = upscale * height, upscale * width
    assert_grid(grid, -(-out_height * out_width // constants["BLOCK_PIXELS"]), 3)
    assert group_channels <= constants["BLOCK_C"]
    assert 0 <= padded_channels - 2 * group_channels <= constants["BLOCK_C"]
    queries = _upsampled(view(planes, 2 * group_channels, height, width), upscale).reshape(
        out_height * out_width, 2 * group_channels
    )
    mixed = depthwise(queries, np.tile(view(weight, 9, group_channels), 2), None, out_height, out_width).reshape(
        -1, 2, group_channels
    )
    features = _normalized(mixed) * view(norm_weight, group_channels) + view(norm_bias, group_channels)
    features = (features * sigmoid(features)).reshape(out_height * out_width, 2 * group_channels)
    result = view(out, out_height * out_width, padded_channels)
    result[:, : 2 * group_channels], result[:, 2 * group_channels :] = features, 0


def lda_attention(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    planes: Flat,
    offsets: Flat,
    position_bias: Flat,
    out: Flat,
    height: int,
    width: int,
    upscale: int,
    channels: int,
    padded_channels: int,
) -> None:
    out_height, out_width, hidden = upscale * height, upscale * width, channels // 4
    assert_grid(grid, -(-out_height * out_width // constants["BLOCK_PIXELS"]))
    both = view(planes, 2 * hidden, height, width)
    queries = _upsampled(both[:hidden], upscale).reshape(out_height, out_width, 1, hidden)
    keys = np.broadcast_to(view(position_bias, POSITIONS, hidden), (out_height, out_width, POSITIONS, hidden)).copy()
    values = np.empty((out_height, out_width, POSITIONS, channels), np.float32)
    tokens = read(maps, height * width, padded_channels).reshape(height, width, padded_channels)
    moved = REACH * np.tanh(view(offsets, 2, POSITIONS, 2, out_height, out_width))
    base = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), -1).reshape(POSITIONS, 2, 1, 1)
    for group in range(2):
        y, x = (moved[group] + base).transpose(1, 2, 3, 0)  # (out_height, out_width, position)
        y = (y + np.arange(out_height)[:, None, None]) * (height - 1) / (out_height - 1)
        x = (x + np.arange(out_width)[:, None]) * (width - 1) / (out_width - 1)
        part = slice(group * hidden // 2, (group + 1) * hidden // 2)
        keys[..., part] += _sample(both[hidden:][part].transpose(1, 2, 0), y, x)
        part = slice(group * channels // 2, (group + 1) * channels // 2)
        values[..., part] = _sample(tokens[..., part], y, x)
    scores = (queries * keys).sum(-1) / np.float32(np.sqrt(hidden))
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    result = view(out, out_height, out_width, padded_channels)
    result[..., channels:] = 0
    result[..., :channels] = (probs[..., None] * values).sum(-2)
