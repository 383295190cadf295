"""What can be said in numbers of a picture before and after, without knowing the truth.

All planes are luma, (H, W), 0 to 1. Steps are those of 8 bits (1/255). None of the numbers is a judgement by itself:
sharper lines may have halos, flat areas may have lost their paper, and SSIM of one says that nothing was done.
"""

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from vsfdatrd.compare.video import Picture, luma

type Plane = NDArray[np.floating]
type Pair = tuple[Picture, Picture]
"""BEFORE and AFTER."""

BLOCK = 16
"""Side of the blocks whose noise is measured, in pixels."""
WINDOW = 11
"""Side of SSIM's window, in pixels."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """The numbers of one pair of frames, or their mean; NaN is what could not be measured."""

    lines_before: float
    """Steepness of lines of BEFORE, enlarged to the size of AFTER, in steps per pixel."""
    lines_after: float
    """The same of AFTER, at the same lines."""
    noise_before: float
    """RMS of what is not smooth in flat areas of BEFORE, enlarged, in steps."""
    noise_after: float
    """The same of AFTER, in the same areas."""
    ssim: float
    """SSIM of AFTER, made as small as BEFORE, to BEFORE: 1 is equal."""
    ssimulacra2: float
    """SSIMULACRA2 of the same: 100 is equal, 90 hardly visible, 50 middling; NaN without the plugin vszip."""


def measure(large: Pair, small: Pair, score: float) -> Metrics:
    """Measure a pair of frames.

    large: BEFORE and AFTER at the size of AFTER. small: both at the size of BEFORE. score: their SSIMULACRA2.
    """
    lines, noise = (how(*map(luma, large)) for how in (steepness, flat_noise))
    x, y = map(luma, small)
    return Metrics(*lines, *noise, ssim(x, y) if min(x.shape) >= WINDOW else float("nan"), score)


def mean(all_of_them: list[Metrics]) -> Metrics:
    """The mean of each number over the frames in which it could be measured."""
    values = ([found for one in all_of_them if not np.isnan(found := getattr(one, name))] for name in Metrics.__slots__)
    return Metrics(*(fmean(of_one) if of_one else float("nan") for of_one in values))


def steepness(before: Plane, after: Plane) -> tuple[float, float]:
    """Mean steepness of the lines of two planes of one size, at the lines of the first, in steps per pixel.

    A line is where BEFORE is steepest, a tenth of the picture; its steepness is the largest within two pixels, since a
    soft line and a sharp one climb equally high, but not equally fast. NaN in a picture without lines.
    """
    slopes = [np.hypot(*np.gradient(plane)) for plane in (before, after)]
    where = slopes[0] >= max(float(np.quantile(slopes[0], 0.9)), 4 / 255)
    if not where.any():
        return float("nan"), float("nan")
    first, second = (float(_highest(slope, 2)[where].mean()) * 255 for slope in slopes)
    return first, second


def flat_noise(before: Plane, after: Plane) -> tuple[float, float]:
    """RMS of noise in the flat areas of two planes of one size, in steps.

    Flat is the quarter of all blocks where the mean of both, softened, is closest to a plane; blocks that are one value
    in both, borders above all, do not count. Noise is what remains of a block without its own plane, so that a gradient
    of the sky is none. NaN where no block counts.
    """
    both = _box((before + after) / 2, 2)
    texture, first, second = (_unevenness(plane) for plane in (both, before, after))
    counts = (first > 1e-9) | (second > 1e-9)
    if not counts.any():
        return float("nan"), float("nan")
    flat = counts & (texture <= np.quantile(texture[counts], 0.25))
    return float(np.sqrt(first[flat].mean())) * 255, float(np.sqrt(second[flat].mean())) * 255


def ssim(x: Plane, y: Plane) -> float:
    """SSIM of two planes of one size, at least 11×11 (Wang, Bovik, Sheikh, Simoncelli, 2004).

    Gaussian window of 11 pixels, σ 1.5; 1 is equal.
    """
    kernel = np.exp(-0.5 * (np.arange(-(WINDOW // 2), WINDOW // 2 + 1) / 1.5) ** 2)
    kernel /= kernel.sum()

    def blurred(plane: Plane) -> Plane:
        rows: Plane = sliding_window_view(plane, WINDOW, axis=0) @ kernel
        both: Plane = sliding_window_view(rows, WINDOW, axis=1) @ kernel
        return both

    mx, my = blurred(x), blurred(y)
    vx, vy, both = blurred(x * x) - mx**2, blurred(y * y) - my**2, blurred(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    return float(np.mean((2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


def ssimulacra2(before: vs.VideoNode, after: vs.VideoNode) -> float:
    """SSIMULACRA2 (Sneyers, 2022) of the first frames of two RGBS clips of one size, by the plugin vszip.

    NaN without it, and for pictures of less than 8 pixels.
    """
    if not hasattr(vs.core, "vszip") or min(before.width, before.height) < 8:
        return float("nan")
    # The measure is defined on sRGB, which is what a screen takes the frames for.
    as_shown = (
        clip[0].std.Limiter().std.SetFrameProps(_Matrix=0, _Transfer=13, _Primaries=1) for clip in (before, after)
    )
    with vs.core.vszip.SSIMULACRA2(*as_shown).get_frame(0) as found:
        score: Any = found.props["SSIMULACRA2"]
        return float(score)


def _unevenness(plane: Plane) -> Plane:
    """Mean square, block by block, of what is left of each without the plane that fits it best."""
    rows, columns = (side // BLOCK * BLOCK for side in plane.shape)
    blocks = np.asarray(plane[:rows, :columns], np.float64)
    blocks = blocks.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).swapaxes(1, 2)
    ramp = np.arange(BLOCK) - (BLOCK - 1) / 2
    power = BLOCK * float(ramp @ ramp)
    total: Plane = blocks.var((2, 3))
    down = np.einsum("abij,i->ab", blocks, ramp) ** 2 / power
    right = np.einsum("abij,j->ab", blocks, ramp) ** 2 / power
    left: Plane = np.maximum(total - (down + right) / BLOCK**2, 0)
    return left


def _highest(plane: Plane, reach: int) -> Plane:
    """Maximum over (2 reach + 1)² pixels; borders reflected."""
    return _over(plane, reach, "max")


def _box(plane: Plane, reach: int) -> Plane:
    """Mean over (2 reach + 1)² pixels; borders reflected."""
    return _over(plane, reach, "mean")


def _over(plane: Plane, reach: int, how: str) -> Plane:
    side = 2 * reach + 1
    rows = getattr(sliding_window_view(np.pad(plane, reach, "symmetric"), side, axis=0), how)(-1)
    done: Plane = getattr(sliding_window_view(rows, side, axis=1), how)(-1)
    return done
