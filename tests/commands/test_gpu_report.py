"""`vsfdatrd doctor --gpu` on a GPU that is made of Python, and the reports that were collected."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.gpu_report_schema import problems
from vsfdatrd.backends.gpu.devices import Gpu
from vsfdatrd.cli import main
from vsfdatrd.commands import gpu_report

ROOT = Path(__file__).resolve().parents[2]
FAKE_GPU = ROOT / "tests" / "backends" / "fake_gpu"


def doctor(folder: Path, model: Path, *more: str, faults: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": f"{FAKE_GPU}{os.pathsep}{ROOT}", "FAKE_GPU": faults}
    environment["FDATRD_GPU_CONTEXTS"] = "1"  # measuring takes a second for every engine
    command = [sys.executable, "-m", "vsfdatrd.cli", "doctor", "--gpu", "--model", str(model), "--size", "90x60"]
    return subprocess.run(
        [*command, "--seconds", "0.3", *more],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )


def test_a_report_of_everything(identity_2x: Path, tmp_path: Path) -> None:
    done = doctor(tmp_path, identity_2x)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "vsfdatrd_gpu_fake_rtx.json").read_text())
    assert problems(report) == []
    assert report["machine"]["gpu"] == "Fake RTX"
    assert (report["machine"]["capability"], report["machine"]["cuda"]) == ("8.9", "13.1")
    assert (report["model"], report["size"]) == ("identity_2x", [90, 60])
    tensorrt, torch, cuda = report["engines"]
    assert tensorrt["library"] == "tensorrt_rtx 9.9.9"
    assert tensorrt["precision"] == "fp16"
    assert tensorrt["psnr_db"] > 60
    assert tensorrt["fps_alone"] > 0
    assert tensorrt["fps_vapoursynth"] > 0
    assert tensorrt["contexts"] == 1
    assert tensorrt["slots"] >= 3
    assert tensorrt["share"] == pytest.approx(tensorrt["fps_vapoursynth"] / tensorrt["fps_alone"], abs=1e-3)
    assert done.stderr.count("TensorRT builds an engine") == 1, "the second start builds again"
    assert tensorrt["reopening_s"] > 0
    assert tensorrt["opening_s"] > 0
    assert "PyTorch is built without CUDA" in torch["error"]
    assert "it has 32 channels, and there are kernels for 96, 128, 192" in cuda["error"]
    for messages in (
        "Fake RTX",
        "fps alone",
        "through VapourSynth",
        "dB to fp32",
        "frames in flight, 1 computed at a time",
        "please post it",
    ):
        assert messages in done.stdout
    assert str(tmp_path) not in json.dumps(report), "places of this machine are nobody's business"


def test_engines_that_do_not_run_are_sentences(identity_2x: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    done = doctor(tmp_path, identity_2x, "--json", str(file), faults="invalid")
    assert done.returncode == 1
    report = json.loads(file.read_text())
    assert problems(report) == []
    assert "cannot run on this GPU" in report["engines"][0]["error"]
    assert "Traceback" not in done.stdout + done.stderr


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_report, "list_gpus", lambda: (Gpu("Fake RTX", (8, 9)),))
    assert main(["doctor", "--gpu", "--json", str(tmp_path / "no" / "such.json")]) == 1
    assert "such.json cannot be written, since there is no such folder" in capsys.readouterr().err
    assert main(["doctor", "--gpu", "--json", str(tmp_path)]) == 1
    assert "is a folder; give the path of a file" in capsys.readouterr().err


def test_a_model_s_name_that_is_no_unicode_does_not_lose_the_report(
    identity_2x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, report = tmp_path / os.fsdecode(b"\xff.safetensors"), tmp_path / "report.json"
    try:
        shutil.copy(identity_2x, model)
    except OSError:
        pytest.skip("this file system has no such names")
    monkeypatch.setattr(gpu_report, "list_gpus", lambda: (Gpu("Fake RTX", (8, 9)),))
    monkeypatch.setattr(gpu_report, "describe_machine", lambda: {"gpu": "Fake RTX"})
    monkeypatch.setattr(gpu_report, "BACKENDS", ())
    assert main(["doctor", "--gpu", "--model", str(model), "--json", str(report)]) == 1
    assert json.loads(report.read_text(encoding="utf-8"))["model"] == "?"


def test_no_gpu_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu_report, "list_gpus", lambda: ())
    assert main(["doctor", "--gpu"]) == 1
    assert capsys.readouterr().out.strip().splitlines() == [
        "there is no NVIDIA GPU here, or no driver for it, so there is nothing to report"
    ]


def test_the_command_starts_without_cuda_bindings() -> None:
    """They are not installed on macOS."""
    code = "import sys; sys.modules['cuda'] = None; import vsfdatrd.commands.gpu_report"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stderr) == (0, "")


GOOD: dict[str, Any] = {
    "schema": 1,
    "vsfdatrd": "1.0",
    "date": "2026-01-01",
    "libraries": {"torch": "2.11"},
    "model": "medium",
    "weights": "0123456789abcdef",
    "size": [720, 540],
    "machine": {
        "gpu": "RTX 4090",
        "capability": "8.9",
        "gpus": 1,
        "driver": None,
        "cuda": "13.1",
        "memory_mib": 24564,
        "system": "Linux 6",
        "cpu": "a processor",
        "cores": 16,
        "python": "3.12.3",
    },
    "engines": [
        {
            "backend": "tensorrt",
            "library": "tensorrt_rtx 1.7",
            "precision": "fp16",
            "opening_s": 9.0,
            "reopening_s": 1,
            "psnr_db": 61.5,
            "fps_alone": 40.1,
            "fps_vapoursynth": None,
            "share": None,
            "memory_mib": 900,
            "slots": 4,
            "contexts": 2,
        },
        {"backend": "torch", "error": "this PyTorch is built without CUDA"},
    ],
}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 2}, "no report of schema 1"),
        ({"machine": {}}, "machine lacks gpu"),
        ({"size": "720x540"}, "size is '720x540'"),
        ({"owner": "me"}, "has owner, which is not known"),
        ({"engines": [{"fps_alone": 1}]}, "a row of engines has no backend"),
        ({"engines": [GOOD["engines"][0] | {"psnr_db": -3.0}]}, "-3.0 dB cannot be"),
        ({"engines": [GOOD["engines"][0] | {"fps_alone": True}]}, "fps_alone is True"),
    ],
)
def test_what_is_wrong_with_a_report(change: dict[str, Any], sentence: str) -> None:
    assert problems(GOOD) == []
    assert any(sentence in problem for problem in problems(GOOD | change))


def test_the_reports_that_were_collected() -> None:
    folder = ROOT / gpu_report.REPORTS_FOLDER
    assert (folder / "README.md").exists()
    for file in folder.glob("*.json"):
        assert problems(json.loads(file.read_text(encoding="utf-8"))) == [], file.name
