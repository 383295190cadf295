"""What else is in the source, sound, subtitles, attachments, chapters, and what of it the output can hold."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import open_input, require_av

_COVER = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}


@dataclass(frozen=True, slots=True)
class Kept:
    """The streams of a source that go into the output, by their numbers in the source."""

    copied: tuple[int, ...]
    """Packet by packet."""
    rewritten: tuple[int, ...]
    """Disc formats of PCM sound that other containers do not know: the same samples, as ordinary PCM."""
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
                else:
                    left.append(f"{what} (a {container} file cannot hold it)")
                continue
            copied.append(stream.index)
            about.append(what)
    return Kept(tuple(copied), tuple(rewritten), tuple(attached), tuple(covers), tuple(left), tuple(about))


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


def cover(stream: Any, packet: bytes) -> tuple[str, str, bytes]:
    """A cover as an attachment: name, kind, content."""
    name, kind = _COVER[stream.name]
    return stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), packet
