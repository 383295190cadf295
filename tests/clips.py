"""Clips of given planes for tests, what is in them, and codes and colors by the book."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import vapoursynth as vs
import vsutil
from numpy.typing import NDArray

from vsfdatrd.video import color

type Array = NDArray[Any]

core = vs.core
scale_value: Any = vsutil.scale_value  # it takes arrays as well as the numbers it is typed for

# Weights of red and blue in luma (H.273, table 4); YCgCo has its own formula.
WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    8: None,
    9: (0.2627, 0.0593),
}
# H.273 makes YCgCo of integer RGB, so that its limited chroma spans 219 codes and not 224.
YCGCO_SPAN = {0: 224 / 219, 1: 1.0}
SUBSAMPLINGS = {"444": (0, 0), "440": (0, 1), "422": (1, 0), "420": (1, 1), "411": (2, 0), "410": (2, 2)}


def clip_of(form: vs.VideoFormat, frames: Sequence[Sequence[Array]], **props: Any) -> vs.VideoNode:
    """A clip of the given planes."""
    height, width = frames[0][0].shape
    empty = core.std.BlankClip(width=width, height=height, format=form.id, length=len(frames))

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(frames[n]):
            np.copyto(np.asarray(out[i]), plane, casting="unsafe")
        return out

    clip = core.std.ModifyFrame(empty, empty, draw)
    return core.std.SetFrameProps(clip, **props) if props else clip


def blank(format: int = vs.YUV420P8, width: int = 64, height: int = 48, length: int = 1, **props: Any) -> vs.VideoNode:
    clip = core.std.BlankClip(width=width, height=height, format=format, length=length)
    return core.std.SetFrameProps(clip, **props) if props else clip


def planes(clip: vs.VideoNode, n: int = 0) -> list[Array]:
    with clip.get_frame(n) as frame:
        return [np.array(frame[i]) for i in range(frame.format.num_planes)]


def props_of(clip: vs.VideoNode, n: int = 0) -> dict[str, Any]:
    with clip.get_frame(n) as frame:
        return dict(frame.props)


def yuv(bits: int, subsampling: str, sample_type: vs.SampleType = vs.INTEGER) -> vs.VideoFormat:
    return core.query_video_format(vs.YUV, sample_type, bits, *SUBSAMPLINGS[subsampling])


def run_identity_network(rgb: vs.VideoNode, scale: int = 1) -> vs.VideoNode:
    """Upscale with a network that returns its input, as the pipeline does."""
    if scale > 1:
        rgb = rgb.resize.Point(rgb.width * scale, rgb.height * scale)
    return rgb.std.Expr("x 0 max 1 min")


def round_trip(
    clip: vs.VideoNode, scale: int = 1, format: str | None = None, matrix: str | None = "source"
) -> vs.VideoNode:
    source = color.inspect_clip(clip)
    target = color.output_spec(source, scale, format, matrix)
    return color.convert_output(run_identity_network(color.to_rgb(source), scale), target)


def to_codes(values: Array, bits: int, range: int, chroma: bool) -> Array:
    """Luma in [0, 1] or chroma in [-0.5, 0.5] to codes, not rounded."""
    result: Array = scale_value(values.astype(float), 32, bits, 1, range, scale_offsets=True, chroma=chroma)
    return result


def from_codes(codes: Array, bits: int, range: int, chroma: bool) -> Array:
    result: Array = scale_value(codes.astype(float), bits, 32, range, 1, scale_offsets=True, chroma=chroma)
    return result


def decode(codes: Array, bits: int, matrix: int, range: int) -> Array:
    """(3, ...) codes of YUV to (3, ...) R'G'B', by the book."""
    y, u, v = (from_codes(plane, bits, range, chroma=i > 0) for i, plane in enumerate(codes))
    weights = WEIGHTS[matrix]
    if weights is None:
        u, v = (part * YCGCO_SPAN[range] for part in (u, v))
        return np.stack([y - u + v, y + u, y - u - v])
    kr, kb = weights
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b])


def picture(width: int, height: int, format: int = vs.RGBS, length: int = 1, **props: Any) -> vs.VideoNode:
    """A clip of smooth colors with a few edges."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [
        0.5 + 0.4 * np.sin(x / 7 + i) * np.cos(y / 9 - i) + 0.1 * ((x // 11 + y // 7) % 2) - 0.05 for i in range(3)
    ]
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(planes):
            np.copyto(np.asarray(out[i]), np.roll(plane, 3 * n, 1))
        return out

    clip = vs.core.std.ModifyFrame(blank, blank, draw)
    if format != vs.RGBS:
        matrix = None if vs.core.get_video_format(format).color_family == vs.RGB else "170m"
        clip = clip.resize.Bicubic(format=format, matrix_s=matrix)
    return clip.std.SetFrameProps(**props) if props else clip


def planes_of(frame: vs.VideoFrame) -> Array:
    return np.stack([np.asarray(frame[i]) for i in range(frame.format.num_planes)])
