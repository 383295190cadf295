"""Measure which share of its rate PyTorch's network keeps with `cuda.py`'s double buffering around it.

The host does what the product's does: frames are clamped into shared, pinned memory, submitted, waited for, and clamped
out of it again, on several threads.
"""

import ctypes
import mmap
import queue
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_visit.engines import (
    DTYPES,
    checkpoints,
    compute_in_fp32,
    compute_psnr,
    load_network,
    padded_drawing,
)
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.copy_pipeline import Slot, TransferPipeline
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.options import Precision

THREADS = 4
"""That ask for frames, as VapourSynth's do."""


class OnDevice:
    """A network between two fixed places of the device's memory, started in a stream of `cuda.py`."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision, height: int, width: int) -> None:
        frame = padded_drawing(checkpoint, height, width)
        self.input_shape = tuple(frame.shape[1:])
        scale = checkpoint.descriptor.scale
        self.output_shape = (3, self.input_shape[1] * scale, self.input_shape[2] * scale)
        self.source, self.result = (
            cuda.DeviceMemory(4 * int(np.prod(s))) for s in (self.input_shape, self.output_shape)
        )
        self._dtype, self._module = DTYPES[precision], load_network(checkpoint, precision)
        self._in, self._out = _tensor(self.source, self.input_shape), _tensor(self.result, self.output_shape)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device().type == "cuda":
            self._capture()

    @torch.inference_mode()
    def _compute(self) -> None:
        self._out.copy_(self._module(self._in.to(self._dtype)[None])[0])

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._compute()

    def launch(self, stream: cuda.Stream) -> None:
        """Start the network in a stream, and return at once."""
        if self._graph is None:  # a rehearsal: the stream is a thread of the fake GPU, which takes tasks
            stream.handle.put(self._compute)
            return
        with torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):  # type: ignore[no-untyped-call]
            self._graph.replay()

    def close(self) -> None:
        """Free the memory."""
        del self._in, self._out, self._graph, self._module
        self.source.close()
        self.result.close()


class _Memory:
    """Device memory as PyTorch takes it from other libraries."""

    def __init__(self, memory: cuda.DeviceMemory, shape: tuple[int, ...]) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": "<f4",
            "data": (memory.address, False),
            "version": 3,
            "strides": None,
            "stream": None,
        }


def _tensor(memory: cuda.DeviceMemory, shape: tuple[int, ...]) -> torch.Tensor:
    """A float32 tensor over device memory, which stays its owner's."""
    if device().type == "cuda":
        return torch.as_tensor(_Memory(memory, shape), device="cuda")
    count = int(np.prod(shape))  # the fake GPU's memory is this process's
    return torch.from_numpy(
        np.frombuffer((ctypes.c_float * count).from_address(memory.address), np.float32).reshape(shape)
    )


