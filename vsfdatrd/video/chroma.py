"""Chroma networks: reconstruct the chroma of 4:2:0 at luma resolution, guided by luma. Luma is unchanged.

The network gets Y and bilinearly enlarged chroma (chroma location respected, 0.5 is neutral), as in its training.
"""

from collections.abc import Callable

import vapoursynth as vs

from vsfdatrd.errors import ClipError
from vsfdatrd.video.color import InputClip, OutputSpec, add_missing_props

type Network = Callable[[vs.VideoNode], vs.VideoNode]


def check_chroma_clip(source: InputClip) -> None:
    """Check that the clip is 4:2:0.

    Raises:
        ClipError: It is not, so chroma networks do not apply to it.
    """
    form = source.format
    if form.color_family == vs.YUV and form.subsampling_w == form.subsampling_h == 1:
        return
    advice = "convert it first, core.resize.Spline36(clip, format=vs.YUV420P16)"
    if form.color_family == vs.YUV and not (form.subsampling_w or form.subsampling_h):
        advice = "4:4:4 has full-resolution chroma and needs no such model"
    elif form.color_family == vs.GRAY:
        advice = "give a luma model, such as ArtCNN C4F32 without Chroma in its name"
    elif form.color_family == vs.RGB:
        advice = "RGB has full-resolution chroma and needs no such model; give one for luma or RGB"
    raise ClipError(
        f"the model reconstructs the chroma of 4:2:0, half the luma's width and height, and the clip is {form.name}; "
        f"{advice}"
    )


def reconstruct_chroma(source: InputClip, target: OutputSpec, network: Network) -> vs.VideoNode:
    """Replace the chroma of a clip with the network's.

    Args:
        source: The 4:2:0 clip.
        target: The output of `color.convert_output`.
        network: Takes RGBS whose planes are Y, Cb and Cr in [0, 1]; returns RGBS of the same size whose first two
            planes are Cb and Cr.

    Returns:
        A YUV444PS clip for `color.convert_output`.
    """
    clip = add_missing_props(source, converts=target.matrix is not None)
    full = clip.resize.Bilinear(format=vs.YUV444PS)
    shifted = full.std.Expr(["", "x 0.5 +", "x 0.5 +"])
    result = network(vs.core.std.ShufflePlanes([shifted] * 3, [0, 1, 2], vs.RGB))
    result = result.std.Expr("x 0.5 -")
    return vs.core.std.ShufflePlanes([full, result, result], [0, 0, 1], vs.YUV)
