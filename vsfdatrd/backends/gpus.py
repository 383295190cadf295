"""The GPUs of this machine, as their driver tells. Takes no memory on them, and imports no engine's library."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(frozen=True, slots=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (8, 9)."""


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs the driver sees, in its order; none without a driver."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return ()
        return tuple(_gpu(_told(driver.cuDeviceGet(i))) for i in range(_told(driver.cuDeviceGetCount())))
    except Exception:  # no bindings, no driver, a broken driver: each has its own error class
        return ()


def first(device: Sequence[int]) -> Gpu | None:
    """The first GPU of those meant by their numbers, or number 0 if it is not there; None without any."""
    found = gpus()
    return (found[device[0]] if device[0] < len(found) else found[0]) if found else None


def gpu_count() -> int:
    """How many there are."""
    return len(gpus())


def _gpu(device: object) -> Gpu:
    from cuda.bindings import driver

    kinds = driver.CUdevice_attribute
    major = _told(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device))
    minor = _told(driver.cuDeviceGetAttribute(kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device))
    name = _told(driver.cuDeviceGetName(256, device))
    # A string of C in 256 bytes: what lies behind its end is not the driver's.
    return Gpu(name.partition(b"\0")[0].decode(errors="replace"), (int(major), int(minor)))


def _told(result: tuple[Any, Any]) -> Any:
    """What a function of the driver returned, without its status. Raises OSError if that is not success."""
    status, value = result
    if int(status):
        raise OSError(f"the driver answers {status}")
    return value
