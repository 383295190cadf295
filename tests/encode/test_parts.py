"""The pieces by themselves: rates, cuts, borders, the journal, what the terminal is told."""

import io
import json
import os
import shutil
import sqlite3
from fractions import Fraction
from pathlib import Path

import av
import pytest
import vapoursynth as vs

from tests.encode.conftest import LENGTH, moving, write
from vsfdatrd.encode import field_detection, script, settings
from vsfdatrd.encode.cli import split
from vsfdatrd.encode.crop import Borders, check_crop, find_borders, parse_borders, square
from vsfdatrd.encode.header import essential
from vsfdatrd.encode.journal import Journal, Made
from vsfdatrd.encode.progress import JsonShow, Rate, Show, clock, size_of
from vsfdatrd.encode.scenes import Chunk, plan
from vsfdatrd.encode.settings import Settings
from vsfdatrd.encode.source import open_source
from vsfdatrd.encode.timing import constant_rate
from vsfdatrd.errors import ArgumentError

FILM = Fraction(24000, 1001)


def test_rates_are_found_through_pulldown_and_rounding() -> None:
    ms = [Fraction(round(n * 1000 / FILM), 1000) for n in range(5000)]
    assert constant_rate(ms, Fraction(24)) == FILM
    fields_ = [Fraction(n // 2 * 5 + n % 2 * 2, 1) / Fraction(60000, 1001) for n in range(4000)]  # 2, 3, 2, 3 fields
    assert constant_rate(fields_, Fraction(30000, 1001)) == FILM
    assert constant_rate([Fraction(n, 25) for n in range(50)], Fraction(25)) == 25
    assert constant_rate([Fraction(n, 25) + (n > 20) * Fraction(1, 10) for n in range(50)], Fraction(25)) is None


def test_cuts_fall_on_scene_changes_and_leave_nothing_out() -> None:
    scenes = [vs.core.std.BlankClip(format=vs.GRAY8, width=64, height=64, length=n, color=c)
              for n, c in ((110, 40), (85, 200), (105, 90))]  # fmt: skip
    clip = scenes[0] + scenes[1] + scenes[2]
    chunks = plan(clip, Fraction(25), 100 / 25 / 60)
    assert [chunk.start for chunk in chunks] == [0, 110, 195]
    assert [chunk.stop for chunk in chunks] == [110, 195, 300]
    still = plan(scenes[0], Fraction(25), 10 / 25 / 60)
    assert [chunk.start for chunk in still] == list(range(0, 110, 10))


@pytest.mark.parametrize(("size", "sar", "expected"), [
    ((1440, 960), Fraction(8, 9), (1440, 1080)), ((1440, 960), Fraction(32, 27), (1706, 960)),
    ((1440, 1152), Fraction(16, 15), (1536, 1152)), ((1440, 1080), Fraction(1), (1440, 1080)),
])  # fmt: skip
def test_square_pixels_never_shrink(size: tuple[int, int], sar: Fraction, expected: tuple[int, int]) -> None:
    assert square(*size, sar) == expected


def test_borders() -> None:
    clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=80, height=60, length=5, color=[120, 128, 128])
    clip = clip.std.AddBorders(8, 4, 4, 6, color=[16, 128, 128])
    assert find_borders(clip) == Borders(8, 4, 4, 6)
    assert not find_borders(clip.std.BlankClip(color=[16, 128, 128]))
    assert parse_borders("8,4,4,6") == Borders(8, 4, 4, 6)
    with pytest.raises(ArgumentError, match="cuts through chroma samples"):
        check_crop(Borders(1, 0, 0, 0), clip)
    with pytest.raises(ArgumentError, match=r"leaves 4×70 of 92×70 pixels"):
        check_crop(Borders(40, 0, 48, 0), clip)
    with pytest.raises(ArgumentError, match="is no crop"):
        parse_borders("8,4")


def test_real_interlace_is_told_from_telecine(tmp_path: Path) -> None:
    both = moving(80)
    woven = both[::2].copy()
    woven[:, 1::2] = both[1::2, 1::2]  # every second line is a field later
    path = write(
        woven, tmp_path / "video.mkv", "30000/1001", "vf=setfield=tff", "-field_order", "tt", "-flags", "+ildct"
    )
    source = open_source(path, tmp_path / "index")
    found = field_detection.decide(source.clip, source.rate, "auto")
    assert found.kind == "deint"
    assert field_detection.decide(source.clip, source.rate, "progressive").kind == "progressive"


def test_the_journal_remembers_and_refuses_damage(tmp_path: Path) -> None:
    chunks = [Chunk(0, 0, 10), Chunk(1, 10, 25)]
    with Journal(tmp_path / "journal.sqlite") as journal:
        journal.begin({"a": 1}, chunks)
        journal.add(Made(chunks[1], 5, "f" * 64, 2, 1.5))
        journal.note("first frame", {"_Matrix": 1})
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert journal.fact("settings") == {"a": 1}
        assert journal.fact("first frame") == {"_Matrix": 1}
        assert journal.chunks() == chunks
        assert journal.made() == [Made(chunks[1], 5, "f" * 64, 2, 1.5)]
        journal.lose(chunks[1])
        assert journal.made() == []
    (tmp_path / "bad").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 20)
    with pytest.raises(sqlite3.DatabaseError):
        Journal(tmp_path / "bad")


