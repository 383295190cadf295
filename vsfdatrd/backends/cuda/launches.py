"""The list of launches from which a plan is made. Its buffers have no offsets until the list is complete."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vsfdatrd.backends.cuda.arena import BufferLifetime, assign_offsets
from vsfdatrd.backends.cuda.packing import StoredTypes
from vsfdatrd.backends.cuda.plan import Constant, Frame, Launch, Plan, Region, TileSizes

_FLOAT = np.dtype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A buffer whose offset in the arena is not assigned yet."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


type Argument = Buffer | Frame | str | int
"""Argument of a recorded launch; a string is the name of a constant."""


class LaunchList:
    """Collects launches and finally assigns offsets to their buffers."""

    def __init__(self, tile_sizes: TileSizes, types: StoredTypes) -> None:
        self.types = types
        self._tile_sizes = tile_sizes
        self._launches: list[tuple[Launch, list[Buffer | Constant | Frame | int]]] = []

    def add_launch(self, kernel: str, module: str, grid: tuple[int, ...], *arguments: Argument, part: int = 0) -> None:
        """Add a launch; see `Launch`. The grid may have fewer than three axes."""
        x, y, z = (*grid, 1, 1)[:3]
        resolved = [Constant(module, kernel, each, part) if isinstance(each, str) else each for each in arguments]
        self._launches.append((Launch(kernel, module, (x, y, z), (), part), resolved))

    def tile_size(self, kernel: str, name: str) -> int:
        """Return a compile-time constant of a kernel."""
        return self._tile_sizes[kernel][name]

    def count_blocks(self, kernel: str, name: str, count: int) -> int:
        """Return the number of programs that process `count` items, if each processes `tile_size(kernel, name)`."""
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
        uses: dict[Buffer, list[int]] = {}
        for step, (_, arguments) in enumerate(self._launches):
            for argument in arguments:
                if isinstance(argument, Buffer):
                    uses.setdefault(argument, []).append(step)
        offsets, size = assign_offsets(
            [
                BufferLifetime(math.prod(buffer.shape) * buffer.dtype.itemsize, steps[0], steps[-1])
                for buffer, steps in uses.items()
            ]
        )
        regions = {
            buffer: Region(offset, buffer.shape, buffer.dtype) for buffer, offset in zip(uses, offsets, strict=True)
        }
        launches = (
            replace(launch, arguments=tuple(regions[each] if isinstance(each, Buffer) else each for each in arguments))
            for launch, arguments in self._launches
        )
        return Plan(tuple(launches), size)
