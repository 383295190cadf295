"""Single-channel networks, such as luma doublers: Y is upscaled by the network, chroma is resized.

YUV is not converted to RGB.

    YUV   Y ─► network ─► Y'            U, V ─► Spline36 ─► U', V'
    RGB   Y = luma(R, G, B) ─► Y'       R - Y, G - Y, B - Y ─► Spline36 ─► + Y'

Network and resizer both keep pixel centers aligned. The resizer takes chroma siting from each frame's properties. YUV
keeps its matrix: nothing is converted, so it does not matter which one it is.
"""

import logging
from collections.abc import Callable
from typing import Any

import vapoursynth as vs
import vsutil

from vsfdatrd.video.color import InputClip, OutputSpec, add_missing_props, is_subsampled, to_rgb
from vsfdatrd.video.frame_props import matrix_name

log = logging.getLogger(__name__)

type Network = Callable[[vs.VideoNode], vs.VideoNode]
"""Maps a clip to a clip, both single float in [0, 1], one channel per plane."""


def upscale_luma(source: InputClip, target: OutputSpec, scale: int, network: Network) -> vs.VideoNode:
    """Upscale a clip with a luma network, before `color.convert_output`.

    Args:
        source: The clip.
        target: The output of `color.convert_output`.
        scale: Output pixels per source pixel along each side.
        network: Maps GRAYS to GRAYS, `scale` times as large.

    Returns:
        A single float clip, `scale` times as large: YUV or GRAY with the source's matrix, with the target's chroma
        subsampling if the matrix is kept, else 4:4:4; RGBS for RGB sources.
    """
    if source.format.color_family == vs.RGB:
        return _upscale_rgb(to_rgb(source), target, scale, network)
    clip = add_missing_props(source, converts=target.matrix is not None)
    y = network(vsutil.get_y(clip).resize.Point(format=vs.GRAYS))
    gray = target.format.color_family == vs.GRAY
    if source.format.color_family == vs.GRAY or (gray and target.matrix is None):
        return y
    form = vs.core.get_video_format(vs.YUV444PS)
    location: dict[str, Any] = {}
    if target.matrix is None and is_subsampled(target.format):
        form = target.format.replace(sample_type=vs.FLOAT, bits_per_sample=32)
        location = {"chromaloc": target.chroma}
    # The luma of this clip is discarded, so it uses the fastest kernel (Point).
    chroma = clip.resize.Point(
        clip.width * scale, clip.height * scale, format=form.id, resample_filter_uv="spline36", **location
    )
    joined = vs.core.std.ShufflePlanes([y, chroma, chroma], [0, 1, 2], vs.YUV)
    if gray:  # luma of another matrix depends on chroma
        luma: vs.VideoNode = vsutil.get_y(joined.resize.Point(format=vs.YUV444PS, matrix=target.matrix))
        return luma
    if location:
        return joined.std.SetFrameProps(_ChromaLocation=target.chroma)
    return joined.std.RemoveFrameProps("_ChromaLocation")


def _upscale_rgb(full: vs.VideoNode, target: OutputSpec, scale: int, network: Network) -> vs.VideoNode:
    """Upscale RGB as luma plus per-channel differences from luma. Where R = G = B, they are exactly zero."""
    matrix = target.matrix or 1
    log.warning(
        "the network works on luma only: from RGB it gets the luma of matrix %s, and colors are resized",
        matrix_name(matrix),
    )
    before = full.resize.Point(format=vs.GRAYS, matrix=matrix)
    differences = vs.core.std.Expr([full, vsutil.join([before] * 3, vs.RGB)], "x y -")
    differences = differences.resize.Spline36(full.width * scale, full.height * scale)
    after = network(before)
    joined = vs.core.std.Expr([vsutil.join([after] * 3, vs.RGB), differences], "x y + 0 max 1 min")
    return joined.std.SetFrameProps(_Matrix=0, _Range=1)
