"""Graphs for engines: written, or traced and compared with PyTorch.

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

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor, trace_checkpoint
from vsfdatrd.backends import accuracy, reference
from vsfdatrd.backends.graphs import serialize
from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.graph.target import OPENVINO, GraphTarget

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)

SMALL_SIZE = (48, 64)
"""Height and width of the small image in pixels, before padding to the network's requirements."""
LARGE_PIXELS = 256 * 256
"""Number of pixels in a frame from which on tracing at its own size should be avoided."""
TESTED_PERIOD = 64
"""A graph with dynamic size is tested at a size with the same remainders modulo this number as the frame's."""
MIN_PSNR_DB = 70.0
"""Lowest PSNR in dB against PyTorch at which a graph is accepted at another size.

Results are stored as float16, which alone limits the PSNR to 77 dB in the worst case.
"""


def create_graph(checkpoint: Checkpoint, height: int, width: int, target: GraphTarget = OPENVINO) -> "onnx.ModelProto":
    """Create a graph like `Checkpoint.graph`, but trace at a small size if the result is verified at other sizes.

    Args:
        checkpoint: The network.
        height: Height of the padded frame in pixels.
        width: Width of the padded frame in pixels.
        target: The library and precision that the graph is for.

    Returns:
        As `Checkpoint.graph`.

    Raises:
        EngineError: As in `Checkpoint.graph`; also OverflowError and CheckpointError.
    """
    network = checkpoint.description
    if network.architecture.is_traced and height * width >= LARGE_PIXELS:
        small_height, small_width = _small_size(network)
        if _is_size_independent(
            checkpoint, (height - small_height) % TESTED_PERIOD, (width - small_width) % TESTED_PERIOD
        ):
            from vsfdatrd.graph.half_precision import convert_precision
            from vsfdatrd.graph.trace import fix_shape

            model = trace_checkpoint(checkpoint, small_height, small_width, dynamic=True)
            return convert_precision(fix_shape(model, network.frame_channels, network.scale, height, width), target)
    return checkpoint.graph(height, width, target)


def sky_size(model: ModelDescriptor, height: int, width: int) -> tuple[int, int]:
    """Choose the size of `accuracy.draw_sky` for verifying an engine.

    It has the engine's width, and the smallest height that the network accepts, since all rows are the same.

    Args:
        model: The network.
        height: Height of the engine's frames in pixels.
        width: Width of the engine's frames in pixels.

    Returns:
        Height and width in pixels.
    """
    if model.fixed_size is not None or height * width < LARGE_PIXELS:
        return height, width
    return model.size.padded(min(height, SMALL_SIZE[0]), width)


def check_trace(checkpoint: Checkpoint) -> float | None:
    """Compare a traced graph with PyTorch on a small image. Takes seconds, once per process and checkpoint.

    Args:
        checkpoint: The network.

    Returns:
        PSNR in dB; None for networks that are not traced.

    Raises:
        EngineError: The PSNR is below `accuracy.MIN_PSNR_DB`, or the network cannot be traced.
    """
    return _small_image_psnr(checkpoint) if checkpoint.description.architecture.is_traced else None


def _small_size(model: ModelDescriptor, extra_rows: int = 0, extra_columns: int = 0) -> tuple[int, int]:
    """Return (height, width) of a small frame that the network accepts, enlarged by at least the extra pixels."""
    height, width = model.size.padded(*SMALL_SIZE)
    return model.size.padded(height + extra_rows, width + extra_columns)


@lru_cache(maxsize=16)
def _small_image_psnr(checkpoint: Checkpoint) -> float:
    """Return the PSNR in dB of a traced graph against its PyTorch module on a small test image."""
    model = checkpoint.description
    height, width = _small_size(model)
    try:
        return _psnr_against_pytorch(checkpoint, checkpoint.graph(height, width), height, width)
    except EngineBuildError as error:
        raise EngineError(
            f"{checkpoint.path.name} ({model.name}) computes something different as a graph than in PyTorch: on a "
            f"small picture {str(error).rstrip('.')}; backend='torch' runs it"
        ) from error


@lru_cache(maxsize=64)
def _is_size_independent(checkpoint: Checkpoint, extra_rows: int, extra_columns: int) -> bool:
    """Test a trace with dynamic size at two other sizes.

    Args:
        checkpoint: The network.
        extra_rows: Height of the second size modulo `TESTED_PERIOD`; the first is odd.
        extra_columns: Width of the second size modulo `TESTED_PERIOD`.

    Returns:
        Whether it is right at both.
    """
    from vsfdatrd.graph.trace import fix_shape

    network = checkpoint.description
    try:
        model = trace_checkpoint(checkpoint, *_small_size(network), dynamic=True)
        for height, width in (
            _small_size(network, 27, 53),
            _small_size(network, TESTED_PERIOD + extra_rows, TESTED_PERIOD + extra_columns),
        ):
            sized = fix_shape(model, network.frame_channels, network.scale, height, width)
            if _psnr_against_pytorch(checkpoint, sized, height, width) < MIN_PSNR_DB:
                return False
    except EngineError as error:  # it does not run at that size
        log.debug("%s is traced at every frame's own size: %s", checkpoint.path.name, error)
        return False
    return True


def _psnr_against_pytorch(checkpoint: Checkpoint, model: "onnx.ModelProto", height: int, width: int) -> float:
    """Compute the PSNR of a graph in OpenVINO against PyTorch on an image of the graph's size.

    Raises:
        EngineError: OpenVINO does not run the graph, or the outputs differ in shape or by more than
            `accuracy.check_psnr` allows.
    """
    import torch

    with tempfile.TemporaryDirectory(prefix="vsfdatrd-") as folder:
        graph, result = Path(folder, "graph.onnx"), Path(folder, "result.npy")
        graph.write_bytes(serialize(model))
        reference.compute_reference(graph, result)
        output = np.load(result).astype(np.float32)  # (C, H·scale, W·scale)
    network = checkpoint.description
    picture = accuracy.draw_line_art(height, width)[None, : network.frame_channels[0]]
    with torch.inference_mode():
        expected = network.architecture.run(checkpoint.network(), torch.from_numpy(picture))[0].numpy()
    if expected.shape != output.shape:
        raise EngineError(f"the graph's output has the shape {output.shape}, and PyTorch's {expected.shape}")
    return accuracy.check_psnr(expected, output, "traced")
