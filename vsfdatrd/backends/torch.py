"""The PyTorch engine: the reference on a CPU, and CUDA with streams, pinned buffers and graphs.

It runs the network itself, so its artefact holds nothing but a note; any architecture that loads can run here.
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
import psutil

from vsfdatrd.archs.fdat import Config, FdatConfig
from vsfdatrd.backends.accuracy import compare, compare_steps, drawing, sky, steps
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.gpus import gpu_count
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import TORCH_PIP, EngineBuildError, EngineError
from vsfdatrd.options import Precision

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GRAPH_VERSION = "network 2"
ANY_SIZE = False

VERIFIED = (120, 180)
"""Height and width of the pictures on which half precisions are held against fp32, about."""

# What one frame of FDAT-RD takes per token of the map and channel of the feed-forward network, in float32 on a CPU:
# 90 to 101 bytes were measured for medium from 240×240 to 480×480.
BYTES_PER_TOKEN_CHANNEL = 104
# What one takes in a tail that is heavier than that, as so many tensors of its largest one's size: 3.0 to 3.4 of lda
# (`python -m benchmarks.tails`); no other was seen to be heavier.
TAIL_AT_ONCE = 3.5
# Of other networks, and of FDAT before its tail, what one frame takes, as so many tensors of their largest one's size:
# 2.6 to 9.0 were measured for small ones (DAT, HAT, ESRGAN, FDAT, RealCUGAN, SwinIR) at 240×240 on a CPU, 5.0 to 12.4
# for FDAT tiny to large.
LARGEST_AT_ONCE = 13


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """None if PyTorch is installed."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {TORCH_PIP}"
    return None


def warm_up() -> None:
    """Nothing: importing PyTorch would hold up everything else."""


def version(device: Sequence[int] = (0,)) -> str:
    """PyTorch's version."""
    from importlib.metadata import version as installed

    return installed("torch")


def _on_gpu() -> bool:
    """Whether PyTorch can use the GPU there is; not every build of it can."""
    if not gpu_count():
        return False
    import torch

    return torch.cuda.is_available()


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """fp16 first on a GPU; bf16 first on CPUs that have instructions for it; fp32 always."""
    import torch

    if _on_gpu():
        index = device[0] if device[0] < torch.cuda.device_count() else 0
        return ("fp16", "bf16", "fp32") if torch.cuda.get_device_capability(index)[0] >= 8 else ("fp16", "fp32")
    return ("bf16", "fp32") if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ("fp32",)


def device_name(job: EngineSpec) -> str:
    """The GPUs' names, or the CPU."""
    import torch

    if not _on_gpu():
        return "CPU"
    return ", ".join(torch.cuda.get_device_name(i) for i in job.device)


def identity(job: EngineSpec) -> str:
    """Nothing: the artefact is a note."""
    return ""


def memory_estimate(job: EngineSpec) -> tuple[int, int]:
    """(bytes needed for activations and buffers, bytes free)."""
    about = job.checkpoint.description
    pixels = job.height * job.width
    if config := about.written:
        activations = max(_body(config), 4 * config.largest_in_tail * TAIL_AT_ONCE) / config.unshuffle**2
    elif about.artcnn:
        activations = 4 * about.artcnn.held
    else:
        activations = 4 * about.largest * LARGEST_AT_ONCE
    share = 1 if job.precision == "fp32" else 0.5
    frame = pixels * activations * share + 12 * pixels * (1 + about.scale**2)
    needed = int((job.streams or (2 if _on_gpu() else 1)) * frame)
    if not _on_gpu():
        return needed, int(psutil.virtual_memory().available)
    import torch

    return needed, min(torch.cuda.mem_get_info(i)[0] for i in job.device)


def _body(config: Config) -> int:
    """Bytes per token before the tail."""
    if isinstance(config, FdatConfig):
        return 4 * config.largest_in_body * LARGEST_AT_ONCE
    return config.ffn_dim * BYTES_PER_TOKEN_CHANNEL


def build(job: EngineSpec, directory: Path) -> None:
    """Hold a half precision against fp32 and write a note; the network itself is read from the weights file.

    Raises EngineBuildError as `_agreement` does.
    """
    if job.precision != "fp32":
        log.info("%s agrees with fp32 to %.1f dB", job.precision, _agreement(job))
    (directory / "torch.json").write_text(json.dumps({"weights": job.checkpoint.description.sha256}), encoding="utf-8")


def load(job: EngineSpec, directory: Path) -> Engine:
    """The network on its device, ready for frames. Raises EngineError if the device refuses."""
    on_gpu = _on_gpu()
    try:
        return _Cuda(job) if on_gpu else _Cpu(job)
    except RuntimeError as error:
        why = str(error)
    # Here, since the traceback would hold on to what was reserved already, which the next attempt needs.
    if on_gpu:
        _give_back_memory()
    raise EngineError(f"PyTorch could not prepare the network for {job.width}×{job.height}: {why}")


def _give_back_memory() -> None:
    """Let other programs have the GPU memory that PyTorch keeps for itself."""
    import torch

    with contextlib.suppress(RuntimeError):  # after a failure of the GPU every call fails
        torch.cuda.empty_cache()


@cache
def _stream(index: int, lane: int) -> "torch.cuda.Stream":
    """The stream of a GPU's lane, the same for every engine: cuBLAS keeps tens of MiB for each that it has seen."""
    import torch

    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _exactly(precision: Precision) -> Iterator[None]:
    """Have convolutions in fp32 be just that: cuDNN takes the 10 bits of TF32 unless told otherwise."""
    import torch

    if precision != "fp32":
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions announce another name for it
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            yield


