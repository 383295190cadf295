"""Frames to measure with."""

from pathlib import Path

import pytest
import vapoursynth as vs

from benchmarks.cartoon import write_dvd
from benchmarks.errors import Missing
from benchmarks.speed.contestant import Filter
from benchmarks.speed.material import real_clip


def test_a_clip_is_as_long_as_any_turn(tmp_path: Path) -> None:
    """Else a turn of more frames than the file has would count frames that were not upscaled."""
    file = tmp_path / "short.mpg"
    write_dvd(file, 3)
    clip = real_clip(str(file), 32, 24)
    assert (clip.width, clip.height) == (32, 24)
    asked: set[int] = set()

    def note(n: int) -> vs.VideoNode:
        asked.add(n)
        return clip

    Filter(clip.std.FrameEval(note)).run(0, 10)
    assert len(asked) >= 10


def test_what_is_no_video_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="is not a file; give a video file"):
        real_clip(str(tmp_path / "nowhere.mkv"), 32, 24)
    (tmp_path / "text.mkv").write_text("no video")
    with pytest.raises(Missing, match="cannot be read as a video"):
        real_clip(str(tmp_path / "text.mkv"), 32, 24)
