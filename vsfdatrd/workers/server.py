"""An engine's own process: the other end of `process.py`. A backend's `*_process.py` says what it can do."""

import json
import math
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vsfdatrd.errors import EngineError
from vsfdatrd.workers.shared_memory import FramePlanes, buffers, map_shared
from vsfdatrd.workers.spawn import end_with


class WorkerServer:
    """One conversation: requests are methods named ``do_<request>``; `run` computes a slot's frame.

    A backend's process defines them, sets `shapes` once an engine is loaded, and says in `reason` what its library's
    errors mean.
    """

    shapes: tuple[list[int], list[int]] | None = None
    """(C, H, W) of the input and the output of the engine that is loaded."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any]) -> None:
        self._write, self._flush = write, flush
        self._answering = threading.Lock()
        self._waiting = ThreadPoolExecutor(1)

    def serve(self, message: dict[str, Any]) -> None:
        """Do what a request says, and answer."""
        do = message.pop("do")
        try:
            if do == "run":
                self.submit(message["slot"])
                self._waiting.submit(self._collect, message["slot"])
            else:
                self._answer({"result": getattr(self, f"do_{do}")(**message)})
        except Exception as error:  # every failure is an answer; the other side makes an error of it
            text = str(error) if isinstance(error, EngineError) else self.reason(error)
            slot = {"slot": message["slot"]} if do == "run" else {}
            self._answer(slot | {"error": text, "kind": type(error).__name__})

    def do_map(self, address: str | int, size: int) -> None:
        """Map the frames' memory of so many bytes, and make ready for them."""
        if self.shapes is None:
            raise EngineError("no engine is loaded")
        memory = map_shared(address, size)
        slots = len(memory) // (4 * sum(math.prod(shape) for shape in self.shapes))
        self._waiting = ThreadPoolExecutor(slots, "slot")
        self.prepare(memory, buffers(memory, slots, *self.shapes))

    def prepare(self, memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """Make slots whose input and output lie in these frames."""
        raise NotImplementedError

    def submit(self, slot: int) -> None:
        """Start a slot's frame. Called on one thread, in the order in which frames arrive."""
        raise NotImplementedError

    def collect(self, slot: int) -> None:
        """Wait for a slot's frame; on a thread of the slot's own."""
        raise NotImplementedError

    def reason(self, error: BaseException) -> str:
        """What went wrong, as part of a sentence."""
        return str(error) or type(error).__name__

    def _answer(self, answer: dict[str, Any]) -> None:
        with self._answering:
            try:
                self._write(json.dumps(answer) + "\n")
                self._flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    def _collect(self, slot: int) -> None:
        try:
            self.collect(slot)
            self._answer({"slot": slot})
        except Exception as error:
            self._answer({"slot": slot, "error": str(error) if isinstance(error, EngineError) else self.reason(error)})


def serve_forever(serving: Callable[[Callable[[str], Any], Callable[[], Any]], WorkerServer]) -> None:
    """Answer requests until there are no more. Called by a process's main module, with its kind of `WorkerServer`.

    argv: the process number of who sends them, with whom this process ends.
    """
    end_with(int(sys.argv[1]))
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the script's; it closes the pipe
    side = serving(replies.write, replies.flush)
    for line in sys.stdin:
        side.serve(json.loads(line))
    os._exit(0)  # at once: frames in flight are for nobody any more
