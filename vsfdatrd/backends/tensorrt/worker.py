"""Worker process in which TensorRT and CUDA run; `backend.py` is the client. Run as a module.

In a separate process it cannot clash with another plugin's TensorRT, nothing is printed into the video, all GPU
memory is free as soon as a script releases its engine, and a crash of the driver becomes the error of a frame.
"""

import copy
import json
import mmap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from vsfdatrd.backends.accuracy import check_banding, compare, count_levels, drawing, sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpus import gpus
from vsfdatrd.backends.tensorrt import concurrency, cuda
from vsfdatrd.backends.tensorrt.builder import FILE, REFERENCE, SKY, build, build_empty, logger
from vsfdatrd.backends.tensorrt.copy_pipeline import Slot, TransferPipeline
from vsfdatrd.backends.tensorrt.library import CLASSIC, RTX, Library, log_line
from vsfdatrd.errors import EngineError
from vsfdatrd.system.files import keep_if_possible, read_or_none
from vsfdatrd.workers.server import WorkerServer, serve_forever

MOST_OF_CONTEXT = 600 << 20
"""Maximum size of a CUDA context in bytes.

If more memory than that disappears while it is created, the rest was taken by another process.
"""


class TensorRt(WorkerServer):
    """Request handler with TensorRT's runtime and the engine loaded on one or more GPUs, if any."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any]) -> None:
        super().__init__(write, flush)
        self._devices: list[_Device] = []
        self._own: dict[int, int] = {}
        """Bytes of each GPU that this process allocated by its first memory query (its CUDA context)."""

    def do_describe(self) -> dict[str, Any]:
        """Return the driver's version.

        Raises:
            EngineUnavailable: CUDA cannot use the GPUs, for example because the driver is too old.
        """
        cuda.require_driver()
        return {"driver": cuda.driver()}

    def do_free(self, devices: list[int]) -> list[int]:
        """Return the free memory of GPUs, including what this process uses there before it has an engine.

        Other GPUs are not queried, since a query allocates memory on the GPU.

        Args:
            devices: Numbers of the GPUs.

        Returns:
            Free bytes of each.

        Raises:
            EngineUnavailable: CUDA cannot use the GPUs.
        """
        cuda.require_driver()
        for index in devices:
            if index not in self._own:
                before = cuda.free_memory_without_context(index)
                self._own[index] = min(max(0, (before or 0) - cuda.free_memory(index)), MOST_OF_CONTEXT)
        return [cuda.free_memory(index) + self._own[index] for index in devices]

    def do_refuse(self, library: str, devices: list[int], targets: list[str]) -> str | None:
        """Answer the request ``refuse``: tell before a build whether TensorRT would refuse to load the engine.

        Args:
            library: Module name of the TensorRT to use.
            devices: Numbers of the GPUs on which the engine would run.
            targets: Kinds of GPU for which it would be built, such as ``sm89``.

        Returns:
            Why the library cannot run the engine; None if it can, or cannot be asked.
        """
        chosen = _library(library)
        trt = chosen.load()
        if not hasattr(trt.Runtime, "get_engine_validity"):
            return None
        blob = build_empty(chosen, targets)
        for index in devices:
            cuda.set_device(index)
            messages = logger(trt)
            try:
                _check_validity(trt, trt.Runtime(messages), blob, messages)
            except EngineError as error:
                return f"{chosen.module} {chosen.version} on {gpus()[index].name}: {error}"
        return None

    def do_build(
        self, library: str, graph: str, directory: str, targets: list[str], how: dict[str, Any], log: str
    ) -> dict[str, Any]:
        """Build an engine from a graph file; see `builder.build` for arguments and result."""
        return build(_library(library), Path(graph), Path(directory), targets, how, Path(log))

    def do_load(
        self,
        library: str,
        directory: str,
        devices: list[int],
        streams: int | None,
        state: str | None,
        contexts: int | None = 1,
    ) -> dict[str, Any]:
        """Load an engine on every GPU.

        Args:
            library: Module name of the TensorRT to use.
            directory: The engine's files.
            devices: Numbers of the GPUs.
            streams: Frames in flight on each GPU; None for `slots_for` the contexts.
            state: Folder in which kernels compiled for a GPU are stored, so that they are compiled only once; None
                for none.
            contexts: Execution contexts on each GPU, as far as memory allows; frames are distributed over them in
                turn. None to measure whether two are faster than one.

        Returns:
            Number of slots, (C, H, W) of input and output, number of contexts, and if these were measured, the frames
            per second of one and of two.

        Raises:
            EngineError: TensorRT does not load the engine.
        """
        chosen, blob = _library(library), Path(directory, FILE).read_bytes()
        self._devices = [_Device(chosen, blob, index, Path(state) if state else None) for index in devices]
        measured = None
        if contexts is None:
            self._add_contexts(2, streams, quiet=True)
            if len(self._devices) == 2 * len(devices):
                cuda.set_device(devices[0])
                measured = concurrency.measure(self._devices[:: len(devices)])  # both on the first GPU; all are equal
                if measured[1] < concurrency.GAIN * measured[0]:
                    self._remove_contexts(len(devices))
        else:
            self._add_contexts(min(contexts, streams or contexts), streams)
        self.shapes = self._devices[0].shapes
        count = max(sum(device.index == index for device in self._devices) for index in devices)
        return {
            "slots": (streams or slots_for(count)) * len(devices),
            "input": self.shapes[0],
            "output": self.shapes[1],
            "contexts": count,
            "measured": measured,
        }

    def _add_contexts(self, count: int, streams: int | None, quiet: bool = False) -> None:
        """Create further execution contexts on every GPU whose memory allows it.

        Args:
            count: Contexts on each GPU.
            streams: Frames in flight on each GPU; None for the default.
            quiet: Do not log that memory is short.
        """
        for first in self._devices * (count - 1):
            if not first.has_room_for_another(streams or slots_for(count)):
                if not quiet:
                    log_line(f"GPU {first.index} has no memory for one more network at the same time")
                continue
            try:
                self._devices.append(first.another_context())
            except EngineError as error:
                log_line(f"GPU {first.index} computes one network less at the same time: {error}")

    def _remove_contexts(self, count: int) -> None:
        """Remove all execution contexts but the first `count`, and free their memory."""
        while len(self._devices) > count:
            self._devices.pop().close()

    def do_verify(self, directory: str, precision: str) -> float:
        """Run `accuracy.drawing` and `accuracy.sky` on every GPU and compare the outputs with the fp32 reference.

        Args:
            directory: The engine's files, including the reference.
            precision: Precision of the engine, for messages.

        Returns:
            The lowest PSNR in dB.

        Raises:
            PrecisionUnfit: A PSNR is below the limit, values are not finite, or the sky has bands.
        """
        reference = np.load(Path(directory, REFERENCE), allow_pickle=False).astype(np.float32)
        expected = int(json.loads(Path(directory, SKY).read_bytes()))
        channels, height, width = self._devices[0].shapes[0]
        picture, smooth = drawing(height, width)[:channels], sky(height, width)[:channels]
        result = []
        for device in self._devices:
            result.append(compare(reference, device.run_once(picture), precision))
            check_banding(expected, count_levels(device.run_once(smooth)), precision)
        return min(result)

    def do_rate(self, runs: int) -> float:
        """Answer the request ``rate``: measure the frames per second on the first GPU, without copies.

        Args:
            runs: Number of frames.

        Returns:
            Frames per second.
        """
        return self._devices[0].rate(runs)

    def do_layers(self, runs: int) -> dict[str, float]:
        """Answer the request ``layers``: measure the time of each layer on the first GPU with TensorRT's profiler.

        Args:
            runs: Number of frames.

        Returns:
            Seconds per frame by layer name.
        """
        return self._devices[0].layers(runs)

    def prepare(self, memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.prepare`. Slots are distributed over the GPUs in turn."""
        self._mapped = (memory, frames)  # keep them alive: the GPU only has their addresses
        pinned = True
        try:
            cuda.set_device(self._devices[0].index)
            self._pinned = cuda.PinnedMemory(cuda.address_of(memory), len(memory))
        except EngineError as error:
            pinned = False
            log_line(f"{error}; frames go through pinned buffers, which takes a copy more")
        for number, device in enumerate(self._devices):
            device.open(frames[number :: len(self._devices)], pinned)

    def submit(self, slot: int) -> None:
        """See `WorkerServer.submit`."""
        device, number = self._locate(slot)
        cuda.set_device(device.index)
        device.submit(number)

    def collect(self, slot: int) -> None:
        """See `WorkerServer.collect`."""
        device, number = self._locate(slot)
        cuda.set_device(device.index)
        device.wait(number)

    def _locate(self, slot: int) -> tuple["_Device", int]:
        return self._devices[slot % len(self._devices)], slot // len(self._devices)


