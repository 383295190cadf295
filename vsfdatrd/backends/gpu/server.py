"""Base class of the worker processes that run networks on NVIDIA GPUs: memory, slots and verification."""

import json
import mmap
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vsfdatrd.backends.accuracy import check_banding, check_psnr, count_levels, draw_line_art, draw_sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpu import concurrency, cuda
from vsfdatrd.backends.gpu.execution_context import ExecutionContext, StagingBuffers
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer, log_line

MAX_CONTEXT_BYTES = 600 << 20
"""Maximum size of a CUDA context in bytes.

If more memory than that disappears while it is created, the rest was taken by another process.
"""
NOT_PINNED_WARNING = "copies wait for each other and for the network, which costs speed"


class GpuServer[C: ExecutionContext](WorkerServer):
    """Request handler with execution contexts on one or more GPUs, if an engine is loaded."""

    def __init__(self, replies: TextIO) -> None:
        super().__init__(replies)
        self._contexts: list[C] = []
        """One or more contexts on each GPU. Slots are distributed over all of them in turn."""
        self._own: dict[int, int] = {}
        """Bytes of each GPU that this process allocated by its first memory query (its CUDA context)."""

    def do_describe(self) -> dict[str, Any]:
        """Return the driver's version.

        Raises:
            EngineUnavailable: CUDA cannot use the GPUs, for example because the driver is too old.
        """
        cuda.require_driver()
        return {"driver": cuda.describe_driver()}

    def do_free(self, devices: list[int]) -> list[int]:
        """Return the free bytes of each GPU, including those that this process uses there before it has an engine.

        Only these GPUs are queried, because a query allocates memory on the GPU.

        Args:
            devices: Numbers of the GPUs.

        Raises:
            EngineUnavailable: CUDA cannot use the GPUs.
        """
        cuda.require_driver()
        for index in devices:
            if index not in self._own:
                free_before = cuda.free_memory_without_context(index)
                self._own[index] = min(max(0, (free_before or 0) - cuda.free_memory(index)), MAX_CONTEXT_BYTES)
        return [cuda.free_memory(index) + self._own[index] for index in devices]

    def do_rate(self, runs: int) -> float:
        """Return the frames per second of the first GPU, measured without copies.

        Args:
            runs: Number of frames.
        """
        first = self._contexts_on(self._contexts[0].index)[:1]
        concurrency.run_in_turns(first, 5)  # raises the clocks and warms the caches
        return concurrency.run_in_turns(first, runs)

    def create_slots(self, shared_memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.create_slots`."""
        self._mapped = (shared_memory, frames)  # keeps them alive: the GPU only has their addresses
        cuda.set_device(self._contexts[0].index)
        staging = None
        try:
            self._pinned = cuda.PinnedMemory(cuda.host_address(shared_memory), len(shared_memory))
        except EngineError as error:
            staging = _allocate_staging(frames)
            remedy = "frames go through pinned buffers, which takes a copy more" if staging else NOT_PINNED_WARNING
            log_line(f"{error}; {remedy}")
        for number, context in enumerate(self._contexts):
            own_slots = slice(number, None, len(self._contexts))
            context.open(frames[own_slots], staging and staging[own_slots])

    def submit(self, slot: int) -> None:
        """See `WorkerServer.submit`."""
        context, number = self._locate(slot)
        context.submit(number)

    def collect(self, slot: int) -> None:
        """See `WorkerServer.collect`."""
        context, number = self._locate(slot)
        context.wait(number)

    def choose_contexts(
        self,
        devices: list[int],
        streams: int | None,
        contexts: int | None = 1,
        rates: Sequence[float] | None = None,
    ) -> dict[str, Any]:
        """Create more execution contexts and choose the number of slots. Every GPU already has one context.

        Args:
            devices: Numbers of the GPUs.
            streams: Frames in flight on each GPU; None for as many as keep it busy.
            contexts: Requested execution contexts on each GPU; fewer are created if memory is short. None to measure
                whether two are faster than one.
            rates: Frames per second of one context and of two, if they have been measured before.

        Returns:
            The answer to the request ``load``: number of slots, (C, H, W) of input and output, number of contexts on a
            GPU, and the frames per second of one and of two contexts (None if they were not measured).

        Raises:
            EngineError: A GPU fails during the measurement.
        """
        measured = None
        if contexts is None:
            self._add_contexts(2, streams, quiet=True)
            if len(self._contexts) == 2 * len(devices):
                measured = concurrency.measure_gain(self._contexts_on(devices[0]))  # the GPUs are equal
            if measured is None or measured[1] < concurrency.MIN_GAIN * measured[0]:
                self._remove_contexts(len(devices))
        else:
            self._add_contexts(min(contexts, streams or contexts), streams)
        self.shapes = self._contexts[0].shapes
        count = max(len(self._contexts_on(index)) for index in devices)
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
        """Create more execution contexts, up to `count` on every GPU that has the memory.

        With `quiet`, a lack of memory is not logged.
        """
        for first in self._contexts * (count - 1):
            if not first.has_room_for_another(streams or fewest_slots(count)):
                if not quiet:
                    log_line(f"GPU {first.index} has no memory for one more network at the same time")
                continue
            try:
                self._contexts.append(first.another_context())
            except EngineError as error:
                log_line(f"GPU {first.index} computes one network less at the same time: {error}")

    def _remove_contexts(self, count: int) -> None:
        """Remove all execution contexts but the first `count`, and free their memory."""
        while len(self._contexts) > count:
            self._contexts.pop().close()

    def _choose_slots(self, devices: list[int], contexts: int, rate: float | None) -> int:
        """Choose the number of frames in flight that keeps each GPU busy, as far as memory allows.

        Args:
            devices: Numbers of the GPUs.
            contexts: Execution contexts on each GPU.
            rate: Frames per second of all contexts on a GPU together; None to measure it.
        """
        rate = rate or concurrency.measure_rate(self._contexts_on(devices[0]))
        frame_bytes = 4 * sum(int(np.prod(shape)) for shape in self._contexts[0].shapes)
        slots = concurrency.needed_slots(contexts, rate, frame_bytes)
        has_memory = min(map(cuda.free_memory, devices)) > 2 * slots * frame_bytes
        return slots if has_memory else fewest_slots(contexts)

    def _contexts_on(self, index: int) -> list[C]:
        """Make a GPU current, and return the execution contexts on it."""
        cuda.set_device(index)
        return [context for context in self._contexts if context.index == index]

    def _locate(self, slot: int) -> tuple[C, int]:
        """Make a slot's GPU current, and return its execution context and the slot's number in that context."""
        number, position = divmod(slot, len(self._contexts))
        cuda.set_device(self._contexts[position].index)
        return self._contexts[position], number


def verify_contexts(contexts: Sequence[ExecutionContext], reference: Path, levels: Path, precision: str) -> float:
    """Run `accuracy.draw_line_art` and `accuracy.draw_sky` in execution contexts and compare the outputs with fp32.

    Args:
        contexts: The execution contexts, all for frames of the same size.
        reference: File with the fp32 output for the drawing, (C, H, W).
        levels: File with `accuracy.count_levels` of the sky in fp32.
        precision: Precision of the contexts, for messages.

    Returns:
        The lowest PSNR in dB.

    Raises:
        PrecisionUnfit: A PSNR is below the limit, values are not finite, or the sky has bands.
    """
    expected = np.load(reference, allow_pickle=False).astype(np.float32)
    count = int(json.loads(levels.read_bytes()))
    channels, height, width = contexts[0].shapes[0]
    picture, smooth = draw_line_art(height, width)[:channels], draw_sky(height, width)[:channels]
    result = []
    for context in contexts:
        result.append(check_psnr(expected, context.run_once(picture), precision))
        check_banding(count, count_levels(context.run_once(smooth)), precision)
    return min(result)


def _allocate_staging(frames: list[tuple[FramePlanes, FramePlanes]]) -> list[StagingBuffers] | None:
    """Allocate pinned buffers for the input and output of each slot; None if there is not enough memory."""
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


def fewest_slots(contexts: int) -> int:
    """Return the number of frames in flight on a GPU with little memory.

    One frame is computed in each context, one is uploaded and one is downloaded.

    Args:
        contexts: Execution contexts on the GPU.
    """
    return contexts + 2
