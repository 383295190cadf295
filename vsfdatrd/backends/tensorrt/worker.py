"""The other side of `tensorrt.py`: the process in which TensorRT and CUDA run. Started as a module.

A process of its own, so that no other plugin's TensorRT is met, nothing is printed into the video, all GPU memory is
free again the moment a script lets go of its engine, and a crash of the driver is a frame's error.
"""

import mmap
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vsfdatrd.backends.accuracy import compare, drawing
from vsfdatrd.backends.base import Frames
from vsfdatrd.backends.gpus import gpus
from vsfdatrd.backends.tensorrt import cuda
from vsfdatrd.backends.tensorrt.builder import FILE, REFERENCE, build, logger, smallest
from vsfdatrd.backends.tensorrt.copy_pipeline import Conveyor, Slot
from vsfdatrd.backends.tensorrt.library import CLASSIC, RTX, Library
from vsfdatrd.errors import EngineError
from vsfdatrd.system.files import keep_if_possible, read_or_none
from vsfdatrd.workers.server import Serving, converse


class TensorRt(Serving):
    """TensorRT's runtime, and the engine that is loaded on one or more GPUs, if any."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any]) -> None:
        super().__init__(write, flush)
        self._devices: list[_Device] = []

    def do_describe(self) -> dict[str, Any]:
        """What CUDA the driver supports. Raises EngineUnavailable if that is not enough."""
        cuda.require()
        return {"driver": cuda.driver_version()}

    def do_free(self, devices: list[int]) -> list[int]:
        """Bytes free on each of some GPUs; the others are left alone, since asking costs memory there."""
        cuda.require()
        return [cuda.free_memory(index) for index in devices]

    def do_refuse(self, library: str, devices: list[int], targets: list[str]) -> str | None:
        """Why the library cannot run its engines for these kinds of GPU on these GPUs; None if it can, for all it says.

        Takes an instant, and spares a build whose engine would be refused.
        """
        chosen = _library(library)
        trt = chosen.load()
        if not hasattr(trt.Runtime, "get_engine_validity"):
            return None
        blob = smallest(chosen, targets)
        for index in devices:
            cuda.use(index)
            said = logger(trt)
            try:
                _check_validity(trt, trt.Runtime(said), blob, said)
            except EngineError as error:
                return f"{chosen.module} {chosen.version} on {gpus()[index].name}: {error}"
        return None

    def do_build(
        self, library: str, graph: str, directory: str, targets: list[str], how: dict[str, Any], log: str
    ) -> dict[str, Any]:
        """Build an engine from a graph file. -> what is known of it. See `tensorrt_build.build`."""
        return build(_library(library), Path(graph), Path(directory), targets, how, Path(log))

    def do_load(
        self, library: str, directory: str, devices: list[int], streams: int, state: str | None
    ) -> dict[str, Any]:
        """Load an engine on every device. -> slots and shapes.

        state: a folder for what was compiled for a GPU, and is only compiled once.
        """
        chosen, blob = _library(library), Path(directory, FILE).read_bytes()
        self._devices = [_Device(chosen, blob, index, Path(state) if state else None) for index in devices]
        self.shapes = self._devices[0].shapes
        return {
            "slots": streams * len(devices),
            "input": self.shapes[0],
            "output": self.shapes[1],
        }

    def do_verify(self, directory: str, precision: str) -> float:
        """Run a picture through the engine on every device. -> the lowest PSNR against the reference in the directory.

        Raises EngineBuildError if one is below the bound or not finite.
        """
        reference = np.load(Path(directory, REFERENCE), allow_pickle=False).astype(np.float32)
        channels, height, width = self._devices[0].shapes[0]
        picture = drawing(height, width)[:channels]
        return min(compare(reference, device.once(picture), precision) for device in self._devices)

    def do_rate(self, runs: int) -> float:
        """Frames a second of the network alone, with nothing copied, on the first device."""
        return self._devices[0].rate(runs)

    def do_layers(self, runs: int) -> dict[str, float]:
        """Seconds a frame takes in each layer of the engine, on the first device, as TensorRT's profiler tells."""
        return self._devices[0].layers(runs)

    def prepare(self, memory: mmap.mmap, frames: list[tuple[Frames, Frames]]) -> None:
        """See `Serving.prepare`. Slots go to the devices in turn."""
        self._mapped = (memory, frames)  # the GPU knows addresses only
        try:
            cuda.use(self._devices[0].index)
            self._pinned = cuda.PinnedMemory(cuda.address_of(memory), len(memory))
        except EngineError as error:  # frames still travel, though not while the GPU computes
            print(f"fdatrd: {error}; frames travel a little slower", file=sys.stderr)
        for number, device in enumerate(self._devices):
            device.open(frames[number :: len(self._devices)])

    def submit(self, slot: int) -> None:
        """See `Serving.submit`."""
        device, number = self._place(slot)
        cuda.use(device.index)
        device.conveyor.submit(number)

    def collect(self, slot: int) -> None:
        """See `Serving.collect`."""
        device, number = self._place(slot)
        cuda.use(device.index)
        device.conveyor.wait(number)

    def _place(self, slot: int) -> tuple["_Device", int]:
        return self._devices[slot % len(self._devices)], slot // len(self._devices)


