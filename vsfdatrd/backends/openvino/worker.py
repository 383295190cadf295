"""Worker process in which OpenVINO runs; `backend.py` is the client.

Run as a module, never imported by the client.
"""

import io
import mmap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from vsfdatrd.backends.accuracy import check_banding, check_psnr, count_levels, draw_line_art, draw_sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.openvino.library import openvino
from vsfdatrd.backends.reference_server import ImageFunction, ReferenceServer
from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.workers.server import serve_forever

FILE = "model.blob"


class OpenVinoServer(ReferenceServer):
    """Request handler with OpenVINO's core and the loaded model, if any."""

    library = "OpenVINO"

    def __init__(self, replies: TextIO) -> None:
        super().__init__(replies)
        self._core = openvino.Core()
        self._compiled: openvino.CompiledModel | None = None
        self._requests: list[openvino.InferRequest] = []

    def do_describe(self) -> dict[str, Any]:
        """Return OpenVINO's version, the CPU's name and the precisions it supports."""
        return {
            "version": openvino.__version__,
            "name": self._core.get_property("CPU", "FULL_DEVICE_NAME"),
            "abilities": sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        }

    def do_build(
        self, graph: str, directory: str, precision: str, streams: int, exact: str | None, skies: list[str] | None
    ) -> float | None:
        """Compile a graph file and export the compiled model.

        Args:
            graph: Path of the graph, in this precision.
            directory: The directory to write to.
            precision: Precision of the engine.
            streams: Frames computed at once.
            exact: Path of the fp32 graph, to verify a half precision; None for fp32.
            skies: Paths of the half-precision and fp32 graphs for a smaller `accuracy.draw_sky`; None to use the other
                graphs.

        Returns:
            PSNR of a half precision against fp32 in dB; None for fp32.

        Raises:
            EngineBuildError: OpenVINO cannot compile the network.
            PrecisionUnfit: The half precision differs too much from fp32.
        """
        try:
            compiled = self._compile(graph, precision, streams)
            psnr = None
            if exact is not None:
                reference = self._compile(exact, "fp32", 1)
                psnr = check_psnr(_infer(reference, draw_line_art), _infer(compiled, draw_line_art), precision)
                half, full = compiled, reference
                if skies:
                    half, full = self._compile(skies[0], precision, 1), self._compile(skies[1], "fp32", 1)
                check_banding(count_levels(_infer(full, draw_sky)), count_levels(_infer(half, draw_sky)), precision)
            exported = io.BytesIO()
            compiled.export_model(exported)
        except RuntimeError as error:
            raise EngineBuildError(f"OpenVINO could not compile the network: {last_line(error)}") from error
        Path(directory, FILE).write_bytes(exported.getbuffer())
        return psnr

    def _compile(self, graph: str, precision: str, streams: int) -> openvino.CompiledModel:
        return self._core.compile_model(self._core.read_model(graph), "CPU", compile_settings(precision, streams))

    def open_graph(self, graph: str) -> Callable[[ImageFunction], FramePlanes]:
        """See `ReferenceServer.open_graph`."""
        return partial(_infer, self._compile(graph, "fp32", 1))

    def do_load(self, directory: str, precision: str, streams: int) -> dict[str, Any]:
        """Load an exported model.

        Args:
            directory: The files that `do_build` wrote.
            precision: Precision of the model.
            streams: Frames computed at once.

        Returns:
            Number of slots, and (C, H, W) of input and output.

        Raises:
            EngineError: OpenVINO does not load the model.
        """
        try:
            self._compiled = self._core.import_model(
                Path(directory, FILE).read_bytes(), "CPU", compile_settings(precision, streams)
            )
        except RuntimeError as error:
            raise EngineError(f"OpenVINO does not load the engine: {last_line(error)}") from error
        self.shapes = (list(self._compiled.input(0).shape)[1:], list(self._compiled.output(0).shape)[1:])
        return {"slots": streams, "input": self.shapes[0], "output": self.shapes[1]}

    def create_slots(self, shared_memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.create_slots`."""
        if self._compiled is None:
            raise EngineError("no engine is loaded")
        self._frames = frames  # OpenVINO's tensors do not keep these arrays alive
        for source, result in frames:
            request = self._compiled.create_infer_request()
            request.set_input_tensor(openvino.Tensor(source[None], shared_memory=True))
            request.set_output_tensor(openvino.Tensor(result[None], shared_memory=True))
            self._requests.append(request)

    def submit(self, slot: int) -> None:
        """See `WorkerServer.submit`."""
        self._requests[slot].start_async()

    def collect(self, slot: int) -> None:
        """See `WorkerServer.collect`. OpenVINO computes on its own threads."""
        try:
            self._requests[slot].wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on it: {last_line(error)}") from error

    def describe_error(self, error: BaseException) -> str:
        """See `WorkerServer.describe_error`."""
        return last_line(error)


def _infer(model: openvino.CompiledModel, picture: ImageFunction) -> FramePlanes:
    """Run a model on an image; return (C, H·scale, W·scale)."""
    _, channels, height, width = model.input(0).shape
    result: FramePlanes = model(picture(height, width)[None, :channels])[0][0]
    return result


def compile_settings(precision: str, streams: int) -> dict[str, Any]:
    """Return the options for compiling a model: all cores on one frame, or shared by several frames.

    Args:
        precision: Precision of the graph. In half precisions the graph itself declares the type of each operation.
        streams: Frames computed at once.
    """
    result: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        "NUM_STREAMS": str(streams),
        "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "dynamic",
    }
    if precision == "fp32":
        result["EXECUTION_MODE_HINT"] = "ACCURACY"
    return result


def last_line(error: BaseException) -> str:
    """Return the last non-empty line of OpenVINO's message; the lines before it name its own source files.

    Args:
        error: The exception.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    serve_forever(OpenVinoServer)
