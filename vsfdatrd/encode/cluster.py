"""The machines of a Ray cluster as workers: each chunk is a task, and its file comes back through the object store.

A chunk takes two tasks. The first has a GPU, or CPUs, and leaves a file on its machine; the second, on the same machine
and without either, looks the file through and sends it, so that the GPU is at work on the next chunk meanwhile.
Ray places tasks wherever there is room, also on machines that join later; those that turn out to lack something are
left out. Ray itself repeats nothing: what is lost is begun again here, so that it is told, and counted.
"""

import contextlib
import hashlib
import pickle
import secrets
import socket
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vsfdatrd import __version__
from vsfdatrd.encode.alike import Expected
from vsfdatrd.encode.arrival import Arrival
from vsfdatrd.encode.chunk import Recipe
from vsfdatrd.encode.connection import connected
from vsfdatrd.encode.node import Order, Told
from vsfdatrd.encode.plan import Chunk
from vsfdatrd.encode.workers import Event, Material, Progress, Retry
from vsfdatrd.errors import EncodeError

_ATTEMPTS = 2  # of a chunk that fails
_LOSSES = 5  # of a chunk whose worker or machine dies, which is seldom the chunk's fault
_MOST_CPUS = 8  # of one task: beyond, two chunks beside each other are faster than one
_AHEAD = 8  # pieces of a file that wait in the object store until they are fetched
_LOOK = 120.0  # seconds in which a machine is expected to say whether it has everything
_TELL = 20.0  # seconds without any task at work after which that is told
_COUNT = 5.0  # seconds after which it is seen once more which machines are there
_PATIENCE = 900.0  # seconds without any machine that could do it: one that starts anew is back by then
_GOODBYE = 10.0  # seconds for the machines to clear up

type Say = Callable[..., None]


class Cluster:
    """An existing Ray cluster, connected until the end of the ``with``. One at a time in a process."""

    name = "Ray"

    def __init__(self, address: str, say: Say) -> None:
        """address: ``auto``, or ``host:port`` of its head. say: `Show.say`."""
        self._connection = connected(address)
        self._ray: Any = None
        self._say = say
        self._film: _Film | None = None

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

    def first_frame(self, material: Material) -> dict[str, int]:
        """See `Workers.first_frame`; made on one of the machines."""
        recipe = Recipe(material.script, (), Fraction(1), material.script.parent)
        with contextlib.closing(self._on(material).run([_Task(Chunk(0, 0, 1), "trial", "trial")], recipe)) as events:
            for event in events:
                match event:
                    case Retry(_, error):
                        self._say("retry", f"{error}; trying it once more")
                    case dict():
                        return event
        raise EncodeError("the first frame was not made")

    def make(self, material: Material, chunks: Sequence[Chunk], recipe: Recipe) -> Generator[Event]:
        """See `Workers.make`."""
        if not chunks:
            return
        tasks = [_Task(chunk, "part", "part") for chunk in chunks]
        with contextlib.closing(self._on(material).run(tasks, recipe)) as events:
            for event in events:
                if not isinstance(event, dict):
                    yield event

    def _on(self, material: Material) -> "_Film":
        if self._film is None or self._film.material != material:
            if self._film is not None:
                self._film.clear()
            self._film = _Film(self._ray, self._say, material)
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
    arrival: Arrival | None = None


