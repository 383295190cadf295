"""The output is read back and compared with what was written; the aspect ratio of its container."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest

from tests.encode.conftest import moving, write
from tests.encode.joining import RATE, mux_inputs
from tests.encode.media import lavfi, make
from vsfdatrd.encode import mux as mux_module
from vsfdatrd.encode.chunk import verify_decodable
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.mux import MuxInputs, mux
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.streams import Selection
from vsfdatrd.errors import EncodeError

CHAPTERS = ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=One\n"


@pytest.mark.parametrize("extension", [".mkv", ".mp4", ".mov"])
def test_other_pixels_than_square_cost_nothing_else(plain_film: Path, tmp_path: Path, extension: str) -> None:
    """Neither chapters nor the timecode make it fail; the cover stays one, and the attachment before it."""
    (tmp_path / "chapters.txt").write_text(CHAPTERS)
    (tmp_path / "font.ttf").write_bytes(b"not really a font")
    make(*lavfi("color=red:size=32x32"), "-frames:v", "1", tmp_path / "cover.jpg")
    attached: list[str | Path] = ["-attach", tmp_path / "font.ttf", "-metadata:s:t:0", "mimetype=font/ttf"]
    attached += ["-attach", tmp_path / "cover.jpg", "-metadata:s:t:1", "mimetype=image/jpeg"]
    source = tmp_path / "in.mkv"
    tags = ["-map_metadata", "1", "-metadata:s:v:0", "timecode=01:00:00:00"]
    make("-i", plain_film, "-i", tmp_path / "chapters.txt", *tags, "-c", "copy", *attached, source)
    target = tmp_path / f"out{extension}"
    film = replace(mux_inputs(plain_film, source, target), sar=Fraction(32, 27))
    assert mux(film, target) == []
    with av.open(str(target)) as container:
        picture, *covers = container.streams.video
        assert picture.sample_aspect_ratio == Fraction(32, 27)
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]
        assert picture.metadata.get("timecode") == (None if extension == ".mkv" else "01:00:00:00")
        if extension == ".mkv":
            assert [cover.disposition for cover in covers] == [av.stream.Disposition.attached_pic]
            (shown,) = [bytes(packet) for packet in container.demux(covers) if packet.size]
            assert shown == (tmp_path / "cover.jpg").read_bytes()
            assert [stream.metadata["filename"] for stream in container.streams if stream.type == "attachment"] == [
                "font.ttf"
            ]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("other data", "does not have the packets that were written"),
        ("a packet less", "does not have the packets that were written"),
        ("late", r"a frame of the joined file is shown 10\.0 ms from its correct time"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_removed(
    plain_film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    original = mux_module._write_streams

    def write(av: Any, inputs: MuxInputs, target: Path, leave_out: bool = False) -> Any:
        if fault == "late":
            late = replace(inputs.timing, start=inputs.timing.start + Fraction(1, 100))
            return original(av, replace(inputs, timing=late), target, leave_out)
        written = original(av, inputs, target, leave_out)
        if fault == "other data":
            return replace(written, video=bytes(32))
        return replace(written, amounts={index: count + 1 for index, count in written.amounts.items()})

    film = mux_inputs(plain_film, plain_film, tmp_path / "out.mkv")
    assert mux(film, tmp_path / "out.mkv") == []
    monkeypatch.setattr(mux_module, "_write_streams", write)
    with pytest.raises(EncodeError, match=words):
        mux(film, tmp_path / "out.mkv")
    assert not (tmp_path / "out.mkv").exists()


def shifted(*packets: tuple[int, bool] | int) -> list[tuple[int, int]]:
    """(pts, dts) in ms of audio packets in the output, whose clock begins 1000 ms later than the source's.

    packets: Times in ms, each alone or with whether an edit list excludes the packet.
    """
    stream = SimpleNamespace(index=1, type="audio", name="ac3", language=None, codec_context=None)
    of = [
        SimpleNamespace(stream=stream, size=9, pts=time, dts=time, time_base=Fraction(1, 1000), is_discard=discarded)
        for time, discarded in (item if isinstance(item, tuple) else (item, False) for item in packets)
    ]
    source = SimpleNamespace(streams={1: stream}, demux=lambda _: iter(of))
    inputs: Any = SimpleNamespace(source=SimpleNamespace(origin=Fraction(1)), selection=Selection(copied=[1]))
    return [(packet.pts, packet.dts) for packet in mux_module._other_packets(av, inputs, source, {1: stream}, {})]


def test_sound_is_shifted_to_the_clock_of_the_output() -> None:
    assert shifted(1000, 1100, 1200) == [(0, 0), (100, 100), (200, 200)]
    assert shifted(1000, 1100, 1050, 1200) == [(0, 0), (100, 100), (100, 100), (200, 200)]
    assert shifted((850, True), (950, True), 1050) == [(-50, -50), (50, 50)]  # some is needed to begin
    assert shifted(850, 950) == [(-150, -150), (-50, -50)]


def test_a_clock_that_begins_anew_in_the_sound_is_an_error() -> None:
    assert len(shifted(1000, 1900, 1400)) == 3
    with pytest.raises(EncodeError, match=r"the timestamps of audio 1: ac3 go back after 0\.9 s; remux the source"):
        shifted(1000, 1900, 1399)


def encoded(film: MuxInputs, lengths: list[int], *options: str) -> MuxInputs:
    """The film as parts of these numbers of frames, encoded with these options."""
    frames, parts, start = moving(sum(lengths)), [], 0
    for number, length in enumerate(lengths):
        chunk = Chunk(number, start, start := start + length)
        path = write(frames[chunk.start : chunk.stop], film.folder / chunk.name, "25", *options)
        parts.append(DoneChunk(chunk, 0, "", verify_decodable(path, length, RATE), 0))
    return replace(film, parts=parts)


def test_parts_with_and_without_b_frames_join(plain_film: Path, tmp_path: Path) -> None:
    options = ("-c:v", "libx264", "-bf", "2", "-b_strategy", "0", "-sc_threshold", "0", "-threads", "1")
    film = encoded(mux_inputs(plain_film, plain_film, tmp_path / "out.mkv"), [1, 12, 1], *options)
    assert [part.reorder for part in film.parts] == [0, 1, 0]
    assert mux(film, tmp_path / "out.mkv") == []  # and every frame is shown at its time
    write(moving(1), film.folder / film.parts[2].chunk.name, "25", "-c:v", "libx264", "-profile:v", "baseline")
    with pytest.raises(EncodeError, match=r"00003\.mkv was encoded with other headers than the first chunk"):
        mux(film, tmp_path / "out.mkv")


def test_hevc_in_mp4_has_the_tag_that_all_players_know(plain_film: Path, tmp_path: Path) -> None:
    options = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=0")
    film = encoded(mux_inputs(plain_film, plain_film, tmp_path / "out.mp4"), [2], *options)
    assert mux(film, tmp_path / "out.mp4") == []
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.codec_tag == "hvc1"


def test_chapters_are_shifted_to_the_clock_of_the_output() -> None:
    source = SimpleNamespace(
        chapters=lambda: [
            {"id": n, "start": start, "end": end, "time_base": Fraction(1, 1000)}
            for n, (start, end) in enumerate([(0, 500), (500, 1000), (1000, 2500)])
        ]
    )
    result = mux_module._shift_chapters(source, Fraction(3, 4))
    assert [(chapter["id"], chapter["start"], chapter["end"]) for chapter in result] == [
        (0, 0, 0),
        (1, 0, 250),
        (2, 250, 1750),
    ]


def test_tags_that_are_wrong_for_the_output_are_left_out() -> None:
    wrong = ["ENCODER", "handler_name", "DURATION", "DURATION-eng", "BPS-eng", "NUMBER_OF_FRAMES", "_STATISTICS_TAGS"]
    assert mux_module._valid_tags({"title": "A", "language": "jpn"} | dict.fromkeys(wrong, "1")) == {
        "title": "A",
        "language": "jpn",
    }
