"""Simulation of NVML, as far as `vsfdatrd.backends.gpu.nvml` uses it."""

from types import SimpleNamespace

import fake_gpu_settings as settings


def init_v2():
    if settings.fails("unmanaged"):
        raise OSError("there is no NVML")


def shutdown():
    pass


def system_get_driver_version():
    return settings.RELEASE


def device_get_handle_by_pci_bus_id_v2(pci_bus_id):
    return int(pci_bus_id.split(":")[1])


def device_get_memory_info_v2(device):
    return SimpleNamespace(free=settings.FREE)
