"""ONNX Runtime in a process of its own: computes references where there is no OpenVINO. Started as a module."""

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
    """Computes graphs in fp32 on the processor."""

    def do_reference(self, graph: str, target: str, sky: str | None) -> int:
        """Write what a graph file makes of the drawing in fp32, as float16. -> the steps of the sky in another file's
        graph, which may be the same; 0 without one."""
        try:
            result = _run(graph, drawing)
            count = steps(_run(sky, clear_sky)) if sky is not None else 0
        except Exception as error:  # its errors share no base class but this one
            raise EngineError(f"ONNX Runtime could not compute the reference: {self.reason(error)}") from error
        np.save(target, result.astype(np.float16), allow_pickle=False)
        return count

    def reason(self, error: BaseException) -> str:
        """See `WorkerServer.reason`."""
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _run(graph: str, picture: Callable[[int, int], FramePlanes]) -> FramePlanes:
    """What a graph file makes of a picture, (C, H, W). picture: makes one of three channels for a height and width."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    _, channels, height, width = source.shape
    result: Any = session.run(None, {source.name: picture(height, width)[None, :channels]})[0]
    frame: FramePlanes = result[0]
    return frame


if __name__ == "__main__":
    serve_forever(OnnxRuntime)
