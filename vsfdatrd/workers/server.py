"""Server side of a worker process; `client.py` is the other end. Each backend's `worker.py` defines the requests."""

import contextlib
import json
import math
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

from vsfdatrd.errors import EngineError
from vsfdatrd.workers.shared_memory import FramePlanes, map_shared, slot_buffers
from vsfdatrd.workers.spawn import end_with_parent


class WorkerServer:
    """Base class of a worker's request handler.

    A request is handled by the method ``do_<request>``, except ``run``, which computes a slot's frame. A backend's
    subclass defines these methods, sets `shapes` once an engine is loaded, and translates its library's errors in
    `describe_error`.

    Args:
        replies: The stream to which answers are written.
    """

    shapes: tuple[list[int], list[int]] | None = None
    """(C, H, W) of the input and of the output of the loaded engine."""

    def __init__(self, replies: TextIO) -> None:
        self._replies = replies
        self._answering = threading.Lock()
        self._collectors = ThreadPoolExecutor(1)

    def serve(self, message: dict[str, Any]) -> None:
        """Handle one request and answer it.

        Args:
            message: The request: its name under ``do``, and its arguments.
        """
        do = message.pop("do")
        try:
            if do == "run":
                self.submit(message["slot"])
                self._collectors.submit(self._collect, message["slot"])
            else:
                self._answer({"result": getattr(self, f"do_{do}")(**message)})
        except Exception as error:  # every failure is sent as an answer; the client raises it
            self._answer_error(error, {"slot": message["slot"]} if do == "run" else {})

    def do_map(self, address: str | int, size: int) -> None:
        """Map the shared memory at `SharedMemory.address`, and create one slot per pair of input and output in it.

        Args:
            address: `SharedMemory.address` of the client.
            size: Size of the memory in bytes.

        Raises:
            EngineError: No engine is loaded.
        """
        if self.shapes is None:
            raise EngineError("no engine is loaded")
        memory = map_shared(address, size)
        slots = len(memory) // (4 * sum(math.prod(shape) for shape in self.shapes))
        self._collectors = ThreadPoolExecutor(slots, "slot")
        self.create_slots(memory, slot_buffers(memory, slots, *self.shapes))

    def create_slots(self, shared_memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """Create the slots.

        Args:
            shared_memory: The mapped memory.
            frames: Input and output of each slot, views of `shared_memory`.
        """
        raise NotImplementedError

    def submit(self, slot: int) -> None:
        """Start computing a slot's frame. Called on one thread, in the order in which frames arrive.

        Args:
            slot: Number of the slot.
        """
        raise NotImplementedError

    def collect(self, slot: int) -> None:
        """Wait for a slot's frame. Called on a thread of the slot's own.

        Args:
            slot: Number of the slot.
        """
        raise NotImplementedError

    def describe_error(self, error: BaseException) -> str:
        """Describe any error but an EngineError, such as one of the engine's library, as part of a sentence.

        Args:
            error: Any exception other than EngineError.
        """
        return str(error) or type(error).__name__

    def _answer(self, answer: dict[str, Any]) -> None:
        with self._answering:
            try:
                print(json.dumps(answer), file=self._replies, flush=True)
            except OSError:  # the client is gone
                os._exit(0)

    def _answer_error(self, error: Exception, slot: dict[str, int]) -> None:
        text = str(error) if isinstance(error, EngineError) else self.describe_error(error)
        self._answer(slot | {"error": text, "kind": type(error).__name__})

    def _collect(self, slot: int) -> None:
        try:
            self.collect(slot)
            self._answer({"slot": slot})
        except Exception as error:
            self._answer_error(error, {"slot": slot})


def reply_stream() -> TextIO:
    """Return a stream to the client, which reads this process's stdout, and redirect stdout to stderr.

    What a library prints then cannot be mistaken for an answer.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def serve_forever(create_server: Callable[[TextIO], WorkerServer]) -> None:
    """Answer requests until the client closes the channel, then end the process.

    Called by a worker's main module with the backend's `WorkerServer`. ``sys.argv[1]`` is the client's process id; this
    process ends with it.

    Args:
        create_server: Creates the backend's `WorkerServer` from the stream to which it writes its answers.
    """
    end_with_parent(int(sys.argv[1]))
    replies = reply_stream()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the script, which then closes the pipe
    server = create_server(replies)
    for line in sys.stdin:
        server.serve(json.loads(line))
    os._exit(0)  # without waiting for frames in flight, which are no longer needed


def log_line(text: str) -> None:
    """Print a line for the user on stderr, since the worker process has no other logging.

    Args:
        text: The text.
    """
    with contextlib.suppress(OSError):  # the program that reads it may be gone
        print(f"fdatrd: {text}", file=sys.stderr)
