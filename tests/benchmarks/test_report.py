"""What every result says about the machine, and the arguments of all commands."""

import json
from pathlib import Path

import pytest

from benchmarks import report
from vsfdatrd.system import instructions


def test_a_result_has_the_date_the_versions_and_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instructions.VARIABLE, "avx2")
    monkeypatch.setattr("psutil.cpu_count", lambda logical=True: 4 if logical else None)
    file = report.save("one", {"fps": 1}, folder=tmp_path / "new")
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert saved["result"] == {"fps": 1}
    machine = saved["machine"]
    assert len(machine["date"].split("-")) == 3
    assert machine["instruction_cap"] == "avx2", "a capped processor is shown as a newer one"
    assert machine["cores"] == 4, "systems that do not tell the physical cores"
    assert {"vsfdatrd", "numpy", "vapoursynth"} <= machine["versions"].keys()
    assert machine["commit"] == report.current_commit()
