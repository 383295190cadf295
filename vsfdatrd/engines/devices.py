"""The GPUs of this machine, as their driver tells."""

from functools import cache


@cache
def gpu_count() -> int:
    """NVIDIA GPUs the driver sees; 0 without a driver. Does not import torch, which takes seconds."""
    try:
        from cuda.bindings import driver

        if driver.cuInit(0)[0] != driver.CUresult.CUDA_SUCCESS:
            return 0
        return int(driver.cuDeviceGetCount()[1])
    except Exception:  # no bindings, no driver, a broken driver: each has its own error class
        return 0
