"""The end of an encode: its video joined with the other streams of the source."""

from fractions import Fraction
from pathlib import Path

from vsfdatrd.encode import streams
from vsfdatrd.encode.frame_metadata import FrameMetadata
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.mux import Film, join
from vsfdatrd.encode.presets import CONTAINERS
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.source import open_source
from vsfdatrd.encode.timing import Timing

LENGTH = 60
RATE = Fraction(25)


def joined(film: Path, source: Path, target: Path) -> streams.Selection:
    """Join the film (the fixture `plain_film`) with the other streams of a source, all of whose packets fit."""
    parts = to_join(film, source, target)
    assert join(parts, target) == []
    return parts.selection


def to_join(film: Path, source: Path, target: Path) -> Film:
    """The film as the only part of an encode, and what else the output gets from a source."""
    opened = open_source(source, target.with_name("index"))
    kept = streams.choose(source, opened.video, CONTAINERS[target.suffix])
    chunk = Chunk(0, 0, LENGTH)
    (target.parent / chunk.name).write_bytes(film.read_bytes())
    made = DoneChunk(chunk, film.stat().st_size, "", 0, 0)
    timing = Timing(RATE, opened.start())
    return Film(opened, timing, [made], target.parent, kept, Fraction(1), "", FrameMetadata())
