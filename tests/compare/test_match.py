"""Matching of frames: by time and similarity, with other rates, starts and borders."""

from dataclasses import replace

import numpy as np
import pytest

from tests.compare.conftest import Drawing, Writer, clip_of, scenes
from vsfdatrd.compare.match import Thumbnails, correlation, crop_borders, match_frames, overlap
from vsfdatrd.compare.video import open_video
from vsfdatrd.errors import ArgumentError, FrameError


def test_likeness_does_not_depend_on_contrast_and_brightness() -> None:
    random = np.random.default_rng(1)
    picture, other = random.random((2, 40, 50), np.float32)
    assert correlation(picture, picture * 0.5 + 0.2) == pytest.approx(1, abs=1e-5)
    assert abs(correlation(picture, other)) < 0.1
    black, gray = np.zeros((40, 50), np.float32), np.full((40, 50), 0.5, np.float32)
    assert correlation(black, black + 0.01) == 1
    assert correlation(black, gray) == 0
    assert correlation(black, picture) == 0


def test_frames_of_another_rate_are_found_by_time(write: Writer, film: list[Drawing]) -> None:
    """Each film frame of 24 a second in a file of 30 that repeats one in four."""
    repeated = [film[n * 4 // 5] for n in range(50)]
    before = open_video(write("a.y4m", clip_of(repeated), rate="30:1"))
    after = open_video(write("b.y4m", clip_of(film[:40]), rate="24:1"))
    for pair in match_frames(before, Thumbnails(after), [0, 7, 18, 25, 39]):
        assert pair.before * 4 // 5 == pair.after
        assert pair.likeness > 0.999


@pytest.mark.parametrize("shift", [-2, 3, 15])
def test_a_file_that_starts_some_frames_later_is_matched_by_likeness(
    write: Writer, film: list[Drawing], shift: int
) -> None:
    """Neighbors are looked at first, then a second to either side."""
    before = open_video(write("a.y4m", clip_of(film)))
    after = open_video(write("b.y4m", clip_of(film[max(0, shift) :] if shift > 0 else film[:1] * -shift + film)))
    result = match_frames(before, Thumbnails(after), [5, 18, 30])
    assert [pair.before for pair in result] == [5 + shift, 18 + shift, 30 + shift]


def test_a_partner_that_cannot_be_read_gives_way_to_its_neighbor(write: Writer, film: list[Drawing]) -> None:
    before, after = (open_video(write(name, clip_of(film))) for name in ("a.y4m", "b.y4m"))
    narrow = before.clip.std.Crop(left=2)
    damaged = replace(before, clip=before.clip.std.FrameEval(lambda n: narrow if n in (4, 5) else before.clip))
    assert match_frames(damaged, Thumbnails(after), [5])[0].before == 6
    gone = replace(before, clip=before.clip.std.FrameEval(lambda n: narrow))
    with pytest.raises(FrameError, match=r"frame 8 of .*a\.y4m cannot be read"):
        match_frames(gone, Thumbnails(after), [5])


def test_held_drawings_are_matched_to_the_nearest_in_time(write: Writer, film: list[Drawing]) -> None:
    random = np.random.default_rng(2)
    noisy = [np.clip(film[0] + random.normal(0, 2, film[0].shape), 0, 255).astype(np.uint8) for _ in range(12)]
    before, after = (open_video(write(name, clip_of(noisy))) for name in ("a.y4m", "b.y4m"))
    again = open_video(write("c.y4m", clip_of([film[0]] * 12)))
    assert [pair.before for pair in match_frames(before, Thumbnails(again), [2, 6, 9])] == [2, 6, 9]
    assert [pair.before for pair in match_frames(before, Thumbnails(after), [2, 6, 9])] == [2, 6, 9]


def test_another_speed_with_as_many_frames_goes_frame_by_frame(write: Writer) -> None:
    """PAL's 25 a second made 24 again: at the end 2.4 s apart, further than is searched."""
    film = scenes(6, 240, (64, 48))
    before = open_video(write("a.y4m", clip_of(film), rate="25:1"))
    after = open_video(write("b.y4m", clip_of(film[:-2]), rate="24:1"))
    assert [pair.before for pair in match_frames(before, Thumbnails(after), [0, 700, 1400])] == [0, 700, 1400]


def test_offset_says_what_is_left_out(write: Writer) -> None:
    film = scenes(4, 48, (96, 64))
    before = open_video(write("a.y4m", clip_of(film)))
    after = open_video(write("b.y4m", clip_of(film[96:])))
    (lost,) = match_frames(before, Thumbnails(after), [20])
    assert lost.likeness < 0.7
    (result,) = match_frames(before, Thumbnails(after), [20], offset=4)
    assert result.before == 116
    assert result.likeness == pytest.approx(1)
    assert overlap(before, after, 4) == range(96)
    assert overlap(before, after, 6) == range(48)
    with pytest.raises(ArgumentError, match=r"--offset 9 leaves nothing to compare: a\.y4m is 8\.0 s long"):
        overlap(before, after, 9)


def test_borders_that_were_cut_off_are_left_out(write: Writer, film: list[Drawing]) -> None:
    framed = [np.pad(picture, ((12, 8), (16, 24), (0, 0))) for picture in film]
    before = open_video(write("a.y4m", clip_of(framed)))
    after = open_video(write("b.y4m", clip_of(film)))
    result = match_frames(before, Thumbnails(after), [3, 25, 50])
    cut, again = crop_borders(before, Thumbnails(after), result)
    assert (cut.clip.width, cut.clip.height) == (240, 160)
    assert [pair.likeness for pair in again] == pytest.approx([1, 1, 1], abs=1e-4)
    assert [(pair.before, pair.after) for pair in again] == [(3, 3), (25, 25), (50, 50)]


def test_borders_that_both_have_stay(write: Writer, film: list[Drawing]) -> None:
    framed = [np.pad(picture, ((12, 8), (16, 24), (0, 0))) for picture in film]
    before, after = (open_video(write(name, clip_of(framed))) for name in ("a.y4m", "b.y4m"))
    result = match_frames(before, Thumbnails(after), [3, 25])
    assert crop_borders(before, Thumbnails(after), result) == (before, result)
