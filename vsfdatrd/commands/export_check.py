"""Verify an exported graph: compare ONNX Runtime's output with PyTorch's."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.errors import EngineBuildError, first_line
from vsfdatrd.options import Precision
from vsfdatrd.video.tiling import fill_padding

if TYPE_CHECKING:
    import onnxruntime
    from torch import nn

type Array = NDArray[Any]

MAX_TRIAL_TOKENS = 150 * 150
"""Largest number of tokens in a trial: 300×300 pixels of a network that unshuffles 2×2, a few seconds in PyTorch."""
MAX_DIFFERENCE = 1e-4
"""Largest allowed difference of an fp32 graph from PyTorch, relative to the output's standard deviation."""


def trial_sizes(model: ModelDescriptor, shape: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Return the sizes (height, width) at which a graph is compared with PyTorch.

    Args:
        model: The model.
        shape: Frame size (height, width) of the graph; None if it is dynamic.

    Returns:
        The graph's own size, or a smaller size with the same padding if its own is large; two sizes for a dynamic
        graph.
    """
    m = model.config.period
    if shape is None:
        return [(m, 2 * m), (97, 143)]  # without padding, and with padding in both directions
    height, width = shape
    if math.prod(model.size.padded(height, width)) <= MAX_TRIAL_TOKENS * model.config.cell**2:
        return [shape]
    # More than one window in each direction, and the same padding as the graph itself.
    least = max(m + 1, model.size.minimum)
    side = _smallest_equivalent(height, least, m), _smallest_equivalent(width, max(2 * m + 1, least), m)
    return [(max(side),) * 2 if model.size.square else side]


def _smallest_equivalent(side: int, least: int, multiple: int) -> int:
    """Return the smallest side >= `least` with the same remainder modulo `multiple`, or the side if it is smaller."""
    return side if side <= least else least + (side - least) % multiple


def check_structure(graph: bytes) -> None:
    """Raise EngineBuildError unless onnx's checker accepts every operator and every declared shape."""
    import onnx

    try:
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # onnx raises several exceptions without a common base class
        raise verification_error(f"onnx rejects it ({first_line(error)[:200]})") from error


def open_session(graph: Path | bytes, precision: Precision) -> "onnxruntime.InferenceSession | None":
    """Load a graph in ONNX Runtime on the CPU.

    Args:
        graph: Path of the file, or its content.
        precision: Precision of the graph.

    Returns:
        The session; None for a bf16 graph if ONNX Runtime has no kernels for it.

    Raises:
        EngineBuildError: The graph does not load.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so do not log them as well
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        if precision == "bf16" and "NOT_IMPLEMENTED" in str(error):
            return None
        raise verification_error(f"ONNX Runtime does not load it ({first_line(error)[:200]})") from error


def compare_with_pytorch(
    checkpoint: Checkpoint, session: "onnxruntime.InferenceSession", sizes: list[tuple[int, int]], precision: Precision
) -> tuple[float, float]:
    """Compare a session with PyTorch on test pictures.

    Args:
        checkpoint: The model.
        session: The exported graph.
        sizes: Picture sizes (height, width).
        precision: Precision of the graph.

    Returns:
        The lowest PSNR in dB and the largest absolute difference.

    Raises:
        EngineBuildError: The graph does not run, its output has another shape, or it is not accurate enough.
    """
    from vsfdatrd.backends import accuracy

    network = checkpoint.network()
    channels = checkpoint.descriptor.frame_channels[0]
    lowest, largest = np.inf, 0.0
    for height, width in sizes:
        picture = accuracy.draw_line_art(height, width)[None, :channels]  # (1, C, H, W)
        expected = run_pytorch(network, checkpoint.descriptor, picture)
        try:
            out: Array = session.run(["output"], {"input": picture})[0]
        except Exception as error:  # no common base class, as above
            raise verification_error(f"ONNX Runtime does not run it ({first_line(error)[:200]})") from error
        if out.shape != expected.shape:
            raise verification_error(f"its output has the shape {out.shape} instead of {expected.shape}")
        try:
            psnr = accuracy.check_psnr(expected, out, f"exported {precision}")
        except EngineBuildError as error:
            raise verification_error(str(error).rstrip(".")) from error
        difference = float(np.abs(out - expected).max())
        bound = MAX_DIFFERENCE * float(expected.std())
        if precision == "fp32" and difference > bound:
            raise verification_error(
                f"its values differ by up to {difference:.2g} from PyTorch's, {bound:.2g} are allowed"
            )
        lowest, largest = min(lowest, psnr), max(largest, difference)
    return lowest, largest


def run_pytorch(network: "nn.Module", model: ModelDescriptor, picture: Array) -> Array:
    """Run the checkpoint's PyTorch module, without clamping.

    Args:
        network: The module.
        model: The model.
        picture: (1, C, H, W) of any size.

    Returns:
        (1, C_out, H·scale, W·scale).
    """
    import torch

    height, width = picture.shape[2:]
    padded = np.zeros((*picture.shape[:2], *model.size.padded(height, width)), np.float32)
    padded[..., :height, :width] = picture
    for plane in padded[0]:
        fill_padding(plane, height, width)
    with torch.inference_mode():
        result: Array = model.architecture.run(network, torch.from_numpy(padded)).numpy()
    return result[..., : height * model.scale, : width * model.scale]


def verification_error(reason: str) -> EngineBuildError:
    """Return the error for an exported file that did not pass verification."""
    return EngineBuildError(
        f"the exported file did not pass verification and was not kept: {reason}; "
        "choose another precision, or write it anyway with --no-verify"
    )
