"""Small tiles as `models.training.pack` writes them, drawn here."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.training.pack import TILE, encode_webp


def write_tiles(file: Path, count: int = 14) -> None:
    """Smooth waves as pages, discs as sprites; numbers 0 and 12 are held back."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:TILE, :TILE] / TILE
    with zipfile.ZipFile(file, "w") as archive:
        for n in range(count):
            waves = [np.sin((x * a + y * b) * 9 + c) for a, b, c in random.uniform(-3, 3, (3, 3))]
            page = np.stack(waves, -1) * 90 + 128
            archive.writestr(f"pages/{n:05}_00.webp", encode_webp(page.astype(np.uint8)))
            radius, *color = random.uniform(0.2, 1, 4)
            disc = (np.hypot(x - 0.5, y - 0.5) < radius / 2)[..., None]
            sprite = disc * np.array([*(255 * c for c in color), 255])
            archive.writestr(f"sprites/{n:05}.webp", encode_webp(sprite.astype(np.uint8)))


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tiles") / "tiles.zip"
    write_tiles(file)
    return file


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Restore the number of PyTorch's threads after each test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