class Pipeline:
    """An engine with `slots` slots, like `backends.base.Engine`: a network with our double buffering."""

    def __init__(self, net: OnDevice, slots: int) -> None:
        self._held = ExitStack()
        hold = self._held.enter_context
        sizes = [4 * int(np.prod(shape)) for shape in (net.input_shape, net.output_shape)]
        memory = mmap.mmap(-1, slots * sum(sizes))
        hold(cuda.PinnedMemory(cuda.host_address(memory), len(memory)))
        upload, compute, download = (hold(cuda.Stream()) for _ in range(3))
        self._frames: list[tuple[FramePlanes, FramePlanes]] = []
        places: list[Slot] = []
        offset = 0
        for _ in range(slots):
            pair = []
            for shape, size in zip((net.input_shape, net.output_shape), sizes, strict=True):
                pair.append(np.frombuffer(memory, np.float32, size // 4, offset).reshape(shape))
                offset += size
            self._frames.append((pair[0], pair[1]))
            there, back = (hold(cuda.DeviceMemory(size)) for size in sizes)
            events = [hold(cuda.Event()) for _ in range(3)]
            places.append(Slot(pair[0].ctypes.data, pair[1].ctypes.data, there, back, *events))

        def launch(number: int) -> None:
            compute.copy(net.source, places[number].device_source)
            net.launch(compute)
            compute.copy(places[number].device_result, net.result)

        self.slots = slots
        self._pipeline = TransferPipeline(upload, compute, download, places, launch)
        self._submitting = threading.Lock()  # the product's worker submits on one thread

    def input(self, slot: int) -> FramePlanes:
        """See `Engine.input`."""
        return self._frames[slot][0]

    def submit(self, slot: int) -> None:
        """See `Engine.submit`."""
        with self._submitting:
            cuda.set_device(0)
            self._pipeline.submit(slot)

    def collect(self, slot: int) -> FramePlanes:
        """See `Engine.collect`."""
        cuda.set_device(0)
        self._pipeline.wait(slot)
        return self._frames[slot][1]

    def close(self) -> None:
        """See `Engine.close`."""
        self._held.close()


def measure_pipeline(engine: Pipeline, frames: int, threads: int = THREADS) -> tuple[float, dict[str, float]]:
    """Measure an engine with frames that several threads ask for at once.

    Args:
        engine: The engine.
        frames: Number of frames.
        threads: Number of threads.

    Returns:
        Frames per second, and the milliseconds of the host per frame by what it does.
    """
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(engine.slots):
        free.put(slot)
    shape = engine.input(0).shape
    source = draw_line_art(*shape[1:])[: shape[0]]
    spent: dict[str, list[float]] = {name: [] for name in ("write", "submit", "collect", "clip")}
    left = iter(range(frames))
    taking = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        out: FramePlanes | None = None
        while not failures:
            with taking:
                if next(left, None) is None:
                    return
            slot = free.get()
            try:
                times = [time.perf_counter()]
                np.clip(source, 0, 1, out=engine.input(slot))
                times.append(time.perf_counter())
                engine.submit(slot)
                times.append(time.perf_counter())
                result = engine.collect(slot)
                times.append(time.perf_counter())
                if out is None:
                    out = np.empty_like(result)
                np.clip(result, 0, 1, out=out)
                times.append(time.perf_counter())
                for name, a, b in zip(spent, times, times[1:], strict=False):
                    spent[name].append(1000 * (b - a))
            except BaseException as error:
                failures.append(error)
            finally:
                free.put(slot)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - start
    if failures:
        raise failures[0]
    return frames / seconds, {name: round(statistics.median(values), 3) for name, values in spent.items()}


def rate_alone(net: OnDevice, frames: int, turns: int) -> float:
    """Measure the frames per second of the network in one of our streams, without copies."""
    with cuda.Stream() as stream:
        rates = []
        for _ in range(1 + turns):
            start = time.perf_counter()
            for _ in range(frames):
                net.launch(stream)
            stream.synchronize()
            rates.append(frames / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def _last_output(engine: Pipeline) -> torch.Tensor:
    """Return the output for the drawing in the last slot, after a frame in every slot."""
    for slot in range(engine.slots):
        shape = engine.input(slot).shape
        np.copyto(engine.input(slot), draw_line_art(*shape[1:])[: shape[0]])
        engine.submit(slot)
    results = [engine.collect(slot) for slot in range(engine.slots)]
    return torch.from_numpy(results[-1].copy()).to(device())


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Measure every number of slots with the shipped weights and with those without zero branches."""
    cuda.require_driver()
    cuda.set_device(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for weights, checkpoint in checkpoints(Path(folder), sizes).items():
            precision = sizes.precisions[0]
            reference = compute_in_fp32(checkpoint, sizes)[0]
            net = OnDevice(checkpoint, precision, sizes.height, sizes.width)
            rate = rate_alone(net, sizes.frames, sizes.turns)
            about: dict[str, Any] = {"backend": "cuda.py with PyTorch", "precision": precision, "weights": weights}
            about |= {"size": [sizes.width, sizes.height], "fps_alone": round(rate, 2), "threads": THREADS}
            for slots in sizes.slots:
                engine = Pipeline(net, slots)
                decibels, wrong = compute_psnr(_last_output(engine), reference)
                fps, host = measure_pipeline(engine, sizes.frames * sizes.turns)
                engine.close()
                rows.append(
                    about
                    | {"slots": slots, "fps": round(fps, 2), "share": round(fps / rate, 3), "host_ms": host}
                    | {"psnr_db": decibels, "nan": wrong}
                )
                record({"slots": rows})
            net.close()
