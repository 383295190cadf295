"""Find the value of white in an ONNX network's tensors, 1 or 255, by running it on a test picture.

The output should look like the input. For networks that change the image (style transfer, relighting, dehazing), or
that accept either range, the trial is inconclusive and the default is kept. A wrong 255 would ruin every image, so it
is not enough that 255 gives the better result: in addition, the output for [0, 1] must be no image at all.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.onnx import OnnxConfig, Range

type Planes = NDArray[np.float32]

BLOCK_SIDE = 8
"""Side in pixels of the blocks whose means are compared, so that changes in detail do not count."""
LIKE_DB = 20.0
"""PSNR of the block means in dB from which on an output counts as the same image as the input."""
SURE_DB = 25.0
"""The same for decisions that need more certainty."""
UNLIKE_DB = 15.0
"""PSNR in dB below which an output counts as a different image."""
MAX_VALUE = 2.0
"""Upper bound of values in the range [0, 1], including ringing."""


def determine_ranges(
    config: OnnxConfig,
    range_is_known: bool,
    test_image: Planes,
    scale: int,
    result: Planes,
    run_network: Callable[[OnnxConfig], Planes],
) -> tuple[OnnxConfig, str | None]:
    """Determine the ranges, [0, 1] or [0, 255], of the values that a network expects and returns.

    Args:
        config: The network, with its presumed range.
        range_is_known: Whether the input range is known, so that only the output range is determined.
        test_image: The test picture (C, H, W) in [0, 1].
        scale: Scale factor of the network.
        result: Output for the test picture with `config.range`, in the network's own numbers, (C, H·scale, W·scale).
        run_network: Runs the network on the test picture with another config and returns its output in the same form.

    Returns:
        The config with both ranges, and a remark for the user or None.
    """

    def agreement(planes: Planes, white: Range) -> float:
        return _psnr(_block_means(test_image, BLOCK_SIDE), _block_means(planes, BLOCK_SIDE * scale) / float(white))

    whites: tuple[Range, Range] = ("1", "255")
    out = max(whites, key=lambda white: agreement(result, white))
    if agreement(result, out) >= LIKE_DB:
        output = f"its output is assumed to range from 0 to {out}, the range in which it reproduces a test drawing"
        return replace(config, output_range=out), output if out != config.range else None
    if range_is_known:
        faint = bool(np.abs(result).max() <= MAX_VALUE)
        return replace(config, output_range="1" if faint else config.range), None
    before, second = agreement(result, out), run_network(replace(config, range="255", output_range="1"))
    out = max(whites, key=lambda white: agreement(second, white))
    after = agreement(second, out)
    if not (after >= SURE_DB and before < UNLIKE_DB):  # also if either is NaN
        return config, None
    evidence = f"({before:.0f} dB against {after:.0f})"
    if np.mean(np.abs(_block_means(result, BLOCK_SIDE * scale) - 0.5) > 1) > 0.5:
        return replace(config, range="255", output_range=out), (
            "white is assumed to be 255: with values up to 1 the output for a test drawing is not a picture, with "
            f'values up to 255 it is the drawing {evidence}; input_range="1" overrides that'
        )
    return config, (
        "white is assumed to be 1, although with values up to 255 the output is more like the test drawing "
        f'{evidence}; if colors are wrong, give input_range="255"'
    )


def _block_means(planes: Planes, side: int) -> NDArray[np.float64]:
    """Compute the means of square blocks. Incomplete blocks at the right and bottom edges are ignored."""
    c, height, width = planes.shape
    rows, columns = height // side, width // side
    parts = planes[:, : rows * side, : columns * side].reshape(c, rows, side, columns, side)
    means: NDArray[np.float64] = parts.mean((2, 4), np.float64)
    return means


def _psnr(result: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    return float(-10 * np.log10(max(float(np.mean((result - expected) ** 2)), 1e-20)))
