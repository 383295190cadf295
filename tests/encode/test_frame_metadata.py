"""Captions, HDR metadata and transparency: found in every kind of source, kept if the codec allows, else reported."""

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.encode.conftest import HEIGHT, WIDTH, Encode, moving, write
from vsfdatrd.encode.bitstream import FrameMessages, LightLevel, MasteringDisplay, codec_of, make_inserter
from vsfdatrd.encode.frame_metadata import FrameMetadata, find_metadata, has_hdr
from vsfdatrd.encode.source import open_source
from vsfdatrd.encode.timing import Timing
from vsfdatrd.system.programs import ffmpeg, run

COUNT = 5
RATE = Fraction(30000, 1001)
DISPLAY = MasteringDisplay(
    tuple(Fraction(n, 50000) for n in (34000, 16000, 13250, 34500, 7500, 3000, 15635, 16450)),
    Fraction(1000),
    Fraction(50, 10000),
)
LIGHT = LightLevel(1000, 400)
HDR10 = (
    "log-level=none:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:hdr10=1:max-cll=1000,400:"
    "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
)
CODERS = {
    "h264": ("-c:v", "libx264", "-preset", "ultrafast", "-bf", "2"),
    "hevc": ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"),
    "av1": ("-c:v", "libsvtav1", "-preset", "12"),
}


def spoken(n: int) -> bytes:
    """Captions of frame n: a pair of characters, and two triplets that fill up."""
    return bytes([0xFC, 0x41 + n, 0x61 + n, 0xFD, 0x80, 0x80, 0xF8, 0, 0])


def side_data(path: Path) -> list[dict[str, bytes]]:
    """Return the side data of each frame as FFmpeg reports it."""
    with av.open(str(path)) as container:
        return [
            {kind.name: bytes(memoryview(frame.side_data[kind])) for kind in frame.side_data}
            for frame in container.decode(video=0)
        ]


def insert(path: Path, target: Path, messages: Callable[[int], FrameMessages]) -> Path:
    """Put messages into each packet of a video, given the number of its frame."""
    with av.open(str(path)) as given, av.open(str(target), "w") as out:
        stream: Any = given.streams.video[0]
        codec = stream.codec_context.codec.canonical_name
        put = make_inserter(codec, bytes(stream.codec_context.extradata or b""))
        copy = out.add_stream_from_template(stream, opaque=True)
        for packet in given.demux(stream):
            if packet.size and packet.pts is not None:
                n = round(packet.pts * Fraction(stream.time_base) * RATE)
                new: Any = av.Packet(put(bytes(packet), messages(n)))
                new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
                new.duration, new.is_keyframe, new.stream = packet.duration, packet.is_keyframe, copy
                out.mux(new)
    return target


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", CODERS)
def test_decoders_find_what_was_put_in(codec: str, suffix: str, tmp_path: Path) -> None:
    plain = write(moving(COUNT), tmp_path / "plain.mkv", "30000/1001", *CODERS[codec])
    path = insert(plain, tmp_path / f"out{suffix}", lambda n: FrameMessages(DISPLAY, LIGHT, spoken(n)))
    messages = side_data(path)
    assert [one["A53_CC"] for one in messages] == [spoken(n) for n in range(COUNT)]
    result = find_metadata(open_source(path, tmp_path / "index"))
    assert result.light == LIGHT
    assert result.display is not None
    pairs = zip(
        (*result.display.primaries, result.display.brightest, result.display.darkest),
        (*DISPLAY.primaries, DISPLAY.brightest, DISPLAY.darkest),
        strict=True,
    )
    assert max(abs(a - b) for a, b in pairs) < (1e-4 if codec == "av1" else 1e-9)  # AV1 has other units
    assert [captions for _, captions in result.captions] == [spoken(n) for n in range(COUNT)]
    assert [round(time * RATE) for time, _ in result.captions] == list(range(COUNT))
    # Pictures are what they were.
    with av.open(str(plain)) as before, av.open(str(path)) as after:
        for one, other in zip(before.decode(video=0), after.decode(video=0), strict=True):
            assert np.array_equal(one.to_ndarray(), other.to_ndarray())


