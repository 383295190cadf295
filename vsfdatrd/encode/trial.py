"""Render one output frame before the encode, to check the script and to read the color properties."""

import json
import os
import subprocess
from pathlib import Path

from vsfdatrd.errors import PREFIX, EncodeError
from vsfdatrd.system.programs import run_unchecked, stderr_lines, utf8_environment, vspipe

_COLOR_PROPERTIES = ("_Matrix", "_Transfer", "_Primaries", "_Range", "_ChromaLocation")
_TIMEOUT = 3600.0  # seconds; includes building the engine, which is slow on a CPU


def first_frame(script: Path, device: str, props_file: Path) -> dict[str, int]:
    """Render the first frame of a script, which also builds its engine; return its color properties, as H.273 numbers.

    Args:
        script: The VapourSynth script.
        device: The script's ``device`` argument: GPU numbers separated by commas.
        props_file: File into which vspipe writes the frame properties as JSON.

    Raises:
        EncodeError: vspipe failed or took more than an hour; the message has its output.
    """
    # Relative to the script's folder: vspipe accepts only names that are valid UTF-8.
    command = [vspipe(), "-c", "y4m", "-s", "0", "-e", "0", "-j", os.path.relpath(props_file, script.parent)]
    command += ["-a", f"device={device}", script.name, os.devnull]
    props_file.unlink(missing_ok=True)  # vspipe would write into whatever exists under this name, such as a link
    try:
        done = run_unchecked(command, timeout=_TIMEOUT, cwd=script.parent, env=utf8_environment())
    except subprocess.TimeoutExpired as error:
        raise EncodeError("the first frame took more than an hour; try a smaller model") from error
    if done.returncode:
        lines = stderr_lines(done)
        ours = [line.partition(PREFIX)[2] for line in lines if PREFIX in line]
        raise EncodeError(f"the first frame failed: {(ours or lines or ['vspipe printed no message'])[-1]}")
    props = json.loads(props_file.read_text(encoding="utf-8"))[0]
    return {name: int(props[name]) for name in _COLOR_PROPERTIES if name in props}
