"""The NVIDIA GPUs of this machine, as reported by their driver.

Allocates no memory on them and imports no engine library.
"""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
"""NVIDIA's driver, as `cuda.bindings` loads it."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (8, 9)."""


@cache
def list_gpus() -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs that the driver reports, in its order; empty without a driver."""
    try:
        ctypes.CDLL(DRIVER_LIBRARY)  # fails at once; importing cuda.bindings takes 0.04 s
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return ()
        return tuple(
            _query_gpu(_check_value(driver.cuDeviceGet(i))) for i in range(_check_value(driver.cuDeviceGetCount()))
        )
    except Exception:  # no bindings, no driver, a broken driver: each has its own error class
        return ()


def first_selected(device: Sequence[int]) -> Gpu | None:
    """Return the first of the selected GPUs, or GPU 0 if that number does not exist; None without any GPU.

    Args:
        device: Numbers of the selected GPUs.
    """
    result = list_gpus()
    return (result[device[0]] if device[0] < len(result) else result[0]) if result else None


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs."""
    return len(list_gpus())


def _query_gpu(device: object) -> Gpu:
    from cuda.bindings import driver

    kinds = driver.CUdevice_attribute
    major = _check_value(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = _check_value(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    name = _check_value(driver.cuDeviceGetName(256, device))
    # A NUL-terminated string in 256 bytes; the bytes after the NUL are undefined.
    return Gpu(name.partition(b"\0")[0].decode(errors="replace"), (int(major), int(minor)))


def _check_value(result: tuple[Any, Any]) -> Any:
    """Return the value of a driver call, without its status.

    Raises:
        OSError: The status is not success.
    """
    status, value = result
    if int(status):
        raise OSError(f"the driver answers {status}")
    return value