def test_zeros_are_escaped(tmp_path: Path) -> None:
    black = FrameMessages(MasteringDisplay((Fraction(0),) * 8, Fraction(0), Fraction(0)), LightLevel(0, 3), bytes(93))
    for codec in ("h264", "hevc"):
        plain = write(moving(2), tmp_path / f"{codec}.mkv", "30000/1001", *CODERS[codec])
        messages = side_data(insert(plain, tmp_path / f"out_{codec}.mkv", lambda n: black))
        assert [one["CONTENT_LIGHT_LEVEL"] for one in messages] == [b"\0\0\0\0\3\0\0\0"] * 2
        assert [one["A53_CC"] for one in messages] == [bytes(93)] * 2


@pytest.fixture
def mpeg2(tmp_path: Path) -> Callable[[Callable[[int], bytes], str], Path]:
    """An MPEG-2 video of a few frames with user data of each, in a container."""

    def make(user_data: Callable[[int], bytes], name: str) -> Path:
        plain = write(moving(COUNT), tmp_path / "a.m2v", "30000/1001", "-c:v", "mpeg2video", "-f", "mpeg2video")
        count = iter(range(1000))
        content = re.sub(
            rb"\x00\x00\x01\x01", lambda match: b"\0\0\1\xb2" + user_data(next(count)) + match[0], plain.read_bytes()
        )
        (tmp_path / "b.m2v").write_bytes(content)
        run(
            [
                ffmpeg(),
                "-v",
                "error",
                "-fflags",
                "+genpts",
                "-r",
                "30000/1001",
                "-i",
                str(tmp_path / "b.m2v"),
                "-c",
                "copy",
                str(tmp_path / name),
            ]
        )
        return tmp_path / name

    return make


