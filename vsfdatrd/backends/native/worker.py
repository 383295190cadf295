"""Worker process that runs the native kernels; `backend.py` is the client.

It is run as a module and never imported by the client.
"""

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy multiplies only small matrices; more threads would compete

import mmap
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vsfdatrd.backends import weights_file
from vsfdatrd.backends.accuracy import check_banding, check_psnr, count_levels, draw_line_art, draw_sky
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native.kernels import instructions_in_use
from vsfdatrd.backends.native.network import FrameContext, Weights
from vsfdatrd.errors import EngineError
from vsfdatrd.workers.server import WorkerServer, serve_forever


class NativeServer(WorkerServer):
    """Request handler with the loaded weights, if any, and a context for every frame in flight."""

    def __init__(self, replies: TextIO) -> None:
        super().__init__(replies)
        self._contexts: list[FrameContext] = []
        self._frames: list[tuple[FramePlanes, FramePlanes]] = []

    def do_describe(self) -> dict[str, Any]:
        """Return an empty answer: the client already knows everything about this backend."""
        return {}

    def do_verify(self, directory: str, height: int, width: int, threads: int, expected: int) -> float:
        """Run `accuracy.draw_line_art` and `accuracy.draw_sky` and compare the outputs with the fp32 reference.

        Args:
            directory: The weights and the reference.
            height: Height of the images in pixels.
            width: Width of the images in pixels.
            threads: Number of threads.
            expected: `accuracy.count_levels` of the sky in fp32.

        Returns:
            PSNR in dB.

        Raises:
            PrecisionUnfit: The PSNR is too low, or the sky has bands.
        """
        weights = _load_weights(directory)
        reference = np.load(Path(directory, weights_file.REFERENCE), allow_pickle=False).astype(np.float32)
        result = np.empty((3, height * weights.config.scale, width * weights.config.scale), np.float32)
        context = FrameContext(weights, height, width, threads)
        context.run(draw_line_art(height, width), result)
        psnr = check_psnr(reference, result, "int16")
        context.run(draw_sky(height, width), result)
        check_banding(expected, count_levels(result), "int16")
        return psnr

    def do_load(self, directory: str, height: int, width: int, streams: int, threads: int) -> dict[str, Any]:
        """Load the weights and allocate the contexts.

        Args:
            directory: The weights.
            height: Height of a padded frame in pixels.
            width: Width of a padded frame in pixels.
            streams: Frames computed at once.
            threads: Threads per frame.

        Returns:
            (C, H, W) of input and output, and the instructions that the kernels use.

        Raises:
            EngineError: The weights cannot be read, or are of a network that does not take this size.
        """
        weights = _load_weights(directory)
        scale, multiple = weights.config.scale, weights.config.multiple
        if height % multiple or width % multiple:
            raise EngineError(
                f"the native engine belongs to another network, which does not accept frames of {width}×{height}"
            )
        self._contexts = [FrameContext(weights, height, width, threads) for _ in range(streams)]
        self.shapes = ([3, height, width], [3, height * scale, width * scale])
        return {"input": self.shapes[0], "output": self.shapes[1], "instructions": instructions_in_use()}

    def create_slots(self, shared_memory: mmap.mmap, frames: list[tuple[FramePlanes, FramePlanes]]) -> None:
        """See `WorkerServer.create_slots`."""
        self._frames = frames

    def submit(self, slot: int) -> None:
        """See `WorkerServer.submit`. The work is done in `collect`, on the slot's own thread."""

    def collect(self, slot: int) -> None:
        """See `WorkerServer.collect`."""
        self._contexts[slot].run(*self._frames[slot])


def _load_weights(directory: str) -> Weights:
    config, tensors = weights_file.read_weights(Path(directory), "native")
    try:
        return Weights(config, tensors)
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise EngineError(f"the native engine's weights cannot be read: {error}") from error


if __name__ == "__main__":
    serve_forever(NativeServer)
