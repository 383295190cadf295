"""The other side of `openvino.py`: the process in which OpenVINO runs. Started as a module, never imported there."""

import io
import json
import math
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openvino

from vsfdatrd.engines.base import Frames
from vsfdatrd.engines.process import buffers
from vsfdatrd.engines.verify import compare, drawing
from vsfdatrd.errors import EngineBuildError, EngineError

FILE = "model.blob"
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


def main() -> None:
    """Answer requests until the pipe closes; see `process.py` for the conversation."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the script's; it closes the pipe
    serving = Serving(replies.write, replies.flush)
    for line in sys.stdin:
        serving.serve(json.loads(line))
    os._exit(0)  # at once: frames in flight are for nobody any more


class Serving:
    """One conversation: the engine that is loaded, if any, and how to answer."""

    def __init__(self, write: Callable[[str], Any], flush: Callable[[], Any]) -> None:
        self._write, self._flush = write, flush
        self._answering = threading.Lock()
        self._core = openvino.Core()
        self._compiled: openvino.CompiledModel | None = None
        self._requests: list[openvino.InferRequest] = []
        self._frames: list[tuple[Frames, Frames]] = []
        self._waiting = ThreadPoolExecutor(1)

    def serve(self, message: dict[str, Any]) -> None:
        """Do what a request says, and answer."""
        do = message.pop("do")
        try:
            if do == "run":
                self._waiting.submit(self._run, message["slot"])
            else:
                self._answer({"result": getattr(self, f"do_{do}")(**message)})
        except Exception as error:  # every failure is an answer; the other side makes an error of it
            text = str(error) if isinstance(error, EngineError) else reason(error)
            slot = {"slot": message["slot"]} if do == "run" else {}
            self._answer(slot | {"error": text, "kind": type(error).__name__})

    def _answer(self, answer: dict[str, Any]) -> None:
        with self._answering:
            self._write(json.dumps(answer) + "\n")
            self._flush()

    def do_describe(self) -> dict[str, Any]:
        """The processor: its name, and what OpenVINO can compute in on it."""
        return {
            "version": openvino.__version__,
            "name": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            "abilities": sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        }

    def do_build(self, graph: str, directory: str, precision: str, streams: int) -> float | None:
        """Compile a graph file and export the result. -> PSNR against fp32 for a half precision."""
        try:
            model = self._core.read_model(graph)
            compiled = self._core.compile_model(model, "CPU", settings(precision, streams))
            psnr = None
            if precision != "fp32":
                picture = drawing(*list(model.input(0).shape)[2:])[None]
                exact = self._core.compile_model(model, "CPU", settings("fp32", 1))
                psnr = compare(exact(picture)[0], compiled(picture)[0], precision)
            blob = io.BytesIO()
            compiled.export_model(blob)
        except RuntimeError as error:
            raise EngineBuildError(f"OpenVINO could not compile the network: {reason(error)}") from error
        Path(directory, FILE).write_bytes(blob.getbuffer())
        return psnr

    def do_load(self, directory: str, precision: str, streams: int) -> dict[str, Any]:
        """Load an exported model. -> how many frames it takes at once, and their shapes."""
        try:
            self._compiled = self._core.import_model(
                Path(directory, FILE).read_bytes(), "CPU", settings(precision, streams)
            )
        except RuntimeError as error:
            raise EngineError(f"OpenVINO does not load the engine: {reason(error)}") from error
        return {
            "slots": streams,
            "input": list(self._compiled.input(0).shape)[1:],
            "output": list(self._compiled.output(0).shape)[1:],
        }

    def do_map(self, address: str | int) -> None:
        """Map the frames' memory and make a request for every slot."""
        if self._compiled is None:
            raise EngineError("no engine is loaded")
        fd = address if isinstance(address, int) else os.open(address, os.O_RDWR)
        memory = mmap.mmap(fd, 0)
        os.close(fd)
        shapes = (list(self._compiled.input(0).shape)[1:], list(self._compiled.output(0).shape)[1:])
        size = 4 * sum(math.prod(shape) for shape in shapes)
        self._frames = buffers(memory, len(memory) // size, *shapes)  # OpenVINO does not keep what it borrows
        for source, result in self._frames:
            request = self._compiled.create_infer_request()
            request.set_input_tensor(openvino.Tensor(source[None], shared_memory=True))
            request.set_output_tensor(openvino.Tensor(result[None], shared_memory=True))
            self._requests.append(request)
        self._waiting = ThreadPoolExecutor(len(self._requests), "slot")

    def _run(self, slot: int) -> None:
        """One frame, start to end, on a thread of the slot's own; OpenVINO computes on its own threads."""
        try:
            self._requests[slot].start_async()
            self._requests[slot].wait()
            self._answer({"slot": slot})
        except Exception as error:
            self._answer({"slot": slot, "error": f"OpenVINO failed on it: {reason(error)}"})


def settings(precision: str, streams: int) -> dict[str, Any]:
    """How a model is compiled: all cores on one frame, or shared by several frames."""
    chosen: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    if precision == "fp32":
        chosen["EXECUTION_MODE_HINT"] = "ACCURACY"
    return chosen


def reason(error: BaseException) -> str:
    """The last line of OpenVINO's message that says something; the lines before are its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    main()
