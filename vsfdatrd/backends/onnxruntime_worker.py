"""ONNX Runtime in a process of its own: computes references where there is no OpenVINO. Started as a module."""

from typing import Any

import numpy as np
import onnxruntime

from vsfdatrd.backends.accuracy import drawing
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import Serving, converse


class OnnxRuntime(Serving):
    """Computes graphs in fp32 on the processor."""

    def do_reference(self, graph: str, target: str) -> None:
        """Write what a graph file makes of the drawing in fp32, as float16."""
        try:
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            (source,) = session.get_inputs()
            _, channels, height, width = source.shape
            result: Any = session.run(None, {source.name: drawing(height, width)[None, :channels]})[0]
        except Exception as error:  # its errors share no base class but this one
            raise EngineError(f"ONNX Runtime could not compute the reference: {self.reason(error)}") from error
        np.save(target, result[0].astype(np.float16), allow_pickle=False)

    def reason(self, error: BaseException) -> str:
        """See `Serving.reason`."""
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


if __name__ == "__main__":
    converse(OnnxRuntime)
