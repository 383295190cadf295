"""Complete encodes from the command line, of every kind of source with all of its streams."""

import json
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.encode.conftest import HEIGHT, SRT, WIDTH, Encode, decoded, moving, times, write
from tests.encode.joining import LENGTH
from tests.encode.media import lavfi, make
from vsfdatrd.system.programs import ffmpeg, run


def done(result: "subprocess.CompletedProcess[str]") -> str:
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_telecined_film_comes_out_as_the_film_it_was(
    encode: Encode, film: Path, telecined: Path, tmp_path: Path
) -> None:
    output = done(encode(telecined, tmp_path / "a.mkv", "--chunk", "0.02"))
    assert "telecined film" in output
    assert "top field first" in output
    done(encode(film, tmp_path / "b.mkv", "--field", "progressive"))
    # every film frame, and each as it was before
    assert decoded(tmp_path / "a.mkv") == decoded(tmp_path / "b.mkv")
    assert len(times(tmp_path / "a.mkv")) == LENGTH
    with av.open(str(tmp_path / "a.mkv")) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


def test_pixels_are_repeated_and_nothing_else(encode: Encode, film: Path, tmp_path: Path) -> None:
    done(encode(film, tmp_path / "out.mkv"))
    with av.open(str(tmp_path / "out.mkv")) as container:
        frames = [frame.to_ndarray()[: frame.height] for frame in container.decode(video=0)]
    expected = moving(LENGTH).repeat(2, axis=1).repeat(2, axis=2).astype(int) * 4  # 8 to 10 bits
    assert len(frames) == LENGTH
    assert np.abs(np.stack(frames).astype(int) - expected).max() <= 3  # half a step of 8 bits, and dither


def test_sound_subtitles_chapters_and_attachments_stay_and_in_sync(
    encode: Encode, telecined: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.srt").write_text(SRT)
    (tmp_path / "font.ttf").write_bytes(b"not really a font")
    (tmp_path / "meta.txt").write_text(
        ";FFMETADATA1\ntitle=A film\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=2500\ntitle=Two\n"
    )
    source = tmp_path / "all.mkv"
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-i",
            str(telecined),
            "-f",
            "lavfi",
            "-i",
            "sine=440:duration=2.5:sample_rate=48000",
            "-i",
            str(tmp_path / "text.srt"),
            "-i",
            str(tmp_path / "meta.txt"),
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-map",
            "2:s",
            "-map_metadata",
            "3",
            "-map_chapters",
            "3",
            "-c:v",
            "copy",
            "-c:a",
            "ac3",
            "-c:s",
            "srt",
            "-metadata:s:a:0",
            "language=jpn",
            "-metadata:s:s:0",
            "language=eng",
            "-disposition:s:0",
            "forced",
            "-attach",
            str(tmp_path / "font.ttf"),
            "-metadata:s:t",
            "mimetype=font/ttf",
            str(source),
        ]
    )
    output = tmp_path / "out.mkv"
    messages = done(encode(source, output, "--chunk", "0.03"))
    assert "kept: audio 1: ac3 (jpn); subtitle 2: srt (eng)" in messages
    with av.open(str(source)) as before, av.open(str(output)) as after:
        assert [s.type for s in after.streams] == ["video", "audio", "subtitle", "attachment"]
        assert after.streams.audio[0].language == "jpn"
        assert after.streams.subtitles[0].language == "eng"
        assert after.streams.subtitles[0].disposition & av.stream.Disposition.forced
        font: Any = after.streams[3]
        assert font.data == b"not really a font"
        assert after.streams[3].metadata["filename"] == "font.ttf"
        assert after.metadata["title"] == "A film"
        frame = after.streams.video[0]
        context = frame.codec_context
        assert (context.color_range, context.colorspace) == (1, 6)  # 192×128 is not HD: the matrix stays
        assert (context.color_primaries, context.color_trc) == (6, 6)
        chapters = [(c["metadata"]["title"], c["start"] * c["time_base"]) for c in after.chapters()]
        assert [(name, float(start)) for name, start in chapters] == [("One", 0.0), ("Two", 1.0)]
        for kind in ("audio", "subtitles"):
            packets = [[bytes(p) for p in c.demux(getattr(c.streams, kind)[0]) if p.size] for c in (before, after)]
            assert packets[0] == packets[1]
    for kind in ("audio", "subtitles"):
        shift = {abs(a - b) for a, b in zip(times(source, kind), times(output, kind), strict=True)}
        assert max(shift) <= Fraction(1, 1000)
    # film frame 4n is the first of the five of its cycle
    cycles = zip(times(source)[::5], times(output)[::4], strict=True)
    assert max(abs(a - b) for a, b in cycles) <= Fraction(2, 1000)


