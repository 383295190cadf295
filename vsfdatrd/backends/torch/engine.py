"""Engines of the PyTorch backend: a network on the CPU, or on GPUs with streams, pinned buffers and CUDA graphs."""

import contextlib
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from vsfdatrd.backends.base import EngineSpec, FramePlanes
from vsfdatrd.errors import EngineError
from vsfdatrd.options import Precision

if TYPE_CHECKING:
    import torch


def load_network(spec: EngineSpec, device: "torch.device") -> "torch.nn.Module":
    """Load the network on a device, for float32 frames, with its kernels in channels-last format."""
    import torch

    network = spec.checkpoint.network().to(device)
    if spec.precision != "fp32":
        half = torch.bfloat16 if spec.precision == "bf16" else torch.float16
        spec.checkpoint.descriptor.architecture.to_half(network, half)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:  # `Module.to(memory_format=...)` would fail on tensors with five dimensions
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


@contextlib.contextmanager
def without_tf32(precision: Precision) -> Iterator[None]:
    """Disable TF32 in fp32: by default cuDNN computes convolutions with TF32's 10-bit mantissa."""
    import torch

    if precision != "fp32":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions announce that the flag will be renamed
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


def release_cached_memory() -> None:
    """Return the GPU memory that PyTorch caches, so that other programs can use it."""
    import torch

    with contextlib.suppress(RuntimeError):  # after a GPU error every CUDA call fails
        torch.cuda.empty_cache()


class _Slots:
    """Shapes and state common to both devices."""

    def __init__(self, spec: EngineSpec, slots: int) -> None:
        self.slots = slots
        scale = spec.checkpoint.descriptor.scale
        in_channels, out_channels = spec.checkpoint.descriptor.frame_channels
        self._input_shape = (1, in_channels, spec.height, spec.width)
        self._output_shape = (1, out_channels, spec.height * scale, spec.width * scale)
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; no frame can be sent to it")


class CpuEngine(_Slots):
    """Run complete frames on the CPU's cores, one at a time unless more streams are requested."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch

        super().__init__(spec, spec.streams or 1)
        network = load_network(spec, torch.device("cpu"))
        inputs = [torch.zeros(self._input_shape) for _ in range(self.slots)]
        outputs = [torch.empty(self._output_shape) for _ in range(self.slots)]
        self._inputs: list[FramePlanes] = [t.numpy()[0] for t in inputs]
        self._outputs: list[FramePlanes] = [t.numpy()[0] for t in outputs]
        self._running: list[Future[None] | None] = [None] * self.slots
        threads = max(1, torch.get_num_threads() // self.slots)

        def run(slot: int) -> None:
            with torch.inference_mode():
                outputs[slot].copy_(network(inputs[slot]))

        self._run = run
        self._pool = ThreadPoolExecutor(
            self.slots, "fdatrd-torch", initializer=torch.set_num_threads, initargs=(threads,)
        )

    def input(self, slot: int) -> FramePlanes:
        """See `Engine.input`."""
        return self._inputs[slot]

    def submit(self, slot: int) -> None:
        """See `Engine.submit`."""
        self._check_open()
        self._running[slot] = self._pool.submit(self._run, slot)

    def collect(self, slot: int) -> FramePlanes:
        """See `Engine.collect`."""
        self._check_open()
        running = self._running[slot]
        if running is None:
            raise EngineError(f"nothing was submitted to slot {slot}")
        try:
            running.result()
        except Exception as error:  # networks of other architectures may raise anything
            raise EngineError(f"PyTorch failed on it: {error}") from error
        return self._outputs[slot]

    def close(self) -> None:
        """See `Engine.close`."""
        if not self._closed:
            self._closed = True
            self._pool.shutdown(wait=True)
            del self._run, self._inputs, self._outputs


class CudaSlot:
    """One slot on one GPU: pinned host buffers, device buffers, a stream, and the network as a CUDA graph."""

    def __init__(self, network: Any, stream: "torch.cuda.Stream", shapes: tuple[Any, Any]) -> None:
        """Allocate the buffers and capture the network.

        Args:
            network: The network, on the stream's device.
            stream: The stream of this slot.
            shapes: (1, C, H, W) of input and output.
        """
        import torch

        self.host_in = torch.zeros(shapes[0], pin_memory=True)
        self.host_out = torch.empty(shapes[1], pin_memory=True)
        self.device = stream.device
        self.network = network  # keep the weights alive: the graph only stores their addresses
        self.stream = stream
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleep instead of spinning
        with torch.cuda.device(self.device):
            stream.wait_stream(torch.cuda.current_stream())  # which uploads the weights
        with torch.cuda.device(self.device), torch.cuda.stream(stream), torch.inference_mode():
            self.device_in = torch.zeros(shapes[0], device=self.device)
            for _ in range(3):  # let cuDNN and cuBLAS choose their kernels before the capture
                network(self.device_in)
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            # Threads of other engines keep using CUDA meanwhile; their calls must not invalidate this capture.
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.device_out = network(self.device_in).float()

    def submit(self) -> None:
        """Queue upload, network and download on the stream, followed by the event `done`."""
        import torch

        with torch.cuda.device(self.device), torch.cuda.stream(self.stream), torch.inference_mode():
            self.device_in.copy_(self.host_in, non_blocking=True)
            self.graph.replay()
            self.host_out.copy_(self.device_out, non_blocking=True)
            self.done.record(self.stream)


class CudaEngine(_Slots):
    """Run frames on one or more GPUs with double buffering: while one slot computes, the other's frame is copied."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch

        per_gpu = spec.streams or 2
        super().__init__(spec, per_gpu * len(spec.device))
        slots: list[CudaSlot] = []
        shapes = (self._input_shape, self._output_shape)
        networks = {}
        for slot in range(self.slots):
            index = spec.device[slot % len(spec.device)]
            device = torch.device("cuda", index)
            if index not in networks:
                networks[index] = load_network(spec, device)
            with without_tf32(spec.precision):
                slots.append(CudaSlot(networks[index], _stream(index, slot // len(spec.device)), shapes))
        self._slots = slots

    def input(self, slot: int) -> FramePlanes:
        """See `Engine.input`."""
        return np.asarray(self._slots[slot].host_in.numpy()[0])

    def submit(self, slot: int) -> None:
        """See `Engine.submit`."""
        self._check_open()
        try:
            self._slots[slot].submit()
        except RuntimeError as error:
            raise EngineError(f"the GPU did not take the frame: {error}") from error

    def collect(self, slot: int) -> FramePlanes:
        """See `Engine.collect`."""
        try:
            cuda_slot = self._slots[slot]
        except IndexError:
            raise EngineError("the engine was closed before the frame was collected") from None
        try:
            cuda_slot.done.synchronize()  # releases the GIL
        except RuntimeError as error:
            raise EngineError(f"the GPU failed on it: {error}") from error
        return np.asarray(cuda_slot.host_out.numpy()[0])

    def close(self) -> None:
        """See `Engine.close`."""
        if self._closed:
            return
        self._closed = True
        streams = [slot.stream for slot in self._slots]  # a loop variable would keep the last slot's memory alive
        with contextlib.suppress(RuntimeError):  # after a GPU error every CUDA call fails
            for stream in streams:
                stream.synchronize()
        self._slots.clear()
        release_cached_memory()


@cache
def _stream(index: int, slot: int) -> "torch.cuda.Stream":
    """Return the CUDA stream of a GPU's slot.

    All engines share it, because cuBLAS keeps tens of MiB for each stream it has seen.
    """
    import torch

    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]
