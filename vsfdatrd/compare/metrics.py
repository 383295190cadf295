"""Metrics of a picture before and after upscaling, without ground truth.

All planes are luma, (H, W), 0 to 1. A step is 1/255, one level of 8 bits. No metric is a verdict by itself: sharper
lines may have halos, flat areas may have lost their paper texture, and an SSIM of 1 means that nothing changed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy as np
import vapoursynth as vs
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vsfdatrd.compare.video import Picture, to_luma

type Plane = NDArray[np.floating]
type PicturePair = tuple[Picture, Picture]
"""BEFORE and AFTER."""

NOISE_BLOCK = 16
"""Side of the blocks in which noise is measured, in pixels."""
SSIM_WINDOW = 11
"""Side of SSIM's window, in pixels."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The metrics of one pair of frames, or their mean; NaN if a metric could not be measured."""

    lines_before: float
    """Line steepness in BEFORE, enlarged to the size of AFTER, in steps per pixel."""
    lines_after: float
    """Line steepness in AFTER, at the same lines."""
    noise_before: float
    """RMS noise in flat areas of BEFORE, enlarged to the size of AFTER, in steps."""
    noise_after: float
    """RMS noise of AFTER in the same areas."""
    ssim: float
    """SSIM of AFTER, resized to BEFORE, compared with BEFORE: 1 is equal."""
    ssimulacra2: float
    """SSIMULACRA2 of the same pair: 100 is equal, 90 hardly visible, 50 medium; NaN without the plugin vszip."""


def measure_pair(large: PicturePair, small: PicturePair, score: float) -> Metrics:
    """Measure a pair of frames.

    Args:
        large: BEFORE and AFTER at the size of AFTER.
        small: BEFORE and AFTER at the smaller of their sizes.
        score: The SSIMULACRA2 of `small`.
    """
    lines, noise = (metric(*map(to_luma, large)) for metric in (line_steepness, flat_noise))
    x, y = map(to_luma, small)
    return Metrics(*lines, *noise, ssim(x, y) if min(x.shape) >= SSIM_WINDOW else float("nan"), score)


def mean_metrics(metrics: list[Metrics]) -> Metrics:
    """Return the mean of each metric over the frames in which it could be measured."""
    values = ([result for pair in metrics if not np.isnan(result := getattr(pair, name))] for name in Metrics.__slots__)
    return Metrics(*(fmean(of_one) if of_one else float("nan") for of_one in values))


def line_steepness(before: Plane, after: Plane) -> tuple[float, float]:
    """Measure the mean steepness of the lines in two planes of one size.

    Lines are the steepest tenth of the pixels of `before`. Their steepness is the largest gradient within two pixels,
    since a soft and a sharp line have the same amplitude but different gradients.

    Args:
        before: The plane that defines where lines are.
        after: A plane of the same size.

    Returns:
        The steepness of both in steps per pixel; NaN if there are no lines.
    """
    slopes = [np.hypot(*np.gradient(plane)) for plane in (before, after)]
    on_lines = slopes[0] >= max(float(np.quantile(slopes[0], 0.9)), 4 / 255)
    if not on_lines.any():
        return float("nan"), float("nan")
    first, second = (float(_filter_5x5(np.max, slope)[on_lines].mean()) * 255 for slope in slopes)
    return first, second


def flat_noise(before: Plane, after: Plane) -> tuple[float, float]:
    """Measure the RMS noise in the flat areas of two planes of one size.

    Flat areas are the quarter of all blocks in which the blurred mean of both planes is closest to a linear ramp;
    blocks that are constant in both, such as borders, are ignored. Noise is the residual of a block after subtracting
    its own best-fit ramp, so that a sky gradient does not count as noise.

    Args:
        before: A plane.
        after: A plane of the same size.

    Returns:
        The noise of both in steps; NaN if every block is constant.
    """
    both = _filter_5x5(np.mean, (before + after) / 2)
    texture, first, second = (_block_residuals(plane) for plane in (both, before, after))
    counts = (first > 1e-9) | (second > 1e-9)
    if not counts.any():
        return float("nan"), float("nan")
    flat = counts & (texture <= np.quantile(texture[counts], 0.25))
    return float(np.sqrt(first[flat].mean())) * 255, float(np.sqrt(second[flat].mean())) * 255


def ssim(x: Plane, y: Plane) -> float:
    """Return the SSIM of two planes of one size, at least 11×11 (Wang, Bovik, Sheikh, Simoncelli, 2004).

    Gaussian window of 11 pixels, σ 1.5; 1 is equal.
    """
    kernel = np.exp(-0.5 * (np.arange(-(SSIM_WINDOW // 2), SSIM_WINDOW // 2 + 1) / 1.5) ** 2)
    kernel /= kernel.sum()

    def blurred(plane: Plane) -> Plane:
        rows: Plane = sliding_window_view(plane, SSIM_WINDOW, axis=0) @ kernel
        return sliding_window_view(rows, SSIM_WINDOW, axis=1) @ kernel

    mx, my = blurred(x), blurred(y)
    vx, vy, both = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(np.mean((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def ssimulacra2(before: vs.VideoNode, after: vs.VideoNode) -> float:
    """Return the SSIMULACRA2 (Sneyers, 2022) of the first frames of two RGBS clips of one size, using the plugin vszip.

    NaN without the plugin, and for pictures with a side of less than 8 pixels.
    """
    if not hasattr(vs.core, "vszip") or min(before.width, before.height) < 8:
        return float("nan")
    # SSIMULACRA2 is defined on sRGB, and screens interpret the frames as sRGB.
    as_shown = (
        clip[0].std.Limiter().std.SetFrameProps(_Matrix=0, _Transfer=13, _Primaries=1) for clip in (before, after)
    )
    with vs.core.vszip.SSIMULACRA2(*as_shown).get_frame(0) as result:
        return float(cast(float, result.props["SSIMULACRA2"]))


def _block_residuals(plane: Plane) -> Plane:
    """Return the mean square residual of each block after subtracting its best-fit linear ramp."""
    rows, columns = (side // NOISE_BLOCK * NOISE_BLOCK for side in plane.shape)
    blocks = np.asarray(plane[:rows, :columns], np.float64)
    blocks = blocks.reshape(rows // NOISE_BLOCK, NOISE_BLOCK, columns // NOISE_BLOCK, NOISE_BLOCK).swapaxes(1, 2)
    ramp = np.arange(NOISE_BLOCK) - (NOISE_BLOCK - 1) / 2
    power = NOISE_BLOCK * float(ramp @ ramp)
    down = np.einsum("abij,i->ab", blocks, ramp) ** 2 / power
    right = np.einsum("abij,j->ab", blocks, ramp) ** 2 / power
    return cast(Plane, np.maximum(blocks.var((2, 3)) - (down + right) / NOISE_BLOCK**2, 0))


def _filter_5x5(statistic: Callable[..., Any], plane: Plane) -> Plane:
    """Return the maximum or mean over 5 × 5 pixels; borders are reflected."""
    rows = statistic(sliding_window_view(np.pad(plane, 2, "symmetric"), 5, axis=0), -1)
    return cast(Plane, statistic(sliding_window_view(rows, 5, axis=1), -1))
