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
from vsfdatrd.errors import ArgumentError, ClipError, first_line
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

    Raises:
        ArgumentError: The picture cannot be read.
        ClipError: The style clip cannot be converted to RGB.
    """
    if isinstance(source, vs.VideoNode):
        try:
            style = color.to_rgb(color.inspect_clip(source))
        except ClipError as error:
            raise ClipError(f"the style cannot be used: {error}") from error
    else:
        style = clip if source is None else _read_picture(expand_user(source))
    if (style.width, style.height) != (placement.width, placement.height):
        style = style.resize.Spline36(placement.width, placement.height)
    if style.num_frames < clip.num_frames:
        style += style[-1] * (clip.num_frames - style.num_frames)
    # Cut, because the result of ClipToProp is as long as the second clip.
    return clip.std.ClipToProp(style[: clip.num_frames], prop=PROPERTY)


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
            if picture.mode.startswith("I"):  # 16-bit gray, which `convert` would clip to 8 bits
                planes = np.stack(3 * [np.asarray(picture, np.float32) / 65535])
            else:
                planes = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    except Exception as error:  # Pillow passes on any exception of its readers
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)[:120]
        raise ArgumentError(f"style={str(path)!r} cannot be read as a picture ({reason}); give another") from error
    _, height, width = planes.shape
    blank = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=1)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for i, plane in enumerate(planes):
            np.copyto(np.asarray(frame[i]), plane)
        return frame

    return blank.std.ModifyFrame(blank, fill)
