"""The record of an encode: its settings, its chunks, and which of them are done, as one JSON file.

A chunk is recorded only after its file has been verified and fsynced. Chunks without a record are encoded again. The
file is replaced as a whole at every change, so a crash leaves the last record or the new one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import write_atomic


@dataclass(frozen=True, slots=True)
class DoneChunk:
    """A chunk that has been encoded."""

    chunk: Chunk
    bytes: int
    """Size of the file."""
    sha256: str
    reorder: int
    """Reorder depth: how many places packets are stored before their display position (B-frames)."""
    seconds: float
    """Encoding time."""


class DamagedJournalError(ValueError):
    """The journal file cannot be parsed."""


class Journal:
    """The journal of one output. Not thread-safe; the workspace's lock keeps other processes out.

    Methods that change it write it, and raise EncodeError if that fails.
    """

    def __init__(self, path: Path) -> None:
        """Read the journal, or start an empty one, which is written at the first change.

        Args:
            path: The JSON file.

        Raises:
            OSError: The file cannot be read.
            DamagedJournalError: The file cannot be parsed.
        """
        self._path = path
        self._facts: dict[str, Any] = {}
        self._chunks: list[Chunk] = []
        self._done: dict[int, DoneChunk] = {}
        try:
            content = json.loads(path.read_bytes())
            self._facts = dict(content["facts"])
            self._chunks = [Chunk(n, int(start), int(stop)) for n, (start, stop) in enumerate(content["chunks"])]
            for number, size, sha256, reorder, seconds in content["done"]:
                chunk = self._chunks[number]
                self._done[number] = DoneChunk(chunk, int(size), str(sha256), int(reorder), float(seconds))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DamagedJournalError(f"{type(error).__name__}: {error}") from error

    def get(self, name: str) -> Any:
        """Return the value stored by `set`; None if there is none.

        Args:
            name: The key used with `set`.
        """
        return self._facts.get(name)

    def set(self, name: str, value: Any) -> None:
        """Store a value that JSON can represent.

        Args:
            name: The key.
            value: Anything that JSON can represent.
        """
        self._facts[name] = value
        self._write()

    def begin(self, settings: Mapping[str, Any], chunks: list[Chunk]) -> None:
        """Start a new encode: discard all records, and store its settings and chunks.

        Args:
            settings: Everything that the output depends on.
            chunks: All chunks of the film, in order.
        """
        self._facts, self._chunks, self._done = {"settings": dict(settings)}, list(chunks), {}
        self._write()

    def chunks(self) -> list[Chunk]:
        """Return all chunks of the film."""
        return list(self._chunks)

    def done_chunks(self) -> list[DoneChunk]:
        """Return the finished chunks, in order."""
        return [self._done[number] for number in sorted(self._done)]

    def add(self, *records: DoneChunk) -> None:
        """Record finished chunks.

        Args:
            records: Chunks whose files are verified and fsynced.
        """
        self._done |= {record.chunk.number: record for record in records}
        self._write()

    def forget(self, *chunks: Chunk) -> None:
        """Remove the records of chunks whose files are missing or damaged.

        Args:
            chunks: The chunks to encode again.
        """
        for chunk in chunks:
            self._done.pop(chunk.number, None)
        self._write()

    def _write(self) -> None:
        content = {
            "facts": self._facts,
            "chunks": [(chunk.start, chunk.stop) for chunk in self._chunks],
            "done": [(d.chunk.number, d.bytes, d.sha256, d.reorder, d.seconds) for d in self.done_chunks()],
        }
        try:
            write_atomic(self._path, json.dumps(content))
        except OSError as error:
            raise EncodeError(
                f"the journal {self._path} cannot be written ({error.strerror}); free some space there, "
                "then run the same command again: what is done is kept"
            ) from error
