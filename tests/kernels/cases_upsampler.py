"""The kernels of `upsampler` compared with NumPy in float64, on maps whose sides are no multiples of anything."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, convolution, gelu
from tests.kernels.random_tokens import parts_of

MAPS = (
    # channels, precision, kernel_size, upscale, gated, height, width
    (96, "fp16", 3, 1, 0, 5, 9),
    (96, "fp16", 3, 3, 0, 3, 7),
    (128, "fp16", 2, 2, 0, 7, 13),
    (128, "bf16", 2, 3, 0, 5, 1),
    (192, "bf16", 3, 2, 0, 1, 5),
    (128, "fp16", 1, 1, 1, 11, 13),
    (192, "bf16", 1, 1, 1, 3, 5),
)
PLANES = (
    # channels, precision, kernel_size, upscale, planes, height, width
    (96, "fp16", 3, 1, 3, 11, 13),
    (96, "bf16", 3, 2, 3, 5, 9),
    (128, "fp16", 3, 3, 3, 1, 7),
    (192, "bf16", 3, 4, 3, 7, 3),
    (128, "fp16", 1, 1, 44, 5, 9),
    (192, "fp16", 1, 3, 3, 5, 1),
)


def cases() -> Iterator[Case]:
    for channels, precision, kernel_size, upscale, gated, height, width in MAPS:
        yield from conv_maps(Runner(channels, precision, 1), kernel_size, upscale, gated, height, width)
    for channels, precision, kernel_size, upscale, planes, height, width in PLANES:
        yield from conv_pixel_shuffle(Runner(channels, precision, 2), kernel_size, upscale, planes, height, width)
    for height, width in ((7, 5), (1, 1), (13, 29)):
        yield from conv_rgb(Runner(128, "fp16", 3), height, width)
    for channels, precision in ((128, "fp16"), (192, "bf16")):
        yield from conv_transpose_products(Runner(channels, precision, 3))
    yield from sum_products_conv_last(Runner(128, "fp16", 4))


def of_tail(run: Runner) -> Runner:
    """The tail's runner: in bf16 the tail is fp32."""
    return run if run.precision == "fp16" else Runner(run.channels, "fp32", 5)


def limit_of(run: Runner) -> float:
    """The limit of a result: in bf16 that of products of tf32, if operands are rounded to the nearest."""
    return run.limit if run.precision == "fp16" else 2.0**-10.8


def tokens_of(run: Runner, count: int, channels: int) -> Array:
    """Random tokens of every magnitude. Sums stay within the range of fp16."""
    tokens = run.random(count, channels)
    tokens[::5] = run.rounded(tokens[::5] * 1e-3)
    tokens[1::5] = run.rounded(tokens[1::5] * 2000)
    tokens[2::5] = run.rounded(3000 + tokens[2::5] * 100)
    return tokens


