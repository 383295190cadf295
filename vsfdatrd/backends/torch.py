"""PyTorch backend: the reference on CPUs, and CUDA with streams, pinned buffers and CUDA graphs.

It runs the network itself, so any architecture that can be loaded runs here, and the cache stores no more than a
marker file.
"""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory
from vsfdatrd.backends.accuracy import check_banding, compare, count_levels, drawing, sky
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.gpu.devices import gpu_count
from vsfdatrd.errors import TORCH_PIP, EngineBuildError, EngineError
from vsfdatrd.options import Precision

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GRAPH_VERSION = "network 2"
ANY_SIZE = False

VERIFIED = (120, 180)
"""Approximate height and width of the images on which half precisions are compared with fp32."""

# Memory of one frame, in bytes for each float32 value of a kind of tensor, as measured on a CPU.
BYTES = {
    # 90 to 101 for medium from 240×240 to 480×480
    "fdat_rd.ffn": 104,
    # 3.0 to 3.4 values of 4 bytes for lda (`python -m benchmarks.tails`); no other upsampler was seen to take more
    "tail": 4 * 3.5,
    "artcnn": 4,
    # 5.0 to 12.4 values of 4 bytes for FDAT tiny to large, 2.6 to 9.0 for small networks (DAT, HAT, ESRGAN, FDAT,
    # RealCUGAN, SwinIR) at 240×240
    "fdat.largest": 4 * 13,
    "largest": 4 * 13,
}


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Return None if PyTorch is installed; see `Backend.unavailable`."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {TORCH_PIP}"
    return None


def unsupported_reason(model: ModelDescriptor) -> str | None:
    """Return a reason for files without tensors; see `Backend.unsupported_reason`."""
    return None if model.architecture.has_tensors else f"it is an {model.name} file, which has no PyTorch module"


def warm_up() -> None:
    """Do nothing: importing PyTorch would delay everything else."""


def version(device: Sequence[int] = (0,)) -> str:
    """Return PyTorch's version; see `Backend.version`."""
    from importlib.metadata import version as installed

    return installed("torch")


def _on_gpu() -> bool:
    """Return whether PyTorch can use the GPU; not every build of it can."""
    if not gpu_count():
        return False
    import torch

    return torch.cuda.is_available()


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List the precisions of the device, preferred first; fp32 is always last. See `Backend.precisions`.

    GPUs: fp16, then bf16 from compute capability 8.0. CPUs: bf16 if they have instructions for it.
    """
    import torch

    if _on_gpu():
        index = device[0] if device[0] < torch.cuda.device_count() else 0
        return ("fp16", "bf16", "fp32") if torch.cuda.get_device_capability(index)[0] >= 8 else ("fp16", "fp32")
    return ("bf16", "fp32") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("fp32",)


def device_name(spec: EngineSpec) -> str:
    """Return the GPUs' names, or ``CPU``; see `Backend.device_name`."""
    import torch

    if not _on_gpu():
        return "CPU"
    return ", ".join(torch.cuda.get_device_name(i) for i in spec.device)


def identity(spec: EngineSpec) -> str:
    """Return an empty string: nothing else changes the marker file. See `Backend.identity`."""
    return ""


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate activations and buffers; see `Backend.memory_estimate`.

    Args:
        spec: Parameters of the engine.

    Returns:
        (bytes needed, bytes free).
    """
    network = spec.checkpoint.description
    activations = memory.activation_bytes(network.config, BYTES)
    share = 1 if spec.precision == "fp32" else 0.5
    frame = spec.height * spec.width * (activations * share + memory.frame_bytes(network))
    needed = int((spec.streams or (2 if _on_gpu() else 1)) * frame)
    if not _on_gpu():
        return needed, memory.free_bytes()
    import torch

    return needed, min(torch.cuda.mem_get_info(i)[0] for i in spec.device)


def build(spec: EngineSpec, directory: Path) -> None:
    """Compare a half precision with fp32 and write a marker file. The network itself is read from the weights file.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        PrecisionUnfit: The half precision differs too much from fp32.
        EngineBuildError: PyTorch cannot compute the network.
    """
    if spec.precision != "fp32":
        log.info("%s agrees with fp32 to %.1f dB", spec.precision, _psnr_against_fp32(spec))
    (directory / "torch.json").write_text(json.dumps({"weights": spec.checkpoint.description.sha256}), encoding="utf-8")


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Prepare the network on its device.

    Args:
        spec: Parameters of the engine.
        directory: Not used.

    Raises:
        EngineError: PyTorch cannot prepare the network, for example for lack of memory.
    """
    on_gpu = _on_gpu()
    try:
        return _Cuda(spec) if on_gpu else _Cpu(spec)
    except RuntimeError as error:
        why = str(error)
    # Outside the except block: the traceback keeps references to memory that the next attempt needs.
    if on_gpu:
        _release_cached_memory()
    raise EngineError(f"PyTorch could not prepare the network for {spec.width}×{spec.height}: {why}")


