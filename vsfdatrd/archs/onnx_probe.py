"""Inspect an ONNX file by running it on small pictures in a separate process.

An untrusted file may crash the library or never finish; then only that process is affected.
"""

import contextlib
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import EngineError, TrialError
from vsfdatrd.weights.files import check_file, refusal
from vsfdatrd.workers.client import Worker
from vsfdatrd.workers.spawn import describe_exit

log = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Timeout in seconds; a typical file takes two. A loop in the graph may never end."""
TIMEOUT_PER_MIB = 5.0
"""Additional timeout in seconds per MiB; the largest kind of network has a hundred MiB and takes about 30 s."""
MAX_TIMEOUT = 180.0
NO_RETRY_ADVICE = "and is not tried again for a day; give another file"


def probe(path: Path, multiple: int | None = None, input_range: Range | None = None) -> dict[str, Any]:
    """Describe an ONNX file by running it.

    Args:
        path: The ONNX file.
        multiple: Multiple in pixels that both sides of the input must have; None determines it by trial.
        input_range: Value of white at the input. None derives it from the first operators, then by trial; a result
            other than 1 is logged.

    Returns:
        `config`, `parameters` and `dtype` of a `ModelDescriptor` as plain values.

    Raises:
        CheckpointError: The file cannot be used (`TrialError` if it timed out or crashed the process). The message has
            the reason and what to do.
        EngineError: The process could not be started or failed for another reason.
    """
    timeout = min(TIMEOUT + TIMEOUT_PER_MIB * check_file(path).st_size / 2**20, MAX_TIMEOUT)
    worker = Worker("vsfdatrd.backends.openvino.probe_worker", "trial")
    watchdog = _Watchdog(worker, timeout)
    try:
        with watchdog:
            answer = dict(worker.ask("probe", path=os.path.abspath(path), multiple=multiple, input_range=input_range))
    except EngineError as error:
        code = worker.exit_code
        if watchdog.expired:
            reason = f"did not finish a small picture within {timeout:.0f} seconds, {NO_RETRY_ADVICE}"
        elif code is None or 0 < code < 1 << 31:  # not a crash, so not this file's doing
            raise
        else:
            reason = f"makes OpenVINO crash ({describe_exit(code)}) when a small picture is tried, {NO_RETRY_ADVICE}"
        raise TrialError(str(refusal(path, reason)), reason) from error
    finally:
        worker.kill()
        worker.close()
    for remark in answer.pop("remarks"):
        log.warning("%s: %s", path.name, remark)
    return answer


class _Watchdog:
    """Context that kills a worker which has computed for too long.

    Time in which a busy machine did not schedule it does not count, up to MAX_TIMEOUT.
    """

    def __init__(self, worker: Worker, timeout: float) -> None:
        self.expired = False
        """Whether the worker was killed."""
        self._worker, self._timeout = worker, timeout
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="fdatrd-watchdog", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        begin = time.monotonic()
        while not self._done.wait(min(1.0, self._timeout)):
            elapsed = worked = time.monotonic() - begin
            with contextlib.suppress(psutil.Error):
                worked = sum(psutil.Process(self._worker.pid).cpu_times()[:2])
            if min(elapsed, worked) > self._timeout or elapsed > MAX_TIMEOUT:
                self.expired = True
                self._worker.kill()
                return
