"""Checks independent of PSNR: no color shift, no displacement, no grid, no flicker of held cels."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from benchmarks.cartoon import draw_frame
from benchmarks.quality_degradations import halve
from benchmarks.quality_measures import displacement, flicker, to_luma
from benchmarks.quality_methods import Method, Picture

CELS = (
    (128, 128, 128),
    (28, 22, 34),
    (246, 208, 178),
    (232, 148, 132),
    (58, 74, 150),
    (206, 62, 60),
    (248, 226, 150),
    (64, 160, 88),
)
"""Flat colors of cels: gray, ink, skin, blush, hair, coat, trim, green."""
COLOR_LIMIT = 0.5
GRID_LIMIT = 0.125
GRID_STANDS_OUT = 4.0
FLICKER_LIMIT = 1.0
SHIFT_LIMIT = 0.05
PERIODS = (2, 4, 10, 20, 30, 40, 60, 120)
"""In pixels of the output: windows of 10 and 30 tokens of one pixel (20, 60) and of two (40, 120), at 2x; the same in
pixels of the output itself (10, 30); and what a pixel shuffle may leave (2, 4)."""


class Check(TypedDict):
    """The result of a check. `worst` is the measured value, in `unit`, that is compared with the limit."""

    passed: bool
    worst: float
    limit: float
    unit: str
    details: dict[str, float]


def _check(worst: float, limit: float, unit: str, details: dict[str, float]) -> Check:
    rounded = {name: round(value, 4) for name, value in details.items()}
    return Check(passed=bool(worst <= limit), worst=round(worst, 4), limit=limit, unit=unit, details=rounded)


def flat(color: tuple[int, int, int], side: int) -> Picture:
    """Return a square of one color, uint8 (side, side, 3)."""
    return np.full((side, side, 3), color, np.uint8)


def color_shift(method: Method) -> Check:
    """Means of R, G and B over a flat frame, output against input: within half an 8-bit step.

    Frames of 120×120, one per color; the outer 16 pixels of the output do not count.
    """
    details = {}
    for color, result in zip(CELS, method([flat(color, 120) for color in CELS]), strict=True):
        mean = result[16:-16, 16:-16].astype(np.float64).mean((0, 1)) * 255
        for plane, is_, was in zip("RGB", mean, color, strict=True):
            details[f"{'-'.join(map(str, color))} {plane}"] = float(is_ - was)
    return _check(max(map(abs, details.values())), COLOR_LIMIT, "8-bit steps", details)


def grid(method: Method) -> Check:
    """No grid and no window pattern: the spectrum of a flat gray frame has no peak at the periods of windows.

    Gray frames of 288×288, the middle 480×480 pixels of the output, luma. All `PERIODS` divide 480, so a pattern that
    repeats every P pixels falls exactly into the bins whose two frequencies are multiples of 480/P of a DFT without
    window, and what does not repeat falls everywhere. The amplitude of such a bin is a peak if it is higher than four
    times the median of the bins around it (within 3, those of the periods themselves left out), and counts for the
    shortest period it belongs to. The highest may be an eighth of an 8-bit step: half a step of 10-bit video.
    """
    details = {f"period {period}": 0.0 for period in PERIODS}
    levels = [flat((gray, gray, gray), 288) for gray in (64, 128, 192)]
    for result in method(levels):
        for period, height in _peaks(to_luma(result)[48:-48, 48:-48]).items():
            details[f"period {period}"] = max(details[f"period {period}"], height)
    return _check(max(details.values()), GRID_LIMIT, "8-bit steps", details)


def _peaks(plane: NDArray[np.float64]) -> dict[int, float]:
    """Return the highest peak for each of `PERIODS`, in 8-bit steps; 0 if none stands out. `plane` is (480, 480)."""
    side = len(plane)
    height = np.abs(np.fft.fft2(plane - plane.mean())) * 2 / side**2 * 255
    step = side // max(PERIODS)  # the bins of all periods are among those of the longest
    offsets = range(1 - step, step)
    around = [np.roll(height, (y, x), (0, 1))[::step, ::step] for y in offsets for x in offsets if y or x]
    lattice = height[::step, ::step]
    stands_out = lattice > GRID_STANDS_OUT * np.median(around, axis=0)
    stands_out[0, 0] = False
    bins = np.arange(0, side, step)
    result = {}
    for period in PERIODS:
        own = bins % (side // period) == 0
        mask = stands_out & own[:, None] & own[None]
        result[period] = float(lattice[mask].max()) if mask.any() else 0.0
        stands_out &= ~mask
    return result


def held_cels(method: Method) -> Check:
    """Check that a held drawing with new noise in every frame flickers no more after upscaling than before.

    Four frames of one drawn cel (240×200) with noise of two 8-bit steps. The value is the standard deviation of luma
    from frame to frame, of the output relative to that of the input.
    """
    cel = halve(draw_frame(0, 480, 400)).astype(np.float64)
    frames: list[Picture] = []
    for seed in range(4):
        noise = np.random.default_rng(seed).normal(0, 2, cel.shape)
        frames.append(np.rint(np.clip(cel + noise, 0, 255)).astype(np.uint8))
    before = flicker([frame / 255 for frame in frames])
    after = flicker(list(method(frames)))
    return _check(after / before, FLICKER_LIMIT, "of the input's flicker", {"before": before, "after": after})


def shift(method: Method) -> Check:
    """Check that a drawn cel is not displaced by more than a twentieth of an output pixel in either direction."""
    truth = draw_frame(0, 480, 400)
    result = next(iter(method([halve(truth)])))
    down, right = displacement(truth / 255, result)
    return _check(max(abs(down), abs(right)), SHIFT_LIMIT, "pixels of the output", {"down": down, "right": right})


CHECKS = {"color shift": color_shift, "grid": grid, "held cels": held_cels, "shift": shift}


def run_checks(method: Method) -> dict[str, Check]:
    """Run all checks; return them by name."""
    return {name: check(method) for name, check in CHECKS.items()}
