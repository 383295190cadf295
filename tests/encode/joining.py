"""The last step of an encode: its video muxed with the other streams of the source."""

from fractions import Fraction
from pathlib import Path

from vsfdatrd.encode import streams
from vsfdatrd.encode.frame_metadata import FrameMetadata
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.mux import MuxInputs, mux
from vsfdatrd.encode.presets import CONTAINERS
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.source import open_source
from vsfdatrd.encode.timing import Timing

LENGTH = 60
RATE = Fraction(25)


def mux_with_source(film: Path, source: Path, target: Path) -> streams.Selection:
    """Join the film (the fixture `plain_film`) with the other streams of a source, all of whose packets fit."""
    parts = mux_inputs(film, source, target)
    assert mux(parts, target) == []
    return parts.selection


def mux_inputs(film: Path, source: Path, target: Path) -> MuxInputs:
    """The film as the only part of an encode, and what else the output gets from a source."""
    opened = open_source(source, target.with_name("index"))
    kept = streams.choose_streams(source, opened.video, CONTAINERS[target.suffix])
    chunk = Chunk(0, 0, LENGTH)
    (target.parent / chunk.name).write_bytes(film.read_bytes())
    made = DoneChunk(chunk, film.stat().st_size, "", 0, 0)
    timing = Timing(RATE, opened.start())
    return MuxInputs(opened, timing, [made], target.parent, kept, Fraction(1), "", FrameMetadata())
