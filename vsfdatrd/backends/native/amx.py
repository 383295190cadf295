"""Weights for products with Intel AMX: which panels of a matrix use AMX, and the layout of their bytes as tiles.

`_native/cpu_amx.h` explains the arithmetic.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLUMNS = 16
INNER = 64
"""Rows of a matrix in one block, a pair of tiles."""

ORDER = np.concatenate([np.r_[8 * i : 8 * i + 8, 32 + 8 * i : 40 + 8 * i] for i in range(4)])
"""Integer of each of 64 bytes, as ``separate`` in `_native/cpu_amx.h` packs them."""

BLOCK_COST = 17
"""Time of a block with AMX, relative to a row of a span with VNNI.

Estimated for 15 tokens from Intel's figures, not measured: a product of two tiles takes 16 cycles, and a block has four
such products. A row of a span takes 3.75 cycles, with two 512-bit vpdpwssd per cycle.
"""
PANEL_COST = 27
"""Time of storing four tiles and combining their sums, relative to a row of a span, estimated: about 100 cycles."""


class Blocks(NamedTuple):
    """The blocks of a matrix; see `Matrix` in `_native/cpu.h`."""

    data: NDArray[np.uint8]
    """High and low bytes, (blocks, 2, 16, 64), aligned to 64 bytes."""
    rows: NDArray[np.int32]
    """First row of each block, divided by 64."""
    bounds: NDArray[np.int32]
    """Number of blocks before each panel and after the last, (panels + 1)."""


def blocks_of(panels: NDArray[np.int16], spans: NDArray[np.int32], bounds: NDArray[np.int32]) -> Blocks:
    """Convert the panels of a matrix for which AMX is expected to take less time than VNNI.

    Args:
        panels: Packed weights, (panels, inner / 2, 16, 2).
        spans: (first row, length) of the nonzero spans of all panels, (spans, 2).
        bounds: Number of spans before each panel and after the last, (panels + 1).
    """
    count, inner = len(panels), 2 * panels.shape[1]
    columns = np.zeros((count, -(-inner // INNER) * INNER, COLUMNS), np.int16)
    columns[:, :inner] = panels.transpose(0, 1, 3, 2).reshape(count, inner, COLUMNS)
    used = np.zeros((count, columns.shape[1]), bool)
    for panel, (first, last) in enumerate(pairwise(bounds)):
        for start, length in spans[first:last]:
            used[panel, start : start + length] = True
    there = used.reshape(count, -1, INNER).any(2)
    there &= (BLOCK_COST * there.sum(1) + PANEL_COST < used.sum(1))[:, None]
    # (blocks, 64, 16) -> (blocks, 16, 16, 4): four rows of a column lie together
    quads = columns.reshape(count, -1, INNER, COLUMNS)[there][:, ORDER].reshape(-1, INNER // 4, 4, COLUMNS)
    both = np.stack([quads >> 8, quads & 255], axis=1).transpose(0, 1, 2, 4, 3)
    data = aligned(both.size).reshape(-1, 2, INNER // 4, 4 * COLUMNS)
    data[:] = both.astype(np.uint8).reshape(data.shape)
    edges = np.concatenate([[0], np.cumsum(there.sum(1))])
    return Blocks(data, np.nonzero(there)[1].astype(np.int32), edges.astype(np.int32))


def aligned(count: int) -> NDArray[Any]:
    """Allocate bytes at a multiple of 64.

    Args:
        count: Number of bytes.
    """
    buffer = np.empty(count + 64, np.uint8)
    return buffer[-buffer.ctypes.data % 64 :][:count]
