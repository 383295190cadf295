"""The kernels of `vsfdatrd.kernels.convolutions` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, assert_grid, conv3x3, read, view, write_tokens


def conv_first(
    constants: Constants,
    grid: Grid,
    image: Flat,
    weight: Flat,
    bias: Flat,
    shallow: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
    unshuffle: int,
    in_features: int,
    padded_in_features: int,
) -> None:
    c, u, n = constants["C"], unshuffle, height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    assert padded_in_features % constants["BLOCK_K"] == 0
    channels = in_features // (9 * u * u)
    picture = np.pad(view(image, channels, height * u, width * u), ((0, 0), (u, u), (u, u)))
    patches = np.lib.stride_tricks.sliding_window_view(picture, (3 * u, 3 * u), (1, 2))[:, ::u, ::u]
    columns = np.pad(
        patches.transpose(1, 2, 0, 3, 4).reshape(n, in_features), ((0, 0), (0, padded_in_features - in_features))
    )
    values = columns @ view(weight, padded_in_features, c) + view(bias, c)
    view(shallow, n, c)[:] = values
    write_tokens(values, out, out_stats)


def conv_group(
    constants: Constants,
    grid: Grid,
    tokens: Flat,
    weight: Flat,
    skip: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
) -> None:
    c, n = constants["C"], height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    total = conv3x3(read(tokens, n, c), read(weight, 9 * c, c), c, height, width) + read(skip, n, c)
    write_tokens(total, out, out_stats)


def conv_after(
    constants: Constants, grid: Grid, tokens: Flat, weight: Flat, skip: Flat, out: Flat, height: int, width: int
) -> None:
    c, n = constants["C"], height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    total = conv3x3(read(tokens, n, c), read(weight, 9 * c, c), c, height, width) + read(skip, n, c)
    view(out, n, c)[:] = total
