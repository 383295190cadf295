"""Colors that RGB holds, and how far a plane is from what it was."""

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from tests.clips import WEIGHTS, YCGCO_SPAN, Array, decode, from_codes, to_codes


def in_gamut(count: int, bits: int, matrix: int, range: int, seed: int = 0) -> Array:
    """(3, count) codes of colors that RGB holds, from black to white, in the order of their luma: a color ramp."""
    random = np.random.default_rng(seed)
    rgb = random.random((3, 64 + 4 * count))
    rgb[random.random(rgb.shape) < 0.2] = 0
    rgb[random.random(rgb.shape) < 0.2] = 1
    weights = WEIGHTS[matrix]
    if weights is None:
        r, g, b = rgb
        span = YCGCO_SPAN[range]
        planes = [(r + 2 * g + b) / 4, (2 * g - r - b) / 4 / span, (r - b) / 2 / span]
    else:
        kr, kb = weights
        y = kr * rgb[0] + (1 - kr - kb) * rgb[1] + kb * rgb[2]
        planes = [y, (rgb[2] - y) / (2 - 2 * kb), (rgb[0] - y) / (2 - 2 * kr)]
    codes = np.stack([np.rint(to_codes(plane, bits, range, chroma=i > 0)) for i, plane in enumerate(planes)])
    codes = codes.clip(0, 2**bits - 1)
    back = decode(codes, bits, matrix, range)
    codes = codes[:, ((back >= 0) & (back <= 1)).all(0)][:, :count]
    assert codes.shape[1] == count
    ordered: Array = codes[:, np.argsort(codes[0], kind="stable")]
    return ordered


def worst(result: Array, expected: Array, bits: int, range: int, plane: int) -> float:
    """Largest difference in codes at `bits`, of a found plane at 16 bits."""
    scaled = to_codes(from_codes(result, 16, range, plane > 0), bits, range, plane > 0)
    return float(np.abs(scaled - expected).max())


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, "vsfdatrd"):
        yield
