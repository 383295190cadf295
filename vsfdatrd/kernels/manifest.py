"""The compiled kernels in the package: their PTX, which the driver compiles for the GPU, and parameters of launches."""

import json
import lzma
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("ptx")
"""Folder of the compiled kernels."""
FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A kernel for a number of channels and a precision, as PTX."""

    kernel: str
    """Name of the kernel."""
    channels: int
    precision: str
    """``fp16`` or ``bf16``."""
    entry: str
    """Name of the PTX's only entry."""
    parameters: tuple[tuple[str, str], ...]
    """Name and type of each argument in order, such as ``*fp16`` or ``i32``. Two null pointers follow them."""
    constants: Mapping[str, int]
    """Number of channels and tile sizes that it was compiled for. The grid is computed from them."""
    warps: int
    """Warps of a block, of 32 threads each."""
    stages: int
    """Number of loop iterations whose operands are loaded ahead (Triton's ``num_stages``)."""
    shared: int
    """Dynamic shared memory of a block, in bytes."""
    registers: Mapping[str, int]
    """Registers of a thread, by architecture (``sm_89``), as ptxas assigned them."""
    spills: Mapping[str, int]
    """Bytes of registers that ptxas spilled to memory, by architecture."""
    archive: str
    """File that contains its PTX."""
    offset: int
    """Offset of the PTX in the decompressed archive in bytes."""
    length: int
    """Length of the PTX in bytes."""
    sha256: str
    """SHA-256 of the PTX."""

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return 32 * self.warps


@dataclass(frozen=True, slots=True)
class Manifest:
    """All compiled kernels."""

    triton: str
    """Version of the compiler."""
    target: str
    """Architecture of the PTX, such as ``sm_80``. Later architectures can run it, too."""
    ptx_version: int
    """Version of PTX, times ten."""
    sources: str
    """SHA-256 of the kernels' sources without comments and docstrings."""
    kernels: Mapping[tuple[str, int, str], CompiledKernel]
    """The kernels by name, channels and precision."""

    def of_network(self, channels: int, precision: str) -> dict[str, CompiledKernel]:
        """Return the kernels of a network by name; an empty dictionary if there are none."""
        return {name: kernel for (name, *key), kernel in self.kernels.items() if key == [channels, precision]}


@cache
def load() -> Manifest:
    """Return the manifest in the package."""
    loaded = json.loads((FOLDER / FILE).read_text(encoding="utf-8"))
    kernels = [
        CompiledKernel(**entry | {"parameters": tuple(map(tuple, entry["parameters"]))}) for entry in loaded["kernels"]
    ]
    by_key = {(each.kernel, each.channels, each.precision): each for each in kernels}
    return Manifest(**loaded | {"kernels": by_key})


def read_ptx(kernel: CompiledKernel) -> bytes:
    """Return the PTX of a kernel, without a terminating zero.

    Raises:
        OSError: It cannot be read.
        lzma.LZMAError: The file is damaged.
    """
    return _archive(kernel.archive)[kernel.offset : kernel.offset + kernel.length]


@cache
def _archive(name: str) -> bytes:
    return lzma.decompress((FOLDER / name).read_bytes())
