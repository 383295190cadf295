"""Padding and tiles compared with NumPy and PyTorch."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vsfdatrd.video import tiling as geometry

sides = st.integers(1, 130)


@given(sides, sides, st.integers(0, 70), st.integers(0, 70))
def test_padding_is_numpys_reflect_or_edge_and_keeps_the_picture(
    height: int, width: int, bottom: int, right: int
) -> None:
    picture = np.random.default_rng(height * 131 + width).random((height, width), np.float32)
    plane = np.full((height + bottom, width + right), np.nan, np.float32)
    plane[:height, :width] = picture
    geometry.fill_padding(plane, height, width)
    mode = "reflect" if bottom < height and right < width else "edge"
    np.testing.assert_array_equal(plane, np.pad(picture, ((0, bottom), (0, right)), mode))  # type: ignore[call-overload]


@pytest.mark.parametrize(("height", "width"), [(24, 24), (37, 45), (60, 60), (8, 200), (70, 100)])
def test_padding_is_the_networks_own(height: int, width: int) -> None:
    torch = pytest.importorskip("torch")
    from vsfdatrd.nn.fdat_rd import build

    network = build("small")
    x = torch.rand(1, 3, height, width)
    expected = network.pad(x).numpy()[0, 0]
    plane = np.zeros(expected.shape, np.float32)
    plane[:height, :width] = x.numpy()[0, 0]
    geometry.fill_padding(plane, height, width)
    np.testing.assert_array_equal(plane, expected)


@given(sides, sides, st.integers(32, 140), st.integers(32, 140), st.integers(1, 4))
def test_tiles_cover_every_pixel_with_weight_one(height: int, width: int, rows: int, columns: int, scale: int) -> None:
    tiling = geometry.tile_frame(height, width, rows, columns, scale)
    assert tiling.height <= min(rows, height)
    assert tiling.width <= min(columns, width)
    total = np.zeros((height * scale, width * scale), np.float32)
    for tile in tiling.tiles:
        assert 0 <= tile.top <= height - tiling.height
        assert 0 <= tile.left <= width - tiling.width
        top, left = tile.top * scale, tile.left * scale
        weight = tile.rows * tile.columns
        assert weight.shape == (tiling.height * scale, tiling.width * scale)
        assert weight.min() >= 0
        total[top : top + weight.shape[0], left : left + weight.shape[1]] += weight
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_neighboring_tiles_overlap() -> None:
    tiling = geometry.tile_frame(540, 720, 270, 360, 2)
    lefts = sorted({tile.left for tile in tiling.tiles})
    assert all(b - a <= 360 - geometry.OVERLAP_PIXELS for a, b in pairwise(lefts))
    assert max(lefts) == 720 - 360


def test_tiles_fade_into_each_other_evenly() -> None:
    left, right = geometry.tile_frame(60, 100, 60, 60, 2).tiles
    shared = 2 * (left.left + 60 - right.left)
    ramp = (np.arange(shared) + 0.5) / shared
    np.testing.assert_allclose(right.columns[0], [*ramp, *np.ones(120 - shared)], atol=1e-6)
    np.testing.assert_allclose(left.columns[0], right.columns[0, ::-1], atol=1e-6)
    small = geometry.tile_frame(32, 56, 32, 32, 1)  # a quarter of a small tile
    assert [tile.left for tile in small.tiles] == [0, 24]


@pytest.mark.parametrize(("height", "width"), [(1080, 1920), (1920, 1080), (540, 720)])
def test_a_frame_is_divided_into_ever_more_tiles_that_are_nearly_square(height: int, width: int) -> None:
    found = list(geometry.tilings(height, width, 2, 16))
    counts = [len(tiling.tiles) for tiling in found]
    assert counts[:2] == [2, 4]
    assert 12 <= counts[-1] <= 16
    assert all(a < b for a, b in pairwise(counts))
    assert all(max(t.height, t.width) < 2 * min(t.height, t.width) for t in found)
    assert all(len(t.tiles) * t.height * t.width < 1.4 * height * width for t in found)


def test_no_frame_is_divided_into_tiles_that_hardly_exceed_their_overlaps() -> None:
    (halves,) = geometry.tilings(65, 98, 2, 16)  # 65 pixels each, and the overlap is 32
    assert (halves.height, halves.width) == (65, 65)
    assert not list(geometry.tilings(65, 96, 2, 16))
    assert not list(geometry.tilings(1080, 1920, 2, 1))
    assert len(list(geometry.tilings(1080, 1920, 2, 2))) == 1


def test_whole_frame_is_one_tile() -> None:
    tiling = geometry.single_tile(480, 720, 2)
    assert (tiling.height, tiling.width, len(tiling.tiles)) == (480, 720, 1)
    assert tiling.tiles[0].rows.min() == tiling.tiles[0].columns.min() == 1
