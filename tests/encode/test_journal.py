"""The journal of an encode, and how often a chunk is tried."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vsfdatrd.encode.journal import DamagedJournalError, DoneChunk, Journal
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.workers import Attempts, ChunkRetry
from vsfdatrd.errors import EncodeError


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let files grow to 64 KiB only, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_the_journal_remembers_and_refuses_damage(tmp_path: Path) -> None:
    chunks = [Chunk(0, 0, 10), Chunk(1, 10, 25)]
    path = tmp_path / "journal.json"
    journal = Journal(path)
    assert not path.exists()
    journal.begin({"a": 1}, chunks)
    journal.add(DoneChunk(chunks[1], 5, "f" * 64, 2, 1.5))
    journal.set("first frame", {"_Matrix": 1})
    again = Journal(path)
    assert again.get("settings") == {"a": 1}
    assert again.get("first frame") == {"_Matrix": 1}
    assert again.get("anything else") is None
    assert again.chunks() == chunks
    assert again.done_chunks() == [DoneChunk(chunks[1], 5, "f" * 64, 2, 1.5)]
    again.add(DoneChunk(chunks[0], 6, "e" * 64, 0, 2.5))
    assert [record.chunk for record in again.done_chunks()] == chunks, "not in the order in which they were finished"
    again.forget(*chunks)
    assert Journal(path).done_chunks() == []
    Journal(path).begin({"b": 2}, chunks[:1])
    assert (Journal(path).get("first frame"), Journal(path).chunks()) == (None, chunks[:1])
    assert os.listdir(tmp_path) == ["journal.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"\xff\0",
        b"[]",
        b"null",
        b'{"facts": {}}',
        b'{"facts": 1, "chunks": [], "done": []}',
        b'{"facts": {}, "chunks": [[0, 1]], "done": [[1, 1, "", 0, 0]]}',
        b'{"facts": {}, "chunks": [[0]], "done": []}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_journal_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_bytes(content)
    with pytest.raises(DamagedJournalError):
        Journal(tmp_path / "journal.json")


def test_a_journal_on_a_full_disk_keeps_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    journal = Journal(path)
    journal.begin({"a": 1}, [Chunk(0, 0, 10)])
    before = path.read_bytes()
    with small_files(), pytest.raises(EncodeError, match=r"cannot be written .*; free some space there"):
        journal.set("first frame", "x" * 100_000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["journal.json"]


def test_a_chunk_is_tried_once_more_and_oftener_where_machines_die() -> None:
    chunk, error = Chunk(0, 0, 10), EncodeError("no")
    attempts = Attempts()
    for _ in range(4):
        assert attempts.retry(chunk, error, lost=True) == ChunkRetry(chunk, error)
    assert attempts.retry(chunk, error) == ChunkRetry(chunk, error)
    for lost in (False, True):
        with pytest.raises(EncodeError, match="no"):
            Attempts(attempts.failures, attempts.losses).retry(chunk, error, lost)
