"""What an ONNX file is, found out by running it on small pictures, in a process of its own.

Files of strangers may crash a library or keep it busy for ever; then it is that process that ends.
"""

import json
import logging
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import CheckpointError, EngineError
from vsfdatrd.system.standard_streams import fill_standard_streams
from vsfdatrd.weights.files import refuse
from vsfdatrd.workers.spawn import ending, no_window, python

log = logging.getLogger(__name__)

PATIENCE = 180.0
"""Seconds after which a file is given up. A network of the largest kind takes some 30."""


def probe(path: Path, multiple: int | None = None, input_range: Range | None = None) -> dict[str, Any]:
    """The fields of a `Description` that an ONNX file has an answer for.

    multiple: what sides have to be multiples of; None tries. input_range: white in the network's numbers; None goes by
    what its first operators do, then by trying, and what is found is logged unless it is 1. Raises CheckpointError with
    the reason and a cure for files that cannot be used.
    """
    if find_spec("openvino") is None:
        raise refuse(path, "is an ONNX file; finding out how it is used needs OpenVINO: pip install openvino")
    asked = json.dumps({"multiple": multiple, "range": input_range})
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    fill_standard_streams()
    try:
        # On this thread, which waits: the process would not outlive it.
        done = subprocess.run(
            [python(), "-m", "vsfdatrd.backends.openvino.probe_worker", os.path.abspath(path), asked, str(os.getpid())],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
            env=os.environ | {"PYTHONPATH": paths}, creationflags=no_window(),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise refuse(path, f"did not finish a small picture within {PATIENCE:.0f} seconds, and is not used") from error
    except OSError as error:
        raise EngineError(f"the process that tries the network cannot be started: {error}") from error
    try:
        answer = dict(json.loads(done.stdout))
    except ValueError as error:
        how = ending(done.returncode)
        raise refuse(path, f"makes OpenVINO crash ({how}) when a small picture is tried, and is not used") from error
    if "error" in answer:
        raise CheckpointError(answer["error"])
    for remark in answer.pop("remarks"):
        log.warning("%s: %s", path.name, remark)
    return answer
