"""Unit tests: frame rates, cuts, borders, the journal, progress output."""

import contextlib
import io
import json
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import vapoursynth as vs

from tests.encode.conftest import moving, write
from tests.encode.joining import LENGTH
from vsfdatrd.encode import field_detection, presets, script, settings
from vsfdatrd.encode.bitstream import strip_sei
from vsfdatrd.encode.chunk import EncodeParams, Pipeline, try_encoder
from vsfdatrd.encode.cli import split_command_line
from vsfdatrd.encode.crop import Borders, check_crop, find_borders, parse_borders, square_pixel_size
from vsfdatrd.encode.journal import DamagedJournalError, DoneChunk, Journal
from vsfdatrd.encode.progress import JsonReporter, Rate, Reporter, format_duration
from vsfdatrd.encode.scenes import Chunk, plan_chunks
from vsfdatrd.encode.settings import Settings
from vsfdatrd.encode.source import file_identity, open_source
from vsfdatrd.encode.timing import constant_rate
from vsfdatrd.encode.workers import Attempts, ChunkRetry
from vsfdatrd.errors import ArgumentError, ClipError, EncodeError

FILM = Fraction(24000, 1001)


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let files grow to 64 KiB only, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


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


@pytest.mark.parametrize(
    ("size", "sar", "expected"),
    [
        ((1440, 960), Fraction(8, 9), (1440, 1080)),
        ((1440, 960), Fraction(32, 27), (1706, 960)),
        ((1440, 1152), Fraction(16, 15), (1536, 1152)),
        ((1440, 1080), Fraction(1), (1440, 1080)),
        ((13, 15), Fraction(1), (14, 16)),
        ((13, 15), Fraction(14, 13), (14, 16)),
        ((15, 13), Fraction(13, 14), (16, 14)),
    ],
)
def test_square_pixels_never_shrink(size: tuple[int, int], sar: Fraction, expected: tuple[int, int]) -> None:
    assert square_pixel_size(*size, sar) == expected


def with_pixel(clip: vs.VideoNode, x: int, y: int) -> vs.VideoNode:
    """The clip with one white pixel in each frame."""

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        np.asarray(out[0])[y, x] = 235
        return out

    return clip.std.ModifyFrame(clip, draw)


def test_borders() -> None:
    clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=80, height=60, length=5, color=[120, 128, 128])
    clip = clip.std.AddBorders(8, 4, 4, 6, color=[16, 128, 128])
    assert find_borders(clip) == Borders(8, 4, 4, 6)
    dark = clip.std.BlankClip(color=[16, 128, 128])
    assert not find_borders(dark)
    stripe = dark.std.CropAbs(90, 70).std.AddBorders(left=2, color=[235, 128, 128])  # such as a logo
    assert find_borders(clip + stripe) == Borders(8, 4, 4, 6)
    assert find_borders(with_pixel(clip, 0, 0)) == Borders(8, 4, 4, 6)
    odd = clip.std.Crop(8, 4, 4, 6).resize.Point(format=vs.YUV444P8).std.AddBorders(9, 7, 5, 3, color=[16, 128, 128])
    assert find_borders(odd) == Borders(8, 4, 6, 2)
    assert parse_borders("8,4,4,6") == Borders(8, 4, 4, 6)
    for cut in (Borders(1, 0, 0, 0), Borders(0, 1, 0, 0), Borders(0, 0, 1, 0), Borders(0, 0, 0, 1)):
        with pytest.raises(ArgumentError, match="cuts through chroma samples"):
            check_crop(cut, clip)
        check_crop(cut, odd)
    check_crop(Borders(40, 0, 36, 54), clip)
    with pytest.raises(ArgumentError, match=r"leaves 14×70 of 92×70 pixels"):
        check_crop(Borders(40, 0, 38, 0), clip)
    with pytest.raises(ArgumentError, match=r"leaves 92×14 of 92×70 pixels"):
        check_crop(Borders(0, 40, 0, 16), clip)
    with pytest.raises(ClipError, match=r"the frames have 92×14 pixels; encode needs at least 16×16"):
        check_crop(Borders(), clip.std.CropAbs(92, 14))
    with pytest.raises(ArgumentError, match="is not a crop"):
        parse_borders("8,4")


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


