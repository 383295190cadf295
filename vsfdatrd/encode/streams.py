"""Audio, subtitles and attachments of the source: which of them the output's container supports."""

import contextlib
import io
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.decoded_audio import DecodedAudio
from vsfdatrd.encode.input_file import open_input, require_av

# File name and MIME type of cover art, by the codec of the picture.
_COVER_NAMES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
# Packets of all streams together that are tried: some muxers refuse a stream only when they get its packets.
_TRIAL_PACKETS = 1000
TEXT_CODECS = {"matroska": "subrip", "mp4": "mov_text", "mov": "mov_text"}
"""Text subtitle codec of each container, used if it does not support the source's subtitle format."""


@dataclass(slots=True)
class Selection:
    """The source streams that go into the output, as stream indices in the source."""

    copied: list[int] = field(default_factory=list)
    """Streams copied packet by packet."""
    decoded: list[int] = field(default_factory=list)
    """Audio in a format the container does not support (PCM of discs, WMA, ADPCM); decoded and written as PCM."""
    converted: list[int] = field(default_factory=list)
    """Text subtitles in a format the container does not support; the same text in the codec given by `TEXT_CODECS`."""
    attached: list[int] = field(default_factory=list)
    """Attachments, such as fonts."""
    covers: list[int] = field(default_factory=list)
    """Pictures marked as cover art."""
    dropped: list[str] = field(default_factory=list)
    """A phrase for each stream that is dropped, with the reason."""
    kept: list[str] = field(default_factory=list)
    """A phrase for each stream that is kept."""


def choose_streams(source: Path, video: int, container: str) -> Selection:
    """Choose the streams to keep by trying each with a muxer of the output's format.

    Args:
        source: The source file.
        video: Index of the encoded video stream, which is skipped.
        container: ffmpeg's name of the output format.

    Raises:
        av.FFmpegError: The source cannot be opened.
    """
    av = require_av()
    chosen = Selection()
    mkv, cover_art = container == "matroska", av.stream.Disposition.attached_pic
    with open_input(source) as file:
        packets = _first_packets(av, file)
        for stream in file.streams:
            if stream.index == video:
                continue
            name = describe_stream(stream)
            if stream.type == "attachment" and mkv:
                chosen.attached.append(stream.index)
            elif stream.type == "attachment":
                chosen.dropped.append(f"{name} ({container} has no attachments)")
            elif stream.type == "video" and mkv and stream.disposition & cover_art and stream.name in _COVER_NAMES:
                chosen.covers.append(stream.index)
            elif stream.type == "video":
                chosen.dropped.append(f"{name} (only one video is encoded)")
            elif stream.type == "data" and "timecode" in stream.metadata:
                chosen.kept.append(f"timecode {stream.metadata['timecode']}")
            elif stream.type not in ("audio", "subtitle"):
                chosen.dropped.append(f"{name} (neither audio nor subtitles)")
            elif _can_copy(av, stream, container, packets[stream.index]):
                chosen.copied.append(stream.index)
                chosen.kept.append(name)
            elif stream.type == "audio" and _can_decode_audio(av, stream, container):
                chosen.decoded.append(stream.index)
                chosen.kept.append(f"{name}, as PCM")
            elif stream.type == "subtitle" and _can_convert_subtitles(av, stream, container):
                chosen.converted.append(stream.index)
                chosen.kept.append(f"{name}, as {TEXT_CODECS[container]}")
            elif stream.type == "subtitle" and stream.codec_context and stream.codec_context.codec.bitmap_sub:
                chosen.dropped.append(f"{name} (pictures, which a {container} file cannot hold)")
            else:
                chosen.dropped.append(f"{name} (a {container} file cannot hold it)")
    return chosen


def describe_stream(stream: Any) -> str:
    """Return a short description of a stream: type, index, codec, language; for attachments the file name.

    Args:
        stream: A PyAV stream.
    """
    language = f" ({stream.language})" if getattr(stream, "language", None) else ""
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', stream.index)}"
    codec = getattr(stream, "name", None) or "unknown"
    if stream.type == "audio" and stream.codec_context:
        codec = stream.codec_context.codec.canonical_name  # `name` is the decoder's, such as mp2float or dca
    return f"{stream.type} {stream.index}: {codec}{language}"


