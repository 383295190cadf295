"""Transparency: the alpha channel of a frame, stored as the frame property ``_Alpha``.

This is the property ``std.PropToClip`` reads; ``set_output(alpha=)`` requires alpha of the same size and bit depth as
the frame. The network is trained on pictures, not masks, so alpha is enlarged with the resizer.
"""

import logging
from typing import Any, cast

import vapoursynth as vs

from vsfdatrd.video import plugin

log = logging.getLogger(__name__)

ALPHA_PROPERTY = "_Alpha"

type AlphaFormat = tuple[int, int, int]
"""Format, width and height."""


def alpha_of(frame: vs.VideoFrame) -> vs.VideoFrame | None:
    """Return a frame's alpha, or None if it has none."""
    alpha = frame.props.get(ALPHA_PROPERTY)
    return alpha if isinstance(alpha, vs.VideoFrame) else None


def attach_alpha(source: vs.VideoNode, upscaled: vs.VideoNode) -> vs.VideoNode:
    """Give each upscaled frame the alpha of its source frame, enlarged.

    Args:
        source: The clip whose frames have alpha; some may have none, and size and format may vary.
        upscaled: The clip to attach it to.

    Returns:
        The upscaled clip. Where the source has alpha, frames have ``_Alpha`` of their own size and bit depth, in full
        range.
    """
    attached: dict[AlphaFormat, vs.VideoNode] = {}
    refused: set[str] = set()

    def with_alpha(n: int, f: vs.VideoFrame) -> vs.VideoNode:
        alpha = alpha_of(f)
        if alpha is None:
            return upscaled
        if alpha.format.color_family != vs.GRAY or alpha.format.bits_per_sample not in (*range(8, 17), 32):
            if alpha.format.name not in refused:
                refused.add(alpha.format.name)
                log.warning("frame %d has an _Alpha in %s, which is left out; give it as GRAY8", n, alpha.format.name)
            return upscaled
        kind = (alpha.format.id, alpha.width, alpha.height)
        if kind not in attached:
            attached[kind] = upscaled.std.ClipToProp(_enlarge_alpha(source, kind, upscaled), prop=ALPHA_PROPERTY)
        return attached[kind]

    return vs.core.std.FrameEval(upscaled, with_alpha, prop_src=source)


def _enlarge_alpha(source: vs.VideoNode, kind: AlphaFormat, like: vs.VideoNode) -> vs.VideoNode:
    """Return the alpha of frames whose alpha is of this kind, as a clip of the size and bit depth of `like`."""

    def extract(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = cast(vs.VideoFrame, f.props[ALPHA_PROPERTY]).copy()
        out.props.clear()  # such as _Matrix=0 (RGB), which the resizer rejects for GRAY
        return out

    form, width, height = kind
    small: vs.VideoNode = plugin.fdatrd_function("PerFrame")(
        source, func=extract, format=form, width=width, height=height
    )
    target = vs.core.query_video_format(vs.GRAY, like.format.sample_type, like.format.bits_per_sample)
    # Alpha is full range regardless of the picture's range.
    options: dict[str, Any] = {"format": target.id, "range_in": vs.RANGE_FULL, "range": vs.RANGE_FULL}
    large = small.resize.Spline36(like.width, like.height, **options)
    # Spline36 overshoots at edges; integer formats clip that by themselves.
    return large if target.sample_type == vs.INTEGER else large.std.Expr("x 0 max 1 min")
