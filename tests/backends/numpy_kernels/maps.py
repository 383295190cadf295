"""The kernels of `vsfdatrd.kernels.maps` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, covers, neighbours, read, sigmoid, view


def _taps(maps: Flat, side: int, a: int, b: int, step: int) -> Flat:
    """The tokens (H, W, C) that pixel (a, b) of each token depends on, one after the other: (H · W, side² · C)."""
    height, width, _ = maps.shape
    around = neighbours(maps)
    if side == 2:
        top, left = 2 * a // step, 2 * b // step
        chosen = [around[3 * (top + p) + left + q] for p in range(2) for q in range(2)]
    else:
        chosen = around if side == 3 else [maps]
    return np.concatenate(chosen, -1).reshape(height * width, -1)


def convolve_maps(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    slopes: Flat,
    out: Flat,
    height: int,
    width: int,
    inputs: int,
    outputs: int,
    side: int,
    step: int,
    gated: int,
) -> None:
    n, pixels = height * width, step * step
    assert outputs % constants["COLUMNS"] == inputs % constants["DEPTH"] == 0
    covers(grid, -(-n // constants["ROWS"]), outputs // constants["COLUMNS"], pixels)
    values = read(maps, n, inputs)
    matrices = read(weight, pixels, side * side * inputs, outputs)
    result = view(out, height, step, width, step, outputs)
    for a in range(step):
        for b in range(step):
            rows = _taps(values.reshape(height, width, inputs), side, a, b, step)
            total = rows @ matrices[step * a + b] + view(bias, pixels, outputs)[step * a + b]
            total = values * sigmoid(total) if gated else total
            total = np.where(total < 0, total * view(slopes, outputs), total)
            result[:, a, :, b] = total.reshape(height, width, outputs)


def convolve_pixels(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    planes: Flat,
    height: int,
    width: int,
    inputs: int,
    outputs: int,
    count: int,
    side: int,
    step: int,
) -> None:
    n = height * width
    assert outputs % constants["COLUMNS"] == inputs % constants["DEPTH"] == 0
    assert count <= outputs
    assert side != 2
    covers(grid, -(-n // constants["ROWS"]), outputs // constants["COLUMNS"])
    rows = _taps(read(maps, n, inputs).reshape(height, width, inputs), side, 0, 0, 1)
    total = (rows @ read(weight, side * side * inputs, outputs) + view(bias, outputs))[:, :count]
    shuffled = total.reshape(height, width, -1, step, step).transpose(2, 0, 3, 1, 4)
    view(planes, *shuffled.shape)[:] = shuffled


def convolve_planes(
    constants: Constants, grid: Grid, planes: Flat, weight: Flat, bias: Flat, image: Flat, height: int, width: int
) -> None:
    covers(grid, -(-height * width // constants["PIXELS"]))
    around = np.concatenate(neighbours(view(planes, 3, height, width).transpose(1, 2, 0)), -1)  # (tap, plane)
    kernel = view(weight, 3, 3, 9).transpose(2, 1, 0).reshape(27, 3)
    view(image, 3, height, width)[:] = (around @ kernel + view(bias, 3)).transpose(2, 0, 1)