class _Device:
    """An engine on one GPU, and an execution context that computes one frame at a time."""

    pipeline: TransferPipeline[cuda.Event]

    def __init__(self, library: Library, blob: bytes, index: int, state: Path | None) -> None:
        trt = library.load()
        self.index, self._library = index, library
        cuda.set_device(index)
        self._log = logger(trt)
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # the bindings raise it if creating the object failed
            raise EngineError(f"TensorRT does not start: {self._log.why()}") from error
        _check_validity(trt, self._runtime, blob, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise EngineError(f"TensorRT does not load the engine: {self._log.why()}")
        name = gpus()[index].name
        compiled = state / f"compiled for {name}, driver {cuda.driver()}" if state else None
        before = read_or_none(compiled)
        shape = {name: [int(side) for side in self._engine.get_tensor_shape(name)] for name in ("input", "output")}
        self.shapes = (shape["input"][1:], shape["output"][1:])
        self._size = [4 * int(np.prod(side)) for side in self.shapes]
        self._begin(before)
        after = library.runtime_cache_bytes(self._owners)
        if compiled and after and after != before:
            keep_if_possible(compiled, after)

    def _begin(self, compiled: bytes | None) -> None:
        """Create the execution context and everything that belongs to it alone, and run one frame."""
        self._held = ExitStack()
        self._stream = self._held.enter_context(cuda.Stream())
        # The network always reads and writes these two buffers, and frames are copied to and from them, which takes
        # about a thousandth of its time. A CUDA graph contains fixed addresses, and TensorRT does not guarantee that it
        # stays valid if the context's addresses are changed.
        self._source, self._result = (self._held.enter_context(cuda.DeviceMemory(size)) for size in self._size)
        self._context, self._owners = self._create_context(compiled)
        self._graph: cuda.Graph | None = None
        picture = np.random.default_rng(0).random(self.shapes[0], np.float32)
        plain = self.run_once(picture)  # triggers just-in-time compilation and one-time initialization
        self._capture(picture, plain)

    def has_room_for_another(self, slots: int) -> bool:
        """Return whether the GPU has memory for one more context and the slots, and as much again for other programs.

        Every context has activations of its own, which the library allocates with it, and two buffers for frames.

        Args:
            slots: Frames in flight, whose buffers are not allocated yet.
        """
        needed = int(self._engine.device_memory_size_v2) + (1 + slots) * sum(self._size)
        return cuda.free_memory(self.index) > 2 * needed

    def another_context(self) -> "_Device":
        """Create another execution context of the same engine.

        Raises:
            EngineError: It cannot be created, for example because memory is short after all.
        """
        cuda.set_device(self.index)
        other = copy.copy(self)
        other._context = other._owners = other._graph = None
        other._held = ExitStack()
        try:
            other._begin(self._library.runtime_cache_bytes(self._owners))
        except EngineError:
            other.close()
            raise
        return other

    def close(self) -> None:
        """Free what belongs to this execution context alone. The context must not be computing."""
        cuda.set_device(self.index)
        if self._graph is not None:
            self._graph.close()
        self._graph = self._context = self._owners = None  # TensorRT frees a context with its last reference
        self._held.close()

    def _create_context(self, cached: bytes | None, own_graph: bool = False) -> tuple[Any, Any]:
        """Create an execution context that reads and writes the two buffers.

        Returns:
            The context, and objects that must live as long.
        """
        context, owners = self._library.context(self._engine, cached, own_graph)
        if context is None:
            name = gpus()[self.index].name
            raise EngineError(f"TensorRT cannot prepare the engine on {name}: {self._log.why()}")
        for name, memory in (("input", self._source), ("output", self._result)):
            if not context.set_tensor_address(name, memory.address):
                raise EngineError(f"TensorRT does not take the memory of its {name}: {self._log.why()}")
        return context, owners

    def run_once(self, picture: FramePlanes) -> FramePlanes:
        """Run one frame and wait for it.

        Args:
            picture: (C, H, W).

        Returns:
            (C, H·scale, W·scale) float32.
        """
        cuda.set_device(self.index)
        picture, result = np.ascontiguousarray(picture, np.float32), np.empty(self.shapes[1], np.float32)
        self._stream.upload(self._source, picture.ctypes.data)
        self.run()
        self._stream.download(result.ctypes.data, self._result)
        self._stream.synchronize()
        return result

    def rate(self, runs: int) -> float:
        """Measure the speed of the network on fixed buffers, with frames queued back to back.

        Args:
            runs: Number of frames.

        Returns:
            Frames per second.
        """
        cuda.set_device(self.index)
        start = 0.0
        for turn in range(runs + 5):
            if turn == 5:  # by now clocks have risen and caches are warm
                self.synchronize()
                start = time.perf_counter()
            self.run()
        self.synchronize()
        return runs / (time.perf_counter() - start)

    def layers(self, runs: int) -> dict[str, float]:
        """Measure the time of each layer.

        Args:
            runs: Number of frames.

        Returns:
            Seconds per frame by layer name.

        Raises:
            EngineError: This TensorRT does not report layer times.
        """
        trt = self._library.load()
        seconds: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]  # its base is known when TensorRT is loaded
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seconds[layer_name] = seconds.get(layer_name, 0.0) + ms / 1000 / runs

        # In a separate context: in some versions a profiler cannot be removed and would measure all later frames.
        usual, graph = (self._context, self._owners), self._graph
        self._context, self._owners = self._create_context(None)
        self._graph = None  # layers inside a CUDA graph are not reported
        try:
            profiler = Profiler()
            self._context.profiler = profiler
            picture = drawing(*self.shapes[0][1:])[: self.shapes[0][0]]
            for _ in range(runs):
                self.run_once(picture)
        finally:
            (self._context, self._owners), self._graph = usual, graph
        if not seconds:
            raise EngineError("this TensorRT does not tell how long its layers take")
        return seconds

    def open(self, frames: list[tuple[FramePlanes, FramePlanes]], pinned: bool) -> None:
        """Create the slots.

        Args:
            frames: Input and output of each slot in shared memory.
            pinned: Whether this memory is pinned, so that the GPU can access it directly.
        """
        cuda.set_device(self.index)
        self._frames = frames
        self._staging = None if pinned else self._allocate_staging(len(frames))
        slots = [self._create_slot(number) for number in range(len(frames))]

        def launch(number: int) -> None:
            slot = slots[number]
            self._stream.copy(self._source, slot.device_source)
            self.run()
            self._stream.copy(slot.device_result, self._result)

        self.pipeline = TransferPipeline(cuda.Stream(), self._stream, cuda.Stream(), slots, launch)

    def _allocate_staging(self, count: int) -> list[tuple[cuda.HostMemory, cuda.HostMemory]] | None:
        """Allocate pinned staging buffers for the inputs and outputs of `count` slots; None if no memory can be
        pinned.
        """
        try:
            return [(cuda.HostMemory(self._size[0]), cuda.HostMemory(self._size[1])) for _ in range(count)]
        except EngineError as error:
            log_line(f"{error}; copies wait for each other and for the network, which costs speed")
            return None

    def submit(self, number: int) -> None:
        """Queue a slot's frame.

        Args:
            number: Number of the slot on this device.
        """
        if self._staging:
            self._staging[number][0].read(self._frames[number][0].ctypes.data)
        self.pipeline.submit(number)

    def wait(self, number: int) -> None:
        """Wait for a slot's output.

        Args:
            number: Number of the slot on this device.
        """
        self.pipeline.wait(number)
        if self._staging:
            self._staging[number][1].write(self._frames[number][1].ctypes.data)

    def _create_slot(self, number: int) -> Slot[cuda.Event]:
        if self._staging:
            source, result = (memory.address for memory in self._staging[number])
        else:
            source, result = (frame.ctypes.data for frame in self._frames[number])
        there, back = (cuda.DeviceMemory(size) for size in self._size)
        events = (cuda.Event(), cuda.Event(), cuda.Event())
        return Slot(source, result, there, back, *events)

    def run(self) -> None:
        """Queue the network on its stream, between its fixed buffers."""
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)

    def synchronize(self) -> None:
        """Wait until everything queued on the network's stream is done.

        Raises:
            EngineError: A run failed.
        """
        self._stream.synchronize()

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise EngineError(f"TensorRT could not start the network: {self._log.why()}")

    def _capture(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Capture the network as a CUDA graph, which replaces hundreds of launches by one, if it gives the same
        output.

        Args:
            picture: An input.
            expected: The output for it without a CUDA graph.
        """
        try:
            if not self._library.can_capture(self._context, int(self._stream.handle)):
                self._let_library_capture(picture, expected)
                return
            with self._stream.captured() as capture:
                self._enqueue()
            self._graph = capture.graph
            self._check_output(picture, expected)
        except EngineError as error:
            graph, self._graph = self._graph, None
            if graph is not None:
                graph.close()
            log_line(f"without a CUDA graph: {error}")

    def _let_library_capture(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Let TensorRT make the graph, which can leave out kernels that cannot be part of one.

        Raises:
            EngineError: It cannot, or the output differs. The previous context is restored.
        """
        if not self._library.has_own_graph:
            raise EngineError("TensorRT says that this network cannot be one")
        plainly = self._context, self._owners
        try:
            self._context, self._owners = self._create_context(
                self._library.runtime_cache_bytes(self._owners), own_graph=True
            )
            self.run_once(picture)  # TensorRT captures the graph in the first run
            self._check_output(picture, expected)
        except EngineError:
            self._context, self._owners = plainly
            raise

    def _check_output(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Compare the output with the expected output, computed without a CUDA graph.

        Raises:
            EngineError: They differ.
        """
        # Tolerates a different order of summation, but not the output for another frame.
        if not np.allclose(self.run_once(picture), expected, atol=0.01, equal_nan=True):
            raise EngineError("it computes something else")


def slots_for(contexts: int) -> int:
    """Return the frames in flight on a GPU: those computed, one being uploaded and one downloaded.

    Args:
        contexts: Execution contexts on the GPU.
    """
    return contexts + 2


def _library(name: str) -> Library:
    return {RTX.module: RTX, CLASSIC.module: CLASSIC}[name]


def _check_validity(trt: Any, runtime: Any, blob: bytes, log: Any) -> None:
    """Ask the library why it would refuse an engine, if it can tell.

    Raises:
        EngineError: The engine cannot run on the current GPU.
    """
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
    serve_forever(TensorRt)
