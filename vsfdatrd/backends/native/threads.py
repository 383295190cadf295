"""Threads that compute one frame together, each with its own scratch memory."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.native.kernels import allocate_scratch

type Scratch = NDArray[np.uint8]
type Work[T] = Callable[[int, int, Scratch], T]
"""Function of (first, last, scratch): processes items [first, last) with the scratch memory of its thread."""


class RowThreads:
    """Threads for feature maps of one size."""

    def __init__(self, height: int, width: int, config: FdatRdConfig, threads: int) -> None:
        """Allocate scratch memory and start the threads.

        Args:
            height: Height of the feature map in tokens.
            width: Width of the feature map in tokens.
            config: The network.
            threads: Number of threads; 1 computes on the calling thread.
        """
        self.height, self.width = self.size = (height, width)
        self.count = height * width
        """Tokens of a feature map."""
        self._scratch = [
            allocate_scratch(width, config.embed_dim, config.ffn_dim, config.dict_tokens) for _ in range(threads)
        ]
        self._pool = ThreadPoolExecutor(threads, "native") if threads > 1 else None

    def ranges(self, count: int, unit: int = 1) -> list[tuple[int, int]]:
        """Divide [0, count) into at most one range per thread.

        Args:
            count: Number of items.
            unit: What the ends of a range must be multiples of.

        Returns:
            Ranges (first, last) that are not empty, `last` exclusive.
        """
        units, threads = count // unit, len(self._scratch)
        ends = [unit * round(units * i / threads) for i in range(threads + 1)]
        return [(first, last) for first, last in pairwise(ends) if first < last]

    def run_ranges[T](self, count: int, work: Work[T], unit: int = 1) -> list[T]:
        """Process [0, count) on all threads and wait.

        Args:
            count: Number of items.
            work: Called with each of the `ranges`.
            unit: What the ends of a range must be multiples of.

        Returns:
            What `work` returned, in the order of the ranges.
        """
        parts = self.ranges(count, unit)
        if self._pool is None or len(parts) == 1:
            return [work(*parts[0], self._scratch[0])]
        firsts, lasts = zip(*parts, strict=True)
        return list(self._pool.map(work, firsts, lasts, self._scratch))

    def run_rows[T](self, work: Work[T]) -> list[T]:
        """Process all rows of the feature map on all threads and wait.

        Args:
            work: Called with a range of rows and scratch memory.
        """
        return self.run_ranges(self.height, work)
