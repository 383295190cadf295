"""What worker processes with networks on NVIDIA GPUs share: slots, streams, CUDA graphs, verification."""

import json
import mmap
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from vsfdatrd.backends.accuracy import check_banding, compare, count_levels, drawing, sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpu import concurrency, cuda
from vsfdatrd.backends.gpu.copy_pipeline import Slot, TransferPipeline
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer, log_line

MOST_OF_CONTEXT = 600 << 20
"""Maximum size of a CUDA context in bytes.

If more memory than that disappears while it is created, the rest was taken by another process.
"""

NOTHING_PINNED = "copies wait for each other and for the network, which costs speed"

type StagingBuffers = tuple[cuda.HostMemory, cuda.HostMemory]
"""Pinned buffers of a slot's input and output."""


class GpuServer[N: "GpuNetwork"](WorkerServer):
    """Request handler with networks on one or more GPUs, if any are loaded."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any]) -> None:
        super().__init__(write, flush)
        self._devices: list[N] = []
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

    def do_rate(self, runs: int) -> float:
        """Answer the request ``rate``: measure the frames per second on the first GPU, without copies.

        Args:
            runs: Number of frames.

        Returns:
            Frames per second.
        """
        return self._devices[0].rate(runs)

    def prepare(self, memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.prepare`. Slots are distributed over the GPUs in turn."""
        self._mapped = (memory, frames)  # keep them alive: the GPU only has their addresses
        cuda.set_device(self._devices[0].index)
        staging = None
        try:
            self._pinned = cuda.PinnedMemory(cuda.address_of(memory), len(memory))
        except EngineError as error:
            staging = _allocate_staging(frames)
            how = "frames go through pinned buffers, which takes a copy more" if staging else NOTHING_PINNED
            log_line(f"{error}; {how}")
        for number, device in enumerate(self._devices):
            own = slice(number, None, len(self._devices))
            device.open(frames[own], staging and staging[own])

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

    def choose_contexts(
        self,
        devices: list[int],
        streams: int | None,
        contexts: int | None = 1,
        rates: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Create further execution contexts, after there is a network on every GPU, and choose the number of slots.

        Args:
            devices: Numbers of the GPUs.
            streams: Frames in flight on each GPU; None for as many as keep it busy.
            contexts: Execution contexts on each GPU, as far as memory allows; frames are distributed over them in
                turn. None to measure whether two are faster than one.
            rates: Frames per second of one context and of two, if they have been measured before.

        Returns:
            The answer to the request ``load``: number of slots, (C, H, W) of input and output, number of contexts, and
            if these were measured, the frames per second of one and of two.

        Raises:
            EngineError: A GPU fails while it is measured.
        """
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
        if streams is None:
            streams = self._choose_slots(devices, count, dict(enumerate(measured or rates or (), 1)).get(count))
        return {
            "slots": streams * len(devices),
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

    def _choose_slots(self, devices: list[int], contexts: int, rate: float | None) -> int:
        """Choose the number of frames in flight that keeps each GPU busy, as far as memory allows.

        Args:
            devices: Numbers of the GPUs.
            contexts: Networks on each GPU.
            rate: Frames per second of all networks on a GPU together; None to measure those on the first one.
        """
        cuda.set_device(devices[0])
        rate = rate or concurrency.measure_rate(self._devices[:: len(devices)])
        frame_bytes = 4 * sum(int(np.prod(shape)) for shape in self._devices[0].shapes)
        slots = concurrency.needed_slots(contexts, rate, frame_bytes)
        enough = min(map(cuda.free_memory, devices)) > 2 * slots * frame_bytes
        return slots if enough else slots_for(contexts)

    def _locate(self, slot: int) -> tuple[N, int]:
        return self._devices[slot % len(self._devices)], slot // len(self._devices)


class GpuNetwork:
    """A network on one GPU that computes one frame at a time, between two fixed buffers.

    Frames are copied to and from these buffers on the GPU, which takes about a thousandth of the network's time. A CUDA
    graph contains fixed addresses.
    """

    pipeline: TransferPipeline[cuda.Event]
    shapes: tuple[list[int], list[int]]
    """(C, H, W) of input and output."""

    def __init__(self, index: int) -> None:
        """Make a GPU current.

        Args:
            index: Number of the GPU.
        """
        self.index = index
        self._held = ExitStack()
        self._graph: cuda.Graph | None = None
        cuda.set_device(index)

    def _allocate(self) -> None:
        """Create the stream and the two buffers, for frames of `shapes`."""
        self._size = [4 * int(np.prod(shape)) for shape in self.shapes]
        self._stream = self._held.enter_context(cuda.Stream())
        self._source, self._result = (self._held.enter_context(cuda.DeviceMemory(size)) for size in self._size)

    def _start(self) -> None:
        """Run one frame, and capture the network as a CUDA graph."""
        picture = np.random.default_rng(0).random(self.shapes[0], np.float32)
        plain = self.run_once(picture)  # triggers just-in-time compilation and one-time initialization
        self._capture(picture, plain)

    @property
    def context_bytes(self) -> int:
        """GPU memory of another execution context without the buffers of frames. Overridden by each backend."""
        raise NotImplementedError

    def has_room_for_another(self, slots: int) -> bool:
        """Return whether the GPU has memory for one more context and the slots, and as much again for other programs.

        Every context has buffers of its own, two of them for frames.

        Args:
            slots: Frames in flight, whose buffers are not allocated yet.
        """
        needed = self.context_bytes + (1 + slots) * sum(self._size)
        return cuda.free_memory(self.index) > 2 * needed

    def another_context(self) -> Self:
        """Create another execution context of the same network on the same GPU. Overridden by each backend.

        Raises:
            EngineError: It cannot be created, for example because memory is short after all.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free what belongs to this network alone. It must not be computing."""
        cuda.set_device(self.index)
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()
        self._held.close()

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

    def open(self, frames: list[tuple[FramePlanes, FramePlanes]], staging: list[StagingBuffers] | None) -> None:
        """Create the slots.

        Args:
            frames: Input and output of each slot in shared memory.
            staging: Pinned buffers of each slot, through which its frames go; None for direct copies.
        """
        cuda.set_device(self.index)
        self._frames, self._staging = frames, staging
        slots = [self._create_slot(number) for number in range(len(frames))]

        def launch(number: int) -> None:
            slot = slots[number]
            self._stream.copy(self._source, slot.device_source)
            self.run()
            self._stream.copy(slot.device_result, self._result)

        self.pipeline = TransferPipeline(cuda.Stream(), self._stream, cuda.Stream(), slots, launch)

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
        """Queue the network on its stream, without a CUDA graph. Overridden by each backend.

        Raises:
            EngineError: It cannot be started.
        """
        raise NotImplementedError

    def _capture(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Capture the network as a CUDA graph, which replaces hundreds of launches by one, if it gives the same
        output.

        Args:
            picture: An input.
            expected: The output for it without a CUDA graph.
        """
        try:
            self._make_graph(picture, expected)
        except EngineError as error:
            graph, self._graph = self._graph, None
            if graph is not None:
                graph.close()
            log_line(f"without a CUDA graph: {error}")

    def _make_graph(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Capture the network; see `_capture`.

        Raises:
            EngineError: It cannot be captured, or the output differs.
        """
        with self._stream.captured() as capture:
            self._enqueue()
        self._graph = capture.graph
        self._check_output(picture, expected)

    def _check_output(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Compare the output with the expected output, computed without a CUDA graph.

        Raises:
            EngineError: They differ.
        """
        # Tolerates a different order of summation, but not the output for another frame.
        if not np.allclose(self.run_once(picture), expected, atol=0.01, equal_nan=True):
            raise EngineError("it computes something else")


def verify(networks: Sequence[GpuNetwork], reference: Path, levels: Path, precision: str) -> float:
    """Run `accuracy.drawing` and `accuracy.sky` on networks and compare the outputs with fp32.

    Args:
        networks: The networks, of one size.
        reference: File with the fp32 output for the drawing, (C, H, W).
        levels: File with `accuracy.count_levels` of the sky in fp32.
        precision: Precision of the networks, for messages.

    Returns:
        The lowest PSNR in dB.

    Raises:
        PrecisionUnfit: A PSNR is below the limit, values are not finite, or the sky has bands.
    """
    expected = np.load(reference, allow_pickle=False).astype(np.float32)
    count = int(json.loads(levels.read_bytes()))
    channels, height, width = networks[0].shapes[0]
    picture, smooth = drawing(height, width)[:channels], sky(height, width)[:channels]
    result = []
    for network in networks:
        result.append(compare(expected, network.run_once(picture), precision))
        check_banding(count, count_levels(network.run_once(smooth)), precision)
    return min(result)


def _allocate_staging(frames: list[tuple[FramePlanes, FramePlanes]]) -> list[StagingBuffers] | None:
    """Allocate pinned buffers for the input and output of each slot; None if they cannot be had for all slots."""
    with ExitStack() as held:
        try:
            staging = [
                (held.enter_context(cuda.HostMemory(source.nbytes)), held.enter_context(cuda.HostMemory(result.nbytes)))
                for source, result in frames
            ]
        except EngineError:
            return None
        held.pop_all()  # they live as long as the process
        return staging


def slots_for(contexts: int) -> int:
    """Return the frames in flight on a GPU with little memory: those computed, one being uploaded, one downloaded.

    Args:
        contexts: Execution contexts on the GPU.
    """
    return contexts + 2
