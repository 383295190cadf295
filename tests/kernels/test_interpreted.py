"""Every kernel in Triton's interpreter, against NumPy in float64: see `cases_*.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path.stem.removeprefix("cases_") for path in Path(__file__).parent.glob("cases_*.py"))


@pytest.mark.parametrize("file", FILES)
def test_kernels_compute_what_the_network_does(file: str) -> None:
    """In a process of its own, as Triton is either interpreted or not from its import on."""
    command = [sys.executable, "-m", "tests.kernels.interpreter", file]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert cases
    # NaN, what a kernel did not write, fails too
    assert [case for case in cases if not case["error"] <= case["limit"]] == []
    # Single values: nowhere an error of another kind than rounding
    assert [case for case in cases if not case["worst"] <= 30 * case["limit"]] == []


def test_there_are_cases_for_every_kernel() -> None:
    from vsfdatrd.kernels import manifest

    text = "".join((Path(__file__).parent / f"cases_{file}.py").read_text(encoding="utf-8") for file in FILES)
    assert [name for name in sorted({key[0] for key in manifest.load().kernels}) if f'"{name}"' not in text] == []
