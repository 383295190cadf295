"""An execution context on one NVIDIA GPU: buffers, slots and CUDA graph. Each backend's subclass runs the network."""

from contextlib import ExitStack
from typing import Self

import numpy as np

from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.copy_pipeline import Slot, TransferPipeline
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import log_line

type StagingBuffers = tuple[cuda.HostMemory, cuda.HostMemory]
"""Pinned buffers of a slot's input and output."""


class ExecutionContext:
    """A network on one GPU that computes one frame at a time, from a fixed input buffer to a fixed output buffer.

    The buffers are fixed because a CUDA graph contains addresses. Frames are copied to and from them on the GPU, which
    takes about a thousandth of the network's time.
    """

    pipeline: TransferPipeline
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

    def _run_and_capture(self) -> None:
        """Run one frame, and capture the network as a CUDA graph. The graph is kept if it gives the same output.

        One launch of the graph replaces hundreds of kernel launches.
        """
        picture = np.random.default_rng(0).random(self.shapes[0], np.float32)
        expected = self.run_once(picture)  # triggers just-in-time compilation and one-time initialization
        try:
            self._make_graph(picture, expected)
        except EngineError as error:
            self._close_graph()
            log_line(f"without a CUDA graph: {error}")

    @property
    def context_bytes(self) -> int:
        """GPU memory in bytes of one more execution context without its frame buffers. Overridden by each backend."""
        raise NotImplementedError

    def has_room_for_another(self, slots: int) -> bool:
        """Return whether the free memory is more than twice what one more context and all slots need.

        Every context has an input and an output buffer of its own.

        Args:
            slots: Number of frames in flight, whose buffers are not allocated yet.
        """
        needed = self.context_bytes + (1 + slots) * sum(self._size)
        return cuda.free_memory(self.index) > 2 * needed

    def another_context(self) -> Self:
        """Create another execution context of the same network on the same GPU. Overridden by each backend.

        Raises:
            EngineError: It cannot be created, for example because there is not enough memory.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Free the buffers, stream and CUDA graph of this context. The context must not be computing."""
        cuda.set_device(self.index)
        self._close_graph()
        self._held.close()

    def _close_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            graph.close()

    def run_once(self, picture: FramePlanes) -> FramePlanes:
        """Run the network on one frame and wait for it.

        Args:
            picture: The frame, (C, H, W).

        Returns:
            The output, (C, H·scale, W·scale) float32.
        """
        cuda.set_device(self.index)
        picture, result = np.ascontiguousarray(picture, np.float32), np.empty(self.shapes[1], np.float32)
        self._stream.upload(self._source, picture.ctypes.data)
        self.run()
        self._stream.download(result.ctypes.data, self._result)
        self._stream.synchronize()
        return result

    def open(self, frames: list[tuple[FramePlanes, FramePlanes]], staging: list[StagingBuffers] | None) -> None:
        """Create the slots.

        Args:
            frames: Input and output of each slot in shared memory.
            staging: Pinned buffers of each slot, through which its frames are copied; None to copy directly.
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
            number: Number of the slot in this context.
        """
        if self._staging:
            self._staging[number][0].read(self._frames[number][0].ctypes.data)
        self.pipeline.submit(number)

    def wait(self, number: int) -> None:
        """Wait for a slot's output.

        Args:
            number: Number of the slot in this context.
        """
        self.pipeline.wait(number)
        if self._staging:
            self._staging[number][1].write(self._frames[number][1].ctypes.data)

    def _create_slot(self, number: int) -> Slot:
        if self._staging:
            source, result = (memory.address for memory in self._staging[number])
        else:
            source, result = (frame.ctypes.data for frame in self._frames[number])
        device_source, device_result = (cuda.DeviceMemory(size) for size in self._size)
        events = (cuda.Event(), cuda.Event(), cuda.Event())
        return Slot(source, result, device_source, device_result, *events)

    def run(self) -> None:
        """Queue one run of the network, from the input buffer to the output buffer, on the context's stream."""
        if self._graph is None:
            self._enqueue()
        else:
            self._graph.launch(self._stream)

    def synchronize(self) -> None:
        """Wait until everything queued on the context's stream is done.

        Raises:
            EngineError: A run failed.
        """
        self._stream.synchronize()

    def _enqueue(self) -> None:
        """Queue one run of the network on the context's stream, without a CUDA graph. Overridden by each backend.

        Raises:
            EngineError: It cannot be started.
        """
        raise NotImplementedError

    def _make_graph(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Capture the network, and compare its output for a picture with the expected one.

        Raises:
            EngineError: It cannot be captured, or the output differs.
        """
        self._graph = self._stream.capture(self._enqueue)
        self._check_output(picture, expected)

    def _check_output(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Raise EngineError if the output differs from the expected one, which was computed without a CUDA graph."""
        # Tolerates a different order of summation, but not the output for another frame.
        if not np.allclose(self.run_once(picture), expected, atol=0.01, equal_nan=True):
            raise EngineError("it computes something else")
