"""Encode chunks on a Ray cluster. Chunk files come back through Ray's object store.

Each chunk takes two tasks. The first reserves a GPU, or CPUs, and leaves a file on its machine. The second runs on the
same machine without reserving either; it verifies the file and sends it, while the GPU already renders the next chunk.
Ray places tasks wherever resources are free, also on machines that join later; machines that fail the preflight check
are excluded. Ray's own retries are disabled: lost tasks are resubmitted here, so that they are reported and counted.
"""

import contextlib
import hashlib
import secrets
import socket
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.ray.connect import connect
from vsfdatrd.encode.ray.nodes import Nodes, ReportFunction
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.ray.receive import ChunkDownload
from vsfdatrd.encode.ray.remote_tasks import EncodeOrder, Message
from vsfdatrd.encode.ray.transport import RayTransport
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.workers import Attempts, ChunkInputs, ChunkProgress, ChunkRetry, Event
from vsfdatrd.errors import EncodeError

_PREFLIGHT_TIMEOUT = 120.0  # seconds for a machine to answer the preflight check
_WARN_AFTER = 20.0  # seconds without a running task before the user is warned
_CHECK_INTERVAL = 5.0  # seconds between checks of which machines are alive
_MACHINE_TIMEOUT = 900.0  # seconds without a usable machine before giving up: enough for a machine to reboot
_CLEANUP_TIMEOUT = 10.0  # seconds for the machines to remove their files


@contextlib.contextmanager
def open_cluster(address: str, report: ReportFunction) -> Iterator["Cluster"]:
    """Connect to an existing Ray cluster for the duration of the ``with``. Only one at a time per process.

    Args:
        address: ``auto``, or ``host:port`` of the cluster's head.
        report: Receives messages, such as `Reporter.emit`.

    Raises:
        ArgumentError, EncodeError: As `connect.connect` does.
    """
    with connect(address) as ray:
        workers = Cluster(ray, report)
        try:
            yield workers
        finally:
            workers.clear()