class _Device:
    """An engine on one GPU."""

    conveyor: Conveyor[cuda.Event]

    def __init__(self, library: Library, blob: bytes, index: int, state: Path | None) -> None:
        trt = library.load()
        self.index, self._library = index, library
        cuda.use(index)
        self._log = logger(trt)
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # how its bindings say that they got none
            raise EngineError(f"TensorRT does not start: {self._log.why()}") from error
        _check_validity(trt, self._runtime, blob, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise EngineError(f"TensorRT does not load the engine: {self._log.why()}")
        name = gpus()[index].name
        kept = state / f"compiled for {name}, CUDA {cuda.driver_version()}" if state else None
        before = read_or_none(kept)
        self._context, self._kept = library.context(self._engine, before)
        if self._context is None:
            raise EngineError(f"TensorRT cannot prepare the engine on {name}: {self._log.why()}")
        shape = {name: [int(side) for side in self._engine.get_tensor_shape(name)] for name in ("input", "output")}
        self.shapes = (shape["input"][1:], shape["output"][1:])
        self._stream = cuda.Stream()
        self._size = [4 * int(np.prod(side)) for side in self.shapes]
        # The network computes between these two places for good, and frames are moved there and away, in thousandths of
        # the time it takes: a CUDA graph knows addresses only, and TensorRT does not vouch for one whose context was
        # given others since.
        self._source, self._result = (cuda.DeviceMemory(size) for size in self._size)
        self._context.set_tensor_address("input", self._source.address)
        self._context.set_tensor_address("output", self._result.address)
        self._graph: cuda.Graph | None = None
        picture = np.random.default_rng(0).random(self.shapes[0], np.float32)
        plain = self.once(picture)  # compiles what is to be compiled, and does what is done at the first time only
        after = library.compiled(self._kept)
        if kept and after and after != before:
            keep_if_possible(kept, after)
        self._capture(picture, plain)

    def once(self, picture: Frames) -> Frames:
        """One frame, start to end."""
        cuda.use(self.index)
        picture, result = np.ascontiguousarray(picture, np.float32), np.empty(self.shapes[1], np.float32)
        self._stream.upload(self._source, picture.ctypes.data)
        self._run()
        self._stream.download(result.ctypes.data, self._result)
        self._stream.synchronize()
        return result

    def rate(self, runs: int) -> float:
        """Frames a second of the network between memory of its own, frames following each other at once."""
        cuda.use(self.index)
        start = 0.0
        for turn in range(runs + 5):
            if turn == 5:  # clocks have risen, caches are warm
                self._stream.synchronize()
                start = time.perf_counter()
            self._run()
        self._stream.synchronize()
        return runs / (time.perf_counter() - start)

    def layers(self, runs: int) -> dict[str, float]:
        """Seconds a frame takes in each layer. Raises EngineError if this TensorRT does not tell."""
        trt = self._library.load()
        seconds: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]  # its base is known when TensorRT is loaded
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seconds[layer_name] = seconds.get(layer_name, 0.0) + ms / 1000 / runs

        profiler = Profiler()
        self._context.profiler = profiler
        picture = drawing(*self.shapes[0][1:])[: self.shapes[0][0]]
        graph, self._graph = self._graph, None  # whose layers nobody is told of
        for _ in range(runs):
            self.once(picture)
        self._graph = graph
        if not seconds:
            raise EngineError("this TensorRT does not tell how long its layers take")
        return seconds

    def open(self, frames: list[tuple[Frames, Frames]]) -> None:
        """Make slots for these frames of shared memory."""
        cuda.use(self.index)
        slots = [self._slot(source, result) for source, result in frames]

        def launch(number: int) -> None:
            slot = slots[number]
            self._stream.copy(self._source, slot.device_source)
            self._run()
            self._stream.copy(slot.device_result, self._result)

        self.conveyor = Conveyor(cuda.Stream(), self._stream, cuda.Stream(), slots, launch)

    def _slot(self, source: Frames, result: Frames) -> Slot[cuda.Event]:
        there, back = (cuda.DeviceMemory(size) for size in self._size)
        events = (cuda.Event(), cuda.Event(), cuda.Event())
        return Slot(source.ctypes.data, result.ctypes.data, there, back, *events)

    def _run(self) -> None:
        """Start the network."""
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise EngineError(f"TensorRT could not start the network: {self._log.why()}")

    def _capture(self, picture: Frames, plain: Frames) -> None:
        """Have the network start as a graph from now on, some hundred launches in one, if that gives the same.

        picture, plain: an input, and what became of it without a graph.
        """
        try:
            if not self._library.capturable(self._context, int(self._stream.handle)):
                raise EngineError("TensorRT says that this network cannot be one")
            with self._stream.captured() as capture:
                self._enqueue()
            self._graph = capture.graph
            # Room for sums in another order; not for a picture of another frame.
            if not np.allclose(self.once(picture), plain, atol=0.01, equal_nan=True):
                raise EngineError("it computes something else")
        except EngineError as error:
            graph, self._graph = self._graph, None
            if graph is not None:
                graph.close()
            print(f"fdatrd: without a CUDA graph: {error}", file=sys.stderr)


def _library(name: str) -> Library:
    return {RTX.module: RTX, CLASSIC.module: CLASSIC}[name]


def _check_validity(trt: Any, runtime: Any, blob: bytes, log: Any) -> None:
    """Ask before loading, where the library can say more than yes or no."""
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(blob)
    if validity == trt.EngineValidity.INVALID:
        kinds = trt.EngineInvalidityDiagnostics
        why = [
            kind.name.lower().replace("_", " ") for kind in kinds.__members__.values() if int(kind) & int(diagnostics)
        ]
        raise EngineError(f"the engine cannot run on this GPU: {', '.join(why) or log.why()}")


if __name__ == "__main__":
    converse(TensorRt)
