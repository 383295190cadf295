"""Parts of an encode without a whole one: frame rates, cuts, field detection, sources, messages."""

import io
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import pytest
import vapoursynth as vs

from tests.encode.conftest import moving, write
from tests.encode.joining import LENGTH
from vsfdatrd.encode import field_detection, script
from vsfdatrd.encode.bitstream import strip_sei
from vsfdatrd.encode.chunk import EncodeParams, Pipeline
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.progress import JsonReporter, Rate, Reporter, format_duration
from vsfdatrd.encode.scenes import Chunk, plan_chunks
from vsfdatrd.encode.source import file_identity, open_source
from vsfdatrd.encode.timing import constant_rate
from vsfdatrd.errors import EncodeError

FILM = Fraction(24000, 1001)


def test_rates_are_found_through_pulldown_and_rounding() -> None:
    ms = [Fraction(round(n * 1000 / FILM), 1000) for n in range(5000)]
    assert constant_rate(ms, Fraction(24)) == FILM
    fields_ = [Fraction(n // 2 * 5 + n % 2 * 2, 1) / Fraction(60000, 1001) for n in range(4000)]  # 2, 3, 2, 3 fields
    assert constant_rate(fields_, Fraction(30000, 1001)) == FILM
    assert constant_rate([Fraction(n, 25) for n in range(50)], Fraction(25)) == 25
    assert constant_rate([Fraction(n, 25) + (n > 20) * Fraction(1, 10) for n in range(50)], Fraction(25)) is None


def test_cuts_fall_on_scene_changes_and_leave_nothing_out() -> None:
    scenes = [
        vs.core.std.BlankClip(format=vs.GRAY8, width=64, height=64, length=n, color=c)
        for n, c in ((110, 40), (85, 200), (105, 90))
    ]
    clip = scenes[0] + scenes[1] + scenes[2]
    chunks = plan_chunks(clip, Fraction(25), 100 / 25 / 60)
    assert [chunk.start for chunk in chunks] == [0, 110, 195]
    assert [chunk.stop for chunk in chunks] == [110, 195, 300]
    still = plan_chunks(scenes[0], Fraction(25), 10 / 25 / 60)
    assert [chunk.start for chunk in still] == list(range(0, 110, 10))
    assert [len(plan_chunks(scenes[0], Fraction(25), length / 25 / 60)) for length in (40, 45, 300)] == [3, 2, 1]


def test_real_interlace_is_told_from_telecine(tmp_path: Path) -> None:
    both = moving(80)
    woven = both[::2].copy()
    woven[:, 1::2] = both[1::2, 1::2]  # every second line is a field later
    path = write(
        woven, tmp_path / "video.mkv", "30000/1001", "vf=setfield=tff", "-field_order", "tt", "-flags", "+ildct"
    )
    source = open_source(path, tmp_path / "index")
    result = field_detection.choose_fields(source.clip, source.rate, "auto")
    assert result.kind == "deint"
    assert field_detection.choose_fields(source.clip, source.rate, "progressive").kind == "progressive"


def test_parts_of_machines_with_other_cpus_belong_together(tmp_path: Path) -> None:
    def headers(options: str) -> tuple[bytes, bytes]:
        path = write(
            moving(3), tmp_path / "part.mkv", "25", "-c:v", "libx265", "-x265-params", f"log-level=0:{options}"
        )
        with av.open(str(path)) as container:
            context = container.streams.video[0].codec_context
            header = bytes(context.extradata or b"")
            return header, strip_sei(header, context.name)

    one, other, smooth = headers("frame-threads=1"), headers("frame-threads=3"), headers("sao=0")
    assert one[0] != other[0]
    assert one[1] == other[1]
    assert one[1] != smooth[1]
    assert len(one[1]) > 60  # more than nothing is compared
    assert strip_sei(b"anything", "h264") == b"anything"


@pytest.mark.parametrize("where", ["start", "end", "size", "time"])
def test_a_changed_source_is_noticed(tmp_path: Path, where: str) -> None:
    path = tmp_path / "film.mkv"
    content = bytearray(3 << 20)
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    before = file_identity(path)
    content[{"start": 0, "end": -1}.get(where, 1 << 20)] = 1
    path.write_bytes(content + bytes(where == "size"))
    os.utime(path, ns=(10**18, 10**18 + (where == "time") * 10**9))
    assert file_identity(path) != before


def test_a_warning_is_not_shown_as_the_reason_of_a_failure(tmp_path: Path) -> None:
    dies = "import os, vapoursynth as vs\nvs.core.log_message(vs.MESSAGE_TYPE_WARNING, 'no matrix')\nos._exit(1)\n"
    (tmp_path / "script.vpy").write_text(dies)
    params = EncodeParams(tmp_path / "script.vpy", ("-c:v", "ffv1"), FILM, tmp_path)
    pipeline = Pipeline(Chunk(0, 0, 1), params, "0")
    pipeline.feed(lambda _: None)
    with pytest.raises(EncodeError, match="vspipe ended with status 1: it printed no message"):
        pipeline.end()


def test_what_is_shown() -> None:
    stream = io.StringIO()
    with Reporter(stream) as show:
        show.emit("part", "chunk 1 of 2")
        show.begin(100, 20, "CPU")
        show._next = 0
        show.frames(30, 2048)
    assert stream.getvalue().startswith("chunk 1 of 2\n30 of 100 frames (30.0 %), ")
    assert stream.getvalue().endswith("2.0 KiB, CPU\n")
    stream = io.StringIO()
    with JsonReporter(stream) as show:
        show.begin(100, 20, "CPU")
        show.frames(100, 10)
    event = json.loads(stream.getvalue())
    assert (event["event"], event["frames"], event["total"]) == ("progress", 100, 100)
    rate = Rate(10, 5)
    rate.update(2)  # a chunk is tried once more
    assert rate.fps == 0
    assert rate.remaining is None
    assert (format_duration(6000), format_duration(200), format_duration(12)) == ("1 h 40 min", "3 min", "12 s")


def test_an_index_can_be_used_elsewhere(film: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    source = open_source(film, here / "index")
    (file,) = here.glob("index*")
    copy = Path(shutil.copy(file, there))
    os.utime(copy, (1, 1))
    text = script.preparation_script(
        film, source.video, here / "index", field_detection.Fields("progressive", True, ""), Borders(), "0"
    )
    assert script.run_script(script.with_index(text, here / "index", there / "index")).num_frames == LENGTH
    assert copy.stat().st_mtime == 1  # not written anew
    copy.write_bytes(b"nonsense")
    os.utime(copy, (1, 1))
    script.run_script(script.with_index(text, here / "index", there / "index"))
    assert copy.stat().st_mtime > 1
