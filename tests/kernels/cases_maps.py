"""The kernels of `maps` against NumPy in float64, on maps whose sides are no multiples of anything."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_tokens import parts_of
from tests.kernels.interpreter import Array, Case, Runner, cdiv, convolution

MAPS = (
    # channels, precision, side, step, gated, height, width
    (96, "fp16", 3, 1, 0, 5, 9),
    (96, "fp16", 3, 3, 0, 3, 7),
    (128, "fp16", 2, 2, 0, 7, 13),
    (128, "bf16", 2, 3, 0, 5, 1),
    (192, "bf16", 3, 2, 0, 1, 5),
    (128, "fp16", 1, 1, 1, 11, 13),
    (192, "bf16", 1, 1, 1, 3, 5),
)
PIXELS = (
    # channels, precision, side, step, planes, height, width
    (96, "fp16", 3, 1, 3, 11, 13),
    (96, "bf16", 3, 2, 3, 5, 9),
    (128, "fp16", 3, 3, 3, 1, 7),
    (192, "bf16", 3, 4, 3, 7, 3),
    (128, "fp16", 1, 1, 44, 5, 9),
    (192, "fp16", 1, 3, 3, 5, 1),
)


def cases() -> Iterator[Case]:
    for channels, precision, side, step, gated, height, width in MAPS:
        yield from convolve_maps(Runner(channels, precision, 1), side, step, gated, height, width)
    for channels, precision, side, step, planes, height, width in PIXELS:
        yield from convolve_pixels(Runner(channels, precision, 2), side, step, planes, height, width)
    for height, width in ((7, 5), (1, 1), (13, 29)):
        yield from convolve_planes(Runner(128, "fp16", 3), height, width)


def of_tail(run: Runner) -> Runner:
    """The tail's runner: in bf16 the tail is fp32."""
    return run if run.precision == "fp16" else Runner(run.channels, "fp32", 5)


def limit_of(run: Runner) -> float:
    """Of two operands in tf32, if rounded to the nearest, in bf16."""
    return run.limit if run.precision == "fp16" else 2.0**-10.8


def tokens_of(run: Runner, count: int, channels: int) -> Array:
    """Random tokens of every magnitude. Sums stay within the range of fp16."""
    tokens = run.random(count, channels)
    tokens[::5] = run.rounded(tokens[::5] * 1e-3)
    tokens[1::5] = run.rounded(tokens[1::5] * 2000)
    tokens[2::5] = run.rounded(3000 + tokens[2::5] * 100)
    return tokens


def around(maps: Array, side: int, phase: tuple[int, int], step: int) -> Array:
    """The side × side tokens (H, W, side², C) that a pixel of each token depends on."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    first = [2 * each // step for each in phase] if side == 2 else [1 - side // 2] * 2
    return np.stack(
        [
            padded[first[0] + p : first[0] + p + height, first[1] + q : first[1] + q + width]
            for p in range(side)
            for q in range(side)
        ],
        2,
    )


def convolve_maps(run: Runner, side: int, step: int, gated: int, height: int, width: int) -> Iterator[Case]:
    columns = run.constant("convolve_maps", "COLUMNS")
    # Operands of a gate are exact in tf32: an error of a large sum would otherwise open one that is shut.
    tail = run if gated else of_tail(run)
    count, inputs, outputs = height * width, 3 * columns, (3 if gated else 2) * columns
    maps = tokens_of(tail, count, inputs)
    weight = tail.random(step**2, side**2, inputs, outputs, scale=0.05)
    weight[..., -5:] = 0  # channels that are not there
    bias, slopes = tail.random(step**2, outputs), np.abs(tail.random(outputs))
    got = run.run(
        "convolve_maps",
        (cdiv(count, run.constant("convolve_maps", "ROWS")), outputs // columns, step**2),
        {"out": (step**2 * count, outputs)},
        maps=maps,
        weight=weight,
        bias=bias,
        slopes=slopes,
        height=height,
        width=width,
        inputs=inputs,
        outputs=outputs,
        side=side,
        step=step,
        gated=gated,
    )
    cells = np.zeros((height, step, width, step, outputs))
    square = maps.reshape(height, width, inputs)
    for a, b in np.ndindex(step, step):
        total = np.tensordot(around(square, side, (a, b), step), weight[step * a + b], 2) + bias[step * a + b]
        total = square / (1 + np.exp(-np.maximum(total, -700))) if gated else total
        cells[:, a, :, b] = np.where(total < 0, total * slopes, total)
    expected = cells.reshape(-1, outputs)
    name = f"convolve_maps {run.channels} {run.precision} {side} {step} {gated}"
    # Each pixel depends on its own token alone only if there are no neighbors.
    for part, pixels in parts_of("extreme" if gated else "").items():
        yield Case(f"{name} {part}", got["out"][pixels], expected[pixels], limit_of(run))


def convolve_pixels(run: Runner, side: int, step: int, planes: int, height: int, width: int) -> Iterator[Case]:
    columns, inputs = run.constant("convolve_pixels", "COLUMNS"), 96
    tail, count, used = of_tail(run), height * width, planes * step**2
    outputs = cdiv(used, columns) * columns
    maps = tokens_of(tail, count, inputs)
    weight, bias = tail.random(side**2, inputs, used, scale=0.05), tail.random(used)
    got = run.run(
        "convolve_pixels",
        (cdiv(count, run.constant("convolve_pixels", "ROWS")), outputs // columns),
        {"planes": (planes, step * height, step * width)},
        maps=maps,
        weight=np.pad(weight, ((0, 0), (0, 0), (0, outputs - used))),
        bias=np.pad(bias, (0, outputs - used)),
        height=height,
        width=width,
        inputs=inputs,
        outputs=outputs,
        count=used,
        side=side,
        step=step,
    )
    square = maps.reshape(height, width, inputs)
    total = np.tensordot(around(square, side, (0, 0), 1), weight, 2) + bias
    cells = total.reshape(height, width, planes, step, step).transpose(2, 0, 3, 1, 4)
    expected = cells.reshape(planes, step * height, step * width)
    name = f"convolve_pixels {run.channels} {run.precision} {side} {step} {planes}"
    yield Case(name, got["planes"], expected, 1e-6 if run.precision == "fp16" else limit_of(run))


def convolve_planes(run: Runner, height: int, width: int) -> Iterator[Case]:
    planes, weight, bias = (run.generator.standard_normal(shape) for shape in ((3, height, width), (3, 3, 3, 3), 3))
    got = run.run(
        "convolve_planes",
        (cdiv(height * width, run.constant("convolve_planes", "PIXELS")),),
        {"image": (3, height, width)},
        planes=planes,
        weight=weight,
        bias=bias,
        height=height,
        width=width,
    )
    expected = convolution(planes.transpose(1, 2, 0), weight.transpose(2, 3, 1, 0).reshape(9, 3, 3)) + bias
    yield Case(f"convolve_planes {height} {width}", got["image"], expected.transpose(2, 0, 1), 1e-6)
