"""The other streams of the source (audio, subtitles, attachments), and which of them the output can hold."""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import open_input, require_av

_COVER = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
TEXT = {"matroska": "subrip", "mp4": "mov_text", "mov": "mov_text"}
"""Text subtitle codec of each container, used if it does not support the source's subtitle format."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The source streams that go into the output, as stream indices in the source."""

    copied: tuple[int, ...]
    """Streams copied packet by packet."""
    rewritten: tuple[int, ...]
    """PCM audio in disc formats that other containers do not support; the same samples as ordinary PCM."""
    converted: tuple[int, ...]
    """Text subtitles in a format the container does not support; the same text in the codec given by `TEXT`."""
    attached: tuple[int, ...]
    """Attachments, such as fonts."""
    covers: tuple[int, ...]
    """Pictures marked as cover art."""
    dropped: tuple[str, ...]
    """A phrase for each stream that is dropped, with the reason."""
    kept: tuple[str, ...]
    """A phrase for each stream that is kept."""


def choose(source: Path, video: int, container: str) -> Selection:
    """Choose the streams to keep by trying each with a muxer of the output's format.

    Args:
        source: The source file.
        video: Index of the encoded video stream, which is skipped.
        container: ffmpeg's name of the output format.

    Returns:
        The streams to copy or convert, and those to drop.

    Raises:
        av.FFmpegError: The source cannot be opened.
    """
    av = require_av()
    copied: list[int] = []
    rewritten: list[int] = []
    converted: list[int] = []
    attached: list[int] = []
    covers: list[int] = []
    dropped: list[str] = []
    kept: list[str] = []
    mkv = container == "matroska"
    with open_input(source) as file:
        for stream in file.streams:
            if stream.index == video:
                continue
            name = describe(stream)
            if stream.type == "attachment":
                if mkv:
                    attached.append(stream.index)
                else:
                    dropped.append(f"{name} ({container} has no attachments)")
                continue
            if stream.type == "video":
                if stream.disposition & av.stream.Disposition.attached_pic and mkv and stream.name in _COVER:
                    covers.append(stream.index)
                else:
                    dropped.append(f"{name} (only one video is encoded)")
                continue
            if stream.type not in ("audio", "subtitle"):
                dropped.append(f"{name} (data for the disc player)")
                continue
            try:
                _check_header(av, stream, container)
            except (ValueError, av.FFmpegError):
                if stream.type == "audio" and stream.name.startswith("pcm_"):
                    rewritten.append(stream.index)
                    kept.append(f"{name}, as ordinary PCM")
                elif stream.type == "subtitle" and _can_convert(av, stream, container):
                    converted.append(stream.index)
                    kept.append(f"{name}, as {TEXT[container]}")
                elif stream.type == "subtitle" and stream.codec_context and stream.codec_context.codec.bitmap_sub:
                    dropped.append(f"{name} (pictures, which a {container} file cannot hold)")
                else:
                    dropped.append(f"{name} (a {container} file cannot hold it)")
                continue
            copied.append(stream.index)
            kept.append(name)
    return Selection(
        tuple(copied), tuple(rewritten), tuple(converted), tuple(attached), tuple(covers), tuple(dropped), tuple(kept)
    )


def describe(stream: Any) -> str:
    """Return a short description of a stream: type, index, codec, language; for attachments the file name.

    Args:
        stream: A PyAV stream.
    """
    language = f" ({stream.language})" if getattr(stream, "language", None) else ""
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', stream.index)}"
    return f"{stream.type} {stream.index}: {getattr(stream, 'name', None) or 'unknown'}{language}"


def _check_header(av: Any, stream: Any, container: str) -> None:
    """Write the header of a file with only this stream; raise FFmpegError or ValueError if the muxer rejects it."""
    with av.open(io.BytesIO(), "w", format=container) as trial:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()


def _can_convert(av: Any, stream: Any, container: str) -> bool:
    """Return True if ffmpeg can decode the subtitles as text and encode them in the container's format."""
    if stream.codec_context is None or not stream.codec_context.codec.text_sub:
        return False
    try:
        with av.open(io.BytesIO(), "w", format=container) as trial:
            converting(trial, stream, container)
            trial.start_encoding()
    except (ValueError, av.FFmpegError):
        return False
    return True


def converting(out: Any, stream: Any, container: str) -> Any:
    """Add an output stream for text subtitles converted from a source stream.

    Args:
        out: The PyAV output container.
        stream: The source's subtitle stream; its decoder is opened.
        container: ffmpeg's name of the output format.

    Returns:
        The new output stream.

    Raises:
        av.FFmpegError, ValueError: The subtitles cannot be decoded or encoded.
    """
    stream.codec_context.open(strict=False)  # opening creates the header that the encoder needs
    output = out.add_stream(TEXT[container])
    output.codec_context.subtitle_header = stream.codec_context.subtitle_header
    output.codec_context.time_base = Fraction(1, 1000)
    return output


def converted(av: Any, packet: Any, output: Any) -> Any:
    """Convert one subtitle packet.

    Args:
        av: The PyAV module.
        packet: A packet of the source's subtitle stream.
        output: The stream added by `converting`.

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


def cover(stream: Any, packet: bytes) -> tuple[str, str, bytes]:
    """Return cover art as an attachment.

    Args:
        stream: The PyAV video stream of the cover.
        packet: Its only packet, which is the image file.

    Returns:
        File name, MIME type and content of the attachment.
    """
    name, kind = _COVER[stream.name]
    return stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), packet