def test_tags_and_square_pixels_of_an_anamorphic_disc(encode: Encode, tmp_path: Path) -> None:
    source = write(moving(12), tmp_path / "wide.mkv", "25", "vf=setsar=64/45")
    done(encode(source, tmp_path / "out.mkv"))
    done(encode(source, tmp_path / "kept.mkv", "--keep-sar"))
    with av.open(str(tmp_path / "out.mkv")) as square, av.open(str(tmp_path / "kept.mkv")) as kept:
        assert (square.streams.video[0].width, square.streams.video[0].height) == (2 * round(96 * 64 / 45), 128)
        assert square.streams.video[0].sample_aspect_ratio in (None, 0, 1)
        assert (kept.streams.video[0].width, kept.streams.video[0].height) == (192, 128)
        assert kept.streams.video[0].sample_aspect_ratio == Fraction(64, 45)


def test_a_variable_rate_is_kept(encode: Encode, tmp_path: Path) -> None:
    source = tmp_path / "vfr.mkv"
    stamps = [n * 42 if n < 24 else 24 * 42 + (n - 24) * 100 for n in range(48)]  # ms
    even = write(moving(48), tmp_path / "even.mkv", "1000")
    with av.open(str(even)) as given, av.open(str(source), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0], opaque=True)
        for n, packet in enumerate(p for p in given.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = stamps[n]
            packet.duration = 0
            out.mux(packet)
    output = done(encode(source, tmp_path / "out.mkv", "--preset", "x264", "--chunk", "0.02"))
    assert "a variable rate" in output
    assert [round(time * 1000) for time in times(tmp_path / "out.mkv")] == stamps
    done(encode(source, tmp_path / "out.mp4", "--preset", "x265"))
    assert [round(time * 1000) for time in times(tmp_path / "out.mp4")] == stamps


@pytest.mark.parametrize(
    ("name", "preset", "codec"),
    [
        ("a.mkv", "x265", "hevc"),
        ("b.mp4", "x264", "h264"),
        ("c.mkv", "svtav1", "av1"),
        ("d.mov", "prores", "prores"),
    ],
)
def test_presets_make_what_they_say_and_join_without_loss(
    encode: Encode, film: Path, tmp_path: Path, name: str, preset: str, codec: str
) -> None:
    done(encode(film, tmp_path / name, "--preset", preset, "--chunk", "0.03"))
    with av.open(str(tmp_path / name)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.codec.canonical_name == codec
        assert stream.average_rate == Fraction(24000, 1001)
        assert stream.codec_context.colorspace == 6
        shown = [frame.time for frame in container.decode(video=0)]
    assert len(shown) == LENGTH
    assert np.abs(np.array(shown) - np.arange(LENGTH) * 1001 / 24000).max() < 0.002


def test_further_options_go_to_the_encoder(encode: Encode, film: Path, tmp_path: Path) -> None:
    done(encode(film, tmp_path / "out.mkv", "--preset", "x264", further=("-crf", "7")))
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert b"crf=7.0" in bytes(next(iter(container.demux(video=0))))  # x264 tells its settings


def test_options_that_the_encoder_refuses_are_told_before_any_work(encode: Encode, film: Path, tmp_path: Path) -> None:
    result = encode(film, tmp_path / "out.mkv", "--preset", "x264", further=("-preset", "nosuch"))
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("vsfdatrd: ffmpeg cannot encode 192×128 with libx264 and these options (")
    assert "nosuch" in last
    assert "rendering one frame" not in result.stderr


def test_many_inputs_go_into_a_folder_and_are_done_once(encode: Encode, film: Path, tmp_path: Path) -> None:
    for name in ("one.mkv", "two.mkv"):
        (tmp_path / name).write_bytes(film.read_bytes())
    arguments = (tmp_path / "one.mkv", tmp_path / "two.mkv", "--out", tmp_path / "hd", "--json")
    result = encode(*arguments)
    done(result)
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["frames"] for event in events if event["event"] == "finished"] == [LENGTH, LENGTH]
    assert {event["event"] for event in events} >= {"reading", "fields", "output", "engine", "part", "joining"}
    again = encode(*arguments)
    done(again)
    assert [json.loads(line)["event"] for line in again.stdout.splitlines()] == ["input", "finished"] * 2
    assert sorted(path.name for path in (tmp_path / "hd").iterdir()) == ["one.mkv", "two.mkv"]


def test_an_assumed_matrix_is_reported(encode: Encode, tmp_path: Path) -> None:
    film = tmp_path / "film.mkv"
    make(*lavfi("testsrc2=size=192x128:rate=24:duration=0.3"), "-pix_fmt", "yuv420p", "-c:v", "ffv1", film)
    message = done(encode(film, tmp_path / "out.mkv", "--script"))
    assert "the film does not say its matrix; taken as 170m, as is usual for 192×128" in message


def test_the_script_is_printed_and_runs(encode: Encode, telecined: Path, tmp_path: Path) -> None:
    result = encode(telecined, tmp_path / "out.mkv", "--script", "--chroma-filter", "luma_guided")
    done(result)
    assert "chroma_filter='luma_guided'" in result.stdout
    names: dict[str, object] = {}
    exec(result.stdout, names)
    clip = names["clip"]
    assert (clip.width, clip.height, clip.num_frames) == (2 * WIDTH, 2 * HEIGHT, LENGTH)  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())
