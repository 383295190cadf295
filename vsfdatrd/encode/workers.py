"""Interface of the workers that encode chunks, local or on a Ray cluster: their inputs and events."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError, FdatrdError

MAX_CHUNK_FAILURES = 2
"""Attempts per chunk if encoding fails."""
MAX_CHUNK_LOSSES = 5
"""Attempts per chunk if its worker or machine dies."""


@dataclass(frozen=True, slots=True)
class ChunkInputs:
    """Inputs that every machine needs to encode chunks."""

    source: Path
    """Absolute path of the source."""
    model: str
    """The model as in the script: a catalog name, or an absolute path."""
    weights: str
    """SHA-256 of the model's file."""
    encoder: str
    """ffmpeg's name of the video encoder."""
    script: Path
    index: Path
    """Path prefix of BestSource's index files."""


@dataclass(frozen=True, slots=True)
class ChunkProgress:
    """Number of frames of a chunk upscaled so far; a retried chunk counts from 0 again."""

    chunk: Chunk
    frames: int


@dataclass(frozen=True, slots=True)
class ChunkRetry:
    """A chunk that failed and will be tried again."""

    chunk: Chunk
    error: FdatrdError


type Event = ChunkProgress | ChunkRetry | DoneChunk


@dataclass(slots=True)
class Attempts:
    """How often a chunk has failed, which decides whether it is tried again."""

    failures: int = 0
    """Failures of the programs that encode it: a driver may reset, or memory may run short for a moment."""
    losses: int = 0
    """Deaths of the worker or the machine, which are rarely caused by the chunk."""

    def retry(self, chunk: Chunk, error: EncodeError, lost: bool = False) -> ChunkRetry:
        """Count a failure, or a loss of the worker or the machine; return the event that announces the next attempt.

        Args:
            chunk: The chunk.
            error: The reason.
            lost: Whether the worker or the machine died.

        Raises:
            EncodeError: `error`, after `MAX_CHUNK_FAILURES` failures or `MAX_CHUNK_LOSSES` losses.
        """
        if lost:
            self.losses += 1
        else:
            self.failures += 1
        if self.failures >= MAX_CHUNK_FAILURES or self.losses >= MAX_CHUNK_LOSSES:
            raise error
        return ChunkRetry(chunk, error)


class Workers(Protocol):
    """Encodes chunks: `local_workers.Devices` or `ray.scheduler.Cluster`."""

    @property
    def name(self) -> str:
        """Name of the devices, for the progress line."""
        ...

    def try_encoder(self, options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
        """See `chunk.try_encoder`; does nothing if chunks are encoded on other machines."""
        ...

    def first_frame(self, inputs: ChunkInputs) -> dict[str, int]:
        """Render one frame and return its color properties, see `trial.first_frame`.

        Args:
            inputs: Inputs of the encode.
        """
        ...

    def make(self, inputs: ChunkInputs, chunks: Sequence[Chunk], params: EncodeParams) -> Generator[Event]:
        """Encode chunks in any order. Closing the generator terminates all programs.

        Args:
            inputs: Inputs of the encode.
            chunks: The chunks to encode.
            params: Parameters common to all chunks.

        Raises:
            EncodeError: A chunk failed too often.
        """
        ...
