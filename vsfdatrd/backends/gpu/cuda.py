"""Owners of CUDA resources: memory, streams, events, graphs. Uses cuda-bindings, without PyTorch.

Every owner belongs to one device, which must be current when the owner is created. `close()` releases the resource.
"""

import ctypes
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from cuda.bindings import runtime as rt

from vsfdatrd.backends.gpu import nvml
from vsfdatrd.errors import EngineError, EngineUnavailable


def check_call(result: tuple[Any, ...], operation: str) -> Any:
    """Check the result of a CUDA call, a status and values. Return the value; a tuple if there is not exactly one.

    Args:
        result: What the call returned: its status, then values.
        operation: What the call was for, for the message.

    Raises:
        EngineError: The call failed; the message says what `operation` it was for.
    """
    status, *values = result
    if status != rt.cudaError_t.cudaSuccess:
        name, text = rt.cudaGetErrorName(status)[1], rt.cudaGetErrorString(status)[1]
        raise EngineError(f"{operation} failed: {text.decode()} ({name.decode()})")
    return values[0] if len(values) == 1 else tuple(values)


def driver_version() -> str:
    """Return the CUDA version that the driver supports, such as ``13.1``; ``0.0`` without a driver."""
    number = int(check_call(rt.cudaDriverGetVersion(), "asking for the driver's version"))
    return f"{number // 1000}.{number % 1000 // 10}"


def describe_driver() -> str:
    """Return the driver's version and the CUDA version it supports, such as ``580.95 for CUDA 13.1``.

    Drivers that support one CUDA version differ in what they compile. If NVML does not report the driver's version,
    only the CUDA version is returned.
    """
    release, supported = nvml.driver_version(), f"CUDA {driver_version()}"
    return f"{release} for {supported}" if release else supported


def require_driver() -> None:
    """Check that CUDA can use the GPUs.

    Raises:
        EngineUnavailable: It cannot; the message says why.
    """
    status, count = rt.cudaGetDeviceCount()
    if status == rt.cudaError_t.cudaErrorInsufficientDriver:
        # Version of the runtime inside cuda-bindings; `getLocalRuntimeVersion` would need a separate libcudart.
        version = check_call(rt.cudaRuntimeGetVersion(), "asking for CUDA's version")
        raise EngineUnavailable(
            f"the NVIDIA driver is missing or too old (it supports CUDA {driver_version()}, and {version // 1000} is "
            "needed); install a current driver"
        )
    if status in (rt.cudaError_t.cudaSuccess, rt.cudaError_t.cudaErrorNoDevice) and not count:
        raise EngineUnavailable("the NVIDIA driver shows no GPU")
    try:
        check_call((status,), "asking for the GPUs")
    except EngineError as error:
        advice = "install the NVIDIA driver again, and restart the machine"
        raise EngineUnavailable(f"{error}; {advice}") from error


def set_device(index: int) -> None:
    """Make a GPU current for this thread.

    Args:
        index: Number of the GPU.
    """
    check_call(rt.cudaSetDevice(index), f"choosing GPU {index}")


def free_memory(index: int) -> int:
    """Return the free memory of a GPU in bytes. Creates a CUDA context, which takes a few hundred MiB.

    Args:
        index: Number of the GPU.
    """
    set_device(index)
    free, _ = check_call(rt.cudaMemGetInfo(), f"asking for the memory of GPU {index}")
    return int(free)


def free_memory_without_context(index: int) -> int | None:
    """Return the free memory of a GPU in bytes according to NVML, without creating a context; None if it is unknown.

    Args:
        index: Number of the GPU.
    """
    bus = check_call(rt.cudaDeviceGetPCIBusId(16, index), f"asking where GPU {index} is")
    return nvml.free_memory(bus.partition(b"\0")[0].decode())


