"""Worker process with networks on NVIDIA GPUs, the same for every backend: memory, slots, verification."""

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
from vsfdatrd.backends.gpu.network import GpuNetwork, StagingBuffers
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer, log_line

MAX_CONTEXT_BYTES = 600 << 20
"""Maximum size of a CUDA context in bytes.

If more memory than that disappears while it is created, the rest was taken by another process.
"""
NOT_PINNED_WARNING = "copies wait for each other and for the network, which costs speed"


class GpuServer[N: GpuNetwork](WorkerServer):
    """Request handler with networks on one or more GPUs, if any are loaded."""

    def __init__(self, replies: TextIO) -> None:
        super().__init__(replies)
        self._devices: list[N] = []
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
        """Return the free bytes of each GPU, including what this process uses there before it has an engine.

        Other GPUs are not queried, since a query allocates memory on the GPU.

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
        first = self._networks_on(self._devices[0].index)[:1]
        concurrency.run_in_turns(first, 5)  # raises clocks and warms caches
        return concurrency.run_in_turns(first, runs)

    def prepare(self, memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.prepare`. Slots are distributed over the GPUs in turn."""
        self._mapped = (memory, frames)  # keep them alive: the GPU only has their addresses
        cuda.set_device(self._devices[0].index)
        staging = None
        try:
            self._pinned = cuda.PinnedMemory(cuda.address_of(memory), len(memory))
        except EngineError as error:
            staging = _allocate_staging(frames)
            remedy = "frames go through pinned buffers, which takes a copy more" if staging else NOT_PINNED_WARNING
            log_line(f"{error}; {remedy}")
        for number, device in enumerate(self._devices):
            own_slots = slice(number, None, len(self._devices))
            device.open(frames[own_slots], staging and staging[own_slots])

    def submit(self, slot: int) -> None:
        """See `WorkerServer.submit`."""
        device, number = self._locate(slot)
        device.submit(number)

    def collect(self, slot: int) -> None:
        """See `WorkerServer.collect`."""
        device, number = self._locate(slot)
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
                measured = concurrency.measure_gain(self._networks_on(devices[0]))  # the GPUs are equal
            if measured is None or measured[1] < concurrency.MIN_GAIN * measured[0]:
                self._remove_contexts(len(devices))
        else:
            self._add_contexts(min(contexts, streams or contexts), streams)
        self.shapes = self._devices[0].shapes
        count = max(len(self._networks_on(index)) for index in devices)
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
        """Create further execution contexts, up to `count`, on every GPU whose memory allows it.

        With `quiet`, it is not logged that memory is short.
        """
        for first in self._devices * (count - 1):
            if not first.has_room_for_another(streams or fewest_slots(count)):
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
            rate: Frames per second of all networks on a GPU together; None to measure it.
        """
        rate = rate or concurrency.measure_rate(self._networks_on(devices[0]))
        frame_bytes = 4 * sum(int(np.prod(shape)) for shape in self._devices[0].shapes)
        slots = concurrency.needed_slots(contexts, rate, frame_bytes)
        has_memory = min(map(cuda.free_memory, devices)) > 2 * slots * frame_bytes
        return slots if has_memory else fewest_slots(contexts)

    def _networks_on(self, index: int) -> list[N]:
        """Make a GPU current, and return the networks there."""
        cuda.set_device(index)
        return [device for device in self._devices if device.index == index]

    def _locate(self, slot: int) -> tuple[N, int]:
        """Make a slot's GPU current, and return the network and the slot's number there."""
        number, position = divmod(slot, len(self._devices))
        cuda.set_device(self._devices[position].index)
        return self._devices[position], number


def verify_networks(networks: Sequence[GpuNetwork], reference: Path, levels: Path, precision: str) -> float:
    """Run `accuracy.draw_line_art` and `accuracy.draw_sky` on networks and compare the outputs with fp32.

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
    picture, smooth = draw_line_art(height, width)[:channels], draw_sky(height, width)[:channels]
    result = []
    for network in networks:
        result.append(check_psnr(expected, network.run_once(picture), precision))
        check_banding(count, count_levels(network.run_once(smooth)), precision)
    return min(result)


def _allocate_staging(frames: list[tuple[FramePlanes, FramePlanes]]) -> list[StagingBuffers] | None:
    """Allocate pinned buffers for the input and output of each slot; None if memory is too short."""
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
    """Return the frames in flight on a GPU with little memory: those computed, one being uploaded, one downloaded.

    Args:
        contexts: Execution contexts on the GPU.
    """
    return contexts + 2