class Cluster:
    """The `Workers` of a Ray cluster, see `open_cluster`."""

    name = "Ray"

    def __init__(self, ray: Any, report: ReportFunction) -> None:
        """Start without a scheduler, which the first task creates.

        Args:
            ray: The connected module `ray`.
            report: Receives messages, such as `Reporter.emit`.
        """
        self._ray, self._report = ray, report
        self._scheduler: RayScheduler | None = None  # the first task creates it

    def clear(self) -> None:
        """Remove the files of the encode from all machines that were used."""
        if self._scheduler is not None:
            self._scheduler.clear()

    def try_encoder(self, options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
        """Do nothing, since this machine may lack the GPU that encodes; the first chunk tests the encoder."""

    def first_frame(self, inputs: ChunkInputs) -> dict[str, int]:
        """See `Workers.first_frame`; rendered on one of the machines."""
        params = EncodeParams(inputs.script, (), Fraction(1), inputs.script.parent)
        task = _Task(Chunk(0, 0, 1), "trial", "trial")
        with contextlib.closing(self._scheduler_for(inputs).run([task], params)) as events:
            for event in events:
                match event:
                    case ChunkRetry(_, error):
                        self._report("retry", f"{error}; trying it once more")
                    case dict():
                        return event
        raise EncodeError("the first frame was not made")

    def make(self, inputs: ChunkInputs, chunks: Sequence[Chunk], params: EncodeParams) -> Generator[Event]:
        """See `Workers.make`."""
        if not chunks:
            return
        tasks = [_Task(chunk, "part", "part") for chunk in chunks]
        with contextlib.closing(self._scheduler_for(inputs).run(tasks, params)) as events:
            for event in events:
                if not isinstance(event, dict):
                    yield event

    def _scheduler_for(self, inputs: ChunkInputs) -> "RayScheduler":
        """Return the scheduler of an encode; create it, after cleaning up an earlier one, if this is its first task."""
        if self._scheduler is None or self._scheduler.inputs != inputs:
            self.clear()
            self._scheduler = RayScheduler(self._ray, self._report, inputs)
            self._scheduler.preflight()
        return self._scheduler


@dataclass(eq=False, slots=True)
class _Task:
    """The state of one chunk on the cluster."""

    chunk: Chunk
    kind: str
    """The first step, a function of `remote_tasks`: ``part`` or ``trial``."""
    next: str
    """The function of `remote_tasks` to call next; empty while a step runs, or if none is left."""
    handle: Any = None
    """Handle of the step that is expected to send messages; None if the task is complete."""
    machine: str = ""
    """Ray node ID where the task runs or ran last; empty while it waits."""
    path: Path = Path()
    """The unverified chunk file on that machine."""
    seconds: float = 0.0
    """Encoding time."""
    attempts: Attempts = field(default_factory=Attempts)
    """How often encoding has failed, or the worker or machine has died."""
    avoid: set[str] = field(default_factory=set)
    """Machines on which the task failed or was lost."""
    download: ChunkDownload | None = None
    """The file while it is being received."""


class RayScheduler:
    """Runs the tasks of one encode on the cluster, and resubmits failed and lost ones."""

    def __init__(self, ray: Any, report: ReportFunction, inputs: ChunkInputs) -> None:
        """Read the script and the index files, and put the index into the object store.

        Args:
            ray: The connected module `ray`.
            report: Receives messages.
            inputs: Inputs of the encode.
        """
        self.inputs = inputs
        self._ray, self._report = ray, report
        identity = f"{socket.gethostname()} {inputs.script}"
        self._order = EncodeOrder(
            hashlib.sha256(identity.encode()).hexdigest()[:16],
            secrets.token_hex(4),
            Environment.of(inputs),
            inputs.script.read_text(encoding="utf-8"),
            inputs.index,
            None,
        )
        files = inputs.index.parent.glob(f"{inputs.index.name}*")
        self._transport = RayTransport(ray, {file.name: file.read_bytes() for file in files})
        self._nodes = Nodes(ray, report)
        self._used: set[str] = set()
        self._alive = self._nodes.alive().keys()
        self._resubmissions = 0
        self._warned = -_MACHINE_TIMEOUT
        self._checked = 0.0

    def preflight(self) -> None:
        """Run the preflight check on every machine, exclude those that fail, and choose the resources of a task.

        Raises:
            EncodeError: No machine is usable.
        """
        waiting = {
            self._transport.send("preflight", (self._order,), {"num_cpus": 0}, machine): machine
            for machine in self._nodes.alive()
        }
        end = time.monotonic() + _PREFLIGHT_TIMEOUT
        while waiting and time.monotonic() < end:
            for handle, message in self._transport.replies(waiting):
                match message:
                    case ("fit",):
                        self._nodes.passed.add(waiting[handle])
                    case ("unfit", mismatch):
                        self._nodes.exclude(waiting[handle], mismatch)
                    case ("lost", cause):
                        self._nodes.exclude(waiting.pop(handle), f"did not answer ({cause})")
                    case None:
                        del waiting[handle]
        for handle in waiting:
            self._transport.cancel(handle)
        self._order = replace(self._order, cpus=self._nodes.plan_resources())

    def run(self, tasks: Sequence[_Task], params: EncodeParams) -> Generator[Event | dict[str, int]]:
        """Run all tasks. Closing the generator cancels running ones.

        Args:
            tasks: One task per chunk, or one of kind ``trial``.
            params: Parameters common to all chunks.

        Yields:
            Progress, retries and finished chunks; for ``trial`` the color properties of the frame.

        Raises:
            EncodeError: A task failed too often, or no machine is usable.
        """
        running: dict[Any, _Task] = {}
        try:
            for task in tasks:
                running[self._submit(task, params)] = task
            self._transport.last_message = time.monotonic()
            while running:
                for handle, message in self._transport.replies(running):
                    task = running[handle]
                    if message is None or message[0] == "lost":
                        del running[handle]
                    # A worker process can also die after its last message, when the next step is running already or the
                    # task is complete.
                    event = self._event(task, message, params) if message and handle is task.handle else None
                    if event is not None:
                        yield event
                    if task.next:
                        running[self._submit(task, params)] = task
                for handle in self._stranded(running):
                    task = running.pop(handle)
                    self._transport.cancel(handle)
                    if handle is not task.handle:
                        continue
                    if not task.machine:
                        task.next = task.kind
                    elif (event := self._event(task, ("lost", "the machine disappeared"), params)) is not None:
                        yield event
                    running[self._submit(task, params)] = task
                if self._is_idle(running.values()):
                    self._resubmissions += 1
                    for handle in list(running):
                        task = running.pop(handle)
                        self._transport.cancel(handle)
                        if handle is task.handle:
                            task.avoid.clear()  # the other machines may be gone: allow those where the task failed
                            task.next = task.kind
                            running[self._submit(task, params)] = task
        finally:
            for handle, task in running.items():
                self._transport.cancel(handle)
                if task.download is not None:
                    task.download.discard()

    def clear(self) -> None:
        """Remove the encode's files from all machines that were used; wait at most `_CLEANUP_TIMEOUT` seconds."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            alive = self._nodes.alive()
            waiting = [
                self._transport.send("clear", (self._order,), {"num_cpus": 0}, machine)
                for machine in self._used
                if machine in alive
            ]
            end = time.monotonic() + _CLEANUP_TIMEOUT
            while waiting and time.monotonic() < end:
                for handle, message in self._transport.replies(waiting):
                    if message is None or message[0] == "lost":
                        waiting.remove(handle)

    def _event(self, task: _Task, message: Message, params: EncodeParams) -> Event | dict[str, int] | None:
        """Handle a message of a task and return the event to yield, if any; set `task.next` if a step follows."""
        match message:
            case ("at", machine):
                task.machine = machine
                self._used.add(machine)
            case ("begun",):
                return ChunkProgress(task.chunk, 0)
            case ("frames", frames):
                return ChunkProgress(task.chunk, frames)
            case ("props", props):
                task.handle = None
                return dict(props)
            case ("encoded", path, seconds):
                task.path, task.seconds, task.next = path, seconds, "send_file"
                return ChunkProgress(task.chunk, task.chunk.frames)
            case ("verified", done):
                task.download = ChunkDownload(params.folder, done)
            case ("block", block) if task.download is not None:
                if task.download.add(block):
                    download, task.download, task.handle = task.download, None, None
                    return download.finish()
            case ("unfit", mismatch):
                self._nodes.exclude(task.machine, mismatch)
                self._nodes.check_any_left()
                task.next = task.kind
            case ("failed", text):
                return self._retry(task, text)
            case ("lost", cause):
                frames = f"chunk {task.chunk.number + 1} (frames {task.chunk.start} to {task.chunk.stop - 1})"
                subject = "the first frame" if task.kind == "trial" else frames
                return self._retry(task, f"{subject} was lost: {cause}", lost=True)
        return None

    def _retry(self, task: _Task, text: str, lost: bool = False) -> ChunkRetry:
        """Schedule a task to start again, on another machine if there is one.

        Raises:
            EncodeError: There were too many attempts already.
        """
        task.avoid.add(task.machine)
        if task.download is not None:
            task.download.discard()
            task.download = None
        error = EncodeError(f"{self._nodes.name(task.machine)}: {text}")
        event = task.attempts.retry(task.chunk, error, lost)
        task.next = task.kind
        return event

    def _submit(self, task: _Task, params: EncodeParams) -> Any:
        """Submit the next step of a task to Ray, and return its handle."""
        step, task.next = task.next, ""
        if step == "send_file":
            arguments = (self._order, params.rate, task.chunk, task.path, task.seconds)
            task.handle = self._transport.send(step, arguments, {"num_cpus": 0}, task.machine)
            return task.handle
        task.machine = ""
        usable = self._nodes.usable().keys()
        avoid = (task.avoid & usable if usable - task.avoid else set()) | self._nodes.excluded.keys()
        if self._resubmissions:
            # Ray sends no second request for the same resources and labels while the first is unanswered. If that went
            # to a machine without a network, no answer comes for minutes. An unused label makes the request different.
            avoid.add(f"resubmission-{self._resubmissions}")
        options: dict[str, Any] = dict(self._nodes.needs)
        if avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoid))})"}
        task.handle = self._transport.send(
            step, (self._order, frozenset(self._nodes.passed), task.chunk, params.options, params.rate), options
        )
        return task.handle

    def _stranded(self, running: Mapping[Any, _Task]) -> list[Any]:
        """Return the tasks to resubmit because a machine is gone; checked at most every `_CHECK_INTERVAL` seconds.

        Ray reports no error if a machine loses its network connection. Besides the tasks that ran on the machine, the
        result has all that did not start: Ray may have asked that machine to run them, and would wait for its answer.
        """
        if time.monotonic() < self._checked + _CHECK_INTERVAL:
            return []
        self._checked = time.monotonic()
        before, self._alive = self._alive, self._nodes.alive().keys()
        gone = before - self._alive
        self._resubmissions += bool(gone)
        return [
            handle for handle, task in running.items() if (task.machine not in self._alive if task.machine else gone)
        ]

    def _is_idle(self, tasks: Collection[_Task]) -> bool:
        """Return True, after a warning, if no task has run for `_WARN_AFTER` seconds; once per `_MACHINE_TIMEOUT`.

        Raises EncodeError if there has been no usable machine for `_MACHINE_TIMEOUT` seconds.
        """
        now = time.monotonic()
        if not tasks or any(task.machine for task in tasks) or now < self._transport.last_message + _WARN_AFTER:
            return False
        usable = self._nodes.usable()
        if not usable and now > self._transport.last_message + _MACHINE_TIMEOUT:
            raise EncodeError("the Ray cluster has no usable machine left; start one, and run the same command again")
        if now < self._warned + _MACHINE_TIMEOUT:
            return False
        self._warned = now
        resources = "GPUs" if "num_gpus" in self._nodes.needs else "CPUs"
        reason = (
            f"all {resources} of the Ray cluster are in use by others"
            if usable
            else "all machines of the Ray cluster are gone"
        )
        self._report("waiting", f"waiting: {reason}; Ctrl-C stops, and what is done is kept")
        return True
