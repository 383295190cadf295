"""Memory mapped by a script and its worker process, through which frames travel without a copy."""

import contextlib
import math
import mmap
import os
import sys
import tempfile

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.system.files import format_bytes

type FramePlanes = NDArray[np.float32]
"""Planes of a frame, (C, H, W)."""


class SharedMemory:
    """Memory that two processes map. The second process maps it with `map_shared` and `address`."""

    def __init__(self) -> None:
        """Create the memory object. It has no size before `resize`."""
        self._path: str | None = None
        self._name: str | None = None
        self.fd = -1
        if sys.platform == "win32":
            self._name = f"fdatrd-frames-{os.urandom(16).hex()}"
        elif hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("fdatrd-frames")
        else:
            self.fd, self._path = tempfile.mkstemp("-frames", "fdatrd-")
        self.map: mmap.mmap | None = None

    @property
    def address(self) -> str | int:
        """Name of the memory on Windows; elsewhere a path, or the number of an inherited file descriptor."""
        return self._name or self._path or self.fd

    def resize(self, size: int) -> mmap.mmap:
        """Set the size in bytes and return the mapped memory. May be called once.

        Args:
            size: Size in bytes.

        Raises:
            EngineUnavailable: There is not enough memory. Not EngineError, after which the cached engine would be built
                again.
        """
        try:
            if sys.platform == "win32":  # a file would be written to disk and remain there if this process is killed
                self.map = mmap.mmap(-1, size, tagname=self._name)
            else:
                os.ftruncate(self.fd, size)
                self.map = mmap.mmap(self.fd, size)
        except OSError as error:
            text = f"there is no memory for the engine's frames ({format_bytes(size)}): {error}"
            raise EngineUnavailable(text) from error
        return self.map

    def close(self) -> None:
        """Unmap the memory. It is freed when the other process has unmapped it too."""
        if self.map is not None:
            with contextlib.suppress(BufferError):  # an array may still refer to it; the last one unmaps it
                self.map.close()
            self.map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def map_shared(address: str | int, size: int) -> mmap.mmap:
    """Map the memory of another process's `SharedMemory`. An inherited file descriptor is closed.

    Args:
        address: `SharedMemory.address`.
        size: Size in bytes.
    """
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size, tagname=str(address))
    else:
        fd = address if isinstance(address, int) else os.open(address, os.O_RDWR)
        if isinstance(address, str):
            os.unlink(address)  # both processes have it open, and leave nothing behind if they are killed
        memory = mmap.mmap(fd, size)
        os.close(fd)
    return memory


def slot_buffers(
    memory: mmap.mmap, slots: int, input_shape: list[int], output_shape: list[int]
) -> list[tuple[FramePlanes, FramePlanes]]:
    """Divide shared memory into the inputs (C, H, W) and outputs (C, H·scale, W·scale) of slots, one after the other.

    Args:
        memory: The mapped memory.
        slots: Number of slots.
        input_shape: (C, H, W) of an input.
        output_shape: (C, H·scale, W·scale) of an output.

    Returns:
        Input and output of each slot, float32 views of `memory`.
    """
    source, result = math.prod(input_shape), math.prod(output_shape)
    values = np.frombuffer(memory, np.float32, slots * (source + result)).reshape(slots, -1)
    return [(slot[:source].reshape(input_shape), slot[source:].reshape(output_shape)) for slot in values]