def _first_packets(av: Any, file: Any) -> dict[int, list[Any]]:
    """Return the packets at the start of the file by the index of their stream, for audio and subtitles.

    They are those among the first `_TRIAL_PACKETS` packets of all streams, so that little of the file is read.
    """
    packets: dict[int, list[Any]] = {stream.index: [] for stream in (*file.streams.audio, *file.streams.subtitles)}
    with contextlib.suppress(av.FFmpegError):  # damaged places are reported where frames are read
        for packet in itertools.islice(file.demux(), _TRIAL_PACKETS if packets else 0):
            if packet.size and packet.pts is not None and packet.stream.index in packets:
                packets[packet.stream.index].append(packet)
    return packets


def _can_copy(av: Any, stream: Any, container: str, packets: Sequence[Any]) -> bool:
    """Return True if the muxer accepts a file with only this stream, and these packets of it."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            output = trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
            for packet in packets:
                packet.stream = output
                trial.mux_one(packet)
    except (ValueError, av.FFmpegError):
        return False
    return True


def _can_convert_subtitles(av: Any, stream: Any, container: str) -> bool:
    """Return True if ffmpeg can decode the subtitles as text and encode them in the container's format."""
    is_text = stream.codec_context is not None and stream.codec_context.codec.text_sub
    return is_text and _accepts_header(av, container, lambda file: add_converted_stream(file, stream, container))


def _can_decode_audio(av: Any, stream: Any, container: str) -> bool:
    """Return True if ffmpeg can decode the audio, and the container supports it as PCM."""
    return _accepts_header(av, container, lambda file: DecodedAudio(av, file, stream))


def _accepts_header(av: Any, container: str, add_stream: Callable[[Any], Any]) -> bool:
    """Return True if the header of a file with this stream can be written."""
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            add_stream(trial)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def add_converted_stream(out: Any, stream: Any, container: str) -> Any:
    """Add an output stream for text subtitles converted from a source stream, whose decoder is opened.

    Args:
        out: The PyAV output container.
        stream: The source's subtitle stream; its decoder is opened.
        container: ffmpeg's name of the output format.

    Raises:
        av.FFmpegError, ValueError: The subtitles cannot be decoded or encoded.
    """
    stream.codec_context.open(strict=False)  # opening creates the header that the encoder needs
    output = out.add_stream(TEXT_CODECS[container])
    output.codec_context.subtitle_header = stream.codec_context.subtitle_header
    output.codec_context.time_base = Fraction(1, 1000)
    return output


def convert_packet(av: Any, packet: Any, output: Any) -> Any:
    """Convert one packet of the source's subtitles for the stream added by `add_converted_stream`.

    Args:
        av: The PyAV module.
        packet: A packet of the source's subtitle stream.
        output: The stream added by `add_converted_stream`.

    Returns:
        The packet for the output with its time in milliseconds; None if the packet contains no subtitle.

    Raises:
        av.FFmpegError: The packet is damaged.
    """
    result = packet.stream.codec_context.decode2(packet)
    if result is None or not len(result) or result.pts is None:
        return None
    new = output.codec_context.encode_subtitle(result)
    start = Fraction(result.pts, av.time_base) + Fraction(result.start_display_time, 1000)
    length = Fraction(result.end_display_time - result.start_display_time, 1000)
    if not 0 < length < 1 << 20:  # seconds: the duration is unknown or infinite
        length = packet.duration * Fraction(packet.time_base)
    new.time_base = Fraction(1, 1000)
    new.pts = new.dts = round(start * 1000)
    new.duration = round(length * 1000)
    return new


def cover_attachment(stream: Any, packet: bytes) -> tuple[str, str, bytes]:
    """Return file name, MIME type and content of cover art: a video stream whose only packet is the image file.

    Args:
        stream: The PyAV video stream of the cover.
        packet: Its only packet, which is the image file.
    """
    name, kind = _COVER_NAMES[stream.name]
    return stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), packet
