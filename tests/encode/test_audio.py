"""Audio in other containers: copied if possible, otherwise decoded to PCM without loss."""

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.encode.conftest import times
from tests.encode.joining import mux_inputs, mux_with_source
from tests.encode.media import lavfi, make
from vsfdatrd.encode import streams
from vsfdatrd.encode.decoded_audio import DecodedAudio
from vsfdatrd.encode.mux import mux
from vsfdatrd.errors import EncodeError


def sound(path: Path) -> tuple[float, NDArray[np.float64]]:
    """When the sound begins, in seconds after the video, and its samples (channels, samples), 1 being full scale."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    resampler = av.AudioResampler("dblp", frames[0].layout, frames[0].sample_rate)
    samples = [part.to_ndarray() for frame in frames for part in resampler.resample(frame)]
    return began(frames[0]) - float(times(path)[0]), np.concatenate(samples, axis=1)


def began(frame: Any) -> float:
    return float(frame.pts * frame.time_base)


@pytest.mark.parametrize(
    ("codec", "before", "after", "options", "becomes", "decoded"),
    [
        ("wmav2", ".asf", ".mkv", [], "pcm_s24le", True),
        ("wmav1", ".asf", ".mov", [], "pcm_s24le", True),
        ("adpcm_ms", ".avi", ".mp4", [], "pcm_s16le", True),
        ("adpcm_ms", ".avi", ".mkv", [], "pcm_s16le", True),
        ("pcm_mulaw", ".avi", ".mp4", [], "pcm_s16le", True),
        ("pcm_u8", ".avi", ".mp4", [], "pcm_s16le", True),
        ("wavpack", ".mkv", ".mp4", ["-sample_fmt", "s16p"], "pcm_s16le", True),
        ("wavpack", ".mkv", ".mov", ["-sample_fmt", "s32p"], "pcm_s24le", True),
        ("flac", ".mkv", ".mov", ["-sample_fmt", "s16"], "pcm_s16le", True),
        ("libopus", ".mkv", ".mov", [], "pcm_s24le", True),
        ("truehd", ".mkv", ".mp4", ["-strict", "-2"], "pcm_s24le", True),
        ("pcm_dvd", ".vob", ".mkv", ["-sample_fmt", "s16"], "pcm_s16le", True),
        ("pcm_dvd", ".vob", ".mp4", ["-sample_fmt", "s32"], "pcm_s24le", True),
        ("pcm_bluray", ".m2ts", ".mp4", ["-sample_fmt", "s16"], "pcm_s16le", True),
        ("pcm_s16le", ".mkv", ".mp4", [], "pcm_s16le", True),
        ("pcm_s16le", ".avi", ".mov", [], "pcm_s16le", False),
        ("aac", ".mp4", ".mkv", [], "aac", False),
        ("ac3", ".vob", ".mp4", [], "ac3", False),
        ("pcm_s24le", ".mov", ".mkv", [], "pcm_s24le", False),
    ],
)
def test_sound_stays(
    plain_film: Path,
    codec: str,
    before: str,
    after: str,
    options: list[str],
    becomes: str,
    decoded: bool,
    tmp_path: Path,
) -> None:
    """Two different channels, at the same time as before, with the same samples."""
    tones = "aevalsrc=sin(880*t)*0.5|sin(3300*t*t)*0.3:d=2.4:s=48000"
    video = "mpeg2video" if before in (".vob", ".m2ts") else "mpeg4"
    source, target = tmp_path / f"in{before}", tmp_path / f"out{after}"
    codecs = ["-c:v", video, "-c:a", codec, *options]
    make("-i", plain_film, *lavfi(tones), "-map", "0", "-map", "1", *codecs, "-metadata:s:a:0", "language=jpn", source)
    kept = mux_with_source(plain_film, source, target)
    assert kept.dropped == []
    assert kept.kept[0].endswith(", as PCM") == (kept.decoded == [1])
    assert bool(kept.decoded) == decoded
    with av.open(str(target)) as container:
        (stream,) = container.streams.audio
        assert stream.codec_context.codec.canonical_name == becomes
        if before in (".mkv", ".mp4", ".mov"):
            assert stream.language == "jpn"
    (begin, expected), (begin_now, samples) = sound(source), sound(target)
    assert begin_now == pytest.approx(begin, abs=0.002)
    assert samples.shape == expected.shape
    step = {"pcm_s16le": 2.0**-15, "pcm_s24le": 2.0**-23}.get(becomes, 0)
    assert np.abs(samples - expected.clip(-1, 1)).max() <= step


def test_damaged_packets_are_skipped(plain_film: Path, tmp_path: Path) -> None:
    """What comes after them is heard at its time."""
    source = tmp_path / "in.mkv"
    tones = lavfi("sine=duration=2.4:sample_rate=48000")
    make("-i", plain_film, *tones, "-map", "0", "-map", "1", "-c", "copy", "-c:a", "wavpack", source)
    with av.open(str(source)) as container:
        places = [packet.pos or 0 for packet in container.demux(audio=0) if packet.size]
    content = bytearray(source.read_bytes())
    damaged = len(places) // 2
    content[places[damaged] + 8 : places[damaged] + 400] = bytes(392)
    source.write_bytes(content)
    kept = mux_with_source(plain_film, source, tmp_path / "out.mov")
    assert kept.decoded == [1]
    with av.open(str(source)) as container:
        intact = [frame for packet in container.demux(audio=0) for frame in decode(packet)]
    with av.open(str(tmp_path / "out.mov")) as container:
        result = list(container.decode(audio=0))
    assert 0 < len(intact) < len(places)
    for frame in (intact[0], intact[-1]):
        (same,) = (now for now in result if abs(began(now) - began(frame)) < 0.002)
        assert np.array_equal(frame.to_ndarray().reshape(-1), same.to_ndarray().reshape(-1))


@pytest.mark.parametrize("extension", [".mp4", ".mov"])
def test_a_damaged_packet_is_left_out_if_the_container_refuses_it(
    plain_film: Path, tmp_path: Path, extension: str
) -> None:
    """It lies after the packets that are tried before an encode, and ends neither the audio nor the encode."""
    source, target = tmp_path / "in.mkv", tmp_path / f"out{extension}"
    tones = lavfi("aevalsrc=sin(50*t*t):duration=36:sample_rate=48000")
    make("-i", plain_film, *tones, "-map", "0", "-map", "1", "-c", "copy", "-c:a", "eac3", source)
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    damaged = streams._TRIAL_PACKETS + 50
    content = source.read_bytes()
    assert content.count(packets[damaged]) == 1
    source.write_bytes(content.replace(packets[damaged], bytes(len(packets[damaged]))))
    film = mux_inputs(plain_film, source, target)
    assert film.selection.copied == [1]
    assert mux(film, target) == [f"1 of {len(packets)} packets of audio 1: eac3"]
    with av.open(str(target)) as container:
        copied = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    assert copied == packets[:damaged] + packets[damaged + 1 :]


def decode(packet: Any) -> list[av.AudioFrame]:
    try:
        return list(packet.decode())
    except av.FFmpegError:
        return []


def test_decoded_sound_keeps_its_gaps_and_loses_what_overlaps() -> None:
    audio = DecodedAudio.__new__(DecodedAudio)
    audio._index, audio._position = 1, None
    audio.output = SimpleNamespace(codec_context=SimpleNamespace(sample_rate=1000))
    expected = [
        (2000, True, 2000),  # it may begin at any time
        (2020, True, 2000),  # rounded
        (1980, True, 2000),
        (2021, True, 2021),
        (2000, False, 2021),
        (1521, False, 2021),
    ]
    for time, used, position in expected:
        assert audio._synchronize(Fraction(time, 1000)) == used
        assert audio._position == position
    with pytest.raises(EncodeError, match=r"the timestamps of audio 1 go back after 2\.0 s"):
        audio._synchronize(Fraction(1520, 1000))
