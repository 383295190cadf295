"""The machines of a Ray cluster as workers: each chunk is a task, and its file comes back through the object store.

A chunk takes two tasks. The first has a GPU, or CPUs, and leaves a file on its machine; the second, on the same machine
and without either, looks the file through and sends it, so that the GPU is at work on the next chunk meanwhile.
Ray places tasks wherever there is room, also on machines that join later; those that turn out to lack something are
left out. Ray itself repeats nothing: what is lost is begun again here, so that it is told, and counted.
"""

import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.ray.connect import connected
from vsfdatrd.encode.ray.nodes import Nodes, Say
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.ray.receive import ChunkDownload
from vsfdatrd.encode.ray.remote_tasks import Message, Order
from vsfdatrd.encode.ray.transport import RayTransport
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.workers import ChunkInputs, Event, Progress, Retry
from vsfdatrd.errors import EncodeError

_ATTEMPTS = 2  # of a chunk that fails
_LOSSES = 5  # of a chunk whose worker or machine dies, which is seldom the chunk's fault
_LOOK = 120.0  # seconds in which a machine is expected to say whether it has everything
_TELL = 20.0  # seconds without any task at work after which that is told
_COUNT = 5.0  # seconds after which it is seen once more which machines are there
_PATIENCE = 900.0  # seconds without any machine that could do it: one that starts anew is back by then
_GOODBYE = 10.0  # seconds for the machines to clear up