def _release_cached_memory() -> None:
    """Return the GPU memory that PyTorch caches, so that other programs can use it."""
    import torch

    with contextlib.suppress(RuntimeError):  # after a GPU error every CUDA call fails
        torch.cuda.empty_cache()


@cache
def _stream(index: int, slot: int) -> "torch.cuda.Stream":
    """Return the CUDA stream of a GPU's slot.

    All engines share it, because cuBLAS keeps tens of MiB for each stream it has seen.
    """
    import torch

    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _without_tf32(precision: Precision) -> Iterator[None]:
    """Disable TF32 in fp32: by default cuDNN computes convolutions with TF32's 10-bit mantissa."""
    import torch

    if precision != "fp32":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions announce that the flag will be renamed
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


def _dtype(precision: Precision) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _network(spec: EngineSpec, device: "torch.device") -> "torch.nn.Module":
    """Load the network on a device, for float32 frames, with its kernels in channels-last format."""
    import torch

    network, half = spec.checkpoint.network().to(device), _dtype(spec.precision)
    if half != torch.float32:
        spec.checkpoint.description.architecture.to_half(network, half)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:  # `Module.to(memory_format=...)` would fail on tensors with five dimensions
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def _psnr_against_fp32(spec: EngineSpec) -> float:
    """Compute the PSNR of a half precision against fp32 on a small image, on the engine's own device.

    Raises:
        PrecisionUnfit: They differ too much.
        EngineBuildError: PyTorch cannot compute the network.
    """
    import torch

    model = spec.checkpoint.description
    size = model.fixed or model.size.padded(*VERIFIED)
    device = torch.device("cuda", spec.device[0]) if _on_gpu() else torch.device("cpu")
    pictures = [picture[None, : model.frame_channels[0]] for picture in (drawing(*size), sky(*size))]
    outputs: list[list[FramePlanes]] = []
    for exactly in (replace(spec, precision="fp32"), spec):
        try:
            network = _network(exactly, device)
            with torch.inference_mode(), _without_tf32(exactly.precision):
                results = [network(torch.from_numpy(picture).to(device)) for picture in pictures]
        except RuntimeError as error:
            raise EngineBuildError(f"PyTorch could not compute the network in {exactly.precision}: {error}") from error
        outputs.append([result[0].float().cpu().numpy() for result in results])
    psnr = compare(outputs[0][0], outputs[1][0], spec.precision)
    check_banding(count_levels(outputs[0][1]), count_levels(outputs[1][1]), spec.precision)
    return psnr


class _Slots:
    """Shapes and state common to both devices."""

    def __init__(self, spec: EngineSpec, slots: int) -> None:
        self.slots = slots
        scale = spec.checkpoint.description.scale
        in_channels, inputs = spec.checkpoint.description.frame_channels
        self._input_shape = (1, in_channels, spec.height, spec.width)
        self._output_shape = (1, inputs, spec.height * scale, spec.width * scale)
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; no frame can be sent to it")


class _Cpu(_Slots):
    """Run complete frames on the CPU's cores, one at a time unless more streams are requested."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch

        super().__init__(spec, spec.streams or 1)
        network = _network(spec, torch.device("cpu"))
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
        return self._inputs[slot]

    def submit(self, slot: int) -> None:
        self._check_open()
        self._running[slot] = self._pool.submit(self._run, slot)

    def collect(self, slot: int) -> FramePlanes:
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


class _Cuda(_Slots):
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
                networks[index] = _network(spec, device)
            with _without_tf32(spec.precision):
                slots.append(CudaSlot(networks[index], _stream(index, slot // len(spec.device)), shapes))
        self._slots = slots

    def input(self, slot: int) -> FramePlanes:
        return np.asarray(self._slots[slot].host_in.numpy()[0])

    def submit(self, slot: int) -> None:
        self._check_open()
        try:
            self._slots[slot].submit()
        except RuntimeError as error:
            raise EngineError(f"the GPU did not take the frame: {error}") from error

    def collect(self, slot: int) -> FramePlanes:
        try:
            lane = self._slots[slot]
        except IndexError:
            raise EngineError("the engine was closed before the frame was collected") from None
        try:
            lane.done.synchronize()  # releases the GIL
        except RuntimeError as error:
            raise EngineError(f"the GPU failed on it: {error}") from error
        return np.asarray(lane.host_out.numpy()[0])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        streams = [slot.stream for slot in self._slots]  # a loop variable would keep the last slot's memory alive
        with contextlib.suppress(RuntimeError):  # after a GPU error every CUDA call fails
            for stream in streams:
                stream.synchronize()
        self._slots.clear()
        _release_cached_memory()
