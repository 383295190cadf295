"""What else is in the source, sound, subtitles, attachments, chapters, and what of it the output can hold."""

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import open_input, require_av

_COVER = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}
TEXT = {"matroska": "subrip", "mp4": "mov_text", "mov": "mov_text"}
"""What subtitles of text become where a container does not know their format."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The streams of a source that go into the output, by their numbers in the source."""

    copied: tuple[int, ...]
    """Packet by packet."""
    rewritten: tuple[int, ...]
    """Disc formats of PCM sound that other containers do not know: the same samples, as ordinary PCM."""
    converted: tuple[int, ...]
    """Subtitles of text in a format that the output's container does not know: the same text, in TEXT of it."""
    attached: tuple[int, ...]
    """Fonts and the like."""
    covers: tuple[int, ...]
    """Pictures that are marked as covers."""
    left: tuple[str, ...]
    """What cannot be kept and why, a phrase each."""
    about: tuple[str, ...]
    """What is kept, a phrase each."""


def choose(source: Path, video: int, container: str) -> Kept:
    """Ask a muxer of this format about every stream of the source but the video itself."""
    av = require_av()
    copied: list[int] = []
    rewritten: list[int] = []
    converted: list[int] = []
    attached: list[int] = []
    covers: list[int] = []
    left: list[str] = []
    about: list[str] = []
    mkv = container == "matroska"
    with open_input(source) as file:
        for stream in file.streams:
            if stream.index == video:
                continue
            what = describe(stream)
            if stream.type == "attachment":
                if mkv:
                    attached.append(stream.index)
                else:
                    left.append(f"{what} ({container} has no attachments)")
                continue
            if stream.type == "video":
                if stream.disposition & av.stream.Disposition.attached_pic and mkv and stream.name in _COVER:
                    covers.append(stream.index)
                else:
                    left.append(f"{what} (only one video is encoded)")
                continue
            if stream.type not in ("audio", "subtitle"):
                left.append(f"{what} (data for the disc player)")
                continue
            try:
                _check_header(av, stream, container)
            except (ValueError, av.FFmpegError):
                if stream.type == "audio" and stream.name.startswith("pcm_"):
                    rewritten.append(stream.index)
                    about.append(f"{what}, as ordinary PCM")
                elif stream.type == "subtitle" and _can_convert(av, stream, container):
                    converted.append(stream.index)
                    about.append(f"{what}, as {TEXT[container]}")
                elif stream.type == "subtitle" and stream.codec_context and stream.codec_context.codec.bitmap_sub:
                    left.append(f"{what} (pictures, which a {container} file cannot hold)")
                else:
                    left.append(f"{what} (a {container} file cannot hold it)")
                continue
            copied.append(stream.index)
            about.append(what)
    return Kept(
        tuple(copied), tuple(rewritten), tuple(converted), tuple(attached), tuple(covers), tuple(left), tuple(about)
    )  # fmt: skip


def describe(stream: Any) -> str:
    """A stream in a few words."""
    language = f" ({stream.language})" if getattr(stream, "language", None) else ""
    if stream.type == "attachment":
        return f"attachment {stream.metadata.get('filename', stream.index)}"
    return f"{stream.type} {stream.index}: {getattr(stream, 'name', None) or 'unknown'}{language}"


def _check_header(av: Any, stream: Any, container: str) -> None:
    """Raises an FFmpegError or ValueError unless a file with only this stream can be begun."""
    with av.open(io.BytesIO(), "w", format=container) as trial:
        trial.add_stream_from_template(stream, opaque=True)
        trial.start_encoding()


def _can_convert(av: Any, stream: Any, container: str) -> bool:
    """Whether a subtitle is text that FFmpeg reads, and writes as what the container knows."""
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
    """Add a stream to an output, for the text of a source's subtitle.

    Raises an FFmpegError or ValueError.
    """
    stream.codec_context.open(strict=False)  # which makes the header that the encoder needs
    output = out.add_stream(TEXT[container])
    output.codec_context.subtitle_header = stream.codec_context.subtitle_header
    output.codec_context.time_base = Fraction(1, 1000)
    return output


def converted(av: Any, packet: Any, output: Any) -> Any:
    """One subtitle as a packet of the output, at the same time in milliseconds; None for what shows nothing."""
    found = packet.stream.codec_context.decode2(packet)
    if found is None or not len(found) or found.pts is None:
        return None
    new = output.codec_context.encode_subtitle(found)
    start = Fraction(found.pts, av.time_base) + Fraction(found.start_display_time, 1000)
    length = Fraction(found.end_display_time - found.start_display_time, 1000)
    if not 0 < length < 1 << 20:  # nothing is said, or that it stays for ever
        length = packet.duration * Fraction(packet.time_base)
    new.time_base = Fraction(1, 1000)
    new.pts = new.dts = round(start * 1000)
    new.duration = round(length * 1000)
    return new


def cover(stream: Any, packet: bytes) -> tuple[str, str, bytes]:
    """A cover as an attachment: name, kind, content."""
    name, kind = _COVER[stream.name]
    return stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), packet