class Cluster:
    """An existing Ray cluster, connected until the end of the ``with``. One at a time in a process."""

    name = "Ray"

    def __init__(self, address: str, say: Say) -> None:
        """address: ``auto``, or ``host:port`` of its head. say: `Reporter.say`."""
        self._connection = connected(address)
        self._ray: Any = None
        self._say = say
        self._film: RayScheduler | None = None

    def __enter__(self) -> Self:
        """Connect. Raises as `connection.connected` does."""
        self._ray = self._connection.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._film is not None:
                self._film.clear()
        finally:
            self._connection.__exit__(kind, error, trace)

    def try_encoder(self, options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
        """Do nothing: this machine may lack the GPU that encodes."""

    def first_frame(self, material: ChunkInputs) -> dict[str, int]:
        """See `Workers.first_frame`; made on one of the machines."""
        recipe = EncodeParams(material.script, (), Fraction(1), material.script.parent)
        with contextlib.closing(self._on(material).run([_Task(Chunk(0, 0, 1), "trial", "trial")], recipe)) as events:
            for event in events:
                match event:
                    case Retry(_, error):
                        self._say("retry", f"{error}; trying it once more")
                    case dict():
                        return event
        raise EncodeError("the first frame was not made")

    def make(self, material: ChunkInputs, chunks: Sequence[Chunk], recipe: EncodeParams) -> Generator[Event]:
        """See `Workers.make`."""
        if not chunks:
            return
        tasks = [_Task(chunk, "part", "part") for chunk in chunks]
        with contextlib.closing(self._on(material).run(tasks, recipe)) as events:
            for event in events:
                if not isinstance(event, dict):
                    yield event

    def _on(self, material: ChunkInputs) -> "RayScheduler":
        if self._film is None or self._film.material != material:
            if self._film is not None:
                self._film.clear()
            self._film = RayScheduler(self._ray, self._say, material)
            self._film.look()
        return self._film


@dataclass(eq=False, slots=True)
class _Task:
    """What has to be done for one chunk."""

    chunk: Chunk
    kind: str
    """``part`` or ``trial``."""
    next: str
    """A function of `node` that is to be called; empty while one is at work, or nothing is left to do."""
    machine: str = ""
    """Where it is at work, or was; empty while it waits."""
    path: Path = Path()
    """Of the part, there."""
    seconds: float = 0.0
    failures: int = 0
    losses: int = 0
    avoid: set[str] = field(default_factory=set)
    """Machines on which it failed."""
    arrival: ChunkDownload | None = None


class RayScheduler:
    """One film on the cluster: its tasks, and what becomes of them."""

    def __init__(self, ray: Any, say: Say, material: ChunkInputs) -> None:
        self.material = material
        self._ray, self._say = ray, say
        place = f"{socket.gethostname()} {material.script}"
        self._order = Order(
            hashlib.sha256(place.encode()).hexdigest()[:16], secrets.token_hex(4), Environment.of(material),
            material.script.read_text(encoding="utf-8"), material.index, None,
        )  # fmt: skip
        files = material.index.parent.glob(f"{material.index.name}*")
        self._door = RayTransport(ray, {file.name: file.read_bytes() for file in files})
        self._machines = Nodes(ray, say)
        self._used: set[str] = set()
        self._told = -_PATIENCE
        self._seen = 0.0

    def look(self) -> None:
        """Ask every machine whether it has everything, and how much there is to deal out.

        Raises EncodeError if none can do it.
        """
        waiting = {
            self._door.send("look", (self._order,), {"num_cpus": 0}, machine): machine
            for machine in self._machines.alive()
        }
        end = time.monotonic() + _LOOK
        while waiting and time.monotonic() < end:
            for handle, told in self._door.replies(waiting):
                match told:
                    case ("fit",):
                        self._machines.fit.add(waiting[handle])
                    case ("unfit", complaint):
                        self._machines.leave_out(waiting[handle], complaint)
                    case ("lost", cause):
                        self._machines.leave_out(waiting.pop(handle), f"did not answer ({cause})")
                    case None:
                        del waiting[handle]
        for handle in waiting:
            self._door.cancel(handle)
        self._order = replace(self._order, cpus=self._machines.share_out())

    def run(self, tasks: Sequence[_Task], recipe: EncodeParams) -> Generator[Event | dict[str, int]]:
        """Do all tasks; yields what happens, and the properties that a trial finds.

        Raises the EncodeError of a task that failed too often. Closing the iterator ends what is at work.
        """
        running: dict[Any, _Task] = {}
        try:
            for task in tasks:
                running[self._submit(task, recipe)] = task
            self._door.heard = time.monotonic()
            while running:
                for handle, told in self._door.replies(running):
                    task = running[handle]
                    if told is None or told[0] == "lost":
                        del running[handle]
                    if told is not None and (event := self._event(task, told, recipe)) is not None:
                        yield event
                    if task.next:
                        running[self._submit(task, recipe)] = task
                for handle in self._gone(running):  # Ray says nothing of tasks behind a cable that was cut
                    task = running.pop(handle)
                    self._door.cancel(handle)
                    if (event := self._event(task, ("lost", "the machine went away"), recipe)) is not None:
                        yield event
                    running[self._submit(task, recipe)] = task
                if self._idle(running.values()):
                    for handle, task in list(running.items()):
                        if task.avoid:  # those that it would rather have may have gone
                            task.avoid.clear()
                            self._door.cancel(handle)
                            task.next = task.kind
                            running[self._submit(task, recipe)] = running.pop(handle)
        finally:
            for handle, task in running.items():
                self._door.cancel(handle)
                if task.arrival is not None:
                    task.arrival.drop()

    def clear(self) -> None:
        """Have the machines that were at work remove what is left there."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            alive = self._machines.alive()
            waiting = [self._door.send("clear", (self._order,), {"num_cpus": 0}, machine)
                       for machine in self._used if machine in alive]  # fmt: skip
            end = time.monotonic() + _GOODBYE
            while waiting and time.monotonic() < end:
                for handle, told in self._door.replies(waiting):
                    if told is None or told[0] == "lost":
                        waiting.remove(handle)

    def _event(self, task: _Task, told: Message, recipe: EncodeParams) -> Event | dict[str, int] | None:
        """What a message means; `task.next` is set if anything follows from it."""
        match told:
            case ("at", machine):
                task.machine = machine
                self._used.add(machine)
            case ("begun",):
                return Progress(task.chunk, 0)
            case ("frames", frames):
                return Progress(task.chunk, frames)
            case ("props", props):
                return dict(props)
            case ("whole", path, seconds):
                task.path, task.seconds, task.next = path, seconds, "hand_over"
                return Progress(task.chunk, task.chunk.frames)
            case ("made", made):
                task.arrival = ChunkDownload(recipe.folder, made)
            case ("piece", piece) if task.arrival is not None:
                if task.arrival.add(piece):
                    arrival, task.arrival = task.arrival, None
                    return arrival.settle()
            case ("unfit", complaint):
                self._machines.leave_out(task.machine, complaint)
                self._machines.none_left()
                task.next = task.kind
            case ("failed", text):
                task.failures += 1
                task.avoid.add(task.machine)
                return self._again(task, text, task.failures < _ATTEMPTS)
            case ("lost", cause):
                task.losses += 1
                task.avoid.add(task.machine)
                frames = f"chunk {task.chunk.number + 1} (frames {task.chunk.start} to {task.chunk.stop - 1})"
                what = "the first frame" if task.kind == "trial" else frames
                return self._again(task, f"{what} was lost: {cause}", task.losses < _LOSSES)
        return None

    def _again(self, task: _Task, text: str, once_more: bool) -> Retry:
        """Begin a task anew. Raises EncodeError if that is not to be done once more."""
        if task.arrival is not None:
            task.arrival.drop()
            task.arrival = None
        error = EncodeError(f"{self._machines.name(task.machine)}: {text}")
        if not once_more:
            raise error
        task.next = task.kind
        return Retry(task.chunk, error)

    def _submit(self, task: _Task, recipe: EncodeParams) -> Any:
        """Have the next step of a task done."""
        step, task.next = task.next, ""
        if step == "hand_over":
            made = (self._order, recipe.rate, task.chunk, task.path, task.seconds)
            return self._door.send(step, made, {"num_cpus": 0}, task.machine)
        task.machine = ""
        able = self._machines.able().keys()
        avoid = (task.avoid & able if able - task.avoid else set()) | self._machines.unfit.keys()
        options: dict[str, Any] = dict(self._machines.needs)
        if avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
        return self._door.send(
            step, (self._order, frozenset(self._machines.fit), task.chunk, recipe.options, recipe.rate), options
        )

    def _gone(self, running: Mapping[Any, _Task]) -> list[Any]:
        """Tasks that were at work on machines that are not there any more; looked for now and then."""
        if time.monotonic() < self._seen + _COUNT:
            return []
        self._seen = time.monotonic()
        alive = self._machines.alive()
        return [handle for handle, task in running.items() if task.machine and task.machine not in alive]

    def _idle(self, tasks: Collection[_Task]) -> bool:
        """Whether for long nothing was at work, which is told.

        Raises EncodeError if for very long there was no machine that could do anything.
        """
        now = time.monotonic()
        if not tasks or any(task.machine for task in tasks) or now < self._door.heard + _TELL:
            return False
        able = self._machines.able()
        if not able and now > self._door.heard + _PATIENCE:
            raise EncodeError(
                "the Ray cluster has no machine any more that could go on; start one, and run the same command again"
            )
        if now < self._told + _PATIENCE:
            return False
        self._told = now
        what = "GPUs" if "num_gpus" in self._machines.needs else "CPUs"
        why = (
            f"all {what} of the Ray cluster are taken by others" if able else "all machines of the Ray cluster are gone"
        )
        self._say("waiting", f"waiting: {why}; Ctrl-C stops, and what is done is kept")
        return True
