"""Tell drawn scan lines and stripes from combing: both are lines that differ from the ones above and below.

Combing comes of two fields of different times. What a combed line shows is then found, in the frame before or after, on
the lines beside it; and it is not combed the same way again, unless it stands still, where nothing is combed. Drawn
lines (a television in the film, a striped title) differ from their neighbours in the next frame as well.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

type Luma = NDArray[np.uint8]
"""(H, W), 8 bits."""
type _Numbers = NDArray[np.int16]
type _Signs = NDArray[np.int8]

MOST = 80
"""Combed pixels in a block of 16×16 above which a frame is combed: VFM's own limit, `mi`."""

_STEP = 9  # of 255: VFM's cthresh, by which a combed line differs from both neighbours
_ALIKE = 0.25  # relative difference of two steps that are the same stripes, moved by one line
_FEW = 0.25  # combed pixels, relative to drawn ones, that are content moving behind drawn lines


def are_drawn(before: Luma | None, frame: Luma, after: Luma | None) -> bool:
    """Return whether a frame that looks combed does so for lines that are drawn.

    Args:
        before: The frame before it; None at the start.
        frame: The frame in question.
        after: The frame after it; None at the end.
    """
    here = frame.astype(np.int16)
    signs = _combs(here)
    drawn = np.zeros(signs.shape, bool)
    beside = [other.astype(np.int16) for other in (before, after) if other is not None]
    others = [(other, _combs(other)) for other in beside]
    low, high = here[1:-1] - _STEP, here[1:-1] + _STEP
    # No neighbouring line, of any of the three frames, is as bright or as dark: two fields would not explain it.
    alone = np.ones(signs.shape, bool)
    for other in beside:
        up, down = other[:-2], other[2:]
        alone &= np.where(signs > 0, np.maximum(up, down) < low, np.minimum(up, down) > high)
    for _, other_signs in others:
        drawn |= alone & (other_signs == signs)
    if len(others) == 2 and all(other is not None for other in (before, after)):
        # Stripes of one line each that scroll by an odd number of lines: the same step, the other way round each time.
        step = _steps(here)
        flipped = np.ones(signs.shape, bool)
        for other, other_signs in others:
            flipped &= (other_signs == -signs) & (np.abs(_steps(other) - step) <= _ALIKE * step)
        drawn |= flipped
    combed = _runs(signs != 0)
    left = _runs((signs != 0) & ~drawn)
    return _worst_block(left) <= MOST or int(left.sum()) < _FEW * int((combed & drawn[1:-1]).sum())


def _combs(luma: _Numbers) -> _Signs:
    """Lines that are brighter (1) or darker (-1) than both neighbours, as VFM sees them: (H - 2, W), from line 1."""
    line, up, down = luma[1:-1], luma[:-2], luma[2:]
    over, under = line - up, line - down
    found = ((over > _STEP) & (under > _STEP)).astype(np.int8)
    found -= ((over < -_STEP) & (under < -_STEP)).astype(np.int8)
    far = np.pad(luma, ((1, 1), (0, 0)), mode="reflect")
    curve = far[:-4] + far[4:] + 4 * line - 3 * (up + down)
    found[np.abs(curve) <= 6 * _STEP] = 0
    return found


def _steps(luma: _Numbers) -> NDArray[np.float32]:
    """By how much lines differ from the mean of their neighbours: (H - 2, W)."""
    return np.abs(luma[1:-1] - (luma[:-2] + luma[2:]) / 2).astype(np.float32)


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels with three combed lines on end: a single line is not combing."""
    runs: NDArray[np.bool_] = mask[:-2] & mask[1:-1] & mask[2:]
    return runs


def _worst_block(mask: NDArray[np.bool_]) -> int:
    """The most pixels in any block of 16×16, at steps of 8."""
    rows, columns = (max(side // 8, 1) * 8 for side in mask.shape)
    cells: Any = np.zeros((rows // 8 + 1, columns // 8 + 1), int)
    inner = mask[:rows, :columns]
    if inner.shape != (rows, columns):  # smaller than a cell
        return int(inner.sum())
    cells[:-1, :-1] = inner.reshape(rows // 8, 8, columns // 8, 8).sum(axis=(1, 3))
    return int((cells[:-1, :-1] + cells[1:, :-1] + cells[:-1, 1:] + cells[1:, 1:]).max())
