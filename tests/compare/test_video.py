"""Files as progressive RGB frames: colors, fields, times, and invalid files."""

import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import vapoursynth as vs

from tests.compare.conftest import Drawing, Writer, clip_of
from vsfdatrd.compare import video
from vsfdatrd.compare.video import Video, open_video, read_frame, to_luma
from vsfdatrd.encode.timestamps import NO_TIMESTAMP
from vsfdatrd.errors import ArgumentError, ClipError, EncodeError, FrameError


def shown(result: Video, number: int) -> video.Picture:
    return read_frame(result, result.clip, number)


@pytest.mark.parametrize(
    ("size", "matrix", "limits", "tags"),
    [
        ((240, 160), 6, 0, "Ip"),
        ((240, 160), 6, 1, "Ip XCOLORRANGE=FULL"),
        ((160, 560), 5, 0, "Ip"),  # as tall as PAL
        ((160, 600), 1, 0, "Ip"),  # HD
    ],
)
def test_colors_are_those_that_were_drawn(
    write: Writer, size: tuple[int, int], matrix: int, limits: int, tags: str
) -> None:
    width, height = size
    drawn = np.zeros((height, width, 3), np.uint8)
    drawn[: height // 2] = 200, 40, 60
    drawn[height // 2 :] = 20, 120, 220
    result = open_video(write("a.y4m", clip_of([drawn], matrix=matrix, range=limits), tags=tags))
    assert np.abs(shown(result, 0) * 255 - drawn).max() < 1.5  # 8-bit YUV is that coarse; a wrong matrix is off by 10


def telecined(film: list[Drawing]) -> vs.VideoNode:
    """Telecined film as on NTSC discs: five frames for every four, two of which mix fields of neighbors."""
    fields = clip_of(film, vs.YUV420P8).std.SeparateFields(tff=True)
    pulled = fields.std.SelectEvery(8, [0, 1, 2, 3, 2, 5, 4, 7, 6, 7])
    return pulled.std.DoubleWeave(tff=True)[::2]


def test_telecined_film_shows_whole_film_frames(write: Writer, film: list[Drawing]) -> None:
    stored = telecined(film[:20])
    assert stored.num_frames == 25
    result = open_video(write("a.y4m", stored, rate="30000:1001", tags="It A8:9"))
    assert result.clip.num_frames == 25
    assert "fields were matched" in result.treatment
    assert result.pixel_aspect == pytest.approx(8 / 9)
    true = open_video(write("b.y4m", clip_of(film[:20], vs.YUV420P8)))
    every = [shown(true, n) for n in range(20)]
    for n in range(1, 24):  # each is one of the film's frames; the ends lack a neighbor
        assert min(float(np.abs(shown(result, n) - film_frame).max()) for film_frame in every) < 0.02, n


def test_interlaced_video_that_fields_cannot_be_matched_in_shows_no_combs(write: Writer) -> None:
    """A bar that moves between the two fields of a frame."""
    pictures = []
    for n in range(12):
        picture = np.full((96, 240, 3), 40, np.uint8)
        picture[::2, 14 * n : 14 * n + 40] = 210
        picture[1::2, 14 * n + 7 : 14 * n + 47] = 210
        pictures.append(picture)
    result = open_video(write("a.y4m", clip_of(pictures), tags="It A1:1"))
    plain = open_video(write("b.y4m", clip_of(pictures)))
    rows = [np.abs(np.diff(to_luma(shown(one, 5)), axis=0)).max() for one in (result, plain)]
    assert rows[1] > 0.5
    assert rows[0] < 0.05


def test_formats_that_vivtc_does_not_take_are_matched_by_luma(write: Writer, film: list[Drawing]) -> None:
    clip = clip_of(film[:6], vs.YUV444P8).resize.Point(format=vs.YUV411P8)
    result = open_video(write("a.y4m", clip, tags="Ib A1:1"))
    assert "fields were matched" in result.treatment
    assert result.clip.num_frames == 6
    assert np.abs(to_luma(shown(result, 3)) - to_luma(np.float32(1 / 255) * film[3])).mean() < 0.03


def test_a_height_that_cannot_hold_two_fields_of_chroma(write: Writer, film: list[Drawing]) -> None:
    clip = clip_of([np.ascontiguousarray(picture[:158]) for picture in film[:2]], vs.YUV420P8)
    result = open_video(write("a.y4m", clip, tags="It A1:1"))
    assert "fields were matched" in result.treatment
    assert shown(result, 1).shape == (158, 240, 3)
    assert np.abs(to_luma(shown(result, 1)) - to_luma(np.float32(1 / 255) * film[1][:158])).mean() < 0.03


@pytest.mark.parametrize("form", [vs.RGB24, vs.RGBS, vs.GRAY8, vs.GRAY16, vs.YUV420P16])
@pytest.mark.parametrize(("height", "treatment"), [(48, "fields were matched"), (47, "shown as it is")])
def test_interlaced_frames_of_other_formats(form: vs.PresetVideoFormat, height: int, treatment: str) -> None:
    form = vs.YUV444P16 if form == vs.YUV420P16 and height % 2 else form
    clip = vs.core.std.BlankClip(width=64, height=height, format=form, length=3).std.SetFieldBased(2)
    made, done = video._make_progressive(clip)
    assert treatment in done
    assert (made.format.id, made.width, made.height, made.num_frames) == (form, 64, height, 3)
    assert made.get_frame(1).props["_FieldBased"] == 0


def test_progressive_files_are_left_alone(write: Writer, film: list[Drawing]) -> None:
    result = open_video(write("a.y4m", clip_of(film[:4]), rate="25:1"))
    assert result.treatment == ""
    assert result.pixel_aspect == 1
    assert result.times == pytest.approx([0, 0.04, 0.08, 0.12], abs=1e-3)


def test_times_of_the_file_are_used_and_nonsense_is_not() -> None:
    for stamps, times in (
        ([1000, 1050, 1200], [0, 0.05, 0.2]),  # variable, and not from 0
        ([0, NO_TIMESTAMP, 200], [0, 0.1, 0.2]),  # one is missing
        ([1000, 1100, 0], [0, 0.1, 0.2]),  # backwards
    ):
        assert video._frame_times(stamps, Fraction(1, 1000), Fraction(10)) == pytest.approx(times), stamps


def test_raw_streams_have_the_times_of_their_frame_rate(tmp_path: Path) -> None:
    stream = tmp_path / "a.m2v"
    source = ["-f", "lavfi", "-i", "testsrc=size=320x240:duration=1:rate=25"]
    program = imageio_ffmpeg.get_ffmpeg_exe()
    subprocess.run([program, "-v", "error", *source, "-c:v", "mpeg2video", str(stream)], check=True, timeout=250)
    result = open_video(stream)
    assert result.clip.num_frames == 25
    assert result.times == pytest.approx([n / 25 for n in range(25)])


def test_files_that_are_not_video_say_so(tmp_path: Path) -> None:
    text = tmp_path / "notes.mkv"
    text.write_text("to do: everything\n" * 100)
    for path, output in (
        (text, "cannot be read as video"),
        (tmp_path / "gone.mkv", "is not there"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(ArgumentError, match=output) as caught:
            open_video(path)
        assert str(path) in str(caught.value)
        assert "of a video file" in str(caught.value) or "give a video file" in str(caught.value)


def test_a_clip_that_is_too_small_names_its_file(write: Writer) -> None:
    path = write("a.y4m", clip_of([np.zeros((6, 6, 3), np.uint8)]))
    with pytest.raises(ClipError, match=r"a\.y4m: .*6×6"):
        open_video(path)


def test_without_bestsource_the_command_to_install_it_is_named(
    write: Writer, film: list[Drawing], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.y4m", clip_of(film[:1]))

    class Bare:
        core = object()

    monkeypatch.setattr(video, "vs", Bare)
    with pytest.raises(EncodeError, match=r"plugins bs, .*pip install 'vsfdatrd\[encode\]'"):
        open_video(path)


def test_a_frame_that_cannot_be_read_names_its_number_and_file(write: Writer, film: list[Drawing]) -> None:
    result = open_video(write("a.y4m", clip_of(film[:2])))
    broken = result.clip.std.FrameEval(lambda n: result.clip.std.Crop(left=1) if n else result.clip)
    assert read_frame(result, broken, 0).shape == (160, 240, 3)
    with pytest.raises(FrameError, match=r"frame 1 of .*a\.y4m cannot be read"):
        read_frame(result, broken, 1)
