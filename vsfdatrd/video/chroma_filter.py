"""`chroma_filter`: what may be done to the chroma of an upscaled clip. Luma stays as the network made it."""

import vapoursynth as vs

from vsfdatrd.video.color import Source, Target

MAX_SCALE = 8
"""Of the network; the window of the filter grows no further."""


def luma_guided(clip: vs.VideoNode, source: Source, target: Target, scale: int) -> vs.VideoNode:
    """Average chroma over what lies near and has the same luma (`_native/chroma_filter.c`), for `color.deliver`.

    Colour that has bled over a line, as LaserDisc and VHS bleed, goes back behind it.

    Args:
        clip: RGB, YUV or GRAY of single floats, the upscaled picture.
        source: The clip that was upscaled.
        target: What `color.deliver` will make of the result.
        scale: Output pixels per source pixel along each side.

    Returns:
        YUV444PS in the target's matrix, luma being that of `clip`, or RGBS of 0 to 1 for a target of RGB; `clip` itself
        where there is no chroma.
    """
    family = clip.format.color_family
    if vs.GRAY in (family, target.format.color_family):
        return clip
    if family == vs.RGB:
        # Of RGB to RGB any matrix will do, for only what counts as luma depends on it.
        matrix = target.matrix or source.matrix or vs.MATRIX_BT709
        clip = clip.resize.Point(format=vs.YUV444PS, matrix=matrix)
    else:
        clip = clip.resize.Spline36(format=vs.YUV444PS)  # of chroma alone; luma is of this format already
    filtered: vs.VideoNode = vs.core.fdatrd.ChromaFilter(clip, scale=min(scale, MAX_SCALE))
    filtered = filtered.std.RemoveFrameProps("_ChromaLocation")
    if target.format.color_family == vs.RGB:
        return filtered.resize.Point(format=vs.RGBS).std.Expr("x 0 max 1 min")  # new colours may lie outside of RGB
    return filtered