class _Film:
    """One film on the cluster: which machines can do it, and the tasks."""

    def __init__(self, ray: Any, say: Say, material: Material) -> None:
        self.material = material
        self._ray, self._say = ray, say
        place = f"{socket.gethostname()} {material.script}"
        self._order = Order(
            hashlib.sha256(place.encode()).hexdigest()[:16], secrets.token_hex(4), Expected.of(material),
            material.script.read_text(encoding="utf-8"), material.index, None,
        )  # fmt: skip
        files = material.index.parent.glob(f"{material.index.name}*")
        self._index = ray.put({file.name: file.read_bytes() for file in files})
        self._door = ray.remote(_door())
        self._fit: set[str] = set()
        self._unfit: dict[str, str] = {}
        self._needs: dict[str, int] = {}
        self._used: set[str] = set()
        self._names: dict[str, str] = {}
        self._heard = time.monotonic()
        self._told = -_PATIENCE
        self._seen = 0.0

    def look(self) -> None:
        """Ask every machine whether it has everything, and how much there is to deal out.

        Raises EncodeError if none can do it.
        """
        waiting = {self._send("look", (self._order,), {"num_cpus": 0}, machine): machine for machine in self._alive()}
        end = time.monotonic() + _LOOK
        while waiting and time.monotonic() < end:
            for handle, told in self._replies(waiting):
                match told:
                    case ("fit",):
                        self._fit.add(waiting[handle])
                    case ("unfit", complaint):
                        self._leave_out(waiting[handle], complaint)
                    case ("lost", cause):
                        self._leave_out(waiting.pop(handle), f"did not answer ({cause})")
                    case None:
                        del waiting[handle]
        for handle in waiting:
            self._ray.cancel(handle, force=True)
        able = [resources for machine, resources in self._alive().items() if machine not in self._unfit]
        self._none_left()
        if any(resources.get("GPU", 0) >= 1 for resources in able):
            able = [resources for resources in able if resources.get("GPU", 0) >= 1]
            self._needs = {"num_gpus": 1, "num_cpus": int(all(resources.get("CPU", 0) >= 1 for resources in able))}
            parts, what = sum(int(resources["GPU"]) for resources in able), "a GPU"
        else:
            able = [resources for resources in able if resources.get("CPU", 0) >= 1]
            if not able:
                raise EncodeError("the Ray cluster has neither GPUs nor CPUs to give; start a machine that has some")
            cpus = min([_MOST_CPUS, *(int(resources["CPU"]) for resources in able)])
            self._needs = {"num_cpus": cpus}
            self._order = replace(self._order, cpus=cpus)
            parts, what = sum(int(resources["CPU"]) // cpus for resources in able), _counted(cpus, "CPU")
        text = f"Ray: {_counted(parts, 'part')} at once, each with {what}, on {_counted(len(able), 'machine')}"
        self._say("machines", text, machines=len(able), parts=parts)

    def run(self, tasks: Sequence[_Task], recipe: Recipe) -> Generator[Event | dict[str, int]]:
        """Do all tasks; yields what happens, and the properties that a trial finds.

        Raises the EncodeError of a task that failed too often. Closing the iterator ends what is at work.
        """
        running: dict[Any, _Task] = {}
        try:
            for task in tasks:
                running[self._submit(task, recipe)] = task
            self._heard = time.monotonic()
            while running:
                for handle, told in self._replies(running):
                    task = running[handle]
                    if told is None or told[0] == "lost":
                        del running[handle]
                    if told is not None and (event := self._event(task, told, recipe)) is not None:
                        yield event
                    if task.next:
                        running[self._submit(task, recipe)] = task
                for handle in self._gone(running):  # Ray says nothing of tasks behind a cable that was cut
                    task = running.pop(handle)
                    self._ray.cancel(handle, force=True)
                    if (event := self._event(task, ("lost", "the machine went away"), recipe)) is not None:
                        yield event
                    running[self._submit(task, recipe)] = task
                if self._idle(running.values()):
                    for handle, task in list(running.items()):
                        if task.avoid:  # those that it would rather have may have gone
                            task.avoid.clear()
                            self._ray.cancel(handle, force=True)
                            task.next = task.kind
                            running[self._submit(task, recipe)] = running.pop(handle)
        finally:
            for handle, task in running.items():
                self._ray.cancel(handle, force=True)
                if task.arrival is not None:
                    task.arrival.drop()

    def clear(self) -> None:
        """Have the machines that were at work remove what is left there."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            alive = self._alive()
            waiting = [self._send("clear", (self._order,), {"num_cpus": 0}, machine)
                       for machine in self._used if machine in alive]  # fmt: skip
            end = time.monotonic() + _GOODBYE
            while waiting and time.monotonic() < end:
                for handle, told in self._replies(waiting):
                    if told is None or told[0] == "lost":
                        waiting.remove(handle)

    def _event(self, task: _Task, told: Told, recipe: Recipe) -> Event | dict[str, int] | None:
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
                task.arrival = Arrival(recipe.folder, made)
            case ("piece", piece) if task.arrival is not None:
                if task.arrival.add(piece):
                    arrival, task.arrival = task.arrival, None
                    return arrival.settle()
            case ("unfit", complaint):
                self._leave_out(task.machine, complaint)
                self._none_left()
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
        error = EncodeError(f"{self._names.get(task.machine, 'Ray')}: {text}")
        if not once_more:
            raise error
        task.next = task.kind
        return Retry(task.chunk, error)

    def _submit(self, task: _Task, recipe: Recipe) -> Any:
        """Have the next step of a task done."""
        step, task.next = task.next, ""
        if step == "hand_over":
            made = (self._order, recipe.rate, task.chunk, task.path, task.seconds)
            return self._send(step, made, {"num_cpus": 0}, task.machine)
        task.machine = ""
        able = self._able().keys()
        avoid = (task.avoid & able if able - task.avoid else set()) | self._unfit.keys()
        options: dict[str, Any] = dict(self._needs)
        if avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
        return self._send(step, (self._order, frozenset(self._fit), task.chunk, recipe.options, recipe.rate), options)

    def _send(self, step: str, arguments: Sequence[Any], options: dict[str, Any], machine: str = "") -> Any:
        """Give a task to Ray -> where its messages come from. machine: the only one that may do it; else any."""
        if machine:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options = options | {"scheduling_strategy": NodeAffinitySchedulingStrategy(machine, soft=False)}
        remote = self._door.options(
            num_returns="streaming", max_retries=0, _generator_backpressure_num_objects=_AHEAD, **options
        )
        index = self._index if step in ("trial", "part") else {}
        return remote.remote(__version__, step, pickle.dumps(arguments), index)

    def _replies(self, waiting: Collection[Any]) -> Iterator[tuple[Any, Told | None]]:
        """What tasks have told, after half a second at most; None where one has ended, ``lost`` where it died."""
        ready, _ = self._ray.wait(list(waiting), timeout=0.5)
        for handle in ready:
            try:
                told = self._ray.get(next(handle))
            except StopIteration:
                yield handle, None
            except self._ray.exceptions.RayTaskError as error:
                yield handle, ("lost", str(error).strip().splitlines()[-1])
            except self._ray.exceptions.RayError as error:
                yield handle, ("lost", _cause(error))
            else:
                self._heard = time.monotonic()
                yield handle, told

    def _alive(self) -> dict[str, dict[str, float]]:
        """Machines that are there, and what each has to give."""
        found = {}
        for node in self._ray.nodes():
            if node["Alive"]:
                found[node["NodeID"]] = node["Resources"]
                self._names[node["NodeID"]] = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
        return found

    def _able(self) -> dict[str, dict[str, float]]:
        """Those of them that can do a task, as far as is known."""
        wanted = (("GPU", self._needs.get("num_gpus", 0)), ("CPU", self._needs.get("num_cpus", 0)))
        return {
            machine: resources for machine, resources in self._alive().items()
            if machine not in self._unfit and all(resources.get(name, 0) >= count for name, count in wanted)
        }  # fmt: skip

    def _leave_out(self, machine: str, complaint: str) -> None:
        if machine in self._unfit:
            return
        self._unfit[machine] = complaint
        self._fit.discard(machine)
        if machine not in self._names:
            self._alive()
        self._say("left out", f"{self._names[machine]} is left out: it {complaint}", machine=self._names[machine])

    def _none_left(self) -> None:
        """Raises EncodeError if every machine was left out."""
        if self._alive().keys() <= self._unfit.keys():
            machine, complaint = next(iter(self._unfit.items()))
            raise EncodeError(f"no machine of the Ray cluster can do it: {self._names[machine]} {complaint}")

    def _gone(self, running: Mapping[Any, _Task]) -> list[Any]:
        """Tasks that were at work on machines that are not there any more; looked for now and then."""
        if time.monotonic() < self._seen + _COUNT:
            return []
        self._seen = time.monotonic()
        alive = self._alive()
        return [handle for handle, task in running.items() if task.machine and task.machine not in alive]

    def _idle(self, tasks: Collection[_Task]) -> bool:
        """Whether for long nothing was at work, which is told.

        Raises EncodeError if for very long there was no machine that could do anything.
        """
        now = time.monotonic()
        if not tasks or any(task.machine for task in tasks) or now < self._heard + _TELL:
            return False
        able = self._able()
        if not able and now > self._heard + _PATIENCE:
            raise EncodeError(
                "the Ray cluster has no machine any more that could go on; start one, and run the same command again"
            )
        if now < self._told + _PATIENCE:
            return False
        self._told = now
        what = "GPUs" if "num_gpus" in self._needs else "CPUs"
        why = (
            f"all {what} of the Ray cluster are taken by others" if able else "all machines of the Ray cluster are gone"
        )
        self._say("waiting", f"waiting: {why}; Ctrl-C stops, and what is done is kept")
        return True


def _door() -> Callable[..., Iterator[Told]]:
    """What Ray sends to a machine: a function that travels whole, since there may be no vsfdatrd, or another one."""

    def enter(version: str, step: str, arguments: bytes, index: dict[str, bytes]) -> Iterator[Any]:  # nothing of ours
        import pickle

        import ray

        machine = ray.get_runtime_context().get_node_id()
        yield ("at", machine)
        try:
            import vsfdatrd
        except ImportError as error:
            yield ("unfit", f"lacks vsfdatrd ({error}); pip install it there, into the Python that runs Ray")
            return
        if vsfdatrd.__version__ != version:
            yield ("unfit", f"has vsfdatrd {vsfdatrd.__version__}, and here is {version}; install the same there")
            return
        from vsfdatrd.encode import node

        yield from getattr(node, step)(machine, index, *pickle.loads(arguments))

    return enter


def _cause(error: Exception) -> str:
    """Why a task was lost."""
    known = {
        "NodeDiedError": "the machine went away",
        "WorkerCrashedError": "its process there was ended",
        "OutOfMemoryError": "Ray ended it there, because memory was short",
        "TaskUnschedulableError": "the machine went away",
        "ObjectLostError": "its file was there, and the machine went away",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in known:
            return known[kind.__name__]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
