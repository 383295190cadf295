"""Selection of frames: starts of scenes, sharp lines, no empty and no repeated frames."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.compare.conftest import Drawing, Writer, clip_of, scenes
from vsfdatrd.compare.match import Thumbnails, correlation
from vsfdatrd.compare.pick import ChosenFrame, check_frames, choose_frames, requested_frames
from vsfdatrd.compare.video import Video, open_video
from vsfdatrd.errors import ArgumentError, FrameError


def every(video: Video) -> range:
    return range(video.clip.num_frames)


def test_scene_starts_are_exact(write: Writer, film: list[Drawing]) -> None:
    video = open_video(write("a.y4m", clip_of(film)))
    picks = choose_frames(Thumbnails(video), 4, every(video))
    assert len(picks) == 4
    assert [pick.frame for pick in picks] == sorted({pick.frame for pick in picks})
    assert {pick.frame for pick in picks if pick.why == "a scene starts"} == {20, 40}


def test_sharp_frames_are_found_among_soft_and_empty_ones(write: Writer, film: list[Drawing]) -> None:
    soft = [np.asarray(Image.fromarray(one).filter(ImageFilter.GaussianBlur(2))) for one in film]
    sharp = {7, 8, 9, 10, 33, 34, 35, 36}
    black = np.zeros_like(film[0])
    mixed = [film[n] if n in sharp else black if n % 20 > 15 else soft[n] for n in range(60)]
    video = open_video(write("a.y4m", clip_of(mixed)))
    (best,) = choose_frames(Thumbnails(video), 1, every(video))
    assert best.frame in sharp
    assert best.why == "sharp lines"
    assert not any(pick.frame % 20 > 15 for pick in choose_frames(Thumbnails(video), 6, every(video)))


def test_no_drawing_is_shown_twice(write: Writer, film: list[Drawing]) -> None:
    video = open_video(write("a.y4m", clip_of([film[0]] * 30 + [film[45]] * 30)))
    picks = choose_frames(Thumbnails(video), 6, every(video))
    shown = [Thumbnails(video).at(pick.frame) for pick in picks]
    assert len(picks) == 2
    assert correlation(*shown) < 0.9


def test_only_the_frames_it_may_choose_from(write: Writer, film: list[Drawing]) -> None:
    video = open_video(write("a.y4m", clip_of(film)))
    assert all(25 <= pick.frame < 35 for pick in choose_frames(Thumbnails(video), 4, range(25, 35)))


def test_short_and_empty_videos_still_show_something(write: Writer) -> None:
    one = open_video(write("a.y4m", clip_of(scenes(1, 1))))
    assert choose_frames(Thumbnails(one), 6, every(one)) == [ChosenFrame(0, "sharp lines")]
    black = open_video(write("b.y4m", clip_of([np.zeros((64, 64, 3), np.uint8)] * 5)))
    assert len(choose_frames(Thumbnails(black), 3, every(black))) == 1


def broken(video: Video, bad: set[int]) -> Video:
    """The video, some of whose frames cannot be read."""
    narrow = video.clip.std.Crop(left=2)
    return replace(video, clip=video.clip.std.FrameEval(lambda n: narrow if n in bad else video.clip))


def test_frames_that_cannot_be_read_are_passed_over(write: Writer, film: list[Drawing]) -> None:
    video = open_video(write("a.y4m", clip_of(film)))
    first = choose_frames(Thumbnails(video), 4, every(video))
    bad = {pick.frame for pick in first} | {29, 30}
    again = choose_frames(Thumbnails(broken(video, bad)), 4, every(video))
    assert again
    assert not bad & {pick.frame for pick in again}
    with pytest.raises(FrameError, match=r"none of the frames of .*a\.y4m that were tried can be read"):
        choose_frames(Thumbnails(broken(video, set(range(60)))), 4, every(video))


def test_frames_that_were_asked_for(write: Writer, film: list[Drawing]) -> None:
    video = open_video(write("a.y4m", clip_of(film)))
    assert [pick.frame for pick in requested_frames(video, [30, 2, 30, 59])] == [2, 30, 59]
    for wrong in ([60], [-1], [3, 1000]):
        with pytest.raises(ArgumentError, match=r"--frames .* is not in .*a\.y4m, which has the frames 0 to 59"):
            requested_frames(video, wrong)


def test_more_frames_than_a_page_holds_are_refused() -> None:
    check_frames([3] * 60, 50)
    with pytest.raises(ArgumentError, match="names 60 frames, and one page holds 50"):
        check_frames(range(60), 6)
    for count in (0, -3, 51):
        with pytest.raises(ArgumentError, match=f"--count {count} is not possible; give 1 to 50"):
            check_frames([], count)
