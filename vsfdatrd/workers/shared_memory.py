"""Memory that a script and its worker process both map: frames travel through it without a copy."""

import contextlib
import mmap
import os
import secrets
import sys
import tempfile

import numpy as np
from numpy.typing import NDArray

type FramePlanes = NDArray[np.float32]
"""The planes of a frame, (C, H, W)."""


class SharedMemory:
    """Memory that two processes map. The second one does so with `map_shared`, by what `address` says."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._name: str | None = None
        self.fd = -1
        if sys.platform == "win32":
            self._name = f"fdatrd-frames-{secrets.token_hex(16)}"
        elif hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("fdatrd-frames")
        else:
            self.fd, self._path = tempfile.mkstemp("-frames", "fdatrd-")
        self.map: mmap.mmap | None = None

    @property
    def address(self) -> str | int:
        """The memory's name on Windows; elsewhere a path, or the number of an inherited file descriptor."""
        return self._name or self._path or self.fd

    def resize(self, size: int) -> mmap.mmap:
        """Make it `size` bytes large and map it. Once only."""
        if sys.platform == "win32":  # a file would be written to the disk, and stay there if this process is killed
            self.map = mmap.mmap(-1, size, tagname=self._name)
        else:
            os.ftruncate(self.fd, size)
            self.map = mmap.mmap(self.fd, size)
        return self.map

    def close(self) -> None:
        """Let go of it; memory is freed when the other process has done so too."""
        if self.map is not None:
            with contextlib.suppress(BufferError):  # a frame may still be looked at; it goes with its last view
                self.map.close()
            self.map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def map_shared(address: str | int, size: int) -> mmap.mmap:
    """The memory of a `SharedMemory` in another process; a file descriptor is closed."""
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size, tagname=str(address))
    else:
        fd = address if isinstance(address, int) else os.open(address, os.O_RDWR)
        memory = mmap.mmap(fd, size)
        os.close(fd)
    return memory


def buffers(
    memory: mmap.mmap, slots: int, input_shape: list[int], output_shape: list[int]
) -> list[tuple[FramePlanes, FramePlanes]]:
    """Each slot's input and output, (C, H, W) float32, laid one after the other into shared memory."""
    found = []
    offset = 0
    for _ in range(slots):
        pair = []
        for shape in (input_shape, output_shape):
            count = int(np.prod(shape))
            pair.append(np.frombuffer(memory, np.float32, count, offset).reshape(shape))
            offset += 4 * count
        found.append((pair[0], pair[1]))
    return found
