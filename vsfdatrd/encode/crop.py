"""Black borders and cropping, and the output size for square pixels."""

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from vsfdatrd.errors import ArgumentError, ClipError

_MAX_BLACK = 28  # largest 8-bit luma of a black pixel in limited range: black is 16, and old transfers add noise
_SAMPLED_FRAMES = 16


@dataclass(frozen=True, slots=True)
class Borders:
    """Number of columns and rows at each side, in source pixels. As a bool, False if all are 0."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def __bool__(self) -> bool:
        return self != Borders()

    def __str__(self) -> str:
        return f"{self.left},{self.top},{self.right},{self.bottom}"


def parse_borders(text: str) -> Borders:
    """Parse ``left,top,right,bottom``.

    Args:
        text: The argument of ``--crop``.

    Raises:
        ArgumentError: `text` is not four non-negative integers.
    """
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
        raise ArgumentError(f"--crop {text} is not a crop; give auto, none or left,top,right,bottom, such as 8,0,8,0")
    return Borders(*map(int, parts))


def find_borders(clip: Any) -> Borders:
    """Detect the black borders that 16 frames, spread over the clip, have in common. Dark frames are ignored.

    Args:
        clip: A vapoursynth.VideoNode; RGB clips have no detected borders.

    Returns:
        The borders, rounded down to multiples of the chroma subsampling and of 2; none for RGB clips.
    """
    import vapoursynth as vs
    import vsutil

    form = clip.format
    if form.color_family == vs.RGB:
        return Borders()
    peak = vsutil.get_peak_value(clip)
    rows = np.zeros(clip.height, bool)
    columns = np.zeros(clip.width, bool)
    count = min(_SAMPLED_FRAMES, clip.num_frames)
    for i in range(count):
        with clip.get_frame(clip.num_frames * (2 * i + 1) // (2 * count)) as frame:
            is_bright = np.asarray(frame[0]) > _MAX_BLACK / 255 * peak
        if is_bright.mean() < 0.05:
            continue
        rows |= is_bright.mean(axis=1) > 0.02  # ignore a few bright specks
        columns |= is_bright.mean(axis=0) > 0.02
    if not rows.any() or not columns.any():
        return Borders()
    left, right = int(columns.argmax()), int(columns[::-1].argmax())
    top, bottom = int(rows.argmax()), int(rows[::-1].argmax())
    across, down = 1 << max(1, form.subsampling_w), 1 << max(1, form.subsampling_h)
    return Borders(left // across * across, top // down * down, right // across * across, bottom // down * down)


def check_crop(borders: Borders, clip: Any) -> None:
    """Check that a clip can be cropped by these borders.

    Args:
        borders: The borders to remove.
        clip: A vapoursynth.VideoNode.

    Raises:
        ArgumentError: Less than 16×16 pixels would be left, or the crop cuts through chroma samples.
        ClipError: The uncropped clip is smaller than 16×16 pixels.
    """
    across, down = 1 << clip.format.subsampling_w, 1 << clip.format.subsampling_h
    width, height = clip.width - borders.left - borders.right, clip.height - borders.top - borders.bottom
    if (width < 16 or height < 16) and not borders:
        raise ClipError(f"the frames have {clip.width}×{clip.height} pixels; encode needs at least 16×16")
    if width < 16 or height < 16:
        raise ArgumentError(f"--crop {borders} leaves {width}×{height} of {clip.width}×{clip.height} pixels; crop less")
    if (borders.left | borders.right) % across or (borders.top | borders.bottom) % down:
        raise ArgumentError(
            f"--crop {borders} cuts through chroma samples; give multiples of {across} across and {down} down"
        )


def square_pixel_size(width: int, height: int, sar: Fraction) -> tuple[int, int]:
    """Return the frame size (width, height) that displays a picture of this size and SAR with square pixels.

    Only one side is enlarged, none is reduced; both become even.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        sar: Sample aspect ratio (pixel width / pixel height).
    """
    if sar >= 1:
        return _round_to_even(width * sar), height + height % 2
    return width + width % 2, _round_to_even(height / sar)


def _round_to_even(side: Fraction) -> int:
    return 2 * math.floor(side / 2 + Fraction(1, 2))  # ties go up, so that 13 becomes 14; `round` gives 12
