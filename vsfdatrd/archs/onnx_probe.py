"""Inspect an ONNX file by running it on small pictures in a separate process.

An untrusted file may crash the library or never finish; then only that process is affected.
"""

import contextlib
import json
import logging
import os
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import CheckpointError, EngineError, TrialError
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.weights.files import check_file, refuse
from vsfdatrd.workers.spawn import describe_exit, environment, no_window, python

log = logging.getLogger(__name__)

TIMEOUT = 15.0
"""Timeout in seconds; a typical file takes two. A loop in the graph may never end."""
TIMEOUT_PER_MIB = 5.0
"""Additional timeout in seconds per MiB; the largest kind of network has a hundred MiB and takes about 30 s."""
MAX_TIMEOUT = 180.0
AGAIN = "and is not tried again for a day; give another file"


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
    if find_spec("openvino") is None:
        raise refuse(path, "is an ONNX file; inspecting it needs OpenVINO: pip install openvino")
    timeout = min(TIMEOUT + TIMEOUT_PER_MIB * check_file(path).st_size / 2**20, MAX_TIMEOUT)
    arguments = json.dumps({"multiple": multiple, "range": input_range})
    fill_standard_streams()
    try:
        # Start it on this thread, which waits for it: the process ends when the thread that started it ends.
        process = subprocess.Popen(
            [
                python(),
                "-m",
                "vsfdatrd.backends.openvino.probe_worker",
                os.path.abspath(path),
                arguments,
                str(os.getpid()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            creationflags=no_window(),
        )
    except OSError as error:
        raise EngineError(f"the process that tries the network cannot be started: {error}") from error
    with process:
        try:
            output, errors = _collect_output(process, timeout)
        except subprocess.TimeoutExpired as error:
            why = f"did not finish a small picture within {timeout:.0f} seconds, {AGAIN}"
            raise TrialError(str(refuse(path, why)), why) from error
        finally:
            process.kill()
    try:
        answer = dict(json.loads(output))
    except ValueError as error:
        ending = describe_exit(process.returncode)
        if 0 < process.returncode < 1 << 31 and (lines := errors.decode(errors="replace").strip().splitlines()):
            raise EngineError(f"the process that tries {path.name!r} failed ({ending}): {lines[-1][:300]}") from error
        why = f"makes OpenVINO crash ({ending}) when a small picture is tried, {AGAIN}"
        raise TrialError(str(refuse(path, why)), why) from error
    if "error" in answer:
        raise CheckpointError(answer["error"])
    for remark in answer.pop("remarks"):
        log.warning("%s: %s", path.name, remark)
    return answer


def _collect_output(process: "subprocess.Popen[bytes]", timeout: float) -> tuple[bytes, bytes]:
    """Collect stdout and stderr of a process until it ends.

    Raises:
        subprocess.TimeoutExpired: It has run for more than `timeout` seconds. Time in which a busy machine did not
            schedule it does not count, up to MAX_TIMEOUT.
    """
    begin = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(1.0, timeout))
        except subprocess.TimeoutExpired:
            elapsed = worked = time.monotonic() - begin
            with contextlib.suppress(psutil.Error):
                worked = sum(psutil.Process(process.pid).cpu_times()[:2])
            if min(elapsed, worked) > timeout or elapsed > MAX_TIMEOUT:
                raise
