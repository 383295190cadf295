"""The functions of the driver that `backends.gpu.devices` and `backends.cuda.driver` call.

A kernel is known by its PTX, and runs as what stands in for it in `tests.backends.numpy_kernels`, or in Triton's
interpreter.
"""

import ctypes
import hashlib
import os
from enum import IntEnum

import fake_gpu_settings as settings

if settings.INTERPRETED:
    import fake_gpu_interpreter

    fake_gpu_interpreter.enlarge_tiles()


class CUresult(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_UNSUPPORTED_PTX_VERSION = 222
    CUDA_ERROR_NOT_FOUND = 500


_OK = CUresult.CUDA_SUCCESS


class CUdevice_attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUfunction_attribute(IntEnum):
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


def cuInit(Flags):
    return (_OK if settings.GPUS else CUresult.CUDA_ERROR_NO_DEVICE,)


def cuDeviceGetCount():
    return _OK, len(settings.GPUS)


def cuDeviceGet(ordinal):
    return _OK, ordinal


def cuDeviceGetAttribute(attrib, dev):
    return _OK, settings.capability(dev)[attrib - 75]


def cuDeviceGetName(length, dev):
    return _OK, (settings.name(dev).encode()[: length - 1] + b"\0").ljust(length)


def cuGetErrorName(error):
    return _OK, error.name.encode()


def cuGetErrorString(error):
    return _OK, b"it is said so"


class _Kernel:
    """A compiled kernel, and the GPUs on which it may use much shared memory."""

    def __init__(self, compiled):
        self.compiled, self.shared = compiled, {}


def cuLibraryLoadData(
    code, jitOptions, jitOptionsValues, numJitOptions, libraryOptions, libraryOptionValues, numLibraryOptions
):
    from vsfdatrd.kernels import manifest

    if settings.fails("ptx"):
        return CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION, None
    text, end = code[:-1], code[-1:]
    digest = hashlib.sha256(text).hexdigest()
    found = [kernel for kernel in manifest.load().kernels.values() if kernel.sha256 == digest]
    if end != b"\0" or not found:
        return CUresult.CUDA_ERROR_INVALID_VALUE, None
    return _OK, found


def cuLibraryGetKernel(library, name):
    # The same text serves several kernels if all that differs are names; its parameters are then the same.
    if library[0].entry.encode() != name:
        return CUresult.CUDA_ERROR_NOT_FOUND, None
    return _OK, _Kernel(library[0])


def cuKernelSetAttribute(attrib, val, kernel, dev):
    if val > 99 << 10:
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    kernel.shared[dev] = val
    return (_OK,)


_frames = [0]


def cuLaunchKernel(
    f,
    gridDimX,
    gridDimY,
    gridDimZ,
    blockDimX,
    blockDimY,
    blockDimZ,
    sharedMemBytes,
    hStream,
    kernelParams,
    extra,
):
    import ml_dtypes
    import numpy as np

    from cuda.bindings import runtime
    from tests.backends.numpy_kernels import KERNELS

    about = f.compiled
    block = blockDimX, blockDimY, blockDimZ
    enough = sharedMemBytes <= f.shared.get(hStream.device, 48 << 10)
    if block != (about.threads, 1, 1) or sharedMemBytes != about.shared or not enough:
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    types = {"*fp16": np.float16, "*bf16": ml_dtypes.bfloat16, "*fp32": np.float32}
    pointers = (ctypes.c_void_p * (len(about.parameters) + 2)).from_address(kernelParams)
    arguments, starts = [], {}
    for pointer, (name, kind) in zip(pointers, about.parameters, strict=False):
        if kind == "i32":
            arguments.append(ctypes.c_int32.from_address(pointer).value)
            continue
        address = ctypes.c_uint64.from_address(pointer).value
        start, device, memory = next(
            (start, device, memory)
            for start, (device, memory) in runtime._memory.items()
            if start <= address < start + len(memory)
        )
        if (address - start) % 16 or device != hStream.device:
            return (CUresult.CUDA_ERROR_INVALID_VALUE,)
        size = np.dtype(types[kind]).itemsize
        starts[name] = start
        arguments.append(np.frombuffer(memory, types[kind], (len(memory) - address + start) // size, address - start))
    if any(ctypes.c_uint64.from_address(pointer).value for pointer in pointers[-2:]):
        return (CUresult.CUDA_ERROR_INVALID_VALUE,)
    replayed = hStream.captured is not None
    if about.kernel == "conv_first":
        hStream.arena = starts["out"]
    *_, output = starts  # the last pointer, of every kernel
    is_frame = starts[output] != hStream.arena

    def run():
        grid = gridDimX, gridDimY, gridDimZ
        if settings.INTERPRETED:
            fake_gpu_interpreter.run(about, grid, arguments, is_frame)
        else:
            KERNELS[about.kernel](about.constants, grid, *arguments)
        if about.kernel == "conv_after":
            hStream.precision = about.precision
        if not is_frame:
            return
        _frames[0] += 1
        if settings.fails("crash") and _frames[0] > 8:
            os._exit(11)
        if settings.fails("launch") and _frames[0] > 8:
            runtime._fail_from_now_on()
        image = arguments[[name for name, _ in about.parameters].index(output)]
        if settings.fails(f"wrong-{hStream.precision}") or (replayed and settings.fails("replay")):
            image += 0.02
        if settings.fails("nan"):
            image[0] = np.nan

    hStream.put(run, "kernels")
    return (_OK,)
