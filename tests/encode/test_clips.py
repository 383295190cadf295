"""Real discs, from the shared folder, end to end."""

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs

from tests.encode.conftest import Encode, times
from vsfdatrd.encode import field_detection, script
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.source import open_source
from vsfdatrd.system.programs import ffmpeg, run

SUBTITLE = "1\n00:00:00,040 --> 00:00:00,120\nshort\n"
CLIPS = {
    # name: (seconds, about how many frames these are at last, rate, size, what is said of fields)
    "ntsc_telecined_480i.mpg": (0.5, 12, Fraction(24000, 1001), (1440, 1080), "telecined film"),
    "pal_576p.mpg": (0.2, 5, Fraction(25), (1536, 1152), "progressive, left alone"),
    "ld_square_720x540.mkv": (0.2, 5, Fraction(24000, 1001), (1440, 1080), "progressive, left alone"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLIPS)
def test_discs_with_sound_and_subtitles(shared: Path, encode: Encode, tmp_path: Path, name: str) -> None:
    seconds, count, rate, size, about = CLIPS[name]
    # A copy of part of a PAL disc ends in the middle of a group of pictures, with a frame missing.
    coder = "ffv1" if name.startswith("pal") else "copy"
    (tmp_path / "text.srt").write_text(SUBTITLE)
    source = tmp_path / "short.mkv"
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-i",
            str(shared / "data" / "clips" / name),
            "-f",
            "lavfi",
            "-i",
            "sine=330:sample_rate=48000",
            "-i",
            str(tmp_path / "text.srt"),
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-map",
            "2:s",
            "-c:v",
            coder,
            "-c:a",
            "ac3",
            "-c:s",
            "srt",
            "-t",
            str(seconds),
            str(source),
        ]
    )
    output = tmp_path / "out.mkv"
    result = encode(source, output, "--preset", "x264", "--chunk", "0.01", further=("-preset", "ultrafast"))
    assert result.returncode == 0, result.stderr
    assert about in result.stderr
    with av.open(str(output)) as container:
        video = container.streams.video[0]
        assert [s.type for s in container.streams] == ["video", "audio", "subtitle"]
        assert (video.width, video.height) == size
        assert video.average_rate == rate
        frame = next(container.decode(video=0))
        assert (frame.color_range, frame.colorspace) == (1, 1)  # limited, 709: it has become HD
        tags = video.codec_context
        expected = {"pal_576p.mpg": (5, 5)}.get(name, (6, 6))
        assert (tags.color_primaries, tags.color_trc) == expected  # never converted
    shown = times(output)
    before = times(source)
    assert abs(len(shown) - count) <= 2
    # picture and sound begin as far apart as they did, and the film lasts as long
    gap = (before[0] - times(source, "audio")[0]) - (shown[0] - times(output, "audio")[0])
    assert abs(gap) < 1 / rate / 2
    assert abs((shown[-1] - shown[0]) - (before[-1] - before[0])) < 1 / rate
    even = np.arange(len(shown)) / float(rate) + float(shown[0])
    assert np.abs(np.array([float(time) for time in shown]) - even).max() < 0.0015


def test_the_telecined_disc_gives_the_frames_of_the_progressive_one(shared: Path) -> None:
    clips = shared / "data" / "clips"
    source = open_source(clips / "ntsc_telecined_480i.mpg", None)
    result = field_detection.choose_fields(source.clip, source.rate, "auto")
    assert (result.kind, result.top_first) == ("ivtc", True)
    restored = script.run_script(script.preparation_script(source.path, source.video, None, result, Borders(), "0"))
    film = vs.core.bs.VideoSource(str(clips / "ntsc_film_480p.mpg"), cachemode=0)
    assert restored.num_frames == 144
    # Both were encoded from one film by a lossy codec: each frame must be the nearest of its neighborhood by far.
    for n in range(2, 140, 6):
        with restored.get_frame(n) as frame:
            luma = np.asarray(frame[0]).astype(float)
        errors = []
        for other in range(n - 2, n + 3):
            with film.get_frame(other) as frame:
                errors.append(float(np.abs(np.asarray(frame[0]) - luma).mean()))
        assert errors[2] < 3, (n, errors)
        assert errors[2] <= min(errors) + 0.15, (n, errors)


def test_what_is_said_of_every_clip(shared: Path) -> None:
    kinds = {}
    for path in sorted((shared / "data" / "clips").glob("[!p]*.m*")):  # without those in HEVC, which take long
        source = open_source(path, None)
        kinds[path.name] = field_detection.choose_fields(source.clip, source.rate, "auto").kind
    assert {name for name, kind in kinds.items() if kind != "progressive"} == {"ntsc_telecined_480i.mpg"}


def test_a_disc_cut_short_is_no_crash(shared: Path, encode: Encode, tmp_path: Path) -> None:
    content = (shared / "data" / "clips" / "pal_576p.mpg").read_bytes()
    (tmp_path / "cut.mpg").write_bytes(content[:100])
    result: subprocess.CompletedProcess[str] = encode(tmp_path / "cut.mpg", tmp_path / "out.mkv")
    assert result.returncode == 1
    assert "has no readable video" in result.stderr
    assert "Traceback" not in result.stderr
