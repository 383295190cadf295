"""Run tests/gpu on the GPU machine, and record the message of every failed test."""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.record import ROOT
from benchmarks.gpu_visit.sizes import Sizes

FILES = tuple(f"tests/gpu/test_{name}.py" for name in ("streams", "torch", "cuda", "tensorrt"))
"""The most basic tests first: their failures explain later ones."""


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Run one file after the other; a file that hangs loses only its own results."""
    found: dict[str, Any] = {"passed": 0, "failed": [], "skipped": []}
    for files in [FILES] if sizes.small else [(file,) for file in FILES]:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.xml")
            # Warnings are shown, not raised: newer libraries on that machine may emit deprecation warnings.
            command = [sys.executable, "-m", "pytest", *files, "-q", "-W", "default", "--timeout", "60"]
            command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
            done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
            if report.exists():
                add(report, found)
            else:
                found["failed"].append({"id": files[0], "text": (done.stdout + done.stderr)[-1500:]})
        record({"tests": found})


def add(report: Path, found: dict[str, Any]) -> None:
    """Count a JUnit report's tests in `passed`, `failed` and `skipped`."""
    for case in ET.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            found["passed"] += 1
        elif outcome.tag == "skipped":
            found["skipped"].append({"id": name, "text": (outcome.get("message") or "")[:200]})
        else:
            found["failed"].append({"id": name, "text": f"{outcome.get('message')}\n{(outcome.text or '')[-1200:]}"})
