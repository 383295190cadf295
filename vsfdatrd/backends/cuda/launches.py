"""The list of launches while a plan is made, with buffers that have no place in memory yet."""

import math
from typing import Any

import numpy as np

from vsfdatrd.backends.cuda.arena import BufferLifetime, assign_offsets
from vsfdatrd.backends.cuda.packing import StoredTypes
from vsfdatrd.backends.cuda.plan import Constant, Frame, Kernels, Launch, Plan, Region

_FLOAT = np.dtype(np.float32)


class Buffer:
    """A buffer without a place yet."""

    def __init__(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.dtype, self.shape = dtype, shape
        self.first = self.last = -1  # numbers of launches

    def mark_used(self, step: int) -> None:
        """Note that a launch reads or writes the buffer."""
        self.first, self.last = (step if self.first < 0 else self.first), step

    @property
    def lifetime(self) -> BufferLifetime:
        """Size and lifetime of the buffer."""
        return BufferLifetime(math.prod(self.shape) * self.dtype.itemsize, self.first, self.last)


type Argument = Buffer | Frame | str | int
"""What a launch is recorded with; a text is the name of a constant."""


class LaunchList:
    """Collects launches, and assigns offsets to their buffers in the end.

    Args:
        kernels: Compile-time constants of the kernels.
        types: Types of the buffers.
    """

    def __init__(self, kernels: Kernels, types: StoredTypes) -> None:
        self.types = types
        self._kernels = kernels
        self._launches: list[tuple[str, str, tuple[int, int, int], tuple[Argument, ...], int]] = []

    def add_launch(self, kernel: str, module: str, grid: tuple[int, ...], *arguments: Argument, part: int = 0) -> None:
        """Add a launch; see `Launch`. The grid may have fewer than three axes."""
        x, y, z = (*grid, 1, 1)[:3]
        self._launches.append((kernel, module, (x, y, z), arguments, part))

    def tile_size(self, kernel: str, name: str) -> int:
        """Return a compile-time constant of a kernel."""
        return self._kernels[kernel][name]

    def count_blocks(self, kernel: str, name: str, count: int) -> int:
        """Return the programs of a kernel that processes `count` things, as many each as a constant says."""
        return -(-count // self.tile_size(kernel, name))

    def new_floats(self, *shape: int) -> Buffer:
        """Return a buffer of float32."""
        return Buffer(_FLOAT, shape)

    def new_values(self, *shape: int) -> Buffer:
        """Return a buffer of the type of tokens."""
        return Buffer(self.types.tokens, shape)

    def new_map(self, *shape: int) -> Buffer:
        """Return a buffer of the type of the tail's maps."""
        return Buffer(self.types.tail, shape)

    def finish(self) -> Plan:
        """Assign every buffer its offset in the arena."""
        buffers: dict[Buffer, None] = {}  # keeps their order
        for step, (_, _, _, arguments, _) in enumerate(self._launches):
            for argument in arguments:
                if isinstance(argument, Buffer):
                    argument.mark_used(step)
                    buffers[argument] = None
        offsets, size = assign_offsets([buffer.lifetime for buffer in buffers])
        regions = {
            buffer: Region(offset, buffer.shape, buffer.dtype) for buffer, offset in zip(buffers, offsets, strict=True)
        }

        def resolved(argument: Argument, kernel: str, module: str, part: int) -> Region | Constant | Frame | int:
            match argument:
                case Buffer():
                    return regions[argument]
                case str():
                    return Constant(module, kernel, argument, part)
                case _:
                    return argument

        launches = (
            Launch(kernel, module, grid, tuple(resolved(each, kernel, module, part) for each in arguments), part)
            for kernel, module, grid, arguments, part in self._launches
        )
        return Plan(tuple(launches), size)
