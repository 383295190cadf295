"""Pictures for the tests of picture quality."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks import report
from benchmarks.cartoon import draw_frame
from benchmarks.quality_methods import Picture

type Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def cel() -> Picture:
    return draw_frame(0, 480, 400)


@pytest.fixture(scope="module")
def truth(cel: Picture) -> Floats:
    return cel / 255


def gray_noise(shape: tuple[int, ...], steps: float, seed: int = 0) -> Floats:
    """Noise of one standard deviation in 8-bit steps, the same in R, G and B; (H, W, 1)."""
    noise: Floats = np.random.default_rng(seed).standard_normal((*shape[:2], 1)) * steps / 255
    return noise


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one picture to measure; results go to `results` next to it."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(draw_frame(3, 500, 420)).save(pictures / "drawn.png")
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return pictures
