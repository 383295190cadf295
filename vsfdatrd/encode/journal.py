"""What has been done of an encode, in a small database beside the parts.

A row is written after the part that it tells of is complete, verified and on the disk; so whatever is in the journal is
there, and whatever is not is made again.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError

_TABLES = """
CREATE TABLE IF NOT EXISTS fact (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS part (
    number INTEGER PRIMARY KEY, start INTEGER NOT NULL, stop INTEGER NOT NULL,
    bytes INTEGER, sha256 TEXT, reorder INTEGER, seconds REAL
);
"""


@dataclass(frozen=True, slots=True)
class Made:
    """A chunk that has been made."""

    chunk: Chunk
    bytes: int
    sha256: str
    """Of its file."""
    reorder: int
    """By how many places packets are stored ahead of their turn (B frames)."""
    seconds: float
    """How long it took."""


class Journal:
    """An open journal. Of one thread and one process; a lock beside it sees to that."""

    def __init__(self, path: Path) -> None:
        """Open or create it. Raises sqlite3.DatabaseError if it is damaged."""
        self._path = path
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            self._base.executescript("PRAGMA synchronous=FULL;" + _TABLES)
            if self._base.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("it is damaged")
        except sqlite3.Error:
            self._base.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.close()

    def fact(self, name: str) -> Any:
        """What was noted under a name; None if nothing was."""
        row = self._base.execute("SELECT value FROM fact WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def note(self, name: str, value: Any) -> None:
        """Note anything that JSON can hold. Raises EncodeError."""
        with self._explained():
            self._base.execute("INSERT OR REPLACE INTO fact VALUES (?, ?)", (name, json.dumps(value)))

    def begin(self, settings: Mapping[str, Any], chunks: list[Chunk]) -> None:
        """Forget all, and note what is going to be done. Raises EncodeError."""
        with self._explained(), self._transaction():
            self._base.execute("DELETE FROM fact")
            self._base.execute("DELETE FROM part")
            self._base.execute("INSERT INTO fact VALUES ('settings', ?)", (json.dumps(settings),))
            rows = [(chunk.number, chunk.start, chunk.stop) for chunk in chunks]
            self._base.executemany("INSERT INTO part (number, start, stop) VALUES (?, ?, ?)", rows)

    def chunks(self) -> list[Chunk]:
        """The parts of the film."""
        return [Chunk(*row) for row in self._base.execute("SELECT number, start, stop FROM part ORDER BY number")]

    def made(self) -> list[Made]:
        """Those that have been made."""
        rows = self._base.execute(
            "SELECT number, start, stop, bytes, sha256, reorder, seconds FROM part "
            "WHERE sha256 IS NOT NULL ORDER BY number"
        )
        return [Made(Chunk(*row[:3]), *row[3:]) for row in rows]

    def add(self, made: Made) -> None:
        """Note that a chunk has been made. Raises EncodeError."""
        values = (made.bytes, made.sha256, made.reorder, made.seconds, made.chunk.number)
        with self._explained():
            self._base.execute("UPDATE part SET bytes=?, sha256=?, reorder=?, seconds=? WHERE number=?", values)

    def lose(self, chunk: Chunk) -> None:
        """Note that a chunk's file is gone. Raises EncodeError."""
        with self._explained():
            self._base.execute("UPDATE part SET sha256=NULL WHERE number=?", (chunk.number,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise EncodeError(
                f"the journal {self._path} cannot be written ({error}); free some space there, "
                "then run the same command again: what is done is kept"
            ) from error
