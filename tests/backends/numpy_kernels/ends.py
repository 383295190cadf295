"""The kernels of `vsfdatrd.kernels.ends` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, convolved, covers, gelu, read, view, write_tokens


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
    covers(grid, -(-n // constants["ROWS"]))
    assert padded_terms % constants["DEPTH"] == 0
    channels = terms // (9 * u * u)
    picture = np.pad(view(image, channels, height * u, width * u), ((0, 0), (u, u), (u, u)))
    patches = np.lib.stride_tricks.sliding_window_view(picture, (3 * u, 3 * u), (1, 2))[:, ::u, ::u]
    columns = np.pad(patches.transpose(1, 2, 0, 3, 4).reshape(n, terms), ((0, 0), (0, padded_terms - terms)))
    values = columns @ view(weight, padded_terms, c) + view(bias, c)
    view(shallow, n, c)[:] = values
    write_tokens(values, tokens, stats)


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
    covers(grid, -(-n // constants["ROWS"]))
    total = convolved(read(tokens, n, c), read(weight, 9 * c, c), c, height, width) + read(skip, n, c)
    write_tokens(total, out, stats)


def convolve_after(
    constants: Constants, grid: Grid, tokens: Flat, weight: Flat, skip: Flat, out: Flat, height: int, width: int
) -> None:
    c, n = constants["C"], height * width
    covers(grid, -(-n // constants["ROWS"]))
    total = convolved(read(tokens, n, c), read(weight, 9 * c, c), c, height, width) + read(skip, n, c)
    view(out, n, c)[:] = total


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
    covers(grid, -(-n // constants["ROWS"]), 4)
    assert middle % constants["COLUMNS"] == 0
    padded = np.pad(read(maps, n, c).reshape(height, width, c), ((1, 1), (1, 1), (0, 0)))
    matrices, products = read(weight, 4, 4 * c, middle), read(last, middle, 64)
    assert not products[:, 48:].any()
    square = view(taps, height, 2, width, 2, 48)
    for a in (0, 1):
        for b in (0, 1):
            four = [padded[a + p : a + p + height, b + q : b + q + width] for p in (0, 1) for q in (0, 1)]
            inputs = np.concatenate(four, -1).reshape(n, 4 * c)
            pixels = gelu(inputs @ matrices[2 * a + b] + view(bias, middle)).astype(maps.dtype)
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
    covers(grid, -(-16 * height * width // constants["PIXELS"]))
    tall, wide = 2 * height, 2 * width
    shares = view(taps, tall, wide, 3, 4, 4)
    planes = np.zeros((3, 2 * tall + 2, 2 * wide + 2), np.float32)
    for ky in range(4):  # input (y, x) of a 4-wide transposed convolution adds to output (2y + ky - 1, 2x + kx - 1)
        for kx in range(4):
            planes[:, ky : ky + 2 * tall : 2, kx : kx + 2 * wide : 2] += shares[..., ky, kx].transpose(2, 0, 1)
    planes = planes[:, 1:-1, 1:-1] + view(bias, 3)[:, None, None]
    padded, kernel = np.pad(planes, ((0, 0), (1, 1), (1, 1))), view(weight, 3, 3, 3, 3)
    out = view(image, 3, 2 * tall, 2 * wide)
    out[:] = view(last_bias, 3)[:, None, None]
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + 2 * tall, j : j + 2 * wide]
            out += np.tensordot(kernel[:, :, i, j], part, 1)
