import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.training.data import CropSampler, load
from models.training.pack import TILE, cut_tiles, lettering_tile, list_fonts, pack, page_tiles, panels
from models.training.recipe import Recipe

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="5" r="4" fill="#c00"/></svg>'


def pool(tiles: Path, seed: int = 1, **changes: float) -> CropSampler:
    torch.manual_seed(seed)
    return CropSampler.open(tiles, replace(Recipe(), **changes), torch.Generator().manual_seed(seed))  # type: ignore[arg-type]


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


def test_squeezed_views_have_no_stairs(tiles: Path) -> None:
    """Lines of one pixel are finer than the pixels of a view that is squeezed to 16:9, and fade."""
    it = pool(tiles)
    it.aspects = torch.full((4,), 64 / 45)
    lines = torch.zeros(1, 3, TILE, TILE, dtype=torch.uint8)
    lines[..., ::2] = 255
    seen = it._view(lines, 40, 120, zoom=(1.0, 1.0), straight=0.0)
    contrast = seen[:, 0, 40:80, 40:80].std((1, 2))
    assert contrast.max() > 0.32, "some views are not squeezed"
    assert contrast.min() < 0.28


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
    assert pack(folder, out, scales=(1.0,), font_folders=(), workers=1) == (3 * 2, 1, 0)
    assert load(out, "pages", held_back=True).shape == (6, 3, TILE, TILE)
    color, alpha = load(out, "sprites", held_back=False)[0].tensor_split([3])
    assert alpha.max() == 255
    assert (color <= alpha).all()


def test_tiles_cover_a_picture() -> None:
    picture = np.arange(900 * 500, dtype=np.uint32).astype(np.uint8).reshape(900, 500, 1).repeat(3, 2)
    assert len(cut_tiles(picture)) == 3 * 2
    assert len(cut_tiles(picture[:300])) == 2, "what is a little small is filled up by mirroring"
    assert cut_tiles(picture[:200]) == []
    assert cut_tiles(np.zeros_like(picture)) == []


def comic(width: int = 900, height: int = 1000) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Two panels side by side above a wide one, parted by white."""
    page = np.full((height, width, 3), 252, np.uint8)
    noise = np.random.default_rng(1).integers(0, 200, page.shape, np.uint8)
    for top, bottom, left, right in COMIC:
        page[top:bottom, left:right] = noise[top:bottom, left:right]
    return page


COMIC = [(40, 470, 30, 440), (40, 470, 460, 870), (500, 960, 30, 870)]


def test_panels_are_cut_along_the_gutters() -> None:
    assert panels(comic()) == COMIC
    noise = np.random.default_rng(2).integers(0, 255, (300, 500, 3), np.uint8)
    assert panels(noise) == [(0, 300, 0, 500)]
    assert panels(np.full((300, 300, 3), 255, np.uint8)) == []


def test_no_tile_shows_a_gutter(tmp_path: Path) -> None:
    Image.fromarray(comic()).save(tmp_path / "page.png")
    tiles = page_tiles(tmp_path / "page.png", (1.0, 0.75), 100)
    assert len(tiles) == (4 + 4 + 6) + (1 + 1 + 2)
    for tile in tiles:
        with Image.open(io.BytesIO(tile)) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape == (TILE, TILE, 3)
        assert not (pixels > 240).all(2).all(0).any()
        assert not (pixels > 240).all(2).all(1).any()


def test_a_page_of_names_is_left_out(tmp_path: Path) -> None:
    page = np.full((800, 600, 3), (232, 228, 220), np.uint8)
    page[100:700:20, 80:500] = 60
    Image.fromarray(page).save(tmp_path / "names.png")
    assert page_tiles(tmp_path / "names.png", (1.0,), 100) == []


def test_a_pack_keeps_to_its_budget(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(4):
        noise = np.random.default_rng(n).integers(0, 255, (800, 800, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"page{n}.png")
    for n in range(3):
        (folder / f"drawing{n}.svg").write_text(SVG)
    out = tmp_path / "tiles.zip"
    packed = pack(folder, out, quality=90, budget=2, font_folders=(), workers=1)
    assert packed.pages >= 4
    assert packed.sprites == 3
    assert packed.lettering == 0
    assert out.stat().st_size <= 2 * 2**20
    assert {int(name[6:11]) for name in zipfile.ZipFile(out).namelist() if name.startswith("pages")} == {0, 1, 2, 3}


def test_words_are_written_in_fonts() -> None:
    """Pillow brings one of its own; here any font file will do."""
    files = list_fonts([Path("/usr/share/fonts")])
    if not files:
        pytest.skip("there are no fonts here")
    tiles = [tile for seed in range(6) if (tile := lettering_tile(seed, files))]
    assert tiles
    for tile in tiles:
        with Image.open(io.BytesIO(tile)) as image:
            pixels = np.asarray(image.convert("RGBA"))
        assert (pixels[..., :3] <= pixels[..., 3:]).all()
        assert 0.02 < (pixels[..., 3] > 0).mean() < 0.8


def test_words_stand_over_the_crops(tiles: Path) -> None:
    it = pool(tiles, lettering=1.0)
    it.words = torch.zeros(2, 4, TILE, TILE, dtype=torch.uint8)
    it.words[:, :, ::8] = 255
    before = torch.full((4, 3, 120, 120), 0.5)
    after = it._with_words(before)
    changed = ((after - before).abs().amax(1) > 0.05).float().mean((1, 2))
    assert ((changed > 0.02) & (changed < 0.9)).all()
