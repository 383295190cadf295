"""The kernels of `convolutions` compared with NumPy in float64, on maps whose sides are not multiples of a tile."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, convolution, stats


def cases() -> Iterator[Case]:
    for unshuffle, channels, precision in ((4, 96, "fp16"), (2, 128, "fp16"), (1, 192, "bf16")):
        yield from conv_first(Runner(channels, precision, 1), unshuffle)
        if unshuffle != 2:
            yield from convolutions(Runner(channels, precision, 2))


def unshuffled(image: Array, factor: int) -> Array:
    """Pixel unshuffle: (planes, H, W) -> (H / factor, W / factor, planes · factor²)."""
    planes, height, width = image.shape
    cells = image.reshape(planes, height // factor, factor, width // factor, factor)
    return cells.transpose(1, 3, 0, 2, 4).reshape(height // factor, width // factor, -1)


def conv_first(run: Runner, u: int) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count, in_features = height * width, 27 * u * u
    image = np.asarray(run.generator.random((3, height * u, width * u), np.float32), np.float64)
    weight = np.asarray(run.generator.standard_normal((c, 3 * u * u, 3, 3)).astype(np.float32), np.float64)
    bias = run.random(c)
    large = weight.reshape(c, 3, u, u, 3, 3).transpose(0, 1, 4, 2, 5, 3).reshape(c, in_features).T
    block = run.constant("conv_first", "BLOCK_K")
    padded = cdiv(in_features, block) * block
    got = run.run(
        "conv_first",
        (cdiv(count, run.constant("conv_first", "BLOCK_ROWS")),),
        {"shallow": (count, c), "out": (count, c), "out_stats": (count, 2)},
        image=image,
        weight=np.pad(large, ((0, padded - in_features), (0, 0))),
        bias=bias,
        height=height,
        width=width,
        unshuffle=u,
        in_features=in_features,
        padded_in_features=padded,
    )
    taps = weight.transpose(2, 3, 1, 0).reshape(9, -1, c)
    expected = convolution(unshuffled(image, u), taps).reshape(count, c) + bias
    name = f"conv_first {u} {c} {run.precision}"
    yield Case(name, got["shallow"], expected, 1e-6)
    yield Case(f"{name} tokens", got["out"], run.rounded(got["shallow"]), 0)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)


def convolutions(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 9, 15 if run.channels == 96 else 7
    count = height * width
    t, skip = run.random(count, c), run.random(count, c, scale=100)
    t[::7] *= 256
    weight = run.random(9, c, c, scale=0.03)
    common = {"tokens": t, "weight": weight.reshape(9 * c, c), "height": height, "width": width}
    expected = convolution(t.reshape(height, width, c), weight).reshape(count, c) + skip
    grid = (cdiv(count, run.constant("conv_group", "BLOCK_ROWS")),)
    got = run.run("conv_group", grid, {"out": (count, c), "out_stats": (count, 2)}, skip=skip, **common)
    yield Case(f"conv_group {c} {run.precision}", got["out"], expected, run.limit)
    yield Case(f"conv_group stats {c} {run.precision}", got["out_stats"], stats(got["out"]), 1e-5)
    grid = (cdiv(count, run.constant("conv_after", "BLOCK_ROWS")),)
    got = run.run("conv_after", grid, {"out": (count, c)}, skip=skip, **common)
    yield Case(f"conv_after {c} {run.precision}", got["out"], expected, 1e-3 if run.precision == "fp16" else 1e-6)
