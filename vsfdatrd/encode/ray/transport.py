"""The way to the machines of a Ray cluster: tasks go out, and what they tell comes back, a message at a time."""

import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from vsfdatrd import __version__
from vsfdatrd.encode.ray.remote_tasks import Message

_AHEAD = 8  # pieces of a file that wait in the object store until they are fetched


class RayTransport:
    """Of one film, whose index travels once, through the object store."""

    def __init__(self, ray: Any, index: dict[str, bytes]) -> None:
        """index: files of the source's index by their names."""
        self._ray = ray
        self._index = ray.put(index)
        self._enter = ray.remote(_enter())
        self.heard = time.monotonic()
        """When a message last came."""

    def send(self, step: str, arguments: Sequence[Any], options: dict[str, Any], machine: str = "") -> Any:
        """Give a task to Ray -> where its messages come from.

        step: a function of `node`. options: Ray's. machine: the only one that may do it; else any.
        """
        if machine:
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            options = options | {"scheduling_strategy": NodeAffinitySchedulingStrategy(machine, soft=False)}
        remote = self._enter.options(
            num_returns="streaming", max_retries=0, _generator_backpressure_num_objects=_AHEAD, **options
        )
        index = self._index if step in ("trial", "part") else {}
        return remote.remote(__version__, step, pickle.dumps(arguments), index)

    def cancel(self, handle: Any) -> None:
        """End a task."""
        self._ray.cancel(handle, force=True)

    def replies(self, waiting: Collection[Any]) -> Iterator[tuple[Any, Message | None]]:
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
                self.heard = time.monotonic()
                yield handle, told


def _enter() -> Callable[..., Iterator[Message]]:
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
        from vsfdatrd.encode.ray import remote_tasks

        yield from getattr(remote_tasks, step)(machine, index, *pickle.loads(arguments))

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