def a53(triplets: bytes) -> bytes:
    return b"GA94\x03" + bytes([0x40 | len(triplets) // 3, 0xFF]) + triplets + b"\xff"


@pytest.mark.parametrize("name", ["a.ts", "a.mpg", "a.vob", "a.mkv"])
def test_captions_of_discs_and_television(
    mpeg2: Callable[[Callable[[int], bytes], str], Path], name: str, tmp_path: Path
) -> None:
    result = find_metadata(open_source(mpeg2(lambda n: a53(spoken(n)), name), tmp_path / "index"))
    assert sorted(captions for _, captions in result.captions) == [spoken(n) for n in range(COUNT)]
    assert result.describe_kept("hevc") == ["closed captions"]
    assert result.describe_lost("", "prores_ks") == ["closed captions (prores_ks cannot store it)"]


def test_captions_as_dvds_have_them(mpeg2: Callable[[Callable[[int], bytes], str], Path], tmp_path: Path) -> None:
    data = b"CC\x01\xf8" + bytes([0x80 | 1 << 1]) + b"\xff\x94\x2c\xfe\x80\x80"
    result = find_metadata(open_source(mpeg2(lambda n: data, "a.vob"), tmp_path / "index"))
    assert result.describe_kept("h264") == ["closed captions"]
    assert all(b"\x94\x2c" in captions for _, captions in result.captions)


@pytest.mark.parametrize("triplets", [b"\xfc\x80\x80\xfd\x80\x80", b"\xf8AB\xf9CD", b""])
def test_captions_that_only_fill_up_are_none(
    mpeg2: Callable[[Callable[[int], bytes], str], Path], triplets: bytes, tmp_path: Path
) -> None:
    result = find_metadata(open_source(mpeg2(lambda n: a53(triplets), "a.ts"), tmp_path / "index"))
    assert (result.describe_kept("hevc"), result.describe_lost("hevc", "libx265")) == ([], [])


def test_captions_go_to_the_nearest_frame_and_none_is_lost() -> None:
    times = [Fraction(n) / RATE for n in range(10)]
    of = FrameMetadata(captions=[(time, spoken(n)) for n, time in enumerate(times)])
    assert of.per_frame(Timing(RATE, Fraction(0)), 10) == [spoken(n) for n in range(10)]
    late = Fraction(1, 100)
    assert of.per_frame(Timing(RATE, late), 10) == [spoken(n) for n in range(10)]
    # Telecined film: five frames become four, and what two of them said is said by one, without what fills up.
    film = of.per_frame(Timing(RATE * 4 / 5, Fraction(0)), 8)
    output = b"".join(film)
    assert [output[at + 1] for at in range(0, len(output), 3) if output[at] == 0xFC] == [0x41 + n for n in range(10)]
    assert all(film)
    # More than a frame can hold goes on in the next ones.
    full = bytes([0xFC, 1, 2]) * 31
    much = FrameMetadata(captions=[(Fraction(0), full), (Fraction(0), full), (Fraction(1), b"\xfcxy")])
    assert much.per_frame(Timing(Fraction(4), Fraction(0)), 6) == [full, full, b"", b"", b"\xfcxy", b""]


@pytest.mark.parametrize(
    ("codec", "options", "lost"),
    [
        ("ffv1", ("-pix_fmt", "yuva420p"), ["transparency"]),
        ("png", ("-pix_fmt", "rgba"), ["transparency"]),
        ("qtrle", ("-pix_fmt", "argb"), ["transparency"]),
        ("prores_ks", ("-pix_fmt", "yuva444p10le"), ["transparency"]),
        ("libvpx-vp9", ("-pix_fmt", "yuva420p"), ["transparency"]),
        ("ffv1", ("-pix_fmt", "yuv420p"), []),
        ("png", ("-pix_fmt", "rgb24"), []),
        ("png", ("-pix_fmt", "pal8"), []),
    ],
)
def test_transparency_is_told(codec: str, options: tuple[str, ...], lost: list[str], tmp_path: Path) -> None:
    suffix = ".mov" if codec == "qtrle" else ".mkv"
    path = write(moving(2), tmp_path / f"film{suffix}", "25", "-c:v", codec, *options)
    assert find_metadata(open_source(path, tmp_path / "index")).describe_lost("hevc", "libx265") == lost


def test_names_of_encoders() -> None:
    assert [
        codec_of(name)
        for name in (
            "libx264",
            "h264_nvenc",
            "libx265",
            "hevc_nvenc",
            "hevc_amf",
            "libsvtav1",
            "av1_nvenc",
            "libaom-av1",
            "ffv1",
            "prores_ks",
            "libvpx-vp9",
        )
    ] == [
        "h264",
        "h264",
        "hevc",
        "hevc",
        "hevc",
        "av1",
        "av1",
        "av1",
        "",
        "",
        "",
    ]


@pytest.fixture(scope="module")
def hdr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film in HDR10, with captions."""
    folder = tmp_path_factory.mktemp("hdr")
    plain = folder / "plain.mkv"
    run(
        [
            ffmpeg(),
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            f"testsrc2=size={WIDTH}x{HEIGHT}:rate=30000/1001",
            "-frames:v",
            str(COUNT),
            "-pix_fmt",
            "yuv420p10le",
            "-c:v",
            "libx265",
            "-preset",
            "ultrafast",
            "-x265-params",
            HDR10,
            str(plain),
        ]
    )
    return insert(plain, folder / "hdr.mkv", lambda n: FrameMessages(captions=spoken(n)))


@pytest.mark.parametrize(
    ("name", "further"),
    [
        ("a.mkv", ("-preset", "ultrafast")),
        ("b.mp4", ("-preset", "ultrafast", "-x265-params", "log-level=none:max-cll=7,3")),
    ],
)
def test_a_film_in_hdr_with_captions(
    encode: Encode, hdr: Path, tmp_path: Path, name: str, further: tuple[str, ...]
) -> None:
    result = encode(hdr, tmp_path / name, "--preset", "x265", further=further)
    assert result.returncode == 0, result.stderr
    assert "kept: HDR mastering display; HDR content light level; closed captions\n" in result.stderr
    assert "NOT kept" not in result.stderr
    messages = side_data(tmp_path / name)
    assert [one["A53_CC"] for one in messages] == [spoken(n) for n in range(COUNT)]
    if "-x265-params" in further:  # the user's own win
        assert messages[0]["CONTENT_LIGHT_LEVEL"] == b"\x07\0\0\0\3\0\0\0"
    else:
        names = ("MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL")
        assert {key: messages[0][key] for key in names} == {key: side_data(hdr)[0][key] for key in names}
        assert has_hdr(tmp_path / name)
    with av.open(str(tmp_path / name)) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_trc, context.color_primaries, context.colorspace) == (16, 9, 9)  # PQ, BT.2020


def test_what_ffv1_cannot_hold_is_told(encode: Encode, hdr: Path, tmp_path: Path) -> None:
    result = encode(hdr, tmp_path / "out.mkv")
    assert result.returncode == 0, result.stderr
    lost = ("HDR mastering display", "HDR content light level", "closed captions")
    assert f"NOT kept: {'; '.join(f'{what} (ffv1 cannot store it)' for what in lost)}\n" in result.stderr
