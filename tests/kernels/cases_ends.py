"""The kernels of `ends` compared with NumPy in float64, on maps whose sides are not multiples of a tile."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, convolution, gelu, stats


def cases() -> Iterator[Case]:
    for unshuffle, channels, precision in ((4, 96, "fp16"), (2, 128, "fp16"), (1, 192, "bf16")):
        yield from first_convolution(Runner(channels, precision, 1), unshuffle)
        if unshuffle != 2:
            yield from convolutions(Runner(channels, precision, 2))
        if unshuffle != 4:
            yield from spread(Runner(channels, precision, 3))
    yield from gather(Runner(128, "fp16", 4))


def unshuffled(image: Array, factor: int) -> Array:
    """Pixel unshuffle: (planes, H, W) -> (H / factor, W / factor, planes · factor²)."""
    planes, height, width = image.shape
    cells = image.reshape(planes, height // factor, factor, width // factor, factor)
    return cells.transpose(1, 3, 0, 2, 4).reshape(height // factor, width // factor, -1)


def first_convolution(run: Runner, u: int) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count, terms = height * width, 27 * u * u
    image = np.asarray(run.generator.random((3, height * u, width * u), np.float32), np.float64)
    weight = np.asarray(run.generator.standard_normal((c, 3 * u * u, 3, 3)).astype(np.float32), np.float64)
    bias = run.random(c)
    large = weight.reshape(c, 3, u, u, 3, 3).transpose(0, 1, 4, 2, 5, 3).reshape(c, terms).T
    padded = cdiv(terms, run.constant("first_convolution", "DEPTH")) * run.constant("first_convolution", "DEPTH")
    got = run.run(
        "first_convolution",
        (cdiv(count, run.constant("first_convolution", "ROWS")),),
        {"shallow": (count, c), "tokens": (count, c), "stats": (count, 2)},
        image=image,
        weight=np.pad(large, ((0, padded - terms), (0, 0))),
        bias=bias,
        height=height,
        width=width,
        unshuffle=u,
        terms=terms,
        padded_terms=padded,
    )
    taps = weight.transpose(2, 3, 1, 0).reshape(9, -1, c)
    expected = convolution(unshuffled(image, u), taps).reshape(count, c) + bias
    name = f"first_convolution {u} {c} {run.precision}"
    yield Case(name, got["shallow"], expected, 1e-6)
    yield Case(f"{name} tokens", got["tokens"], run.rounded(got["shallow"]), 0)
    yield Case(f"{name} stats", got["stats"], stats(got["tokens"]), 1e-5)


def convolutions(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 9, 15 if run.channels == 96 else 7
    count = height * width
    t, skip = run.random(count, c), run.random(count, c, scale=100)
    t[::7] *= 256
    weight = run.random(9, c, c, scale=0.03)
    common = {"tokens": t, "weight": weight.reshape(9 * c, c), "height": height, "width": width}
    expected = convolution(t.reshape(height, width, c), weight).reshape(count, c) + skip
    grid = (cdiv(count, run.constant("convolve_group", "ROWS")),)
    got = run.run("convolve_group", grid, {"out": (count, c), "stats": (count, 2)}, skip=skip, **common)
    yield Case(f"convolve_group {c} {run.precision}", got["out"], expected, run.limit)
    yield Case(f"convolve_group stats {c} {run.precision}", got["stats"], stats(got["out"]), 1e-5)
    grid = (cdiv(count, run.constant("convolve_after", "ROWS")),)
    got = run.run("convolve_after", grid, {"out": (count, c)}, skip=skip, **common)
    yield Case(f"convolve_after {c} {run.precision}", got["out"], expected, 1e-3 if run.precision == "fp16" else 1e-6)


def transposed(maps: Array, kernel: Array) -> Array:
    """Transposed 4×4 convolution with stride 2 and padding 1: (H, W, C), (C, O, 4, 4) -> (2H, 2W, O)."""
    height, width, _ = maps.shape
    out = np.zeros((2 * height + 2, 2 * width + 2, kernel.shape[1]))
    for ky in range(4):
        for kx in range(4):
            out[ky : ky + 2 * height : 2, kx : kx + 2 * width : 2] += maps @ kernel[:, :, ky, kx]
    return out[1:-1, 1:-1]


def spread(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 3, 11
    count, columns = height * width, run.constant("spread", "COLUMNS")
    used = columns + 5  # channels between the two convolutions
    middle = cdiv(used, columns) * columns
    # In bf16 the tail is fp32
    tail = run if run.precision == "fp16" else Runner(c, "fp32", 5)
    maps = tail.random(count, c, scale=10)
    kernel, bias = tail.random(c, used, 4, 4, scale=0.02), tail.random(used)
    second = tail.random(used, 3, 4, 4)
    weight = np.zeros((4, 4, c, middle))
    for a in range(2):
        for b in range(2):
            for p in range(2):
                for q in range(2):
                    weight[2 * a + b, 2 * p + q, :, :used] = kernel[:, :, 3 - a - 2 * p, 3 - b - 2 * q]
    last = np.zeros((middle, 64))
    last[:used, :48] = second.reshape(used, 48)
    got = run.run(
        "spread",
        (cdiv(count, run.constant("spread", "ROWS")), 4),
        {"taps": (4 * count, 48)},
        maps=maps,
        weight=weight.reshape(4, 4 * c, middle),
        bias=np.pad(bias, (0, middle - used)),
        last=last,
        height=height,
        width=width,
        middle=middle,
    )
    wide = gelu(transposed(maps.reshape(height, width, c), kernel) + bias).reshape(-1, used)
    limit = run.limit if run.precision == "fp16" else 2.0**-10.8  # two products of tf32, if rounded to the nearest
    yield Case(f"spread {c} {run.precision}", got["taps"], wide @ second.reshape(used, 48), limit)


def gather(run: Runner) -> Iterator[Case]:
    height, width = 3, 5
    taps = run.generator.standard_normal((4 * height * width, 48))
    weight, bias, last_bias = (run.generator.standard_normal(shape) for shape in ((3, 3, 3, 3), 3, 3))
    got = run.run(
        "gather",
        (cdiv(16 * height * width, run.constant("gather", "PIXELS")),),
        {"image": (3, 4 * height, 4 * width)},
        taps=taps,
        bias=bias,
        weight=weight,
        last_bias=last_bias,
        height=height,
        width=width,
    )
    # The products are already there: each goes to its place alone.
    single = np.eye(48).reshape(3, 4, 4, 48).transpose(3, 0, 1, 2)
    wide = transposed(taps.reshape(2 * height, 2 * width, 48), single) + bias
    expected = convolution(wide, weight.transpose(2, 3, 1, 0).reshape(9, 3, 3)) + last_bias
    yield Case("gather", got["image"], expected.transpose(2, 0, 1), 1e-6)