def test_parts_of_machines_with_other_cpus_belong_together(tmp_path: Path) -> None:
    def headers(options: str) -> tuple[bytes, bytes]:
        path = write(
            moving(3), tmp_path / "part.mkv", "25", "-c:v", "libx265", "-x265-params", f"log-level=0:{options}"
        )
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            header = bytes(context.extradata or b"")
            return header, essential(header, context.name)

    one, other, smooth = headers("frame-threads=1"), headers("frame-threads=3"), headers("sao=0")
    assert one[0] != other[0]
    assert one[1] == other[1]
    assert one[1] != smooth[1]
    assert len(one[1]) > 60  # more than nothing is compared
    assert essential(b"anything", "h264") == b"anything"


def test_where_frames_are_made_is_no_other_setting() -> None:
    found, film, index = field_detection.Fields("progressive", True, ""), Path("/film.mkv"), Path("/place/index")
    text, other = (script.prepare(film, 0, index, found, Borders(), device, "1") for device in ("0", "0,1"))
    assert text != other
    assert script.without_devices(text) == script.without_devices(other)
    assert "cachepath='/there/index'" in script.with_index(text, index, Path("/there/index"))


def test_settings_are_checked() -> None:
    for wrong, words in (
        ({"preset": "divx"}, "--preset divx is unknown"), ({"field": "both"}, "--field both is unknown"),
        ({"minutes": 0.0}, "--chunk 0 is out of range"), ({"further": ("-map", "0")}, "-map after --"),
        ({"backend": "cuda"}, "backend='cuda' is unknown"), ({"crop": "all"}, "is no crop"),
    ):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            Settings(**wrong)
    with pytest.raises(ArgumentError, match=r"two inputs would both become a\.mkv"):
        settings.outputs([Path("x/a.mkv"), Path("y/a.mpg")], Path("/tmp"))
    assert split(["encode", "a", "b", "--", "-crf", "3"]) == (["encode", "a", "b"], ("-crf", "3"))
    assert split(["info", "--", "-odd"]) == (["info", "--", "-odd"], ())


def test_what_is_shown() -> None:
    stream = io.StringIO()
    with Show(stream) as show:
        show.say("part", "part 1 of 2")
        show.begin(100, 20, "CPU")
        show._next = 0
        show.frames(30, 2048)
    assert stream.getvalue().startswith("part 1 of 2\n30 of 100 frames (30.0 %), ")
    assert stream.getvalue().endswith("2.0 KiB, CPU\n")
    stream = io.StringIO()
    with JsonShow(stream) as show:
        show.begin(100, 20, "CPU")
        show.frames(100, 10)
    event = json.loads(stream.getvalue())
    assert (event["event"], event["frames"], event["total"]) == ("progress", 100, 100)
    rate = Rate(10, 5)
    rate.update(2)  # a chunk is tried once more
    assert rate.fps == 0
    assert rate.left is None
    assert (clock(6000), clock(200), clock(12)) == ("1 h 40 min", "3 min", "12 s")
    assert size_of(3 << 30) == "3.0 GiB"


def test_an_index_can_be_used_elsewhere(film: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    source = open_source(film, here / "index")
    (file,) = here.glob("index*")
    copy = Path(shutil.copy(file, there))
    os.utime(copy, (1, 1))
    text = script.prepare(
        film, source.video, here / "index", field_detection.Fields("progressive", True, ""), Borders(), "0", ""
    )  # fmt: skip
    assert script.evaluate(script.with_index(text, here / "index", there / "index")).num_frames == LENGTH
    assert copy.stat().st_mtime == 1  # not written anew
    copy.write_bytes(b"nonsense")
    os.utime(copy, (1, 1))
    script.evaluate(script.with_index(text, here / "index", there / "index"))
    assert copy.stat().st_mtime > 1
