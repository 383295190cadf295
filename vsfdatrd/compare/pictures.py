"""Pictures of a comparison: BEFORE and AFTER side by side, and detail crops, as PNG files and data URIs.

Pixels are 8-bit R'G'B', as displayed on a screen.
"""

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vsfdatrd.compare.video import Picture, to_luma
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import write_atomic

type Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are exclusive."""

MAX_WIDTH = 1920
"""Maximum width of frames on a page in pixels; wider frames are downscaled there, but not in the PNG files."""
MAGNIFICATION = 2
"""Integer magnification of crops in PNG files."""

_GAP_PIXELS, _LABEL_PIXELS = 8, 34
_TEXT_COLOR, _BACKGROUND_COLOR = (240, 240, 240), (24, 24, 27)


def to_image(picture: Picture) -> Image.Image:
    """Convert (H, W, 3) in [0, 1] to an 8-bit RGB image; values outside are clamped."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels)


def find_detail(picture: Picture, count: int = 2) -> list[Box]:
    """Find the boxes with the sharpest detail.

    The first box has the largest sum of squared luma gradients, each further one the largest of those that do not
    overlap earlier ones. Sides are a quarter of the picture's, limited to 96 to 480 pixels and to the picture itself.

    Args:
        picture: (H, W, 3).
        count: Maximum number of boxes.

    Returns:
        At least one box.
    """
    height, width = picture.shape[:2]
    rows, columns = (min(side, max(96, side // 4), 480) for side in (height, width))
    plane = to_luma(picture).astype(np.float64)
    energy: NDArray[np.float64] = np.square(np.gradient(plane)).sum(0)
    boxes: list[Box] = []
    for _ in range(count):
        total = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
        for left, top, right, bottom in boxes:  # exclude boxes that would overlap
            sums[max(0, top - rows + 1) : bottom, max(0, left - columns + 1) : right] = -1
        y, x = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
        if sums[y, x] <= 1e-6 and boxes:
            break  # no further detail, or no room
        boxes.append((x, y, x + columns, y + rows))
    return boxes


def side_by_side(before: Image.Image, after: Image.Image, labels: tuple[str, str], magnified: int = 1) -> Image.Image:
    """Draw two pictures of one size side by side under their labels.

    Args:
        before: The left picture.
        after: The right picture.
        labels: Text above each picture.
        magnified: Integer magnification (nearest neighbor).
    """
    width, height = (side * magnified for side in before.size)
    sheet = Image.new("RGB", (2 * width + _GAP_PIXELS, height + _LABEL_PIXELS), _BACKGROUND_COLOR)
    draw = ImageDraw.Draw(sheet)
    for i, (picture, label) in enumerate(zip((before, after), labels, strict=True)):
        left = i * (width + _GAP_PIXELS)
        sheet.paste(
            picture.resize((width, height), Image.Resampling.NEAREST) if magnified > 1 else picture,
            (left, _LABEL_PIXELS),
        )
        size = 18
        while draw.textlength(label, font_size=size) > width - 16 and size > 8:
            size -= 1
        draw.text((left + 8, _LABEL_PIXELS // 2), label, fill=_TEXT_COLOR, font_size=size, anchor="lm")
    return sheet


def encode_png(picture: Image.Image) -> bytes:
    """Encode a picture as PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=False, compress_level=6)
    return file.getvalue()


def frame_uri(picture: Image.Image) -> str:
    """Encode a frame as a data URI: visually lossless WebP, a few hundred kB, at most `MAX_WIDTH` pixels wide."""
    if picture.width > MAX_WIDTH:
        height = round(picture.height * MAX_WIDTH / picture.width)
        picture = picture.resize((MAX_WIDTH, height), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=92, method=4)
    return _data_uri("webp", file.getvalue())


def png_uri(picture: Image.Image) -> str:
    """Encode a crop as a data URI: lossless PNG."""
    return _data_uri("png", encode_png(picture))


def check_writable(folder: Path) -> None:
    """Check that files can be created in a folder, before any long computation.

    Raises:
        ArgumentError: They cannot.
    """
    with _as_argument_error(folder), TemporaryFile(dir=folder):
        pass


def write_picture(file: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        ArgumentError: The file cannot be written.
    """
    with _as_argument_error(file):
        write_atomic(file, content, durable=False)


@contextmanager
def _as_argument_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written ({error.strerror or error}); give another folder with --out, or free some space"
        ) from error


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
