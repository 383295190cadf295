"""Distinguish drawn scan lines and stripes from combing: in both, lines differ from the ones above and below.

Combing is caused by two fields from different times. The content of a combed line then appears on the adjacent lines of
the previous or next frame, and the line is not combed in the same way again: a static picture has no combing. Drawn
lines (a television screen in the film, a striped title) differ from the adjacent lines in the next frame as well.
"""

import numpy as np
from numpy.typing import NDArray

type Luma = NDArray[np.uint8]
"""Luma plane, (H, W), 8 bits."""
type _Numbers = NDArray[np.int16]
type _Signs = NDArray[np.int8]

MAX_COMBED_PIXELS = 80
"""A frame is combed if any 16×16 block has more combed pixels than this: VFM's default ``mi``."""

_MIN_STEP = 9  # of 255: VFM's cthresh, the minimum difference of a combed line from both adjacent lines
_STRIPE_TOLERANCE = 0.25  # maximum relative difference of two steps that belong to the same stripes, moved by one line
_MAX_UNEXPLAINED = 0.25  # fewer combed pixels than this share of drawn ones are content moving behind drawn lines


def are_drawn(before: Luma | None, frame: Luma, after: Luma | None) -> bool:
    """Return True if a frame of which VFM says that it is combed has drawn lines instead.

    Args:
        before: Luma of the previous frame, (H, W), 8 bits; None at the start of the clip.
        frame: Luma of the frame in question.
        after: Luma of the next frame; None at the end of the clip.
    """
    here = frame.astype(np.int16)
    signs = _combing_signs(here)
    neighbors = [other.astype(np.int16) for other in (before, after) if other is not None]
    other_signs = [_combing_signs(other) for other in neighbors]
    low, high = here[1:-1] - _MIN_STEP, here[1:-1] + _MIN_STEP
    # No adjacent line in any of the three frames is as bright or as dark, so another field cannot explain the line.
    alone = np.ones(signs.shape, bool)
    for other in neighbors:
        up, down = other[:-2], other[2:]
        alone &= np.where(signs > 0, np.maximum(up, down) < low, np.minimum(up, down) > high)
    drawn = np.zeros(signs.shape, bool)
    for others in other_signs:
        drawn |= alone & (others == signs)
    if len(neighbors) == 2:
        # One-line stripes that scroll by an odd number of lines: the step has the same size and alternating sign.
        step = _line_differences(here)
        flipped = np.ones(signs.shape, bool)
        for other, others in zip(neighbors, other_signs, strict=True):
            flipped &= (others == -signs) & (np.abs(_line_differences(other) - step) <= _STRIPE_TOLERANCE * step)
        drawn |= flipped
    combed = _combed_with_neighbors(signs != 0)
    unexplained = _combed_with_neighbors((signs != 0) & ~drawn)
    few = int(unexplained.sum()) < _MAX_UNEXPLAINED * int((combed & drawn[1:-1]).sum())
    return _max_marked_per_block(unexplained) <= MAX_COMBED_PIXELS or few


def _combing_signs(luma: _Numbers) -> _Signs:
    """Mark pixels brighter (1) or darker (-1) than both adjacent lines, by VFM's criterion: (H - 2, W), from line 1."""
    line, up, down = luma[1:-1], luma[:-2], luma[2:]
    over, under = line - up, line - down
    result = ((over > _MIN_STEP) & (under > _MIN_STEP)).astype(np.int8)
    result -= ((over < -_MIN_STEP) & (under < -_MIN_STEP)).astype(np.int8)
    far = np.pad(luma, ((1, 1), (0, 0)), mode="reflect")
    curve = far[:-4] + far[4:] + 4 * line - 3 * (up + down)
    result[np.abs(curve) <= 6 * _MIN_STEP] = 0
    return result


def _line_differences(luma: _Numbers) -> NDArray[np.float32]:
    """Return the absolute difference of each pixel from the mean of the pixels above and below: (H - 2, W)."""
    return np.abs(luma[1:-1] - (luma[:-2] + luma[2:]) / 2).astype(np.float32)


def _combed_with_neighbors(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark combed pixels with combed pixels above and below, (H, W) -> (H - 2, W); a single line is not combing."""
    runs: NDArray[np.bool_] = mask[:-2] & mask[1:-1] & mask[2:]
    return runs


def _max_marked_per_block(mask: NDArray[np.bool_]) -> int:
    """Return the largest number of marked pixels in any 16×16 block. Blocks begin at multiples of 8."""
    rows, columns = (side // 8 for side in mask.shape)
    cells = mask[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).sum(axis=(1, 3))
    cells = np.pad(cells, (0, 1))  # a mask may have only one row of cells
    return int((cells[:-1, :-1] + cells[1:, :-1] + cells[:-1, 1:] + cells[1:, 1:]).max())
