"""Graphs for engines, and what is done so that a traced one can be trusted.

FDAT-RD, FDAT and ArtCNN are written, and the tests hold what is written against PyTorch. What an exporter makes of a
network that nobody here has seen is judged by trying it on small pictures, beside PyTorch, before an engine is made.

A trace takes one pass through the network, which at the size of a film takes minutes on a CPU. So a network is traced
at a small size first, its sides left open. Most networks that are convolutions all through are the same graph at every
size; others have masks, windows or padding that are right for the traced size alone, and show it at the next. Those
are traced at the frame's own size.
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
"""Height and width of the small picture in pixels, before it is padded to what the network asks for."""
LARGE = 256 * 256
"""Pixels of a frame from which on a trace at its own size is worth avoiding."""
PERIOD = 64
"""What sides of frames are told apart by: a graph for any size is tried on one with the frame's remainders."""
BOUND_DB = 70.0
"""Lowest PSNR against PyTorch at which a graph counts as the same network at another size. Results come as float16,
which is 77 dB away from what it stands for at worst."""


def graph_for(checkpoint: Checkpoint, height: int, width: int, dialect: GraphTarget = OPENVINO) -> "onnx.ModelProto":
    """As `graph_of`, by a trace at a small size where that has been seen to be right for others."""
    if _is_traced(checkpoint.description) and height * width >= LARGE:
        tall, wide = _small(checkpoint.description)
        if _is_open(checkpoint, (height - tall) % PERIOD, (width - wide) % PERIOD):
            from vsfdatrd.graph.half_precision import lowered
            from vsfdatrd.graph.trace import for_size, traced_open

            return lowered(for_size(traced_open(checkpoint, tall, wide), checkpoint, height, width), dialect)
    return graph_of(checkpoint, height, width, dialect)


def sky_size(about: ModelDescriptor, height: int, width: int) -> tuple[int, int]:
    """Height and width of the frame on which `accuracy.sky` is judged for an engine for frames of height × width:
    as wide, and as low as the network takes, since all rows are the same."""
    if about.fixed is not None or height * width < LARGE:
        return height, width
    return about.size.padded(min(height, SIDES[0]), width)


def check(checkpoint: Checkpoint) -> float | None:
    """How well a traced graph agrees with PyTorch on a small picture, in dB; None for networks that are not traced.

    Takes seconds, once in a process for each checkpoint. Raises EngineError if they do not agree to
    `verify.BOUND_DB`, or if the network cannot be traced.
    """
    return _agreement(checkpoint) if _is_traced(checkpoint.description) else None


def _is_traced(about: ModelDescriptor) -> bool:
    return about.written is None and about.artcnn is None and about.onnx is None


def _small(about: ModelDescriptor, below: int = 0, right: int = 0) -> tuple[int, int]:
    """Height and width of a small frame that the network takes, so much larger than the smallest."""
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
    """Whether a trace at a small size is right for others: for odd ones, and for one with these remainders."""
    from vsfdatrd.graph.trace import for_size, traced_open

    about = checkpoint.description
    try:
        model = traced_open(checkpoint, *_small(about))
        for height, width in (_small(about, 27, 53), _small(about, PERIOD + below, PERIOD + right)):
            if _compared(checkpoint, for_size(model, checkpoint, height, width), height, width) < BOUND_DB:
                return False
    except EngineError as error:  # it does not even run there
        log.debug("%s is traced at every frame's own size: %s", checkpoint.path.name, error)
        return False
    return True


def _compared(checkpoint: Checkpoint, model: "onnx.ModelProto", height: int, width: int) -> float:
    """PSNR of a graph in OpenVINO against PyTorch on a picture of its size. Raises EngineError as `verify.compare`, and
    if OpenVINO does not run it."""
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
