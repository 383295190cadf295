"""Owners of what a GPU lends: memory, streams, events, graphs. Through cuda-bindings; no torch.

Every owner belongs to one device, which must be the current one when it is made, and is given back by `close()`, once.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from cuda.bindings import runtime as rt

from vsfdatrd.backends.tensorrt import nvml
from vsfdatrd.errors import EngineError, EngineUnavailable


def check(result: tuple[Any, ...], doing: str) -> Any:
    """What a CUDA call returned, without its status. Raises EngineError saying what was being done."""
    status, *values = result
    if status != rt.cudaError_t.cudaSuccess:
        name, text = rt.cudaGetErrorName(status)[1], rt.cudaGetErrorString(status)[1]
        raise EngineError(f"{doing} failed: {text.decode()} ({name.decode()})")
    return values[0] if len(values) == 1 else tuple(values)


def driver_version() -> str:
    """The CUDA version the driver supports, such as ``13.1``; ``0.0`` without a driver."""
    number = int(check(rt.cudaDriverGetVersion(), "asking for the driver's version"))
    return f"{number // 1000}.{number % 1000 // 10}"


def driver() -> str:
    """The driver's own version and the CUDA it supports, such as ``580.95 for CUDA 13.1``.

    Drivers of one CUDA version differ in what they compile; where NVML does not tell, that is all that is known.
    """
    release, supported = nvml.driver_version(), f"CUDA {driver_version()}"
    return f"{release} for {supported}" if release else supported


def require() -> None:
    """Raises EngineUnavailable, saying why, if CUDA cannot use the GPUs there are."""
    status, count = rt.cudaGetDeviceCount()
    if status == rt.cudaError_t.cudaErrorInsufficientDriver:
        # Of the runtime inside cuda-bindings; `getLocalRuntimeVersion` looks for a libcudart, which nobody needs.
        version = check(rt.cudaRuntimeGetVersion(), "asking for CUDA's version")
        raise EngineUnavailable(
            f"the NVIDIA driver is missing or too old (it supports CUDA {driver_version()}, and {version // 1000} is "
            "needed); install a current driver"
        )
    if status in (rt.cudaError_t.cudaSuccess, rt.cudaError_t.cudaErrorNoDevice) and not count:
        raise EngineUnavailable("the NVIDIA driver shows no GPU")
    try:
        check((status,), "asking for the GPUs")
    except EngineError as error:
        cure = "install the NVIDIA driver again, and restart the machine"
        raise EngineUnavailable(f"{error}; {cure}") from error


def use(index: int) -> None:
    """Make a GPU this thread's current one."""
    check(rt.cudaSetDevice(index), f"choosing GPU {index}")


def free_memory(index: int) -> int:
    """Bytes free on a GPU. Asking makes a context there, of some hundred MiB."""
    use(index)
    free, _ = check(rt.cudaMemGetInfo(), f"asking for the memory of GPU {index}")
    return int(free)


def free_memory_before(index: int) -> int | None:
    """Bytes free on a GPU, as NVML tells without a context there; None if it does not."""
    place = check(rt.cudaDeviceGetPCIBusId(16, index), f"asking where GPU {index} is")
    return nvml.free_memory(place.partition(b"\0")[0].decode())


class _Owner:
    """Gives something back once."""

    def __init__(self, handle: Any, give_back: Callable[[Any], tuple[Any, ...]]) -> None:
        self._handle, self._give_back = handle, give_back

    @property
    def handle(self) -> Any:
        """CUDA's own handle."""
        return self._handle

    def close(self) -> None:
        """Give it back. What fails here failed before, and is no news."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._give_back(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class DeviceMemory(_Owner):
    """Bytes on the GPU."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(check(rt.cudaMalloc(size), f"reserving {size / 2**20:.0f} MiB on the GPU"), rt.cudaFree)

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self._handle)


class PinnedMemory(_Owner):
    """Memory of this process that the GPU reads and writes by itself, while it stays where it is."""

    def __init__(self, address: int, size: int) -> None:
        check(rt.cudaHostRegister(address, size, rt.cudaHostRegisterPortable), f"pinning {size / 2**20:.0f} MiB")
        super().__init__(address, rt.cudaHostUnregister)


