"""The threads that compute one frame together, each with memory of its own."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.native.kernels import scratch

type Scratch = NDArray[np.uint8]
type Work = Callable[[int, int, Scratch], None]
"""What is done for [first, last) of something, with a thread's scratch."""


class RowThreads:
    """Threads for maps of one size."""

    def __init__(self, height: int, width: int, config: FdatRdConfig, threads: int) -> None:
        """height, width: of the map in tokens."""
        self.height, self.width = self.size = (height, width)
        self.count = height * width
        """Tokens of a map."""
        self._scratch = [scratch(width, config.embed_dim, config.ffn_dim, config.dict_tokens) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, "native") if threads > 1 else None

    def parts(self, count: int) -> list[tuple[int, int]]:
        """[0, count) as stretches (first, last), one a thread."""
        ends = [round(count * i / len(self._scratch)) for i in range(len(self._scratch) + 1)]
        return [(first, last) for first, last in pairwise(ends) if first < last]

    def each(self, count: int, work: Work) -> None:
        """Do the work for the `parts` of [0, count)."""
        parts = self.parts(count)
        if self._pool is None or len(parts) == 1:
            work(*parts[0], self._scratch[0])
            return
        firsts, lasts = zip(*parts, strict=True)
        list(self._pool.map(work, firsts, lasts, self._scratch))

    def rows(self, work: Work) -> None:
        """Do the work for all rows of the map."""
        self.each(self.height, work)