def neighborhood(maps: Array, kernel_size: int, subpixel: tuple[int, int], upscale: int) -> Array:
    """The kernel_size × kernel_size tokens (H, W, side², C) that a pixel of each token depends on."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    first = [2 * each // upscale for each in subpixel] if kernel_size == 2 else [1 - kernel_size // 2] * 2
    return np.stack(
        [
            padded[first[0] + p : first[0] + p + height, first[1] + q : first[1] + q + width]
            for p in range(kernel_size)
            for q in range(kernel_size)
        ],
        2,
    )


def conv_maps(run: Runner, kernel_size: int, upscale: int, gated: int, height: int, width: int) -> Iterator[Case]:
    columns = run.constant("conv_maps", "BLOCK_COLUMNS")
    # Operands of a gate are exact in tf32: an error of a large sum would otherwise open one that is shut.
    tail = run if gated else of_tail(run)
    count, in_channels, out_channels = height * width, 3 * columns, (3 if gated else 2) * columns
    maps = tokens_of(tail, count, in_channels)
    weight = tail.random(upscale**2, kernel_size**2, in_channels, out_channels, scale=0.05)
    weight[..., -5:] = 0  # channels that are not there
    bias, negative_slopes = tail.random(upscale**2, out_channels), np.abs(tail.random(out_channels))
    got = run.run(
        "conv_maps",
        (cdiv(count, run.constant("conv_maps", "BLOCK_ROWS")), out_channels // columns, upscale**2),
        {"out": (upscale**2 * count, out_channels)},
        maps=maps,
        weight=weight,
        bias=bias,
        negative_slopes=negative_slopes,
        height=height,
        width=width,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        upscale=upscale,
        gated=gated,
    )
    cells = np.zeros((height, upscale, width, upscale, out_channels))
    square = maps.reshape(height, width, in_channels)
    for a, b in np.ndindex(upscale, upscale):
        taps = neighborhood(square, kernel_size, (a, b), upscale)
        total = np.tensordot(taps, weight[upscale * a + b], 2) + bias[upscale * a + b]
        total = square / (1 + np.exp(-np.maximum(total, -700))) if gated else total
        cells[:, a, :, b] = np.where(total < 0, total * negative_slopes, total)
    expected = cells.reshape(-1, out_channels)
    name = f"conv_maps {run.channels} {run.precision} {kernel_size} {upscale} {gated}"
    # Each pixel depends on its own token alone only if there are no neighbors.
    for part, pixels in parts_of("extreme" if gated else "").items():
        yield Case(f"{name} {part}", got["out"][pixels], expected[pixels], limit_of(run))


def conv_pixel_shuffle(
    run: Runner, kernel_size: int, upscale: int, planes: int, height: int, width: int
) -> Iterator[Case]:
    columns, in_channels = run.constant("conv_pixel_shuffle", "BLOCK_COLUMNS"), 96
    tail, count, used = of_tail(run), height * width, planes * upscale**2
    out_channels = cdiv(used, columns) * columns
    maps = tokens_of(tail, count, in_channels)
    weight, bias = tail.random(kernel_size**2, in_channels, used, scale=0.05), tail.random(used)
    got = run.run(
        "conv_pixel_shuffle",
        (cdiv(count, run.constant("conv_pixel_shuffle", "BLOCK_ROWS")), out_channels // columns),
        {"planes": (planes, upscale * height, upscale * width)},
        maps=maps,
        weight=np.pad(weight, ((0, 0), (0, 0), (0, out_channels - used))),
        bias=np.pad(bias, (0, out_channels - used)),
        height=height,
        width=width,
        in_channels=in_channels,
        out_channels=out_channels,
        used_channels=used,
        kernel_size=kernel_size,
        upscale=upscale,
    )
    square = maps.reshape(height, width, in_channels)
    total = np.tensordot(neighborhood(square, kernel_size, (0, 0), 1), weight, 2) + bias
    cells = total.reshape(height, width, planes, upscale, upscale).transpose(2, 0, 3, 1, 4)
    expected = cells.reshape(planes, upscale * height, upscale * width)
    name = f"conv_pixel_shuffle {run.channels} {run.precision} {kernel_size} {upscale} {planes}"
    yield Case(name, got["planes"], expected, 1e-6 if run.precision == "fp16" else limit_of(run))


def conv_rgb(run: Runner, height: int, width: int) -> Iterator[Case]:
    planes, weight, bias = (run.generator.standard_normal(shape) for shape in ((3, height, width), (3, 3, 3, 3), 3))
    got = run.run(
        "conv_rgb",
        (cdiv(height * width, run.constant("conv_rgb", "BLOCK_PIXELS")),),
        {"image": (3, height, width)},
        planes=planes,
        weight=weight,
        bias=bias,
        height=height,
        width=width,
    )
    expected = convolution(planes.transpose(1, 2, 0), weight.transpose(2, 3, 1, 0).reshape(9, 3, 3)) + bias
    yield Case(f"conv_rgb {height} {width}", got["image"], expected.transpose(2, 0, 1), 1e-6)


def transposed(maps: Array, kernel: Array) -> Array:
    """Transposed 4×4 convolution with stride 2 and padding 1: (H, W, C), (C, O, 4, 4) -> (2H, 2W, O)."""
    height, width, _ = maps.shape
    out = np.zeros((2 * height + 2, 2 * width + 2, kernel.shape[1]))
    for ky in range(4):
        for kx in range(4):
            out[ky : ky + 2 * height : 2, kx : kx + 2 * width : 2] += maps @ kernel[:, :, ky, kx]
    return out[1:-1, 1:-1]


def conv_transpose_products(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 3, 11
    kernel = "conv_transpose_products"
    count, columns, tail = height * width, run.constant(kernel, "BLOCK_COLUMNS"), of_tail(run)
    used = columns + 5  # channels between the two convolutions
    mid_channels = cdiv(used, columns) * columns
    maps = tail.random(count, c, scale=10)
    first, bias = tail.random(c, used, 4, 4, scale=0.02), tail.random(used)
    second = tail.random(used, 3, 4, 4)
    weight = np.zeros((4, 4, c, mid_channels))
    for a in range(2):
        for b in range(2):
            for p in range(2):
                for q in range(2):
                    weight[2 * a + b, 2 * p + q, :, :used] = first[:, :, 3 - a - 2 * p, 3 - b - 2 * q]
    second_weight = np.zeros((mid_channels, 64))
    second_weight[:used, :48] = second.reshape(used, 48)
    got = run.run(
        kernel,
        (cdiv(count, run.constant(kernel, "BLOCK_ROWS")), 4),
        {"products": (4 * count, 48)},
        maps=maps,
        weight=weight.reshape(4, 4 * c, mid_channels),
        bias=np.pad(bias, (0, mid_channels - used)),
        second_weight=second_weight,
        height=height,
        width=width,
        mid_channels=mid_channels,
    )
    hidden = gelu(transposed(maps.reshape(height, width, c), first) + bias).reshape(-1, used)
    name = f"{kernel} {c} {run.precision}"
    yield Case(name, got["products"], hidden @ second.reshape(used, 48), limit_of(run))


def sum_products_conv_last(run: Runner) -> Iterator[Case]:
    height, width = 3, 5
    products = run.generator.standard_normal((4 * height * width, 48))
    weight, transpose_bias, conv_bias = (run.generator.standard_normal(shape) for shape in ((3, 3, 3, 3), 3, 3))
    got = run.run(
        "sum_products_conv_last",
        (cdiv(16 * height * width, run.constant("sum_products_conv_last", "BLOCK_PIXELS")),),
        {"image": (3, 4 * height, 4 * width)},
        products=products,
        transpose_bias=transpose_bias,
        conv_weight=weight,
        conv_bias=conv_bias,
        height=height,
        width=width,
    )
    # The products are already computed: a transposed convolution of ones adds each to its pixel.
    single = np.eye(48).reshape(3, 4, 4, 48).transpose(3, 0, 1, 2)
    summed = transposed(products.reshape(2 * height, 2 * width, 48), single) + transpose_bias
    expected = convolution(summed, weight.transpose(2, 3, 1, 0).reshape(9, 3, 3)) + conv_bias
    yield Case("sum_products_conv_last", got["image"], expected.transpose(2, 0, 1), 1e-6)
