"""Measures of a result against the truth; pictures are float RGB (H, W, 3) of 0 to 1, gamma-encoded.

Luma is 0.2126 R' + 0.7152 G' + 0.0722 B' (Rec. 709). A border of 8 pixels is excluded, except in SSIMULACRA2, XPSNR and
the error of chroma, which cover the complete picture. Differences are in 8-bit steps (1/255).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from benchmarks.quality_methods import as_clip
from benchmarks.ssimulacra2 import ssimulacra2
from vsfdatrd.compare import metrics

type Floats = NDArray[np.floating[Any]]
type Plane = NDArray[np.float64]
type Measure = Callable[[Floats, Floats], float]

LUMA = np.array([0.2126, 0.7152, 0.0722])
CHROMA = np.array([[-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""Cb and Cr of Rec. 601, -0.5 to 0.5, as on DVD and LaserDisc."""
BORDER = 8
SAME = 100.0
"""PSNR and XPSNR of equal pictures in dB, in place of infinity, which JSON does not have."""


def to_luma(picture: Floats) -> Plane:
    """Convert (H, W, 3) to luma (H, W)."""
    plane: Plane = np.asarray(picture, np.float64) @ LUMA
    return plane


def remove_border(plane: Plane) -> Plane:
    """Remove the border."""
    return plane[BORDER:-BORDER, BORDER:-BORDER]


def psnr_y(truth: Floats, result: Floats) -> float:
    """Return the PSNR of luma in dB; 100 for equal pictures."""
    error = float(np.mean(remove_border(to_luma(truth) - to_luma(result)) ** 2))
    return SAME if error < 1e-10 else -10 * float(np.log10(error))


def chroma_error(truth: Floats, result: Floats) -> float:
    """Return the RMS error of Cb and Cr in 8-bit steps."""
    error = (np.asarray(result, np.float64) - np.asarray(truth, np.float64)) @ CHROMA.T
    return float(np.sqrt(np.mean(error**2)) * 255)


def ssim(truth: Floats, result: Floats) -> float:
    """Return the SSIM of luma (Wang, Bovik, Sheikh, Simoncelli, 2004): Gaussian window of 11 pixels, σ 1.5."""
    return metrics.ssim(remove_border(to_luma(truth)), remove_border(to_luma(result)))


def _vszip() -> Any:
    """Return the plugin vszip, or None."""
    return getattr(vs.core, "vszip", None)


def ssimulacra2_vszip(truth: Floats, result: Floats) -> float:
    """Return SSIMULACRA2 as computed by vapoursynth-vszip; NaN without the plugin.

    It treats borders differently from the authors' program. Earlier measurements were made with it.
    """
    if (plugin := _vszip()) is None:
        return float("nan")
    pair = plugin.SSIMULACRA2(_clip(truth), _clip(result))
    with pair.get_frame(0) as frame:
        return float(frame.props["SSIMULACRA2"])


def xpsnr_y(truth: Floats, result: Floats) -> float:
    """Return XPSNR of luma in dB (Helmrich et al., 2020), without its temporal part.

    vapoursynth-vszip computes it, from YUV 4:4:4 of 10 bits.
    """
    if (plugin := _vszip()) is None:
        return float("nan")
    a, b = (_clip(p).resize.Point(format=vs.YUV444P10, matrix=1) for p in (truth, result))
    with plugin.XPSNR(a, b, temporal=0, verbose=0).get_frame(0) as frame:
        return min(SAME, float(frame.props["XPSNR_Y"]))


def _clip(picture: Floats) -> vs.VideoNode:
    return as_clip([np.asarray(picture, np.float32)])


def _gradient(plane: Plane) -> tuple[Plane, Plane]:
    """Return the central differences along y and x."""
    dy, dx = np.gradient(plane)
    return np.asarray(dy), np.asarray(dx)


def _lines(truth: Plane) -> NDArray[np.bool_]:
    """Return where the truth has lines and borders: the tenth of the pixels with the steepest luma."""
    steepness = np.hypot(*_gradient(truth))
    steepest: NDArray[np.bool_] = steepness >= max(np.quantile(steepness, 0.9), 4 / 255)
    return steepest


def sharpness(truth: Floats, result: Floats) -> float:
    """Return the steepness of lines relative to the truth.

    1 is as sharp as the truth, less is softer, more is oversharpened. Uses luma's gradient at the lines of the truth,
    projected onto the truth's own direction: ringing, noise and lines at other places do not count as sharpness.
    """
    x, y = remove_border(to_luma(truth)), remove_border(to_luma(result))
    where = _lines(x)
    if not where.any():
        return float("nan")
    (tdy, tdx), (rdy, rdx) = _gradient(x), _gradient(y)
    steep = np.hypot(tdy, tdx)[where]
    projected = (tdy * rdy + tdx * rdx)[where] / steep
    return float(projected.sum() / steep.sum())


