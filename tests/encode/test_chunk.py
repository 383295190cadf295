"""A chunk's file is accepted only if every frame is there, decodes, and is shown at its time."""

from fractions import Fraction
from pathlib import Path

import pytest

from tests.encode.conftest import moving, write
from tests.encode.media import make
from vsfdatrd.encode.chunk import verify_decodable
from vsfdatrd.errors import EncodeError

RATE = Fraction(25)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of H.264, two key frames, and two B-frames between others."""
    options = ("-c:v", "libx264", "-bf", "2", "-b_strategy", "0", "-g", "6", "-sc_threshold", "0", "-threads", "1")
    return write(moving(12), tmp_path_factory.mktemp("chunk") / "whole.mkv", "25", *options)


def test_the_depth_of_reordering_is_measured(whole: Path, tmp_path: Path) -> None:
    assert verify_decodable(whole, 12, RATE) == 1
    assert verify_decodable(write(moving(3), tmp_path / "still.mkv", "25"), 3, RATE) == 0


@pytest.mark.parametrize("frames", [11, 13])
def test_frames_that_are_missing_or_extra_are_noticed(whole: Path, frames: int) -> None:
    with pytest.raises(EncodeError, match=rf"whole\.mkv holds 12 frames, and {frames} were sent"):
        verify_decodable(whole, frames, RATE)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-bsf:v", "noise=drop='lt(n,1)'"], "does not begin with a key frame"),
        (["-bsf:v", "setts=ts='TS*(1+gt(N,8))'"], "are not evenly spaced in time"),
        (["-bsf:v", "noise=amount='if(gt(n,2),20,0)'"], "does not decode|cannot be read back|holds"),
    ],
    ids=["no key frame", "uneven", "damaged"],
)
def test_a_file_that_could_not_be_joined_is_refused(
    whole: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    make("-i", whole, "-c", "copy", *options, tmp_path / "part.mkv")
    with pytest.raises(EncodeError, match=rf"part\.mkv.* ({words})|frame \d+ of part\.mkv does not decode"):
        verify_decodable(tmp_path / "part.mkv", 12, RATE)
