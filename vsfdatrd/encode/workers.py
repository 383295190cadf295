"""Who makes chunks, whatever they are: what they are given, and what they tell."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import FdatrdError


@dataclass(frozen=True, slots=True)
class ChunkInputs:
    """What has to be at hand wherever frames are made."""

    source: Path
    """The film, absolute."""
    model: str
    """As the script names it: a name of the catalogue, or an absolute path."""
    weights: str
    """SHA-256 of its file."""
    encoder: str
    """The video encoder, as ffmpeg calls it."""
    script: Path
    index: Path
    """BestSource's index: what the names of its files begin with."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Frames of a chunk that have been upscaled; of one that is tried once more they count from 0 again."""

    chunk: Chunk
    frames: int


@dataclass(frozen=True, slots=True)
class Retry:
    """A chunk that failed and is tried once more."""

    chunk: Chunk
    error: FdatrdError


type Event = Progress | Retry | DoneChunk


class Workers(Protocol):
    """Those who make chunks."""

    @property
    def name(self) -> str:
        """What they are, for the progress line."""
        ...

    def try_encoder(self, options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
        """See `chunk.try_encoder`; where chunks are encoded elsewhere, it is left to the first of them."""
        ...

    def first_frame(self, material: ChunkInputs) -> dict[str, int]:
        """Make one frame as a trial: see `trial.first_frame`."""
        ...

    def make(self, material: ChunkInputs, chunks: Sequence[Chunk], recipe: EncodeParams) -> Generator[Event]:
        """Make chunks, in any order; yields what happens.

        Raises the EncodeError of a chunk that failed too often. Closing the iterator ends all programs.
        """
        ...
