"""The driver's own functions, as far as `vsfdatrd.backends.gpus` asks for them."""

from enum import IntEnum

import fake_gpu_settings as settings


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NO_DEVICE = 100


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


def cuInit(Flags):
    return (CUresult.CUDA_SUCCESS if settings.GPUS else CUresult.CUDA_ERROR_NO_DEVICE,)


def cuDeviceGetCount():
    return CUresult.CUDA_SUCCESS, len(settings.GPUS)


def cuDeviceGet(ordinal):
    return CUresult.CUDA_SUCCESS, ordinal


def cuDeviceGetAttribute(attrib, dev):
    return CUresult.CUDA_SUCCESS, settings.capability(dev)[attrib - 75]


def cuDeviceGetName(length, dev):
    return CUresult.CUDA_SUCCESS, (settings.name(dev).encode()[: length - 1] + b"\0").ljust(length)
