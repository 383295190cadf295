"""PNG files and data URIs: exact pixels, detected detail, complete files or none."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vsfdatrd.compare import pictures
from vsfdatrd.errors import ArgumentError


def of(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_detail_is_where_the_lines_are() -> None:
    picture = np.full((400, 600, 3), 0.5, np.float32)
    picture[100:160:4, 300:380] = 0  # many lines, strong
    picture[300:340:8, 50:120] = 0.3
    first, second = pictures.find_detail(picture)
    assert all((right - left, bottom - top) == (150, 100) for left, top, right, bottom in (first, second))
    assert first[0] <= 300
    assert first[1] <= 100
    assert first[2] >= 380
    assert first[3] >= 157
    assert second[0] <= 50
    assert second[2] >= 120
    assert second[1] <= 300
    assert second[3] >= 333


def test_boxes_of_detail_do_not_overlap_and_lie_inside() -> None:
    picture = np.random.default_rng(3).random((300, 420, 3), np.float32)
    boxes = pictures.find_detail(picture, 5)
    covered = np.zeros((300, 420), int)
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= 420
        assert 0 <= top < bottom <= 300
        covered[top:bottom, left:right] += 1
    assert len(boxes) > 1
    assert covered.max() == 1


def test_a_small_or_flat_picture_is_its_own_detail() -> None:
    assert pictures.find_detail(np.random.default_rng(3).random((40, 60, 3), np.float32)) == [(0, 0, 60, 40)]
    assert len(pictures.find_detail(np.zeros((400, 400, 3), np.float32))) == 1


def test_both_pictures_stand_beside_each_other_pixel_by_pixel() -> None:
    random = np.random.default_rng(3)
    left, right = (pictures.to_image(random.random((50, 70, 3), np.float32)) for _ in range(2))
    for magnified in (1, 3):
        sheet = np.asarray(pictures.side_by_side(left, right, ("before", "after"), magnified))
        wide, high = 70 * magnified, 50 * magnified
        heading = sheet[:-high]
        assert heading.shape[0] > 20
        assert (heading.max(axis=(0, 2)) > 200).any()  # something is written there
        assert np.array_equal(sheet[-high:, :wide][::magnified, ::magnified], np.asarray(left))
        assert np.array_equal(sheet[-high:, -wide:][::magnified, ::magnified], np.asarray(right))


def test_pixels_are_rounded_and_clamped() -> None:
    picture = np.array([[[-0.2, 0.5, 1.7]]], np.float32)
    assert np.asarray(pictures.to_image(picture)).tolist() == [[[0, 128, 255]]]


def test_uris_hold_the_picture() -> None:
    crop = pictures.to_image(np.random.default_rng(3).random((50, 70, 3), np.float32))
    uri = pictures.png_uri(crop)
    assert uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(of(uri)), np.asarray(crop))
    wide = Image.new("RGB", (2880, 2160), (10, 200, 90))
    result = of(pictures.frame_uri(wide))
    assert result.size == (1920, 1440)
    assert np.abs(np.asarray(result, int) - np.asarray(wide.resize((1920, 1440)), int)).max() <= 2


def test_a_file_that_cannot_be_written_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    pictures.write_picture(file, b"one")
    pictures.write_picture(file, b"two")
    assert file.read_bytes() == b"two"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ArgumentError, match=r"folder\.png cannot be written .*--out"):
        pictures.write_picture(tmp_path / "folder.png", b"three")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "folder.png"]
