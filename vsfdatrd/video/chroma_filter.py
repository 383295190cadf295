"""Filters for the chroma of an upscaled clip (the `chroma_filter` option). Luma is unchanged."""

import vapoursynth as vs

from vsfdatrd.video import plugin
from vsfdatrd.video.color import InputClip, OutputSpec

MAX_SCALE = 8
"""Largest scale of the filter window; larger network scales use this one."""


def luma_guided(clip: vs.VideoNode, source: InputClip, target: OutputSpec, scale: int) -> vs.VideoNode:
    """Average chroma over nearby pixels of the same luma (`_native/chroma_filter.c`), before `color.convert_output`.

    Color that has bled over a line, as on LaserDisc and VHS, moves back behind it.

    Args:
        clip: The upscaled picture: RGB, YUV or GRAY, single float.
        source: The clip that was upscaled.
        target: The output of `color.convert_output`.
        scale: Output pixels per source pixel along each side.

    Returns:
        YUV444PS in the target's matrix with the luma of `clip`, or RGBS in [0, 1] if the target is RGB; `clip` itself
        if there is no chroma.
    """
    family = clip.format.color_family
    if vs.GRAY in (family, target.format.color_family):
        return clip
    if family == vs.RGB:
        # From RGB to RGB any matrix works: it only defines which luma guides the filter.
        matrix = target.matrix or source.matrix or vs.MATRIX_BT709
        clip = clip.resize.Point(format=vs.YUV444PS, matrix=matrix)
    else:
        clip = clip.resize.Spline36(format=vs.YUV444PS)  # resizes chroma only; luma has this size already
    filtered: vs.VideoNode = plugin.fdatrd_function("ChromaFilter")(clip, scale=min(scale, MAX_SCALE))
    if target.format.color_family == vs.RGB:
        return filtered.resize.Point(format=vs.RGBS).std.Expr("x 0 max 1 min")  # filtered colors may be out of gamut
    return filtered
