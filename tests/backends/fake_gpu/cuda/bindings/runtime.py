"""The CUDA runtime, as far as `vsfdatrd.backends.tensorrt.cuda` asks for it."""

import ctypes
import queue
import random
import threading
import time
from enum import IntEnum

import fake_gpu_settings as settings

cudaHostAllocPortable = 1
cudaHostRegisterPortable, cudaEventBlockingSync, cudaEventDisableTiming, cudaStreamNonBlocking = 1, 1, 2, 1


class cudaError_t(IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorLaunchFailure = 719
    cudaErrorStreamCaptureUnsupported = 900


_OK = cudaError_t.cudaSuccess


class cudaMemcpyKind(IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class cudaStreamCaptureMode(IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


_current = threading.local()
_memory: dict[int, ctypes.Array] = {}
_failure = [_OK]


def _device():
    return getattr(_current, "device", 0)


class _Stream:
    """Tasks, done in order by a thread, each after a moment."""

    def __init__(self):
        self.device, self.tasks, self.captured = _device(), queue.SimpleQueue(), None
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        chance = random.Random(id(self))
        while True:
            task = self.tasks.get()
            time.sleep(chance.uniform(0, 0.002))
            task()

    def put(self, task):
        if self.captured is not None:
            self.captured.append(task)
        else:
            self.tasks.put(task)

    def __int__(self):
        _streams[id(self)] = self
        return id(self)


_streams: dict[int, _Stream] = {}


class _Event:
    """The last point at which it was recorded."""

    def __init__(self):
        self.point = threading.Event()
        self.point.set()


def cudaGetErrorName(error):
    return _OK, error.name.encode()


def cudaGetErrorString(error):
    return _OK, {2: b"out of memory", 719: b"unspecified launch failure"}.get(error, b"it is said so")


def cudaDriverGetVersion():
    return _OK, settings.DRIVER


def cudaRuntimeGetVersion():
    return _OK, 13000


def cudaGetDeviceCount():
    if settings.DRIVER < 13000:
        return cudaError_t.cudaErrorInsufficientDriver, None
    return (_OK, len(settings.GPUS)) if settings.GPUS else (cudaError_t.cudaErrorNoDevice, None)


def cudaSetDevice(device):
    if not 0 <= device < len(settings.GPUS):
        return (cudaError_t.cudaErrorInvalidDevice,)
    _current.device = device
    return (_OK,)


def cudaMemGetInfo():
    return _OK, settings.FREE - (300 << 20) * settings.fails("context"), 8 << 30


def cudaDeviceGetPCIBusId(length, device):
    return _OK, f"0000:0{device}:00.0".encode().ljust(length, b"\0")


def cudaMalloc(size):
    if settings.fails("allocate"):
        return cudaError_t.cudaErrorMemoryAllocation, None
    block = ctypes.create_string_buffer(size)
    address = ctypes.addressof(block)
    ctypes.memset(address, 0x7F, size)
    _memory[address] = block
    return _OK, address


def cudaFree(devPtr):
    del _memory[devPtr]
    return (_OK,)


def cudaHostRegister(ptr, size, flags):
    return (cudaError_t.cudaErrorInvalidValue if settings.fails("register") else _OK,)


def cudaHostUnregister(ptr):
    return (_OK,)


_host: dict[int, ctypes.Array] = {}


def cudaHostAlloc(size, flags):
    if settings.fails("hostalloc"):
        return cudaError_t.cudaErrorMemoryAllocation, None
    block = ctypes.create_string_buffer(size)
    _host[ctypes.addressof(block)] = block
    return _OK, ctypes.addressof(block)


def cudaFreeHost(ptr):
    del _host[ptr]
    return (_OK,)


def cudaStreamCreateWithFlags(flags):
    return _OK, _Stream()


def cudaStreamDestroy(stream):
    return (_OK,)


def cudaMemcpyAsync(dst, src, count, kind, stream):
    there = {
        cudaMemcpyKind.cudaMemcpyHostToDevice: (dst,),
        cudaMemcpyKind.cudaMemcpyDeviceToHost: (src,),
        cudaMemcpyKind.cudaMemcpyDeviceToDevice: (dst, src),
    }[kind]
    if any(len(_memory.get(place, ())) < count for place in there):
        return (cudaError_t.cudaErrorInvalidValue,)
    stream.put(lambda: ctypes.memmove(dst, src, count))
    return (_OK,)


def cudaEventCreateWithFlags(flags):
    return _OK, _Event()


def cudaEventDestroy(event):
    return (_OK,)


def cudaEventRecord(event, stream):
    event.point = point = threading.Event()
    stream.put(point.set)
    return (_OK,)


def cudaEventSynchronize(event):
    event.point.wait()
    return (_failure[0],)


def cudaStreamWaitEvent(stream, event, flags):
    point = event.point
    stream.put(point.wait)
    return (_OK,)


def cudaStreamSynchronize(stream):
    point = threading.Event()
    stream.tasks.put(point.set)
    point.wait()
    return (_failure[0],)


def cudaStreamBeginCapture(stream, mode):
    if settings.fails("capture"):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    stream.captured = []
    return (_OK,)


def cudaStreamEndCapture(stream):
    captured, stream.captured = stream.captured, None
    return _OK, captured


def cudaGraphInstantiate(graph, flags):
    return _OK, list(graph)


def cudaGraphDestroy(graph):
    return (_OK,)


def cudaGraphExecDestroy(graphExec):
    return (_OK,)


def cudaGraphLaunch(graphExec, stream):
    for task in graphExec:
        stream.put(task)
    return (_OK,)


def _fail_from_now_on():
    _failure[0] = cudaError_t.cudaErrorLaunchFailure
