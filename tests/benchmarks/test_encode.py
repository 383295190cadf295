"""The measurement of `vsfdatrd encode` runs, and counts what it says that it counts."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import encode


@pytest.mark.slow
def test_both_ways_are_measured(
    identity_2x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved: dict[str, Any] = {}
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path))
    monkeypatch.setattr(encode, "save", lambda name, result: saved.update({name: result}))
    assert encode.main(["--model", str(identity_2x), "--size", "64x48", "--frames", "36", "--rounds", "1"]) == 0
    (result,) = (saved["encode_64x48"],)
    (turn,) = result["rounds"]
    for way in ("straight", "parts"):
        assert 0 < turn[way]["seconds"] < 120
        assert turn[way]["cpu_seconds"] > 0.1  # of programs that have ended
    assert turn["parts"]["joining"] + turn["parts"]["until_first_frame"] < turn["parts"]["seconds"]
    assert result["more_time"] == pytest.approx(turn["parts"]["seconds"] / turn["straight"]["seconds"] - 1, abs=1e-3)
    assert "in 2 parts of " in capsys.readouterr().out
