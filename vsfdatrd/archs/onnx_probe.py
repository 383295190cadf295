"""What an ONNX file is, found out by running it on small pictures, in a process of its own.

Files of strangers may crash a library or keep it busy for ever; then it is that process that ends.
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
from vsfdatrd.workers.spawn import ending, environment, no_window, python

log = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds after which a file is given up, which takes two; a loop in it may have no end."""
PATIENCE_PER_MIB = 5.0
"""More of them for large files; a network of the largest kind has a hundred MiB and takes some 30."""
MOST_PATIENCE = 180.0
AGAIN = "and is not tried again for a day; give another file"


def probe(path: Path, multiple: int | None = None, input_range: Range | None = None) -> dict[str, Any]:
    """The fields of a `ModelDescriptor` that an ONNX file has an answer for.

    multiple: what sides have to be multiples of; None tries. input_range: white in the network's numbers; None goes by
    what its first operators do, then by trying, and what is found is logged unless it is 1. Raises CheckpointError with
    the reason and a cure for files that cannot be used.
    """
    if find_spec("openvino") is None:
        raise refuse(path, "is an ONNX file; finding out how it is used needs OpenVINO: pip install openvino")
    patience = min(PATIENCE + PATIENCE_PER_MIB * check_file(path).st_size / 2**20, MOST_PATIENCE)
    asked = json.dumps({"multiple": multiple, "range": input_range})
    fill_standard_streams()
    try:
        # On this thread, which waits: the process would not outlive it.
        process = subprocess.Popen(
            [python(), "-m", "vsfdatrd.backends.openvino.probe_worker", os.path.abspath(path), asked, str(os.getpid())],
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
            output, errors = _wait(process, patience)
        except subprocess.TimeoutExpired as error:
            why = f"did not finish a small picture within {patience:.0f} seconds, {AGAIN}"
            raise TrialError(str(refuse(path, why)), why) from error
        finally:
            process.kill()
    try:
        answer = dict(json.loads(output))
    except ValueError as error:
        how = ending(process.returncode)
        if 0 < process.returncode < 1 << 31 and (lines := errors.decode(errors="replace").strip().splitlines()):
            raise EngineError(f"the process that tries {path.name!r} failed ({how}): {lines[-1][:300]}") from error
        why = f"makes OpenVINO crash ({how}) when a small picture is tried, {AGAIN}"
        raise TrialError(str(refuse(path, why)), why) from error
    if "error" in answer:
        raise CheckpointError(answer["error"])
    for remark in answer.pop("remarks"):
        log.warning("%s: %s", path.name, remark)
    return answer


def _wait(process: "subprocess.Popen[bytes]", patience: float) -> tuple[bytes, bytes]:
    """What a process writes to stdout and stderr until it ends.

    Raises subprocess.TimeoutExpired once it has run for longer than `patience` seconds. Those in which a busy machine
    let it wait do not count, up to MOST_PATIENCE.
    """
    begin = time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(1.0, patience))
        except subprocess.TimeoutExpired:
            elapsed = worked = time.monotonic() - begin
            with contextlib.suppress(psutil.Error):
                worked = sum(psutil.Process(process.pid).cpu_times()[:2])
            if min(elapsed, worked) > patience or elapsed > MOST_PATIENCE:
                raise
