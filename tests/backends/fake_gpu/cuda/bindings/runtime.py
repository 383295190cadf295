"""Simulation of the CUDA runtime, as far as `vsfdatrd.backends.gpu.cuda` uses it."""

import ctypes
import queue
import random
import threading
import time
from collections import Counter
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
_memory: dict[int, tuple[int, ctypes.Array]] = {}
"""Device and content of each block of device memory, by its address."""
_contexts: Counter[int] = Counter()
"""TensorRT's execution contexts on each device, which hold memory."""
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

    def put(self, task, unit="", seconds=0.0):
        if self.captured is not None:
            self.captured.append((task, unit, seconds))
        else:
            self.start(task, unit, seconds)

    def start(self, task, unit, seconds):
        self.tasks.put(task)

    def record(self, event):
        event.point = point = threading.Event()
        self.put(point.set)

    def wait_for(self, event):
        self.put(event.point.wait)

    def synchronize(self):
        point = threading.Event()
        self.tasks.put(point.set)
        point.wait()

    def __int__(self):
        _streams[id(self)] = self
        return id(self)


class _TimedStream(_Stream):
    """One whose tasks take the time of a real GPU's, and no time of a processor: only what waits sleeps, until then."""

    def __init__(self):
        self.device, self.captured, self.idle = _device(), None, 0.0

    def start(self, task, unit, seconds):
        with _scheduling:
            lanes = _lanes.setdefault((self.device, unit), [0.0] * (settings.AT_ONCE if unit == "kernels" else 1))
            lane = lanes.index(min(lanes))
            if unit == "kernels" and len(lanes) == 1 and _last.setdefault(self.device, self) is not self:
                seconds *= settings.SHARED
                _last[self.device] = self
            self.idle = lanes[lane] = max(time.perf_counter(), self.idle, lanes[lane]) + seconds
            task()

    def record(self, event):
        event.point = _Moment(max(time.perf_counter(), self.idle))

    def wait_for(self, event):
        if isinstance(event.point, _Moment):
            self.idle = max(self.idle, event.point.time)

    def synchronize(self):
        _Moment(self.idle).wait()


class _Moment:
    """A point in a timed stream."""

    def __init__(self, moment):
        self.time = moment

    def wait(self):
        while (left := self.time - time.perf_counter()) > 0:
            time.sleep(left)


_streams: dict[int, _Stream] = {}
_scheduling = threading.Lock()
_lanes: dict[tuple[int, str], list[float]] = {}
"""The time at which each unit of each GPU (kernels, copies in each direction) finishes its queued work."""
_last: dict[int, _Stream] = {}
"""The stream of each GPU's last kernel."""


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
    return _OK, _free(), 8 << 30


def _free():
    used = sum(len(block) for device, block in _memory.values() if device == _device())
    return settings.FREE - (300 << 20) * settings.fails("context") - used - _contexts[_device()] * settings.ACTIVATIONS


def cudaDeviceGetPCIBusId(length, device):
    return _OK, f"0000:0{device}:00.0".encode().ljust(length, b"\0")


def cudaMalloc(size):
    if settings.fails("allocate") or size > _free():
        return cudaError_t.cudaErrorMemoryAllocation, None
    block = ctypes.create_string_buffer(size)
    address = ctypes.addressof(block)
    ctypes.memset(address, 0x7F, size)
    _memory[address] = _device(), block
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
    return _OK, _Stream() if settings.MILLISECONDS is None else _TimedStream()


def cudaStreamDestroy(stream):
    return (_OK,)


def cudaMemcpyAsync(dst, src, count, kind, stream):
    there = {
        cudaMemcpyKind.cudaMemcpyHostToDevice: (dst,),
        cudaMemcpyKind.cudaMemcpyDeviceToHost: (src,),
        cudaMemcpyKind.cudaMemcpyDeviceToDevice: (dst, src),
    }[kind]
    if any(len(_memory.get(place, (0, ()))[1]) < count for place in there):
        return (cudaError_t.cudaErrorInvalidValue,)
    moved = settings.MILLISECONDS is None or count <= settings.MOST_MOVED
    stream.put(lambda: moved and ctypes.memmove(dst, src, count), kind.name, count / settings.RATES[len(there)])
    return (_OK,)


def cudaEventCreateWithFlags(flags):
    return _OK, _Event()


def cudaEventDestroy(event):
    return (_OK,)


def cudaEventRecord(event, stream):
    stream.record(event)
    return (_OK,)


def cudaEventSynchronize(event):
    event.point.wait()
    return (_failure[0],)


def cudaStreamWaitEvent(stream, event, flags):
    stream.wait_for(event)
    return (_OK,)


def cudaStreamSynchronize(stream):
    stream.synchronize()
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
        stream.put(*task)
    return (_OK,)


def _fail_from_now_on():
    _failure[0] = cudaError_t.cudaErrorLaunchFailure
