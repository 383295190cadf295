"""The CUDA runtime, as far as `vsfdatrd.engines.cuda` asks for it."""

import ctypes
import queue
import random
import threading
import time
from enum import IntEnum
from types import SimpleNamespace

import fake_gpu_settings as settings

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


OK = cudaError_t.cudaSuccess
cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
_current = threading.local()
_memory: dict[int, ctypes.Array] = {}
_failure = [OK]


def device():
    return getattr(_current, "device", 0)


class Stream:
    """Tasks, done in order by a thread, each after a moment."""

    def __init__(self):
        self.device, self.tasks, self.captured = device(), queue.SimpleQueue(), None
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


_streams: dict[int, Stream] = {}


class Event:
    """The last point at which it was recorded."""

    def __init__(self):
        self.point = threading.Event()
        self.point.set()


def cudaGetErrorName(status):
    return OK, status.name.encode()


def cudaGetErrorString(status):
    return OK, {2: b"out of memory", 719: b"unspecified launch failure"}.get(status, b"it is said so")


def cudaDriverGetVersion():
    return OK, settings.DRIVER


def getLocalRuntimeVersion():
    return OK, 13000


def cudaGetDeviceCount():
    if settings.DRIVER < 13000:
        return cudaError_t.cudaErrorInsufficientDriver, None
    return (OK, len(settings.GPUS)) if settings.GPUS else (cudaError_t.cudaErrorNoDevice, None)


def cudaGetDeviceProperties(index):
    major, minor = settings.capability(index)
    name = settings.name(index).encode() + b"\0"
    return OK, SimpleNamespace(name=name, major=major, minor=minor, totalGlobalMem=8 << 30)


def cudaSetDevice(index):
    if not 0 <= index < len(settings.GPUS):
        return (cudaError_t.cudaErrorInvalidDevice,)
    _current.device = index
    return (OK,)


def cudaMemGetInfo():
    return OK, settings.FREE, 8 << 30


def cudaMalloc(size):
    if settings.fails("allocate"):
        return cudaError_t.cudaErrorMemoryAllocation, None
    block = ctypes.create_string_buffer(size)
    address = ctypes.addressof(block)
    ctypes.memset(address, 0x7F, size)
    _memory[address] = block
    return OK, address


def cudaFree(address):
    del _memory[address]
    return (OK,)


def cudaHostRegister(address, size, flags):
    return (cudaError_t.cudaErrorInvalidValue if settings.fails("register") else OK,)


def cudaHostUnregister(address):
    return (OK,)


def cudaStreamCreateWithFlags(flags):
    return OK, Stream()


def cudaStreamDestroy(stream):
    return (OK,)


def cudaMemcpyAsync(target, source, size, kind, stream):
    known = target if kind == cudaMemcpyKind.cudaMemcpyHostToDevice else source
    if known not in _memory or len(_memory[known]) < size:
        return (cudaError_t.cudaErrorInvalidValue,)
    stream.put(lambda: ctypes.memmove(target, source, size))
    return (OK,)


def cudaEventCreateWithFlags(flags):
    return OK, Event()


def cudaEventDestroy(event):
    return (OK,)


def cudaEventRecord(event, stream):
    event.point = point = threading.Event()
    stream.put(point.set)
    return (OK,)


def cudaEventSynchronize(event):
    event.point.wait()
    return (_failure[0],)


def cudaStreamWaitEvent(stream, event, flags):
    point = event.point
    stream.put(point.wait)
    return (OK,)


def cudaStreamSynchronize(stream):
    point = threading.Event()
    stream.tasks.put(point.set)
    point.wait()
    return (_failure[0],)


def cudaStreamBeginCapture(stream, mode):
    if settings.fails("capture"):
        return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
    stream.captured = []
    return (OK,)


def cudaStreamEndCapture(stream):
    captured, stream.captured = stream.captured, None
    return OK, captured


def cudaGraphInstantiate(graph, flags):
    return OK, list(graph)


def cudaGraphDestroy(graph):
    return (OK,)


def cudaGraphExecDestroy(graph):
    return (OK,)


def cudaGraphLaunch(graph, stream):
    for task in graph:
        stream.put(task)
    return (OK,)


def fail_from_now_on():
    _failure[0] = cudaError_t.cudaErrorLaunchFailure
