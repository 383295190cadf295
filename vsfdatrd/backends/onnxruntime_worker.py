"""Worker with ONNX Runtime: computes references where OpenVINO is not installed. Run as a module."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime

from vsfdatrd.backends.accuracy import drawing, steps
from vsfdatrd.backends.accuracy import sky as clear_sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer, serve_forever


class OnnxRuntime(WorkerServer):
    """Run graphs in fp32 on the CPU."""

    def do_reference(self, graph: str, target: str, sky: str | None) -> int:
        """Run a graph on `accuracy.drawing` in fp32 and save the output as float16.

        Args:
            graph: Path of the graph.
            target: The .npy file to write.
            sky: Path of the graph for `accuracy.sky`, which may be the same; None to skip the sky.

        Returns:
            `accuracy.steps` of the sky; 0 without `sky`.

        Raises:
            EngineError: ONNX Runtime does not run the graph.
        """
        try:
            result = _run(graph, drawing)
            count = steps(_run(sky, clear_sky)) if sky is not None else 0
        except Exception as error:  # the common base class of its errors
            raise EngineError(f"ONNX Runtime could not compute the reference: {self.reason(error)}") from error
        np.save(target, result.astype(np.float16), allow_pickle=False)
        return count

    def reason(self, error: BaseException) -> str:
        """See `WorkerServer.reason`."""
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _run(graph: str, picture: Callable[[int, int], FramePlanes]) -> FramePlanes:
    """Run a graph file on an image.

    Args:
        graph: Path of the graph.
        picture: Creates an image (3, H, W) for a height and width.

    Returns:
        (C, H·scale, W·scale).
    """
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    _, channels, height, width = source.shape
    result: Any = session.run(None, {source.name: picture(height, width)[None, :channels]})[0]
    frame: FramePlanes = result[0]
    return frame


if __name__ == "__main__":
    serve_forever(OnnxRuntime)