class HostMemory(_Owner):
    """Pinned memory of the driver's own."""

    def __init__(self, size: int) -> None:
        address = check(rt.cudaHostAlloc(size, rt.cudaHostAllocPortable), f"reserving {size / 2**20:.0f} MiB, pinned")
        super().__init__(address, rt.cudaFreeHost)
        self.size = size

    @property
    def address(self) -> int:
        """Where it begins."""
        return int(self._handle)

    def read(self, address: int) -> None:
        """Fill it from this process's memory."""
        ctypes.memmove(self.address, address, self.size)

    def write(self, address: int) -> None:
        """Copy it into this process's memory."""
        ctypes.memmove(address, self.address, self.size)


class Event(_Owner):
    """A point in a stream that another stream or a thread can wait for."""

    def __init__(self) -> None:
        # Blocking: who waits sleeps, and leaves the core to the frames around it.
        flags = rt.cudaEventBlockingSync | rt.cudaEventDisableTiming
        super().__init__(check(rt.cudaEventCreateWithFlags(flags), "making an event"), rt.cudaEventDestroy)

    def wait(self) -> None:
        """Wait until the stream has come past it. Raises EngineError if what came before failed."""
        check(rt.cudaEventSynchronize(self._handle), "computing on the GPU")


class Stream(_Owner):
    """Work that the GPU does in order, beside other streams."""

    def __init__(self) -> None:
        stream = check(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking), "making a stream")
        super().__init__(stream, rt.cudaStreamDestroy)

    def upload(self, memory: DeviceMemory, address: int) -> None:
        """Copy from this process's memory into the GPU's."""
        kind = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        check(rt.cudaMemcpyAsync(memory.address, address, memory.size, kind, self._handle), "sending a frame")

    def download(self, address: int, memory: DeviceMemory) -> None:
        """Copy from the GPU's memory into this process's."""
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check(rt.cudaMemcpyAsync(address, memory.address, memory.size, kind, self._handle), "fetching a frame")

    def copy(self, target: DeviceMemory, source: DeviceMemory) -> None:
        """Copy between two places of one size on the GPU."""
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        check(rt.cudaMemcpyAsync(target.address, source.address, source.size, kind, self._handle), "moving a frame")

    def record(self, event: Event) -> None:
        """Let the event stand for all work so far."""
        check(rt.cudaEventRecord(event.handle, self._handle), "recording an event")

    def wait_for(self, event: Event) -> None:
        """Let further work wait for the event, without waiting here."""
        check(rt.cudaStreamWaitEvent(self._handle, event.handle, 0), "waiting for an event")

    def synchronize(self) -> None:
        """Wait until all work is done."""
        check(rt.cudaStreamSynchronize(self._handle), "computing on the GPU")

    @contextlib.contextmanager
    def captured(self) -> Iterator["Capture"]:
        """Collect the work of this block into a graph instead of doing it."""
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(rt.cudaStreamBeginCapture(self._handle, mode), "capturing a graph")
        capture = Capture()
        try:
            yield capture
        except BaseException:
            rt.cudaStreamEndCapture(self._handle)  # the stream must leave the mode; what it collected is spoilt
            raise
        capture.finish(check(rt.cudaStreamEndCapture(self._handle), "capturing a graph"))


class Capture:
    """What a stream was asked to do, as a graph that starts with one call."""

    def __init__(self) -> None:
        self.graph: Graph | None = None

    def finish(self, graph: Any) -> None:
        """Make the graph ready to run."""
        try:
            self.graph = Graph(check(rt.cudaGraphInstantiate(graph, 0), "preparing a graph"))
        finally:
            rt.cudaGraphDestroy(graph)  # what was made of it stays; a failure costs its memory at most


class Graph(_Owner):
    """Work that starts as a whole."""

    def __init__(self, executable: Any) -> None:
        super().__init__(executable, rt.cudaGraphExecDestroy)

    def launch(self, stream: Stream) -> None:
        """Run it in a stream."""
        check(rt.cudaGraphLaunch(self._handle, stream.handle), "starting the network")


def address_of(buffer: Any) -> int:
    """Where a writable buffer (an mmap, an array) lies in memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
