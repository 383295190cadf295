"""The kernels of `vsfdatrd.kernels.upsampler` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import Constants, Flat, Grid, assert_grid, gelu, neighbors, read, sigmoid, view


def _taps(maps: Flat, kernel_size: int, sub_y: int, sub_x: int, upscale: int) -> Flat:
    """The tokens (H, W, C) that a subpixel of each depends on, one after the other: (H · W, kernel_size² · C)."""
    height, width, _ = maps.shape
    around = neighbors(maps)
    if kernel_size == 2:
        top, left = 2 * sub_y // upscale, 2 * sub_x // upscale
        chosen = [around[3 * (top + p) + left + q] for p in range(2) for q in range(2)]
    else:
        chosen = around if kernel_size == 3 else [maps]
    return np.concatenate(chosen, -1).reshape(height * width, -1)


def conv_maps(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    negative_slopes: Flat,
    out: Flat,
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    upscale: int,
    gated: int,
) -> None:
    n, subpixels = height * width, upscale * upscale
    assert out_channels % constants["BLOCK_COLUMNS"] == in_channels % constants["BLOCK_K"] == 0
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]), out_channels // constants["BLOCK_COLUMNS"], subpixels)
    values = read(maps, n, in_channels)
    matrices = read(weight, subpixels, kernel_size * kernel_size * in_channels, out_channels)
    result = view(out, height, upscale, width, upscale, out_channels)
    for a in range(upscale):
        for b in range(upscale):
            rows = _taps(values.reshape(height, width, in_channels), kernel_size, a, b, upscale)
            total = rows @ matrices[upscale * a + b] + view(bias, subpixels, out_channels)[upscale * a + b]
            total = values * sigmoid(total) if gated else total
            total = np.where(total < 0, total * view(negative_slopes, out_channels), total)
            result[:, a, :, b] = total.reshape(height, width, out_channels)


def conv_pixel_shuffle(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    planes: Flat,
    height: int,
    width: int,
    in_channels: int,
    out_channels: int,
    used_channels: int,
    kernel_size: int,
    upscale: int,
) -> None:
    n = height * width
    assert out_channels % constants["BLOCK_COLUMNS"] == in_channels % constants["BLOCK_K"] == 0
    assert used_channels <= out_channels
    assert kernel_size != 2
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]), out_channels // constants["BLOCK_COLUMNS"])
    rows = _taps(read(maps, n, in_channels).reshape(height, width, in_channels), kernel_size, 0, 0, 1)
    total = (rows @ read(weight, kernel_size * kernel_size * in_channels, out_channels) + view(bias, out_channels))[
        :, :used_channels
    ]
    shuffled = total.reshape(height, width, -1, upscale, upscale).transpose(2, 0, 3, 1, 4)
    view(planes, *shuffled.shape)[:] = shuffled


def conv_rgb(
    constants: Constants, grid: Grid, planes: Flat, weight: Flat, bias: Flat, image: Flat, height: int, width: int
) -> None:
    assert_grid(grid, -(-height * width // constants["BLOCK_PIXELS"]))
    around = np.concatenate(neighbors(view(planes, 3, height, width).transpose(1, 2, 0)), -1)  # (tap, plane)
    kernel = view(weight, 3, 3, 9).transpose(2, 1, 0).reshape(27, 3)
    view(image, 3, height, width)[:] = (around @ kernel + view(bias, 3)).transpose(2, 0, 1)


def conv_transpose_products(
    constants: Constants,
    grid: Grid,
    maps: Flat,
    weight: Flat,
    bias: Flat,
    second_weight: Flat,
    products: Flat,
    height: int,
    width: int,
    mid_channels: int,
) -> None:
    c, n = constants["C"], height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]), 4)
    assert mid_channels % constants["BLOCK_COLUMNS"] == 0
    padded = np.pad(read(maps, n, c).reshape(height, width, c), ((1, 1), (1, 1), (0, 0)))
    matrices, second = read(weight, 4, 4 * c, mid_channels), read(second_weight, mid_channels, 64)
    assert not second[:, 48:].any()
    result = view(products, height, 2, width, 2, 48)
    for a in (0, 1):
        for b in (0, 1):
            four = [padded[a + p : a + p + height, b + q : b + q + width] for p in (0, 1) for q in (0, 1)]
            inputs = np.concatenate(four, -1).reshape(n, 4 * c)
            pixels = gelu(inputs @ matrices[2 * a + b] + view(bias, mid_channels)).astype(maps.dtype)
            result[:, a, :, b] = (pixels.astype(np.float32) @ second)[:, :48].reshape(height, width, 48)


def sum_products_conv_last(
    constants: Constants,
    grid: Grid,
    products: Flat,
    transpose_bias: Flat,
    conv_weight: Flat,
    conv_bias: Flat,
    image: Flat,
    height: int,
    width: int,
) -> None:
    assert_grid(grid, -(-16 * height * width // constants["BLOCK_PIXELS"]))
    in_height, in_width = 2 * height, 2 * width
    taps = view(products, in_height, in_width, 3, 4, 4)
    planes = np.zeros((3, 2 * in_height + 2, 2 * in_width + 2), np.float32)
    for ky in range(4):  # input (y, x) of a 4×4 transposed convolution adds to output (2y + ky - 1, 2x + kx - 1)
        for kx in range(4):
            planes[:, ky : ky + 2 * in_height : 2, kx : kx + 2 * in_width : 2] += taps[..., ky, kx].transpose(2, 0, 1)
    planes = planes[:, 1:-1, 1:-1] + view(transpose_bias, 3)[:, None, None]
    padded, kernel = np.pad(planes, ((0, 0), (1, 1), (1, 1))), view(conv_weight, 3, 3, 3, 3)
    out = view(image, 3, 2 * in_height, 2 * in_width)
    out[:] = view(conv_bias, 3)[:, None, None]
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + 2 * in_height, j : j + 2 * in_width]
            out += np.tensordot(kernel[:, :, i, j], part, 1)
