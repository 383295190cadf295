"""Base class of the workers that compute fp32 references; `reference.py` is the client."""

from collections.abc import Callable

import numpy as np

from vsfdatrd.backends.accuracy import count_levels, draw_line_art, draw_sky
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer
from vsfdatrd.workers.shared_memory import FramePlanes

type ImageFunction = Callable[[int, int], FramePlanes]
"""Draws an image (3, H, W) of a height and width: `accuracy.draw_line_art` or `accuracy.draw_sky`."""


class ReferenceServer(WorkerServer):
    """A worker whose library runs ONNX files in fp32."""

    library = ""
    """Its name, for messages."""

    def open_graph(self, graph: str) -> Callable[[ImageFunction], FramePlanes]:
        """Load an ONNX file.

        Args:
            graph: Path of the file.

        Returns:
            A function that runs the network on an image and returns (C, H·scale, W·scale).
        """
        raise NotImplementedError

    def do_reference(self, graph: str, target: str, smooth: str | None) -> int:
        """Answer the request ``reference``.

        The graph runs on `accuracy.draw_line_art` in fp32, and its output is saved as float16.

        Args:
            graph: Path of the graph.
            target: Path of the .npy file to write.
            smooth: Path of the graph for frames of the size of `accuracy.draw_sky`, which may be the same; None to skip
                it.

        Returns:
            `accuracy.count_levels` of the sky; 0 without `smooth`.

        Raises:
            EngineError: The library does not run the graph.
        """
        try:
            run = self.open_graph(graph)
            result, count = run(draw_line_art), 0
            if smooth is not None:
                count = count_levels((run if smooth == graph else self.open_graph(smooth))(draw_sky))
        except Exception as error:  # the common base class of ONNX Runtime's errors
            raise EngineError(
                f"{self.library} could not compute the reference: {self.describe_error(error)}"
            ) from error
        np.save(target, result.astype(np.float16), allow_pickle=False)
        return count