def test_the_journal_remembers_and_refuses_damage(tmp_path: Path) -> None:
    chunks = [Chunk(0, 0, 10), Chunk(1, 10, 25)]
    path = tmp_path / "journal.json"
    journal = Journal(path)
    assert not path.exists()
    journal.begin({"a": 1}, chunks)
    journal.add(DoneChunk(chunks[1], 5, "f" * 64, 2, 1.5))
    journal.set("first frame", {"_Matrix": 1})
    again = Journal(path)
    assert again.get("settings") == {"a": 1}
    assert again.get("first frame") == {"_Matrix": 1}
    assert again.get("anything else") is None
    assert again.chunks() == chunks
    assert again.done_chunks() == [DoneChunk(chunks[1], 5, "f" * 64, 2, 1.5)]
    again.add(DoneChunk(chunks[0], 6, "e" * 64, 0, 2.5))
    assert [record.chunk for record in again.done_chunks()] == chunks, "not in the order in which they were finished"
    again.forget(*chunks)
    assert Journal(path).done_chunks() == []
    Journal(path).begin({"b": 2}, chunks[:1])
    assert (Journal(path).get("first frame"), Journal(path).chunks()) == (None, chunks[:1])
    assert os.listdir(tmp_path) == ["journal.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"\xff\0",
        b"[]",
        b"null",
        b'{"facts": {}}',
        b'{"facts": 1, "chunks": [], "done": []}',
        b'{"facts": {}, "chunks": [[0, 1]], "done": [[1, 1, "", 0, 0]]}',
        b'{"facts": {}, "chunks": [[0]], "done": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_journal_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_bytes(content)
    with pytest.raises(DamagedJournalError):
        Journal(tmp_path / "journal.json")


def test_a_journal_on_a_full_disk_keeps_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    journal = Journal(path)
    journal.begin({"a": 1}, [Chunk(0, 0, 10)])
    before = path.read_bytes()
    with small_files(), pytest.raises(EncodeError, match=r"cannot be written .*; free some space there"):
        journal.set("first frame", "x" * 100_000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["journal.json"]


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


def test_where_frames_are_made_is_no_other_setting() -> None:
    result, film, index = field_detection.Fields("progressive", True, ""), Path("/film.mkv"), Path("/place/index")
    text, other = (script.preparation_script(film, 0, index, result, Borders(), device) for device in ("0", "0,1"))
    assert text != other
    assert script.without_devices(text) == script.without_devices(other)
    assert "cachepath='/there/index'" in script.with_index(text, index, Path("/there/index"))


def test_a_chunk_is_tried_once_more_and_oftener_where_machines_die() -> None:
    chunk, error = Chunk(0, 0, 10), EncodeError("no")
    attempts = Attempts()
    for _ in range(4):
        assert attempts.retry(chunk, error, lost=True) == ChunkRetry(chunk, error)
    assert attempts.retry(chunk, error) == ChunkRetry(chunk, error)
    for lost in (False, True):
        with pytest.raises(EncodeError, match="no"):
            Attempts(attempts.failures, attempts.losses).retry(chunk, error, lost)


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


def test_an_output_that_is_the_input_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film.mkv").write_bytes(b"film")
    (tmp_path / "link.mkv").symlink_to("film.mkv")
    with pytest.raises(ArgumentError, match="is the input itself"):
        settings.pair_outputs([tmp_path / "film.mkv", tmp_path / "link.mkv"], None)


def test_settings_are_checked() -> None:
    for wrong, words in (
        ({"preset": "divx"}, "--preset divx is unknown"),
        ({"field": "both"}, "--field both is unknown"),
        ({"minutes": 0.0}, "--chunk 0 is out of range"),
        ({"backend": "vulkan"}, "backend='vulkan' is unknown"),
        ({"crop": "all"}, "is not a crop"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Settings(**wrong)
    with pytest.raises(ArgumentError, match=r"two inputs would both become a\.mkv"):
        settings.pair_outputs([Path("x/a.mkv"), Path("y/a.mpg")], Path("/tmp"))
    assert split_command_line(["encode", "a", "b", "--", "-crf", "3"]) == (["encode", "a", "b"], ("-crf", "3"))
    assert split_command_line(["info", "--", "-odd"]) == (["info", "--", "-odd"], ())


@pytest.mark.parametrize(
    "words",
    [
        "-frames 3",
        "-frames:v 3",
        "-vframes 3",
        "-i x.mkv",
        "-map 0",
        "-map:v 0",
        "-c copy",
        "-c:a aac",
        "-codec:s srt",
        "-acodec aac",
        "-r 25",
        "-r:v 25",
        "-t 3",
        "-to 3",
        "-ss 3",
        "-fs 1000",
        "-f mp4",
        "-vn",
        "-an",
        "-vsync 0",
        "-pass 1",
        "-fps_mode:v cfr",
        "-shortest",
        "-s 100x100",
        "-filter_complex x",
        "-crf 3 -metadata title=x",
        "-crf 3 -frames 1",
    ],
)
def test_options_that_are_not_the_encoders_are_refused(words: str) -> None:
    with pytest.raises(ArgumentError, match="after -- would change which frames or streams"):
        Settings(further=tuple(words.split()))


@pytest.mark.parametrize("words", ["out2.mkv", "-crf 3 out2.mkv", "-crf 3 -preset slow x"])
def test_a_second_output_is_refused(words: str) -> None:
    with pytest.raises(ArgumentError, match="after -- is not the value of an option"):
        Settings(further=tuple(words.split()))


@pytest.mark.parametrize(
    ("words", "encoder"),
    [
        ("-crf 14 -preset slow", "libx265"),
        ("-x265-params log-level=none:aq-mode=3", "libx265"),
        ("-crf -1", "libx265"),
        ("-c:v libx264 -b:v 4M", "libx264"),
        ("-vcodec libx264 -codec:v libaom-av1", "libaom-av1"),
        ("", "libx265"),
        ("-bsf:v hevc_metadata=level=5", "libx265"),
        ("-vf noise=alls=3", "libx265"),
        ("-tag:v hvc1", "libx265"),
    ],
)
def test_options_of_the_encoder_are_taken(words: str, encoder: str) -> None:
    assert Settings(further=tuple(words.split())).encoder == encoder


def test_filters_after_the_dashes_follow_the_color_tags() -> None:
    """ffmpeg uses only the last of several filter options, which would leave the output without tags."""
    further = ("-crf", "3", "-filter:v", "noise=alls=3", "-vf", "hue=s=0")
    tags = presets.color_options({"_Matrix": 1}, Fraction(1))
    merged = presets.merge_filters((*tags, *further))
    assert merged == ("-vf", f"{tags[1]},noise=alls=3,hue=s=0", *tags[2:], "-crf", "3")


def test_an_encoder_whose_codec_the_container_cannot_hold_is_refused() -> None:
    """Before any work: a muxer would refuse it at the end of the encode."""
    further = Settings(preset="x264", further=("-c:v", "prores_ks"))
    settings.check_ffmpeg(further, [Path("out.mkv"), Path("out.mov")])
    with pytest.raises(ArgumentError, match=r"a \.mp4 file cannot hold what prores_ks encodes"):
        settings.check_ffmpeg(further, [Path("out.mp4")])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-c:v libx265 -preset nosuch", "Error setting preset/tune nosuch"),
        ("-c:v libx264 -crf much", 'Unable to parse "crf" option value "much"'),
        ("-c:v libx264 -nosuchoption 1", "nosuchoption"),
        ("-c:v ffv1 -vf nosuchfilter", "No such filter: 'nosuchfilter'"),
    ],
)
def test_options_that_an_encoder_refuses(options: str, reason: str) -> None:
    with pytest.raises(EncodeError, match=r"ffmpeg cannot encode 192×128 with \S+ and these options") as raised:
        try_encoder(options.split(), "yuv420p10le", (192, 128))
    assert reason in str(raised.value)
    try_encoder(["-c:v", "ffv1"], "yuv422p10le", (192, 128))


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
