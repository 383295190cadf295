"""The scheduler of encodes on a Ray cluster, with messages in a given order instead of a cluster."""

import hashlib
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.ray import scheduler
from vsfdatrd.encode.ray.remote_tasks import Message
from vsfdatrd.encode.ray.scheduler import Cluster
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.workers import ChunkInputs, ChunkRetry, Event

CONTENT = b"frames"
DONE = DoneChunk(Chunk(0, 0, 10), len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), 0, 1.0)
AT = ("at", "machine")
DIED = ("lost", "the worker process there died")


class ScriptedTransport:
    """Sends no tasks. `order` is what comes back: the number of the task (by submission) and its message."""

    def __init__(self, order: list[tuple[int, Message | None]]) -> None:
        self.order = order
        self.sent: list[str] = []
        self.cancelled: list[int] = []
        self.last_message = 0.0

    def send(self, function: str, arguments: Any, options: Any, machine: str = "") -> int:
        self.sent.append(function)
        return len(self.sent) - 1

    def cancel(self, handle: int) -> None:
        self.cancelled.append(handle)

    def replies(self, waiting: Collection[int]) -> Iterator[tuple[int, Message | None]]:
        assert self.order, f"nothing comes from {sorted(waiting)} any more"
        if self.order[0][0] in waiting:  # the tasks of an encode are submitted after the preflight check
            yield self.order.pop(0)


class Node:
    """A module `ray` with one machine, which can disappear."""

    alive = True
    exceptions = SimpleNamespace(RayError=OSError)

    def nodes(self) -> list[dict[str, Any]]:
        one = {"NodeID": "machine", "NodeManagerHostname": "host", "NodeManagerAddress": "10.0.0.1"}
        return [one | {"Alive": self.alive, "Resources": {"CPU": 2.0}}]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Encode one chunk with the given messages and return the events and the transport."""
    script = tmp_path / "script.vpy"
    script.write_text("")
    inputs = ChunkInputs(tmp_path, "small", "0" * 64, "libx264", script, tmp_path / "index")
    environment = SimpleNamespace(of=lambda inputs: None)
    monkeypatch.setattr(scheduler, "Environment", environment)

    def encode(*order: tuple[int, Message | None]) -> tuple[list[Event], ScriptedTransport]:
        transport = ScriptedTransport([(0, ("fit",)), (0, None), *order])
        monkeypatch.setattr(scheduler, "RayTransport", lambda ray, index: transport)
        cluster = Cluster(Node(), lambda event, text, **facts: None)
        events = list(cluster.make(inputs, [DONE.chunk], EncodeParams(script, (), Fraction(25), tmp_path)))
        assert not transport.order
        return events, transport

    return encode


ENCODED = ((1, AT), (1, ("begun",)), (1, ("encoded", Path("chunk.mkv"), 1.0)))
SENT = ((2, AT), (2, ("verified", DONE)), (2, ("block", CONTENT)))


@pytest.mark.parametrize(
    "order",
    [
        (*ENCODED, (1, None), *SENT, (2, None)),
        (*ENCODED, (1, DIED), *SENT, (2, None)),
        (*ENCODED, *SENT[:2], (1, DIED), SENT[2], (2, None)),
        (*ENCODED, (1, None), *SENT, (2, DIED)),
        (*ENCODED, *SENT, (2, DIED), (1, DIED)),
    ],
    ids=["no death", "after encoding", "during the transfer", "after the transfer", "both"],
)
def test_a_worker_that_dies_after_its_last_message_costs_nothing(run: Any, order: Any, tmp_path: Path) -> None:
    events, transport = run(*order)
    assert [event for event in events if isinstance(event, DoneChunk | ChunkRetry)] == [DONE]
    assert transport.sent == ["preflight", "part", "send_file"]
    assert (tmp_path / DONE.chunk.name).read_bytes() == CONTENT


def test_a_worker_that_dies_before_its_last_message_costs_its_chunk(run: Any) -> None:
    again = ((3, AT), (3, ("encoded", Path("chunk.mkv"), 1.0)), (3, None))
    sent = ((4, AT), (4, ("verified", DONE)), (4, ("block", CONTENT)), (4, None))
    events, transport = run(*ENCODED, (1, None), *SENT[:2], (2, DIED), *again, *sent)
    retry, done = (event for event in events if isinstance(event, DoneChunk | ChunkRetry))
    assert isinstance(retry, ChunkRetry)
    assert "chunk 1 (frames 0 to 9) was lost: the worker process there died" in str(retry.error)
    assert done == DONE
    assert transport.sent == ["preflight", "part", "send_file", "part", "send_file"]


def test_a_machine_that_disappears_after_the_last_message_is_not_waited_for(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "_CHECK_INTERVAL", 0.0)

    def replies(transport: ScriptedTransport, waiting: Collection[int]) -> Iterator[tuple[int, Message | None]]:
        if transport.order:
            yield transport.order.pop(0)
        else:
            monkeypatch.setattr(Node, "alive", False)

    monkeypatch.setattr(ScriptedTransport, "replies", replies)
    events, transport = run(*ENCODED, *SENT)
    assert [event for event in events if isinstance(event, DoneChunk | ChunkRetry)] == [DONE]
    assert transport.sent == ["preflight", "part", "send_file"]
    assert sorted(transport.cancelled) == [1, 2]
