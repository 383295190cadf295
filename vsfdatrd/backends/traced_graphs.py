"""Graphs for engines, and the checks that make traced graphs trustworthy.

Graphs of FDAT-RD, FDAT and ArtCNN are written by this package, and the tests compare them with PyTorch. A traced
graph of an unknown network is compared with PyTorch on small images before an engine is built.

Tracing runs the network once, which takes minutes on a CPU at the size of a film. So a network is first traced at a
small size with dynamic height and width. Most purely convolutional networks have the same graph at every size. Others
contain masks, windows or padding that are right for the traced size only, and fail the comparison at the next size.
Those are traced at the frame's own size.
"""

import logging
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.backends import accuracy, reference
from vsfdatrd.backends.graphs import graph_of, serialized
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.graph.target import OPENVINO, GraphTarget

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

SIDES = (48, 64)
"""Height and width of the small image in pixels, before padding to the network's requirements."""
LARGE = 256 * 256
"""Number of pixels in a frame from which on tracing at its own size should be avoided."""
PERIOD = 64
"""A graph with dynamic size is tested at a size with the same remainders modulo this number as the frame's."""
BOUND_DB = 70.0
"""Lowest PSNR in dB against PyTorch at which a graph is accepted at another size.

Results are stored as float16, which alone limits the PSNR to 77 dB in the worst case.
"""


def graph_for(checkpoint: Checkpoint, height: int, width: int, dialect: GraphTarget = OPENVINO) -> "onnx.ModelProto":
    """Create a graph as `graph_of` does, but trace at a small size if the result has been verified at other sizes.

    Args:
        checkpoint: The network.
        height: Height of the padded frame in pixels.
        width: Width of the padded frame in pixels.
        dialect: The library and precision that the graph is for.

    Returns:
        As `graph_of`.

    Raises:
        EngineError: As in `graph_of`; also OverflowError and CheckpointError.
    """
    if _is_traced(checkpoint.description) and height * width >= LARGE:
        tall, wide = _small(checkpoint.description)
        if _is_open(checkpoint, (height - tall) % PERIOD, (width - wide) % PERIOD):
            from vsfdatrd.graph.half_precision import lowered
            from vsfdatrd.graph.trace import for_size, traced_open

            return lowered(for_size(traced_open(checkpoint, tall, wide), checkpoint, height, width), dialect)
    return graph_of(checkpoint, height, width, dialect)


def sky_size(about: ModelDescriptor, height: int, width: int) -> tuple[int, int]:
    """Choose the size of `accuracy.sky` for verifying an engine.

    It has the engine's width, and the smallest height that the network takes, since all rows are the same.

    Args:
        about: The network.
        height: Height of the engine's frames in pixels.
        width: Width of the engine's frames in pixels.

    Returns:
        Height and width in pixels.
    """
    if about.fixed is not None or height * width < LARGE:
        return height, width
    return about.size.padded(min(height, SIDES[0]), width)


def check(checkpoint: Checkpoint) -> float | None:
    """Compare a traced graph with PyTorch on a small image. Takes seconds, once per process and checkpoint.

    Args:
        checkpoint: The network.

    Returns:
        PSNR in dB; None for networks that are not traced.

    Raises:
        EngineError: The PSNR is below `accuracy.BOUND_DB`, or the network cannot be traced.
    """
    return _agreement(checkpoint) if _is_traced(checkpoint.description) else None


def _is_traced(about: ModelDescriptor) -> bool:
    return about.written is None and about.artcnn is None and about.onnx is None


def _small(about: ModelDescriptor, below: int = 0, right: int = 0) -> tuple[int, int]:
    """Height and width of a small frame that the network takes, enlarged by at least `below` rows and `right`
    columns.
    """
    height, width = about.size.padded(*SIDES)
    return about.size.padded(height + below, width + right)


@lru_cache(maxsize=16)
def _agreement(checkpoint: Checkpoint) -> float:
    about = checkpoint.description
    height, width = _small(about)
    try:
        return _compared(checkpoint, graph_of(checkpoint, height, width), height, width)
    except EngineBuildError as error:
        raise EngineError(
            f"{checkpoint.path.name} ({about.architecture}) as a graph is not what PyTorch computes: on a small "
            f"picture {str(error).rstrip('.')}; backend='torch' runs it"
        ) from error


@lru_cache(maxsize=64)
def _is_open(checkpoint: Checkpoint, below: int, right: int) -> bool:
    """Test a trace with dynamic size at two other sizes: an odd one, and one with these remainders modulo `PERIOD`.

    Returns:
        Whether it is right at both.
    """
    from vsfdatrd.graph.trace import for_size, traced_open

    about = checkpoint.description
    try:
        model = traced_open(checkpoint, *_small(about))
        for height, width in (_small(about, 27, 53), _small(about, PERIOD + below, PERIOD + right)):
            if _compared(checkpoint, for_size(model, checkpoint, height, width), height, width) < BOUND_DB:
                return False
    except EngineError as error:  # it does not run at that size
        log.debug("%s is traced at every frame's own size: %s", checkpoint.path.name, error)
        return False
    return True


def _compared(checkpoint: Checkpoint, model: "onnx.ModelProto", height: int, width: int) -> float:
    """Compute the PSNR of a graph in OpenVINO against PyTorch on an image of the graph's size.

    Raises:
        EngineError: OpenVINO does not run the graph, or the outputs differ in shape or by more than
            `accuracy.compare` allows.
    """
    import torch

    from vsfdatrd.nn.spandrel_network import OtherNetwork

    with tempfile.TemporaryDirectory(prefix="vsfdatrd-") as folder:
        graph, result = Path(folder, "graph.onnx"), Path(folder, "result.npy")
        graph.write_bytes(serialized(model))
        reference.compute(graph, result)
        found = np.load(result).astype(np.float32)  # (C, H·scale, W·scale)
    network = checkpoint.network()
    if not isinstance(network, OtherNetwork):
        raise TypeError(f"{type(network).__name__} is written, not traced")
    picture = accuracy.drawing(height, width)[None, : checkpoint.description.frame_channels[0]]
    with torch.inference_mode():
        expected = network.bare(torch.from_numpy(picture))[0].numpy()
    if expected.shape != found.shape:
        raise EngineError(f"the graph makes {found.shape} where PyTorch makes {expected.shape}")
    return accuracy.compare(expected, found, "traced")