def halo(truth: Floats, result: Floats) -> float:
    """Return the mean overshoot near lines, in 8-bit steps.

    Overshoot is how far luma is outside the range of the truth within 4 pixels.
    """
    x, y = remove_border(to_luma(truth)), remove_border(to_luma(result))
    near = _dilate(_lines(x), 4)
    if not near.any():
        return float("nan")
    low, high = -_box_maximum(-x, 4), _box_maximum(x, 4)
    over = np.maximum(y - high, 0) + np.maximum(low - y, 0)
    return float(over[near].mean() * 255)


def flat_noise(truth: Floats, result: Floats) -> float:
    """Return the noise of luma where the truth is flat, in 8-bit steps.

    Noise is the RMS of the difference from the mean over 7×7 pixels. Flat is where the truth varies by at most 2 steps
    over 15×15 pixels. NaN if fewer than 200 pixels are flat.
    """
    x, y = to_luma(truth), to_luma(result)
    flat = (_box_maximum(x, 7) + _box_maximum(-x, 7)) * 255 <= 2
    grain = y - _box_mean(y, 3)
    where = remove_border(flat.astype(np.float64)) > 0
    return float(np.sqrt(np.mean(remove_border(grain)[where] ** 2)) * 255) if where.sum() >= 200 else float("nan")


def flicker(frames: Sequence[Floats]) -> float:
    """Return the flicker of a drawing held over several frames, in 8-bit steps.

    It is the RMS over all pixels of luma's standard deviation over the frames.
    """
    planes = np.stack([remove_border(to_luma(frame)) for frame in frames])
    return float(np.sqrt(planes.var(0, ddof=1).mean()) * 255)


def chroma_flicker(frames: Sequence[Floats]) -> float:
    """Return the same for Cb and Cr: crawling dots and rainbows."""
    planes = np.stack([np.asarray(frame, np.float64) @ CHROMA.T for frame in frames])
    return float(np.sqrt(planes.var(0, ddof=1).mean()) * 255)


def displacement(truth: Floats, result: Floats) -> tuple[float, float]:
    """Return the displacement (down, right) of a result relative to the truth in pixels, exact to a few hundredths.

    Least squares on luma's gradient (Lucas and Kanade, 1981), both smoothed by 5×5, moved back by Fourier's shift
    theorem and measured again. For pictures of one size, displaced by up to about three pixels.
    """
    x, y = (_box_mean(_box_mean(to_luma(p), 2), 2) for p in (truth, result))
    x, y = x - x.mean(), y - y.mean()
    dy, dx = (remove_border(part) for part in _gradient(x))
    normal = np.array([[np.sum(dy * dy), np.sum(dy * dx)], [np.sum(dy * dx), np.sum(dx * dx)]])
    results = np.zeros(2)
    for _ in range(8):
        error = remove_border(displace(y, -results[0], -results[1]) - x)
        results -= np.linalg.lstsq(normal, np.array([np.sum(dy * error), np.sum(dx * error)]), rcond=None)[0]
    return float(results[0]), float(results[1])


def displace(plane: Plane, down: float, right: float) -> Plane:
    """Move a plane (H, W) by fractions of pixels (Fourier; borders continued by reflection)."""
    pad = 16
    padded = np.pad(plane, pad, "symmetric")
    fy, fx = np.fft.fftfreq(padded.shape[0])[:, None], np.fft.rfftfreq(padded.shape[1])[None]
    turned = np.fft.rfft2(padded) * np.exp(-2j * np.pi * (fy * down + fx * right))
    back: Plane = np.fft.irfft2(turned, padded.shape)
    return back[pad:-pad, pad:-pad]


def _box_mean(plane: Plane, reach: int) -> Plane:
    """Return the mean over (2 reach + 1)² pixels; borders reflected."""
    side = 2 * reach + 1
    rows = sliding_window_view(np.pad(plane, reach, "symmetric"), side, axis=0).mean(-1)
    mean: Plane = sliding_window_view(rows, side, axis=1).mean(-1)
    return mean


def _box_maximum(plane: Plane, reach: int) -> Plane:
    """Return the maximum over (2 reach + 1)² pixels; borders reflected."""
    side = 2 * reach + 1
    rows = sliding_window_view(np.pad(plane, reach, "symmetric"), side, axis=0).max(-1)
    highest: Plane = sliding_window_view(rows, side, axis=1).max(-1)
    return highest


def _dilate(mask: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    return _box_maximum(mask.astype(np.float64), reach) > 0


MEASURES: dict[str, Measure] = {
    "psnr_y_db": psnr_y,
    "chroma_error_steps": chroma_error,
    "ssim": ssim,
    "ssimulacra2": ssimulacra2,
    "ssimulacra2_vszip": ssimulacra2_vszip,
    "xpsnr_y_db": xpsnr_y,
    "sharpness": sharpness,
    "halo_steps": halo,
    "flat_noise_steps": flat_noise,
}
"""Functions of (truth, result) that return a number, by its name in the JSON."""

HELD_MEASURES: dict[str, Callable[[Sequence[Floats]], float]] = {
    "flicker_steps": flicker,
    "chroma_flicker_steps": chroma_flicker,
}
"""Functions of the frames of one drawing that return a number, likewise."""
