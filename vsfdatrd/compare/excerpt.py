"""Pieces of a long film as a short file, copied without decoding: BestSource has to decode a whole film to index it."""

import logging
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import choose_video, require_av

log = logging.getLogger(__name__)

LONG = 180.0
"""Seconds: films that are shorter are read as a whole."""
PIECES = 20
SECONDS = 2.5
"""Of a piece, or a little more: it ends where a group of pictures does."""
SEAM = 0.2
"""Seconds to either side of a piece's beginning in which frames may lean on those of another."""
MOST_SECONDS = 6.0
"""Of a piece whose groups of pictures are long."""

_MPEG = ("mpeg1video", "mpeg2video")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the film in the excerpt."""

    at: float
    """When it begins in the excerpt, in seconds."""
    film: float
    """When it begins in the film, in seconds."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A short file made of pieces of a film, spread evenly over it."""

    path: Path
    pieces: list[Piece]
    duration: float
    """Of the whole film, in seconds, as its container tells."""

    def in_film(self, seconds: float) -> float:
        """Return when in the film something is shown that the excerpt shows after so many seconds."""
        piece = self.pieces[max(0, bisect([piece.at for piece in self.pieces], seconds + 1e-3) - 1)]
        return piece.film + seconds - piece.at

    def is_inside(self, seconds: float) -> bool:
        """Return whether what is shown after so many seconds is well away from where pieces begin and end."""
        return all(abs(seconds - piece.at) > SEAM for piece in self.pieces)


def make_excerpt(film: Path, target: Path) -> Excerpt | None:
    """Copy pieces of a film's video to another file.

    Args:
        film: The file.
        target: Where the pieces go.

    Returns:
        None for a film that is short, has no times, cannot be sought in or cannot be copied: it has to be
        read as a whole.
    """
    av = require_av()
    try:
        # genpts: program streams tell the times of few frames.
        with av.open(str(film.absolute()), options={"fflags": "+genpts"}) as source:
            stream, _ = choose_video(source)
            if stream is None or not source.duration or source.duration / av.time_base < LONG:
                return None
            copy = _copy_mpeg if stream.codec_context.name in _MPEG else _copy
            pieces = copy(av, source, stream, target)
            duration = source.duration / av.time_base
    except (av.FFmpegError, ValueError, OverflowError, OSError) as error:
        log.debug("no excerpt of %s: %s", film, error)
        return None
    return Excerpt(target, pieces, duration) if len(pieces) > PIECES // 2 else None


def _groups(av: Any, source: Any, stream: Any) -> Iterator[tuple[float, list[Any]]]:
    """Packets of each piece from a key frame on, and when it is shown, in seconds."""
    begin = (source.start_time or 0) / av.time_base
    tick = float(stream.time_base)
    reached = -1.0
    for number in range(PIECES):
        source.seek(round((begin + (number + 0.5) / PIECES * source.duration / av.time_base) * av.time_base))
        packets: list[Any] = []
        first = 0.0
        for packet in source.demux(stream):
            if not packet.size:
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            now = first if stamp is None else stamp * tick - begin
            if not packets:
                if not packet.is_keyframe or stamp is None:
                    continue
                if now <= reached:  # its group of pictures was copied already
                    break
                first = now
            elif (packet.is_keyframe and now - first >= SECONDS) or now - first >= MOST_SECONDS:
                break
            packets.append(packet)
            reached = max(reached, now)
        if packets:
            yield first, packets


def _copy_mpeg(av: Any, source: Any, stream: Any, target: Path) -> list[Piece]:
    """Copy pieces of MPEG-1 or 2 to a bare stream, which needs no times: on discs many frames have none."""
    rate = float(stream.average_rate or stream.guessed_rate or 25)
    pieces: list[Piece] = []
    count = 0
    with target.open("wb") as file:
        for first, packets in _groups(av, source, stream):
            pieces.append(Piece(count / rate, first))
            pictures = [bytes(packet) for packet in packets]
            # B pictures after the first one are shown before it, and lean on the group before.
            leading = sum(1 for _ in takewhile(_is_b, pictures[1:]))
            kept = [pictures[0], *pictures[1 + leading :]]
            file.write(b"".join(kept))
            count += len(kept)
    return pieces


def _is_b(data: bytes) -> bool:
    """Whether MPEG data are a picture that leans on one shown later, as its header says."""
    at = data.find(b"\0\0\1\0")
    return 0 <= at < len(data) - 6 and data[at + 5] >> 3 & 7 == 3


def _copy(av: Any, source: Any, stream: Any, target: Path) -> list[Piece]:
    """Copy pieces to a Matroska file, one after the other without gaps."""
    pieces: list[Piece] = []
    tick = float(stream.time_base)
    usual = round(1 / float(stream.average_rate or stream.guessed_rate or 25) / tick)
    at, last_dts = 0, -(1 << 40)
    with av.open(str(target), "w", format="matroska") as copy:
        out = copy.add_stream_from_template(stream)
        for seconds, packets in _groups(av, source, stream):
            pieces.append(Piece(at * tick, seconds))
            first, end = packets[0].pts, 0
            for packet in packets:
                if packet.pts is None or packet.pts < first:  # leans on the group before
                    continue
                end = max(end, packet.pts - first)
                packet.pts = packet.pts - first + at
                # Where frames are left out at a seam the order of decoding would go back.
                packet.dts = last_dts = max(last_dts, min(packet.pts, (packet.dts or packet.pts) - first + at))
                packet.stream = out
                copy.mux(packet)
            at += end + usual
    return pieces
