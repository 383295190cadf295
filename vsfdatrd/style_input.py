"""The second picture of networks that give a frame the style of another: where it is from, and how it travels.

It goes along with each frame as a property, at the size the network takes it in, and lies below the frame in the
engine's input (`nn.onnx_config.OnnxConfig.style_rows`).
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import vapoursynth as vs

from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.home import expand_user
from vsfdatrd.video import color

type Given = str | PathLike[str] | vs.VideoNode | None

PROPERTY = "_FdatrdStyle"


@dataclass(frozen=True, slots=True)
class Style:
    """Where pictures of style go in an engine's input."""

    rows: int
    """Rows below the frame that they take."""
    height: int
    width: int


def place(about: ModelDescriptor, height: int, width: int) -> Style | None:
    """The place of the style for padded frames of a size; None for networks without one."""
    if about.onnx is None or about.onnx.style is None:
        return None
    return Style(about.onnx.style_rows(height, width), *about.onnx.style_size(height, width))


def check(given: Given, about: ModelDescriptor) -> None:
    """Raises ArgumentError for a style that the network has no place for, or that cannot be one."""
    if given is None:
        return
    if about.onnx is None or about.onnx.style is None:
        raise ArgumentError("style= is for networks with a second input for a picture, and this has none; leave it out")
    if not isinstance(given, str | PathLike | vs.VideoNode):
        raise ArgumentError(f"style={given!r} is neither a clip nor the path of a picture")


def attached(clip: vs.VideoNode, given: Given, where: Style) -> vs.VideoNode:
    """The clip with its style in every frame's properties.

    clip: RGBS. given: a clip, whose frames go with those of the same number, its last one with all after; the path of a
    picture; None for the frame itself. Raises ArgumentError or ClipError for what cannot be used.
    """
    if isinstance(given, vs.VideoNode):
        style = color.to_rgb(color.describe(given))
    else:
        style = clip if given is None else _picture(expand_user(given))
    if (style.width, style.height) != (where.width, where.height):
        style = style.resize.Spline36(where.width, where.height)
    if style.num_frames < clip.num_frames:
        last = style[style.num_frames - 1]
        style = style + last * (clip.num_frames - style.num_frames) if style.num_frames > 1 else last * clip.num_frames
    return clip.std.ClipToProp(style, prop=PROPERTY)


def moves(given: Given) -> bool:
    """Whether equal frames may have different styles."""
    return isinstance(given, vs.VideoNode) and given.num_frames > 1


def _picture(path: Path) -> vs.VideoNode:
    """A picture's file as a clip of one frame, RGBS."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ArgumentError(
            f"style={str(path)!r} is the path of a picture; reading it needs Pillow: pip install 'vsfdatrd[style]'; "
            "or give a clip"
        ) from error
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow raises what its readers do
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0][:120]
        raise ArgumentError(f"style={str(path)!r} cannot be read as a picture ({reason}); give another") from error
    height, width, _ = pixels.shape
    blank = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=1)
    planes = pixels.astype(np.float32).transpose(2, 0, 1) / 255

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for i, plane in enumerate(planes):
            np.copyto(np.asarray(frame[i]), plane)
        return frame

    return blank.std.ModifyFrame(blank, fill)
