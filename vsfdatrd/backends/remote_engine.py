"""An engine that runs in a worker process."""

import contextlib
import json
import threading

import numpy as np

from vsfdatrd.errors import EngineError
from vsfdatrd.workers.client import Worker
from vsfdatrd.workers.shared_memory import FramePlanes, slot_buffers


class RemoteEngine:
    """Client of the engine that a worker has loaded; implements `Engine`."""

    def __init__(
        self, worker: Worker, slots: int, input_shape: list[int], output_shape: list[int], contexts: int = 1
    ) -> None:
        """Take over a worker with a loaded engine and map shared memory for its frames.

        Args:
            worker: The worker, which is closed with the engine.
            slots: Number of slots.
            input_shape: (C, H, W) of the input.
            output_shape: (C, H·scale, W·scale) of the output.
            contexts: Frames that each GPU computes at a time.

        Raises:
            EngineError: The memory could not be mapped; the worker is closed.
        """
        self.slots, self.contexts = slots, contexts
        self._worker = worker
        size = 4 * slots * (int(np.prod(input_shape)) + int(np.prod(output_shape)))
        self._buffers: list[tuple[FramePlanes, FramePlanes]] = []
        try:
            self._buffers = slot_buffers(worker.memory.resize(size), slots, input_shape, output_shape)
            worker.ask("map", address=worker.memory.address, size=size)
        except EngineError:
            self._buffers.clear()
            worker.close()
            raise
        self._done = [threading.Event() for _ in range(slots)]
        self._errors: list[str | None] = [None] * slots
        self._dead: str | None = None
        self._closed = False
        worker.followed = True
        self._listener = threading.Thread(target=self._listen, name="fdatrd-engine", daemon=True)
        self._listener.start()

    def input(self, slot: int) -> FramePlanes:
        """See `Engine.input`."""
        return self._buffers[slot][0]

    def submit(self, slot: int) -> None:
        """See `Engine.submit`."""
        if self._closed:
            raise EngineError("the engine is closed; no frame can be sent to it")
        if self._dead:
            raise EngineError(self._dead)
        self._done[slot].clear()
        self._errors[slot] = None
        self._worker.send(do="run", slot=slot)

    def collect(self, slot: int) -> FramePlanes:
        """See `Engine.collect`."""
        while not self._done[slot].wait(1.0):
            if self._dead:  # the process died after `submit` had checked
                raise EngineError(self._dead)
        if error := self._errors[slot]:
            raise EngineError(error)
        if self._closed:
            raise EngineError("the engine was closed before the frame was collected")
        return self._buffers[slot][1]

    def close(self) -> None:
        """See `Engine.close`."""
        if self._closed:
            return
        self._closed = True
        self._buffers.clear()
        self._worker.close()

    def _listen(self) -> None:
        """Wake the threads that wait for a slot; all of them when the process ends."""
        with contextlib.suppress(OSError, ValueError), self._worker.replies as replies:
            for line in replies:
                answer = json.loads(line)
                self._errors[answer["slot"]] = answer.get("error")
                self._done[answer["slot"]].set()
        if not self._closed:
            self._dead = self._worker.exit_reason()
            self._errors = [self._dead] * self.slots
        for event in self._done:
            event.set()
