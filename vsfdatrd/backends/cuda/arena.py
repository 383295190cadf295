"""Assign offsets in one block of memory, the arena, to buffers; buffers whose lifetimes do not overlap share memory.

The largest buffers are placed first, each in the smallest gap that is free during its lifetime (greedy by size,
Pisarchyk and Lee 2020, arXiv:2001.03288).
"""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Offsets are multiples of this many bytes, as are addresses that CUDA allocates; kernels load 16 bytes at once."""


@dataclass(frozen=True, slots=True)
class BufferLifetime:
    """Size and lifetime of a buffer."""

    size: int
    """Size in bytes."""
    first: int
    """Index of the launch that first writes it."""
    last: int
    """Index of the launch that last uses it; at least `first`."""

    def overlaps(self, other: "BufferLifetime") -> bool:
        """Return whether both buffers are in use during the same launch."""
        return self.first <= other.last and other.first <= self.last


def assign_offsets(lifetimes: Sequence[BufferLifetime]) -> tuple[list[int], int]:
    """Place every buffer in one block of memory; buffers whose lifetimes do not overlap may share memory.

    Args:
        lifetimes: The buffers.

    Returns:
        Offsets in bytes, multiples of `ALIGNMENT`, in the order of `lifetimes`; and the size of the block.
    """
    offsets = [0] * len(lifetimes)
    total = 0
    placed: list[int] = []
    for i in sorted(range(len(lifetimes)), key=lambda n: (-lifetimes[n].size, lifetimes[n].first)):
        size = align_up(lifetimes[i].size)
        taken = sorted(
            (offsets[n], offsets[n] + align_up(lifetimes[n].size))
            for n in placed
            if lifetimes[n].overlaps(lifetimes[i])
        )
        gaps: list[tuple[int, int]] = []  # size and offset
        end = 0
        for start, stop in taken:
            if start - end >= size:
                gaps.append((start - end, end))
            end = max(end, stop)
        offsets[i] = min(gaps)[1] if gaps else end
        total = max(total, offsets[i] + size)
        placed.append(i)
    return offsets, total


def align_up(size: int) -> int:
    """Round a number of bytes up to a multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT
