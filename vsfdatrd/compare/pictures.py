"""Pictures of a comparison: BEFORE and AFTER beside each other, and crops where the detail is; PNG files and data URIs.

Pixels are 8-bit R'G'B', as a screen shows them.
"""

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vsfdatrd.compare.video import Picture, luma
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import write_atomic

type Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom lie outside."""

WIDEST = 1920
"""Pixels across of the frames that a page holds; larger ones are made smaller there, not in the PNG files."""
MAGNIFIED = 2
"""Pixels of a crop's PNG for each of its own, along each side."""

_GAP, _HEAD = 8, 34
_INK, _PAPER = (240, 240, 240), (24, 24, 27)


def image(picture: Picture) -> Image.Image:
    """(H, W, 3), 0 to 1, as 8-bit RGB; what lies outside is clamped."""
    pixels: NDArray[np.uint8] = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(pixels)


def detail(picture: Picture, count: int = 2) -> list[Box]:
    """Where a picture has its sharpest detail: at most `count` boxes of a quarter of its sides that do not overlap.

    The first has the largest sum of luma's squared steepness of all boxes, the second of those beside it. Boxes are 96
    to 480 pixels wide and high, or all of a small picture.
    """
    height, width = picture.shape[:2]
    high, wide = (min(side, max(96, side // 4), 480) for side in (height, width))
    plane = luma(picture).astype(np.float64)
    energy: NDArray[np.float64] = np.square(np.gradient(plane)).sum(0)
    boxes: list[Box] = []
    for _ in range(count):
        total = np.pad(energy.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = total[high:, wide:] - total[:-high, wide:] - total[high:, :-wide] + total[:-high, :-wide]
        for left, top, right, bottom in boxes:  # what would overlap does not count
            sums[max(0, top - high + 1) : bottom, max(0, left - wide + 1) : right] = -1
        y, x = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
        if sums[y, x] <= 1e-6 and boxes:
            break  # nothing else to see, or no room
        boxes.append((x, y, x + wide, y + high))
    return boxes


def side_by_side(before: Image.Image, after: Image.Image, labels: tuple[str, str], magnified: int = 1) -> Image.Image:
    """Two pictures of one size beside each other under their labels, pixels repeated `magnified` times."""
    width, height = (side * magnified for side in before.size)
    sheet = Image.new("RGB", (2 * width + _GAP, height + _HEAD), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (one, label) in enumerate(zip((before, after), labels, strict=True)):
        left = i * (width + _GAP)
        sheet.paste(one.resize((width, height), Image.Resampling.NEAREST) if magnified > 1 else one, (left, _HEAD))
        size = 18
        while draw.textlength(label, font_size=size) > width - 16 and size > 8:
            size -= 1
        draw.text((left + 8, _HEAD // 2), label, fill=_INK, font_size=size, anchor="lm")
    return sheet


def png(one: Image.Image) -> bytes:
    """As a PNG file: every pixel as it is."""
    held = io.BytesIO()
    one.save(held, "PNG", optimize=False, compress_level=6)
    return held.getvalue()


def frame_uri(one: Image.Image) -> str:
    """A whole frame for a page: WebP near to lossless to the eye, some hundred kilobytes, no wider than `WIDEST`."""
    if one.width > WIDEST:
        one = one.resize((WIDEST, round(one.height * WIDEST / one.width)), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    one.save(held, "WEBP", quality=92, method=4)
    return _uri("webp", held.getvalue())


def png_uri(one: Image.Image) -> str:
    """A crop for a page, exact."""
    return _uri("png", png(one))


def write(file: Path, content: bytes) -> None:
    """Write a file as a whole or not at all.

    Raises ArgumentError where that is not possible.
    """
    try:
        write_atomic(file, content, durable=False)
    except OSError as error:
        raise ArgumentError(
            f"{file} cannot be written ({error.strerror or error}); give another folder with --out, or make room"
        ) from error


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
