"""White in the numbers of an ONNX network, 1 or 255, by trying: a drawing that goes in should come out as a drawing.

Of networks that make another picture of it (styles, light, haze), and of those that take any range alike, a trial tells
nothing; then white is what it would be without one. A false 255 would spoil every picture, so it takes more than that
255 looks better: that what comes out of numbers from 0 to 1 is no picture at all.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.onnx import OnnxConfig, Range

type Planes = NDArray[np.float32]

BLOCK = 8
"""Side in pixels of the blocks whose means are compared: what a network does to details does not count."""
LIKE_DB = 20.0
"""Agreement of means from which on a picture counts as the one that went in."""
SURE_DB = 25.0
"""The same, where more hangs on it."""
UNLIKE_DB = 15.0
"""Agreement below which a picture is another."""
LARGEST = 2.0
"""Values that fractions stay below, ringing and all."""


def settle(
    config: OnnxConfig, certain: bool, picture: Planes, scale: int, first: Planes, run: Callable[[OnnxConfig], Planes]
) -> tuple[OnnxConfig, str | None]:
    """Both ranges of a network, and what there is to be said of them.

    certain: whether that of the input is known. picture: a drawing (C, H, W) in [0, 1]. first: what the network makes
    of it by `config.range`, in its own numbers, (C, H·scale, W·scale). run: the same by other ends.
    """

    def agreement(planes: Planes, white: Range) -> float:
        return _psnr(_means(picture, BLOCK), _means(planes, BLOCK * scale) / float(white))

    whites: tuple[Range, Range] = ("1", "255")
    out = max(whites, key=lambda white: agreement(first, white))
    if agreement(first, out) >= LIKE_DB:
        said = f"what comes out is taken for 0 to {out}, which a drawing comes out in"
        return replace(config, output_range=out), said if out != config.range else None
    if certain:
        faint = bool(np.abs(first).max() <= LARGEST)
        return replace(config, output_range="1" if faint else config.range), None
    before, second = agreement(first, out), run(replace(config, range="255", output_range="1"))
    out = max(whites, key=lambda white: agreement(second, white))
    after = agreement(second, out)
    if not (after >= SURE_DB and before < UNLIKE_DB):  # also where either is no number
        return config, None
    how = f"({before:.0f} dB against {after:.0f})"
    if np.mean(np.abs(_means(first, BLOCK * scale) - 0.5) > 1) > 0.5:
        return replace(config, range="255", output_range=out), (
            "white is taken for 255 in its numbers: from 0 to 1 a drawing comes out as no picture, from 0 to 255 as "
            f'itself {how}; input_range="1" says otherwise'
        )
    return config, (
        "white is taken for 1 in its numbers, but from 0 to 255 a drawing comes out more like itself "
        f'{how}; if colours are wrong, give input_range="255"'
    )


def _means(planes: Planes, side: int) -> NDArray[np.float64]:
    """Means of square blocks; what is left at the right and the bottom is left out."""
    c, height, width = planes.shape
    rows, columns = height // side, width // side
    parts = planes[:, : rows * side, : columns * side].reshape(c, rows, side, columns, side)
    means: NDArray[np.float64] = parts.mean((2, 4), np.float64)
    return means


def _psnr(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(-10 * np.log10(max(float(np.mean((one - other) ** 2)), 1e-20)))
