"""Chroma models: 4:2:0 in, its chroma reconstructed with the luma's help at the luma's size. Luma stays as it is.

The model gets Y and the chroma enlarged linearly from where it lies, as it was trained, with 0.5 for neutral.
"""

from collections.abc import Callable

import vapoursynth as vs

from vsfdatrd.errors import ClipError
from vsfdatrd.video.color import Source, Target, tagged

type Network = Callable[[vs.VideoNode], vs.VideoNode]


def check(source: Source) -> None:
    """Raises ClipError unless the clip is one that a chroma model is for."""
    form = source.format
    if form.color_family == vs.YUV and form.subsampling_w == form.subsampling_h == 1:
        return
    cure = "convert it first, core.resize.Spline36(clip, format=vs.YUV420P16)"
    if form.color_family == vs.YUV and not (form.subsampling_w or form.subsampling_h):
        cure = "4:4:4 has its chroma whole and needs no such model"
    elif form.color_family == vs.GRAY:
        cure = "give a luma model, such as ArtCNN C4F32 without Chroma in its name"
    elif form.color_family == vs.RGB:
        cure = "RGB has its chroma whole and needs no such model; give one for luma or RGB"
    raise ClipError(
        f"the model reconstructs the chroma of 4:2:0, half the luma's width and height, and the clip is {form.name}; "
        f"{cure}"
    )


def reconstruct(source: Source, target: Target, network: Network) -> vs.VideoNode:
    """The clip as 4:4:4 of single floats with the network's chroma, for `colour.deliver`.

    network: RGBS, the planes being Y, Cb and Cr in [0, 1] -> RGBS of the same size, the first two being Cb and Cr.
    """
    clip = tagged(source, converts=target.matrix is not None)
    full = clip.resize.Bilinear(format=vs.YUV444PS)
    shifted = full.std.Expr(["", "x 0.5 +", "x 0.5 +"])
    found = network(vs.core.std.ShufflePlanes([shifted] * 3, [0, 1, 2], vs.RGB))
    found = found.std.Expr("x 0.5 -")
    joined = vs.core.std.ShufflePlanes([full, found, found], [0, 0, 1], vs.YUV)
    return joined.std.RemoveFrameProps("_ChromaLocation")
