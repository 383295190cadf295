"""Worker with ONNX Runtime: computes references where OpenVINO is not installed. Run as a module."""

from collections.abc import Callable
from typing import Any

import onnxruntime

from vsfdatrd.backends.reference_server import ImageFunction, ReferenceServer
from vsfdatrd.errors import first_line
from vsfdatrd.workers.server import serve_forever
from vsfdatrd.workers.shared_memory import FramePlanes


class OnnxRuntimeServer(ReferenceServer):
    """Run graphs in fp32 on the CPU."""

    library = "ONNX Runtime"

    def open_graph(self, graph: str) -> Callable[[ImageFunction], FramePlanes]:
        """See `ReferenceServer.open_graph`."""
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        (source,) = session.get_inputs()
        _, channels, height, width = source.shape

        def run(picture: ImageFunction) -> FramePlanes:
            result: Any = session.run(None, {source.name: picture(height, width)[None, :channels]})[0]
            frame: FramePlanes = result[0]
            return frame

        return run

    def describe_error(self, error: BaseException) -> str:
        """See `WorkerServer.describe_error`."""
        return first_line(error)


if __name__ == "__main__":
    serve_forever(OnnxRuntimeServer)
