"""Borders, cropping, and the output size for square pixels."""

from fractions import Fraction

import numpy as np
import pytest
import vapoursynth as vs

from vsfdatrd.encode.crop import Borders, check_crop, find_borders, parse_borders, square_pixel_size
from vsfdatrd.errors import ArgumentError, ClipError


@pytest.mark.parametrize(
    ("size", "sar", "expected"),
    [
        ((1440, 960), Fraction(8, 9), (1440, 1080)),
        ((1440, 960), Fraction(32, 27), (1706, 960)),
        ((1440, 1152), Fraction(16, 15), (1536, 1152)),
        ((1440, 1080), Fraction(1), (1440, 1080)),
        ((13, 15), Fraction(1), (14, 16)),
        ((13, 15), Fraction(14, 13), (14, 16)),
        ((15, 13), Fraction(13, 14), (16, 14)),
    ],
)
def test_square_pixels_never_shrink(size: tuple[int, int], sar: Fraction, expected: tuple[int, int]) -> None:
    assert square_pixel_size(*size, sar) == expected


def with_pixel(clip: vs.VideoNode, x: int, y: int) -> vs.VideoNode:
    """The clip with one white pixel in each frame."""

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        np.asarray(out[0])[y, x] = 235
        return out

    return clip.std.ModifyFrame(clip, draw)


def test_borders() -> None:
    clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=80, height=60, length=5, color=[120, 128, 128])
    clip = clip.std.AddBorders(8, 4, 4, 6, color=[16, 128, 128])
    assert find_borders(clip) == Borders(8, 4, 4, 6)
    dark = clip.std.BlankClip(color=[16, 128, 128])
    assert not find_borders(dark)
    stripe = dark.std.CropAbs(90, 70).std.AddBorders(left=2, color=[235, 128, 128])  # such as a logo
    assert find_borders(clip + stripe) == Borders(8, 4, 4, 6)
    assert find_borders(with_pixel(clip, 0, 0)) == Borders(8, 4, 4, 6)
    odd = clip.std.Crop(8, 4, 4, 6).resize.Point(format=vs.YUV444P8).std.AddBorders(9, 7, 5, 3, color=[16, 128, 128])
    assert find_borders(odd) == Borders(8, 4, 6, 2)
    assert parse_borders("8,4,4,6") == Borders(8, 4, 4, 6)
    for cut in (Borders(1, 0, 0, 0), Borders(0, 1, 0, 0), Borders(0, 0, 1, 0), Borders(0, 0, 0, 1)):
        with pytest.raises(ArgumentError, match="cuts through chroma samples"):
            check_crop(cut, clip)
        check_crop(cut, odd)
    check_crop(Borders(40, 0, 36, 54), clip)
    with pytest.raises(ArgumentError, match=r"leaves 14×70 of 92×70 pixels"):
        check_crop(Borders(40, 0, 38, 0), clip)
    with pytest.raises(ArgumentError, match=r"leaves 92×14 of 92×70 pixels"):
        check_crop(Borders(0, 40, 0, 16), clip)
    with pytest.raises(ClipError, match=r"the frames have 92×14 pixels; encode needs at least 16×16"):
        check_crop(Borders(), clip.std.CropAbs(92, 14))
    with pytest.raises(ArgumentError, match="is not a crop"):
        parse_borders("8,4")