def _dtype(precision: Precision) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _network(job: EngineSpec, device: "torch.device") -> "torch.nn.Module":
    """The network on its device, for frames in float32, its kernels with channels last."""
    import torch

    network, half = job.checkpoint.network().to(device), _dtype(job.precision)
    inner: Any = getattr(network, "model", network)  # spandrel's are wrapped
    if half == torch.float32:
        pass
    elif all(hasattr(inner, name) for name in ("conv_first", "groups", "conv_after", "upsampler")):
        # FDAT-RD and FDAT: the ends and what passes by the groups stay float32, or skies have bands.
        inner.groups.to(half)
        inner.conv_after.to(half)
        inner.groups[0].register_forward_pre_hook(lambda _, given: (given[0].to(half), *given[1:]))
    else:
        network.to(half).register_forward_pre_hook(lambda _, given: (given[0].to(half),))
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:  # `Module.to` would try those of five, too, and fail over them
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return network


def _agreement(job: EngineSpec) -> float:
    """PSNR of a half precision against fp32 on a small picture, on the job's own device.

    Raises PrecisionUnfit if they are too far apart, EngineBuildError if the device refuses.
    """
    import torch

    about = job.checkpoint.description
    size = about.fixed or about.size.padded(*VERIFIED)
    device = torch.device("cuda", job.device[0]) if _on_gpu() else torch.device("cpu")
    pictures = [picture[None, : about.frame_channels[0]] for picture in (drawing(*size), sky(*size))]
    found: list[list[FramePlanes]] = []
    for exactly in (replace(job, precision="fp32"), job):
        try:
            network = _network(exactly, device)
            with torch.inference_mode(), _exactly(exactly.precision):
                results = [network(torch.from_numpy(picture).to(device)) for picture in pictures]
        except RuntimeError as error:
            raise EngineBuildError(f"PyTorch could not compute the network in {exactly.precision}: {error}") from error
        found.append([result[0].float().cpu().numpy() for result in results])
    psnr = compare(found[0][0], found[1][0], job.precision)
    compare_steps(steps(found[0][1]), steps(found[1][1]), job.precision)
    return psnr


class _Slots:
    """Host buffers of the slots, and the bookkeeping both devices share."""

    def __init__(self, job: EngineSpec, slots: int) -> None:
        self.slots = slots
        scale = job.checkpoint.description.scale
        taken, given = job.checkpoint.description.frame_channels
        self._input_shape = (1, taken, job.height, job.width)
        self._output_shape = (1, given, job.height * scale, job.width * scale)
        self._closed = False

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; no frame can be sent to it")


class _Cpu(_Slots):
    """Whole frames on the CPU's cores, one after the other unless more streams are asked for."""

    def __init__(self, job: EngineSpec) -> None:
        import torch

        super().__init__(job, job.streams or 1)
        network = _network(job, torch.device("cpu"))
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
        except Exception as error:  # networks of other architectures raise whatever they like
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
        import torch

        self.host_in = torch.zeros(shapes[0], pin_memory=True)
        self.host_out = torch.empty(shapes[1], pin_memory=True)
        self.device = stream.device
        self.network = network  # the graph knows its weights by their addresses only
        self.stream = stream
        self.done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # who waits leaves the core
        with torch.cuda.device(self.device):
            stream.wait_stream(torch.cuda.current_stream())  # which has brought the weights
        with torch.cuda.device(self.device), torch.cuda.stream(stream), torch.inference_mode():
            self.device_in = torch.zeros(shapes[0], device=self.device)
            for _ in range(3):  # lets cuDNN and cuBLAS choose their kernels before the capture
                network(self.device_in)
            stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            # Other engines' threads go on meanwhile: what they do is no error of this capture.
            with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                self.device_out = network(self.device_in).float()

    def submit(self) -> None:
        """Queue upload, network and download on the stream; `done` is recorded behind them."""
        import torch

        with torch.cuda.device(self.device), torch.cuda.stream(self.stream), torch.inference_mode():
            self.device_in.copy_(self.host_in, non_blocking=True)
            self.graph.replay()
            self.host_out.copy_(self.device_out, non_blocking=True)
            self.done.record(self.stream)


class _Cuda(_Slots):
    """Double buffering on one or more GPUs: while one slot computes, the other's frame is copied."""

    def __init__(self, job: EngineSpec) -> None:
        import torch

        per_gpu = job.streams or 2
        super().__init__(job, per_gpu * len(job.device))
        lanes: list[CudaSlot] = []
        shapes = (self._input_shape, self._output_shape)
        networks = {}
        for slot in range(self.slots):
            index = job.device[slot % len(job.device)]
            device = torch.device("cuda", index)
            if index not in networks:
                networks[index] = _network(job, device)
            with _exactly(job.precision):
                lanes.append(CudaSlot(networks[index], _stream(index, slot // len(job.device)), shapes))
        self._lanes = lanes

    def input(self, slot: int) -> FramePlanes:
        return np.asarray(self._lanes[slot].host_in.numpy()[0])

    def submit(self, slot: int) -> None:
        self._check_open()
        try:
            self._lanes[slot].submit()
        except RuntimeError as error:
            raise EngineError(f"the GPU did not take the frame: {error}") from error

    def collect(self, slot: int) -> FramePlanes:
        try:
            lane = self._lanes[slot]
        except IndexError:
            raise EngineError("the engine was closed before the frame was collected") from None
        try:
            lane.done.synchronize()  # lets other Python threads run
        except RuntimeError as error:
            raise EngineError(f"the GPU failed on it: {error}") from error
        return np.asarray(lane.host_out.numpy()[0])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        streams = [lane.stream for lane in self._lanes]  # a name for the last lane would keep its memory
        with contextlib.suppress(RuntimeError):  # after a failure of the GPU every call fails
            for stream in streams:
                stream.synchronize()
        self._lanes.clear()
        _give_back_memory()
