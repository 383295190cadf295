"""The style picture: the second image input of style-transfer networks.

It is attached to each frame as a frame property, at the size the network expects, and is written below the frame in the
engine's input (`archs.onnx.OnnxConfig.style_rows`).
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import vapoursynth as vs

from vsfdatrd.archs.registry.base import ModelDescriptor
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.home import expand_user
from vsfdatrd.video import color

type StyleSource = str | PathLike[str] | vs.VideoNode | None

PROPERTY = "_FdatrdStyle"


@dataclass(frozen=True, slots=True)
class Style:
    """Layout of the style picture in an engine's input."""

    rows: int
    """Rows below the frame that it occupies."""
    height: int
    width: int


def style_layout(model: ModelDescriptor, height: int, width: int) -> Style | None:
    """Return the layout of the style picture for padded frames of `height` × `width`; None for networks without one."""
    size = model.config.style_size(height, width)
    return Style(-(-size[0] * size[1] // width), *size) if size else None


def check_style(style: StyleSource, model: ModelDescriptor) -> None:
    """Check the `style` argument against the network.

    Raises:
        ArgumentError: The network has no style input, or the value is neither a clip nor a path.
    """
    if style is None:
        return
    if style_layout(model, 1, 1) is None:
        raise ArgumentError(
            "style= is for networks with a second input for a picture, and this one has none; leave it out"
        )
    if not isinstance(style, str | PathLike | vs.VideoNode):
        raise ArgumentError(f"style={style!r} is neither a clip nor the path of a picture")


def attach_style(clip: vs.VideoNode, source: StyleSource, placement: Style) -> vs.VideoNode:
    """Attach the style picture to every frame as a property.

    Args:
        clip: RGBS.
        source: A clip, whose frames are paired by number and whose last frame is repeated; the path of a picture; or
            None to use the frame itself.
        placement: The layout in the engine's input, which determines the size.

    Returns:
        The clip with the property `PROPERTY` on every frame.

    Raises:
        ArgumentError: The picture cannot be read.
        ClipError: The style clip cannot be converted to RGB.
    """
    if isinstance(source, vs.VideoNode):
        style = color.to_rgb(color.inspect_clip(source))
    else:
        style = clip if source is None else _read_picture(expand_user(source))
    if (style.width, style.height) != (placement.width, placement.height):
        style = style.resize.Spline36(placement.width, placement.height)
    if style.num_frames < clip.num_frames:
        last = style[style.num_frames - 1]
        style = style + last * (clip.num_frames - style.num_frames) if style.num_frames > 1 else last * clip.num_frames
    return clip.std.ClipToProp(style, prop=PROPERTY)


def is_moving(style: StyleSource) -> bool:
    """Return whether the style is a clip of several pictures, so that equal frames may have different styles."""
    return isinstance(style, vs.VideoNode) and style.num_frames > 1


def _read_picture(path: Path) -> vs.VideoNode:
    """Read a picture file as an RGBS clip of one frame."""
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
    except Exception as error:  # Pillow passes on any exception of its readers
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
