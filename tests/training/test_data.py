from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.data import Pool, load
from models.training.pack import TILE, cut, pack
from models.training.recipe import Recipe

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="5" r="4" fill="#c00"/></svg>'


def pool(tiles: Path, seed: int = 1, **changes: float) -> Pool:
    torch.manual_seed(seed)
    return Pool.open(tiles, replace(Recipe(), **changes), torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


def test_crops_are_pictures(tiles: Path) -> None:
    crops = pool(tiles).sample(7, 120)
    assert crops.shape == (7, 3, 120, 120)
    assert crops.isfinite().all()
    assert crops.min() >= 0
    assert crops.max() <= 1
    assert (crops.std((1, 2, 3)) > 0.01).sum() >= 5


def test_a_seed_repeats_them(tiles: Path) -> None:
    assert torch.equal(pool(tiles).sample(3, 120), pool(tiles).sample(3, 120))
    assert not torch.equal(pool(tiles).sample(3, 120), pool(tiles, seed=2).sample(3, 120))


@pytest.mark.parametrize("size", [120, 240])
def test_a_straight_view_shows_the_tile_s_own_pixels(tiles: Path, size: int) -> None:
    it = pool(tiles)
    tile = it.pages[0]
    corners = tile[0].unfold(0, 8, 1).unfold(1, 8, 1)  # (rows, columns, 8, 8)
    seen = it._view(it.pages[:1], 3, size, zoom=(1.0, 2.0), straight=1.0) * 255
    assert (seen - seen.round()).abs().max() < 0.01
    for picture in seen.round().byte():
        places = [
            torch.equal(tile[:, y : y + size, x : x + size], side)
            for side in (picture, picture.flip(2))
            for y, x in (corners == side[0, :8, :8]).flatten(2).all(2).nonzero().tolist()
        ]
        assert any(places)


def test_lines_cover_some_of_the_picture_and_are_thin(tiles: Path) -> None:
    it = pool(tiles)
    for cover in (it._strokes(6, 120), it._grids(6, 120), it._lettering(6, 120)):
        assert cover.shape == (6, 1, 120, 120)
        assert cover.min() >= 0
        assert cover.max() <= 1
        assert 0.005 < cover.mean() < 0.5


def test_what_is_held_back_is_never_trained_on(tiles: Path) -> None:
    shown, held = load(tiles, "pages", held_back=False), load(tiles, "pages", held_back=True)
    assert (len(shown), len(held)) == (12, 2)
    assert not any(torch.equal(a, b) for a in shown for b in held)


def test_packing_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (400, 800, 3), np.uint8)
    Image.fromarray(noise).save(folder / "page.png")
    (folder / "drawing.svg").write_text(SVG)
    (folder / "broken.svg").write_text("<svg")
    out = tmp_path / "tiles.zip"
    assert pack(folder, out, scale=1.0, workers=1) == (3 * 2, 1)
    assert load(out, "pages", held_back=True).shape == (6, 3, TILE, TILE)
    colour, alpha = load(out, "sprites", held_back=False)[0].tensor_split([3])
    assert alpha.max() == 255
    assert (colour <= alpha).all()


def test_tiles_cover_a_picture() -> None:
    picture = np.arange(900 * 500, dtype=np.uint32).astype(np.uint8).reshape(900, 500, 1).repeat(3, 2)
    assert len(cut(picture)) == 3 * 2
    assert cut(picture[:300]) == []
    assert cut(np.zeros_like(picture)) == []
