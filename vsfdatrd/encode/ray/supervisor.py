"""Runs one job for a Ray worker and kills its own children when that worker disappears.

Started as ``python -m vsfdatrd.encode.ray.supervisor``. Ray may kill its worker at any moment; without this process,
vspipe and ffmpeg would keep running. The first line of stdin is the job as JSON; when stdin is closed, the Ray worker
no longer waits for the result. Answers are lines of JSON, the last of which has ``encoded``, ``props``, ``mismatch`` or
``failed``.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import psutil
from filelock import FileLock, Timeout

from vsfdatrd.encode.chunk import EncodeParams, Pipeline
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.trial import first_frame
from vsfdatrd.errors import FdatrdError
from vsfdatrd.system.processor import usable_cpus
from vsfdatrd.workers.server import reply_stream

_PROGRESS_INTERVAL = 0.5  # seconds between progress messages


def main() -> None:
    """Read a job from stdin, run it, and write the answers to stdout."""
    job = json.loads(sys.stdin.readline())
    answers = reply_stream()
    threading.Thread(target=_end_with_client, daemon=True).start()
    try:
        answer = _JOBS[job["do"]](job, partial(_send, answers))
    except (FdatrdError, OSError) as error:
        answer = {"failed": str(error)}
    _send(answers, answer)


def _preflight(job: dict[str, Any], report: Any) -> dict[str, Any]:
    return {"mismatch": Environment(**job["expected"]).mismatch()}


def _trial(job: dict[str, Any], report: Any) -> dict[str, Any]:
    script = Path(job["script"])
    return {"props": first_frame(script, job["device"], Path(job["folder"]) / "frame.json")}


def _chunk(job: dict[str, Any], report: Any) -> dict[str, Any]:
    params = EncodeParams(Path(job["script"]), tuple(job["options"]), Fraction(job["rate"]), Path(job["folder"]))
    reported = 0.0

    def progress(frames: int) -> None:
        nonlocal reported
        if time.monotonic() >= reported + _PROGRESS_INTERVAL:
            reported = time.monotonic()
            report({"frames": frames})

    with reserve_cpus(job["cpus"], Path(job["locks"])) as cpus:
        pipeline = Pipeline(Chunk(*job["chunk"]), params, job["device"], cpus)
        pipeline.feed(progress)
        path, seconds = pipeline.end()
    return {"encoded": str(path), "seconds": seconds}


_JOBS = {"preflight": _preflight, "trial": _trial, "chunk": _chunk}


def _send(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _end_with_client() -> None:
    """Wait until stdin is closed; then kill all child processes and exit."""
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 1 << 12):
            pass
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(1)


@contextlib.contextmanager
def reserve_cpus(count: int | None, folder: Path) -> Iterator[frozenset[int] | None]:
    """Reserve CPUs for the duration of the ``with``, by locking a file per group of CPUs.

    An engine uses all CPUs that it sees; several engines on one machine would compete for the same CPUs.

    Args:
        count: Number of CPUs to reserve; None for no limit.
        folder: Folder of the lock files, shared by all processes of this machine.

    Yields:
        The numbers of the CPUs; None if all may be used: no limit, all groups taken, or affinity not supported.
    """
    if count is not None and hasattr(psutil.Process, "cpu_affinity"):  # not supported on macOS
        available = usable_cpus()
        for group in range(len(available) // count):
            lock = FileLock(folder / f"cpus-{count}-{group}.lock")
            with contextlib.suppress(Timeout):
                lock.acquire(blocking=False)
                with lock:
                    yield frozenset(available[group * count : (group + 1) * count])
                return
    yield None  # also if all groups are taken: the system's scheduler shares the CPUs


if __name__ == "__main__":
    main()