class _Owner:
    """Base class of owners: releases a handle once."""

    def __init__(self, handle: Any, release: Callable[[Any], tuple[Any, ...]]) -> None:
        self._handle, self._release = handle, release

    @property
    def handle(self) -> Any:
        """CUDA's handle."""
        return self._handle

    def close(self) -> None:
        """Release the resource. May be called more than once.

        Errors are ignored: CUDA returns errors of earlier calls here, which have already been reported.
        """
        if self._handle is not None:
            handle, self._handle = self._handle, None
            self._release(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Memory(_Owner):
    """Base class of owners of allocated memory."""

    def __init__(self, address: Any, release: Callable[[Any], tuple[Any, ...]], size: int) -> None:
        super().__init__(address, release)
        self.size = size

    @property
    def address(self) -> int:
        """Start address."""
        return int(self._handle)


class DeviceMemory(_Memory):
    """Memory on the GPU."""

    def __init__(self, size: int) -> None:
        """Allocate a number of bytes.

        Args:
            size: Size in bytes.

        Raises:
            EngineError: There is not enough memory.
        """
        address = check_call(rt.cudaMalloc(size), f"reserving {size / 2**20:.0f} MiB on the GPU")
        super().__init__(address, rt.cudaFree, size)


class PinnedMemory(_Owner):
    """Memory of this process, pinned in place, so that the GPU can access it directly."""

    def __init__(self, address: int, size: int) -> None:
        """Pin existing memory.

        Args:
            address: Start address.
            size: Size in bytes.

        Raises:
            EngineError: It cannot be pinned.
        """
        check_call(rt.cudaHostRegister(address, size, rt.cudaHostRegisterPortable), f"pinning {size / 2**20:.0f} MiB")
        super().__init__(address, rt.cudaHostUnregister)


class HostMemory(_Memory):
    """Pinned memory allocated by the driver."""

    def __init__(self, size: int) -> None:
        """Allocate a number of bytes.

        Args:
            size: Size in bytes.

        Raises:
            EngineError: There is not enough memory.
        """
        address = check_call(
            rt.cudaHostAlloc(size, rt.cudaHostAllocPortable), f"reserving {size / 2**20:.0f} MiB, pinned"
        )
        super().__init__(address, rt.cudaFreeHost, size)

    def read(self, address: int) -> None:
        """Copy from this process's memory into this buffer.

        Args:
            address: Start address of the source.
        """
        ctypes.memmove(self.address, address, self.size)

    def write(self, address: int) -> None:
        """Copy this buffer into this process's memory.

        Args:
            address: Start address of the destination.
        """
        ctypes.memmove(address, self.address, self.size)


class Event(_Owner):
    """A point in a stream for which another stream or a thread can wait."""

    def __init__(self) -> None:
        # Blocking: a waiting thread sleeps and leaves the core to others.
        flags = rt.cudaEventBlockingSync | rt.cudaEventDisableTiming
        super().__init__(check_call(rt.cudaEventCreateWithFlags(flags), "making an event"), rt.cudaEventDestroy)

    def wait(self) -> None:
        """Block the calling thread until the stream has passed the event.

        Raises:
            EngineError: Work before the event failed.
        """
        check_call(rt.cudaEventSynchronize(self._handle), "computing on the GPU")


class Stream(_Owner):
    """Work that the GPU executes in order, concurrently with other streams. Methods queue work and return at once."""

    def __init__(self) -> None:
        stream = check_call(rt.cudaStreamCreateWithFlags(rt.cudaStreamNonBlocking), "making a stream")
        super().__init__(stream, rt.cudaStreamDestroy)

    def upload(self, memory: DeviceMemory, address: int) -> None:
        """Copy from host memory to GPU memory.

        Args:
            memory: Destination; its size is copied.
            address: Start address of the source.
        """
        kind = rt.cudaMemcpyKind.cudaMemcpyHostToDevice
        check_call(rt.cudaMemcpyAsync(memory.address, address, memory.size, kind, self._handle), "sending a frame")

    def download(self, address: int, memory: DeviceMemory) -> None:
        """Copy from GPU memory to host memory.

        Args:
            address: Start address of the destination.
            memory: Source; its size is copied.
        """
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToHost
        check_call(rt.cudaMemcpyAsync(address, memory.address, memory.size, kind, self._handle), "fetching a frame")

    def copy(self, target: DeviceMemory, source: DeviceMemory) -> None:
        """Copy between two buffers of the same size on the GPU.

        Args:
            target: Destination.
            source: Source.
        """
        kind = rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        check_call(
            rt.cudaMemcpyAsync(target.address, source.address, source.size, kind, self._handle), "moving a frame"
        )

    def record(self, event: Event) -> None:
        """Record an event after all work queued so far.

        Args:
            event: The event.
        """
        check_call(rt.cudaEventRecord(event.handle, self._handle), "recording an event")

    def wait_for(self, event: Event) -> None:
        """Make work queued later wait for an event.

        Args:
            event: The event.
        """
        check_call(rt.cudaStreamWaitEvent(self._handle, event.handle, 0), "waiting for an event")

    def synchronize(self) -> None:
        """Block the calling thread until all work is done."""
        check_call(rt.cudaStreamSynchronize(self._handle), "computing on the GPU")

    def capture(self, enqueue: Callable[[], None]) -> "Graph":
        """Capture the work that a function queues on the stream, as a graph, instead of executing it.

        Raises:
            EngineError: The work cannot be captured.
        """
        mode = rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check_call(rt.cudaStreamBeginCapture(self._handle, mode), "capturing a graph")
        try:
            enqueue()
        except BaseException:
            rt.cudaStreamEndCapture(self._handle)  # leave capture mode; the captured work is invalid
            raise
        graph = check_call(rt.cudaStreamEndCapture(self._handle), "capturing a graph")
        try:
            return Graph(check_call(rt.cudaGraphInstantiate(graph, 0), "preparing a graph"))
        finally:
            rt.cudaGraphDestroy(graph)  # the instance remains valid; a failure here only leaks memory


class Graph(_Owner):
    """An executable graph: captured work that starts with one call."""

    def __init__(self, executable: Any) -> None:
        """Take over an executable graph.

        Args:
            executable: CUDA's handle.
        """
        super().__init__(executable, rt.cudaGraphExecDestroy)

    def launch(self, stream: Stream) -> None:
        """Launch the graph on a stream.

        Args:
            stream: The stream.
        """
        check_call(rt.cudaGraphLaunch(self._handle, stream.handle), "starting the network")


def host_address(buffer: Any) -> int:
    """Return the address of a writable buffer in host memory.

    Args:
        buffer: An mmap or an array, for example.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
