"""Padding, cropping and tiling of frames. Pure functions; sizes are in pixels.

A plane is an array (height, width). Padding is added at the bottom and right only, so cropping is
`out[:height, :width]`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

type Plane = NDArray[np.float32]

OVERLAP_PIXELS = 32
"""Pixels by which neighboring tiles overlap if they are large enough."""


def fill_padding(plane: Plane, height: int, width: int) -> None:
    """Fill the padding of a plane in place; the picture is `plane[:height, :width]`.

    The padding reflects the picture, or repeats its last row and column if the picture is too small to be reflected.
    """
    bottom, right = plane.shape[0] - height, plane.shape[1] - width
    if bottom < height and right < width:
        # Column width - 1 is the axis of reflection and is not repeated.
        plane[:height, width:] = plane[:height, width - 1 - right : width - 1][:, ::-1]
        plane[height:] = plane[height - 1 - bottom : height - 1][::-1]
    else:
        plane[:height, width:] = plane[:height, width - 1 : width]
        plane[height:] = plane[height - 1 : height]


@dataclass(frozen=True, slots=True)
class Tile:
    """One tile of a frame: its top left corner in the source, and its blend weights."""

    top: int
    left: int
    rows: Plane
    """Weight of each of the tile's output rows, (height·scale, 1)."""
    columns: Plane
    """Weight of each of the tile's output columns, (1, width·scale)."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """A frame divided into tiles of one size. The weights of all tiles sum to 1 at every output pixel."""

    height: int
    width: int
    tiles: tuple[Tile, ...]


def single_tile(height: int, width: int, scale: int) -> Tiling:
    """Return a tiling whose only tile is the complete frame."""
    return tile_frame(height, width, height, width, scale)


def tile_frame(height: int, width: int, tile_height: int, tile_width: int, scale: int) -> Tiling:
    """Divide a frame into overlapping tiles of one size.

    Neighbors overlap by at least `OVERLAP_PIXELS` pixels (a quarter of the tile if it is small) and are blended
    linearly, so that no tile edge is visible as a line.

    Args:
        height: Frame height in source pixels.
        width: Frame width in source pixels.
        tile_height: Largest tile height in source pixels.
        tile_width: Largest tile width in source pixels.
        scale: Output pixels per source pixel along each side.

    Returns:
        The tiles with their blend weights at output resolution.
    """
    tile_height, tile_width = min(tile_height, height), min(tile_width, width)
    tops, rows = _tile_starts(height, tile_height, scale)
    lefts, columns = _tile_starts(width, tile_width, scale)
    return Tiling(
        tile_height,
        tile_width,
        tuple(
            Tile(top, left, row[:, None], column[None, :])
            for top, row in zip(tops, rows, strict=True)
            for left, column in zip(lefts, columns, strict=True)
        ),
    )


def tilings(height: int, width: int, scale: int, most: int) -> Iterator[Tiling]:
    """Yield tilings of 2, 4, 6 and more tiles that are as square as possible, the fewest tiles first.

    Args:
        height: Frame height in source pixels.
        width: Frame width in source pixels.
        scale: Output pixels per source pixel along each side.
        most: Largest number of tiles.
    """
    yielded = {1}
    cut = (1, 1)
    while True:
        # one more cut across the longer side of a tile
        rows, columns = cut
        cut = (rows + 1, columns) if height / rows > width / columns else (rows, columns + 1)
        # tile sides, chosen so that the tiles with their overlaps cover the frame
        parts = [-(-(side + (n - 1) * OVERLAP_PIXELS) // n) for side, n in zip((height, width), cut, strict=True)]
        if min(parts) <= 2 * OVERLAP_PIXELS:
            return
        tiling = tile_frame(height, width, parts[0], parts[1], scale)
        if len(tiling.tiles) > most:
            return
        if len(tiling.tiles) not in yielded:
            yielded.add(len(tiling.tiles))
            yield tiling


def _tile_starts(side: int, tile_side: int, scale: int) -> tuple[list[int], list[Plane]]:
    """Return the evenly spaced starts of the tiles along one side, and each tile's weights at output resolution."""
    overlap = min(OVERLAP_PIXELS, tile_side // 4)
    count = 1 if tile_side >= side else -(-(side - overlap) // (tile_side - overlap))
    starts = [round(i * (side - tile_side) / max(1, count - 1)) for i in range(count)]
    length = tile_side * scale
    position = np.arange(length, dtype=np.float32) + 0.5
    weights: list[Plane] = []
    for i in range(count):
        weight = np.ones(length, np.float32)
        if i > 0:  # fade in over the overlap with the previous tile
            shared = (starts[i - 1] + tile_side - starts[i]) * scale
            weight *= np.clip(position / shared, 0, 1)
        if i < count - 1:
            shared = (starts[i] + tile_side - starts[i + 1]) * scale
            weight *= np.clip((length - position) / shared, 0, 1)
        weights.append(weight)
    total = np.zeros(side * scale, np.float32)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale : start * scale + length] += weight
    return starts, [
        weight / total[start * scale : start * scale + length] for start, weight in zip(starts, weights, strict=True)
    ]
