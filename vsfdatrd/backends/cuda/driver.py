"""Load and launch compiled kernels with the driver API in cuda-bindings.

Memory, streams and graphs belong to the CUDA runtime (`backends.gpu.cuda`); the driver API accepts its handles.
"""

import ctypes
from collections.abc import Sequence
from typing import Any

from cuda.bindings import driver

from vsfdatrd.backends.gpu import cuda
from vsfdatrd.errors import EngineError, EngineUnavailable

DEFAULT_SHARED_BYTES = 48 << 10
"""Bytes of shared memory that a block can use without `Kernel.allow_shared`."""


def check_call(result: tuple[Any, ...], operation: str) -> Any:
    """Check the result of a driver call, a status and at most one value. Return the value, if there is one.

    Args:
        result: The call's result: its status, then at most one value.
        operation: Purpose of the call, for the message.

    Raises:
        EngineUnavailable: The driver is too old for the kernels.
        EngineError: The call failed; the message contains `operation`.
    """
    status, *values = result
    if status == driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
        raise EngineUnavailable(
            f"the NVIDIA driver ({cuda.describe_driver()}) is too old for the CUDA kernels; install a current driver"
        )
    if status != driver.CUresult.CUDA_SUCCESS:
        name, text = driver.cuGetErrorName(status)[1], driver.cuGetErrorString(status)[1]
        raise EngineError(f"{operation} failed: {text.decode()} ({name.decode()})")
    return values[0] if values else None


class Kernel:
    """A kernel that the driver has compiled. It can run on every GPU for which `allow_shared` was called."""

    def __init__(self, ptx: bytes, entry: str, threads: int, shared: int) -> None:
        """Compile a kernel. The driver caches the result on disk, and compiles it again after the driver is updated.

        Args:
            ptx: The PTX.
            entry: Name of the kernel in the PTX.
            threads: Threads per block.
            shared: Bytes of dynamic shared memory per block.

        Raises:
            EngineUnavailable: The driver is too old.
            EngineError: It cannot be compiled.
        """
        self._entry, self._threads, self._shared = entry, threads, shared
        loaded = driver.cuLibraryLoadData(ptx + b"\0", [], [], 0, [], [], 0)
        self._library = check_call(loaded, f"compiling the kernel {entry}")
        found = driver.cuLibraryGetKernel(self._library, entry.encode())
        self._kernel = check_call(found, f"finding the kernel {entry}")

    def allow_shared(self, index: int) -> None:
        """Allow the kernel's blocks to use as much shared memory as they need on a GPU.

        Args:
            index: Number of the GPU.

        Raises:
            EngineError: The GPU has less.
        """
        if self._shared > DEFAULT_SHARED_BYTES:
            device = check_call(driver.cuDeviceGet(index), f"choosing GPU {index}")
            limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            operation = f"giving the kernel {self._entry} {self._shared} bytes of shared memory"
            check_call(driver.cuKernelSetAttribute(limit, self._shared, self._kernel, device), operation)

    def launch(self, stream: cuda.Stream, grid: tuple[int, int, int], arguments: "Arguments") -> None:
        """Queue the kernel on a stream and return at once.

        Args:
            stream: The stream.
            grid: Number of blocks along x, y and z.
            arguments: Its arguments.

        Raises:
            EngineError: It cannot be started.
        """
        x, y, z = grid
        result = driver.cuLaunchKernel(
            self._kernel, x, y, z, self._threads, 1, 1, self._shared, stream.handle, arguments.address, 0
        )
        check_call(result, f"starting the kernel {self._entry}")


class Arguments:
    """The arguments of a kernel in the form that `cuLaunchKernel` reads: an array of pointers to values."""

    def __init__(self, values: Sequence[tuple[int, bool]]) -> None:
        """Store arguments.

        Args:
            values: Pairs of a value and whether it is an address (64 bits) instead of a number (32 bits).
        """
        self._values = [ctypes.c_void_p(value) if pointer else ctypes.c_int32(value) for value, pointer in values]
        self._pointers = (ctypes.c_void_p * len(self._values))(*map(ctypes.addressof, self._values))

    @property
    def address(self) -> int:
        """Address of the array. It is valid as long as this object."""
        return ctypes.addressof(self._pointers)
