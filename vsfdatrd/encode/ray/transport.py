"""Submit tasks to the machines of a Ray cluster, and receive the messages that they yield."""

import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from vsfdatrd import __version__
from vsfdatrd.encode.ray.remote_tasks import Message

_MAX_UNREAD = 8  # maximum number of unread messages (file blocks) per task in the object store


class RayTransport:
    """Task submission and messages of one encode. BestSource's index files are sent once, through the object store."""

    def __init__(self, ray: Any, index: dict[str, bytes]) -> None:
        """Put the index into the object store.

        Args:
            ray: The connected module `ray`.
            index: Contents of BestSource's index files by name.
        """
        self._ray = ray
        self._index = ray.put(index)
        self._remote = ray.remote(_remote_function())
        self.last_message = time.monotonic()
        """Time of the last message, on the clock `time.monotonic`."""

    def send(self, function: str, arguments: Sequence[Any], options: dict[str, Any], machine: str = "") -> Any:
        """Submit a task, and return a handle for `replies` and `cancel`.

        Args:
            function: Name of a function of `remote_tasks`.
            arguments: Its arguments after `machine` and `index`.
            options: Ray task options.
            machine: Ray node ID of the machine that must run the task; empty for any.
        """
        if machine:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options = options | {"scheduling_strategy": NodeAffinitySchedulingStrategy(machine, soft=False)}
        remote = self._remote.options(
            num_returns="streaming", max_retries=0, _generator_backpressure_num_objects=_MAX_UNREAD, **options
        )
        index = self._index if function in ("trial", "part") else {}
        return remote.remote(__version__, function, pickle.dumps(arguments), index)

    def cancel(self, handle: Any) -> None:
        """Cancel a task and kill its worker process.

        Args:
            handle: Result of `send`.
        """
        self._ray.cancel(handle, force=True)

    def replies(self, waiting: Collection[Any]) -> Iterator[tuple[Any, Message | None]]:
        """Receive messages of running tasks, waiting up to half a second for one.

        Args:
            waiting: Handles of running tasks.

        Yields:
            A handle and its message: None if the task has finished, ``lost`` with the reason if it died.
        """
        ready, _ = self._ray.wait(list(waiting), timeout=0.5)
        for handle in ready:
            try:
                message = self._ray.get(next(handle))
            except StopIteration:
                yield handle, None
            except self._ray.exceptions.RayTaskError as error:
                yield handle, ("lost", str(error).strip().splitlines()[-1])
            except self._ray.exceptions.RayError as error:
                yield handle, ("lost", _loss_reason(error))
            else:
                self.last_message = time.monotonic()
                yield handle, message


def _remote_function() -> Callable[..., Iterator[Message]]:
    """Return the function that Ray runs on a machine.

    It is a closure, which Ray pickles by value, since the machine may have no vsfdatrd or another version.
    """

    # Its signature and top level must not use names of this package.
    def run_task(version: str, function: str, arguments: bytes, index: dict[str, bytes]) -> Iterator[Any]:
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
        from vsfdatrd.encode.ray import remote_tasks

        yield from getattr(remote_tasks, function)(machine, index, *pickle.loads(arguments))

    return run_task


def _loss_reason(error: Exception) -> str:
    """Return why a task was lost, as a phrase for the user."""
    phrases = {
        "NodeDiedError": "the machine disappeared",
        "WorkerCrashedError": "the worker process there died",
        "OutOfMemoryError": "Ray killed it there, because memory was low",
        "TaskUnschedulableError": "the machine disappeared",
        "ObjectLostError": "its file was there, and the machine disappeared",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in phrases:
            return phrases[kind.__name__]
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
