"""Copy excerpts of a long film to a short file without decoding.

BestSource decodes the complete file to index it; an excerpt is indexed much sooner.
"""

import logging
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import choose_video, require_av

log = logging.getLogger(__name__)

MIN_FILM_SECONDS = 180.0
"""Seconds; shorter films are read completely."""
SECTION_COUNT = 20
"""Number of sections, evenly spread over the film."""
MIN_SECTION_SECONDS = 2.5
"""Minimum length of a section; it ends at the next GOP boundary."""
SEAM_SECONDS = 0.2
"""Seconds on either side of a section's start in which frames may reference frames of another section."""
MAX_SECTION_SECONDS = 6.0
"""Maximum length of a section, for films with long GOPs."""

_MPEG = ("mpeg1video", "mpeg2video")


@dataclass(frozen=True, slots=True)
class Section:
    """One continuous section of the film in the excerpt."""

    at: float
    """Its start in the excerpt, in seconds."""
    film: float
    """Its start in the film, in seconds."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A short file of sections that are evenly spread over a film."""

    path: Path
    sections: list[Section]
    duration: float
    """Duration of the complete film in seconds, according to its container."""

    def in_film(self, seconds: float) -> float:
        """Convert a time in the excerpt to the time in the film, both in seconds."""
        section = self.sections[max(0, bisect([section.at for section in self.sections], seconds + 1e-3) - 1)]
        return section.film + seconds - section.at

    def is_inside(self, seconds: float) -> bool:
        """Return whether a time is more than `SEAM_SECONDS` away from the start of every section.

        Args:
            seconds: Time in the excerpt.
        """
        return all(abs(seconds - section.at) > SEAM_SECONDS for section in self.sections)


def make_excerpt(film: Path, target: Path) -> Excerpt | None:
    """Copy sections of a film's video stream to another file.

    Args:
        film: The file.
        target: The file to write.

    Returns:
        The excerpt; None if the film is short, has no timestamps, is not seekable or cannot be copied, and has to be
        read completely.
    """
    av = require_av()
    try:
        # genpts: program streams have timestamps for few frames.
        with av.open(str(film.absolute()), options={"fflags": "+genpts"}) as source:
            stream, _ = choose_video(source)
            if stream is None or not source.duration or source.duration / av.time_base < MIN_FILM_SECONDS:
                return None
            copy = _copy_mpeg if stream.codec_context.name in _MPEG else _copy_to_matroska
            sections = copy(av, source, stream, target)
            duration = source.duration / av.time_base
    except (av.FFmpegError, ValueError, OverflowError, OSError) as error:
        log.debug("no excerpt of %s: %s", film, error)
        return None
    return Excerpt(target, sections, duration) if len(sections) > SECTION_COUNT // 2 else None


def _section_packets(av: Any, source: Any, stream: Any) -> Iterator[tuple[float, list[Any]]]:
    """Yield the start time of each section in seconds and its packets, beginning with a key frame."""
    begin = (source.start_time or 0) / av.time_base
    tick = float(stream.time_base)
    last_copied = -1.0
    for number in range(SECTION_COUNT):
        source.seek(round((begin + (number + 0.5) / SECTION_COUNT * source.duration / av.time_base) * av.time_base))
        packets: list[Any] = []
        first = 0.0
        for packet in source.demux(stream):
            if not packet.size:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            seconds_in_film = first if stamp is None else stamp * tick - begin
            if not packets:
                if not packet.is_keyframe or stamp is None:
                    continue
                if seconds_in_film <= last_copied:  # this GOP has been copied already
                    break
                first = seconds_in_film
            elif (
                packet.is_keyframe and seconds_in_film - first >= MIN_SECTION_SECONDS
            ) or seconds_in_film - first >= MAX_SECTION_SECONDS:
                break
            packets.append(packet)
            last_copied = max(last_copied, seconds_in_film)
        if packets:
            yield first, packets


def _copy_mpeg(av: Any, source: Any, stream: Any, target: Path) -> list[Section]:
    """Copy sections of MPEG-1 or 2 to an elementary stream. It needs no timestamps, which many frames on discs lack."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    sections: list[Section] = []
    count = 0
    with target.open("wb") as file:
        for first, packets in _section_packets(av, source, stream):
            sections.append(Section(count / rate, first))
            pictures = [bytes(packet) for packet in packets]
            # B-frames after the first I-frame are displayed before it and reference the previous GOP: drop them.
            leading = sum(1 for _ in takewhile(_is_b_frame, pictures[1:]))
            decodable = [pictures[0], *pictures[1 + leading :]]
            file.write(b"".join(decodable))
            count += len(decodable)
    return sections


def _is_b_frame(data: bytes) -> bool:
    """Return whether MPEG data are a B-frame, according to the picture header."""
    header = data.find(b"\0\0\1\0")  # start code of a picture; its type is in the sixth byte: 3 is B
    return 0 <= header < len(data) - 6 and data[header + 5] >> 3 & 7 == 3


def _copy_to_matroska(av: Any, source: Any, stream: Any, target: Path) -> list[Section]:
    """Copy sections to a Matroska file, concatenated without gaps."""
    sections: list[Section] = []
    tick = float(stream.time_base)
    frame_ticks = round(1 / float(stream.average_rate or stream.guessed_rate or 25) / tick)
    start_ticks, last_dts = 0, -(1 << 40)
    with av.open(str(target), "w", format="matroska") as copy:
        out = copy.add_stream_from_template(stream)
        for seconds, packets in _section_packets(av, source, stream):
            sections.append(Section(start_ticks * tick, seconds))
            first, end = packets[0].pts, 0
            for packet in packets:
                if packet.pts is None or packet.pts < first:  # references the previous GOP
                    continue
                end = max(end, packet.pts - first)
                packet.pts = packet.pts - first + start_ticks
                # Dropping frames at a seam would make DTS go backwards.
                packet.dts = last_dts = max(last_dts, min(packet.pts, (packet.dts or packet.pts) - first + start_ticks))
                packet.stream = out
                copy.mux(packet)
            start_ticks += end + frame_ticks
    return sections
