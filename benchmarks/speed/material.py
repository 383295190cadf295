"""Test frames: the synthetic animation or a real clip. Never zeros, which compress and compute too fast."""

from functools import cache
from pathlib import Path

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from benchmarks.cartoon import draw_frame
from benchmarks.errors import Missing

type Frame = NDArray[np.float32]

DRAWINGS = 8
"""Number of different frames; longer clips repeat them."""
LENGTH = 1 << 20
"""Length of the endless clip in frames."""


@cache
def drawings(width: int, height: int, count: int = DRAWINGS) -> list[Frame]:
    """Different frames of the drawn animation, (3, height, width) RGB in [0, 1]."""
    return [
        np.ascontiguousarray(draw_frame(2 * n, width, height).transpose(2, 0, 1), np.float32) / np.float32(255)
        for n in range(count)
    ]


def drawn_clip(width: int, height: int, count: int = DRAWINGS) -> vs.VideoNode:
    """The drawings as an RGBS clip, kept in memory."""
    frames = drawings(width, height, count)
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=count)

    def fill(n: int, f: vs.VideoFrame | list[vs.VideoFrame]) -> vs.VideoFrame:
        out = (f[0] if isinstance(f, list) else f).copy()
        for i in range(3):
            np.copyto(np.asarray(out[i]), frames[n][i])
        return out

    clip = vs.core.std.ModifyFrame(blank, blank, fill)
    vs.core.std.SetVideoCache(clip, mode=1, fixedsize=count)
    for frame in clip.frames(close=True):
        del frame
    return clip


@cache
def endless(width: int, height: int) -> vs.VideoNode:
    """The drawings repeated endlessly, RGBS."""
    return drawn_clip(width, height).std.Loop(times=LENGTH // DRAWINGS)


def real_clip(file: str, width: int, height: int) -> vs.VideoNode:
    """A video file as an RGBS clip of another size, repeated endlessly: a turn may be longer than the file.

    Args:
        file: Path of the video file.
        width: Width of the clip in pixels.
        height: Height of the clip in pixels.

    Raises:
        Missing: The file does not exist or is no video.
    """
    if not Path(file).is_file():
        raise Missing(f"{file} is not a file; give a video file")
    try:
        source = vs.core.bs.VideoSource(str(Path(file).resolve()), showprogress=False)
    except vs.Error as error:
        raise Missing(f"{file} cannot be read as a video: {error}") from error
    source = source.std.SetFieldBased(0)
    clip = source.resize.Spline36(width, height, format=vs.RGBS, matrix_in=6)
    return clip.std.Loop(times=-(-LENGTH // clip.num_frames))
