"""NVML (NVIDIA's management library): the driver's version, and free memory without creating a CUDA context.

NVML is part of the driver. cuda-bindings before 13 have no module for it; then, and after any error, the functions
return None.
"""

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def driver_version() -> str | None:
    """Return the driver's version, such as ``580.95.05``; None if it is unknown."""
    return _ask_nvml(lambda nvml: str(nvml.system_get_driver_version()))


def free_memory(bus_id: str) -> int | None:
    """Return the free memory of a GPU in bytes; None if it is unknown.

    Args:
        bus_id: PCI bus id, such as ``0000:01:00.0``.
    """

    def free_bytes(nvml: Any) -> int:
        handle = nvml.device_get_handle_by_pci_bus_id_v2(bus_id)
        memory = nvml.device_get_memory_info_v2(handle)
        return int(memory.free)

    return _ask_nvml(free_bytes)


def _ask_nvml[T](question: Callable[[Any], T]) -> T | None:
    try:
        from cuda.bindings import nvml

        nvml.init_v2()
        try:
            return question(nvml)
        finally:
            nvml.shutdown()
    except Exception as error:  # no module, no library, no driver, no permission: each has its own error class
        log.debug("NVML is not available: %s", error)
        return None
