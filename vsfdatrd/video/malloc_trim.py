"""Memory that is free again goes back to the system, now and then.

VapourSynth allocates every plane aligned. Up to glibc 2.37 (Debian 12, Ubuntu 22.04) an aligned block that was freed is
seldom found again by the next request for the same size (glibc bug 14581), so the heap of a script with small frames
grows for thousands of frames, with any filter at all: 120×120 to 240×240 by a plain resize went from 45 to 650 MB in
12,000 frames, and stayed at 60 MB with the heap's free pages handed back (glibc 2.36). Larger planes are not concerned:
from 720×480 on, the same resize stays flat by itself, and a trim then takes a tenth of a millisecond.
"""

import ctypes
import threading
import time
from collections.abc import Callable

INTERVAL = 1.0  # seconds between two trims; one takes 0.1 to 20 ms


def _system_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None where the C library has none, and its allocator no need of it."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no library without a name
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim


class Trimmer:
    """Hands free memory back at most once in `interval` seconds; for any number of threads."""

    def __init__(self, trim: Callable[[int], int] | None, interval: float = INTERVAL) -> None:
        self._trim = trim
        self._interval = interval
        self._last = time.monotonic()
        self._busy = threading.Lock()

    def tick(self) -> None:
        """Say that a frame is done. The thread that finds a trim due does it; the others go on."""
        if self._trim is None or time.monotonic() - self._last < self._interval:
            return
        if self._busy.acquire(blocking=False):
            try:
                self._trim(0)
            finally:
                self._last = time.monotonic()
                self._busy.release()


trimmer = Trimmer(_system_trim())
