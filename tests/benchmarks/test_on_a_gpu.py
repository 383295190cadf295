"""Benchmarks on a GPU that is made of Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.layers import sum_by_kind
from vsfdatrd.system import instructions

FAKE_GPU = Path(__file__).parents[1] / "backends" / "fake_gpu"


def on_fake_gpu(module: str, *arguments: str, faults: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": f"{FAKE_GPU}{os.pathsep}{guard.ROOT}", "FAKE_GPU": faults}
    environment["FDATRD_GPU_CONTEXTS"] = "1"  # measuring takes a second for every engine
    environment[instructions.VARIABLE] = "avx2"  # fewer precisions of the other engines
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, check=False)


@pytest.mark.slow
def test_the_harness_on_a_gpu(identity_2x: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed"
    done = on_fake_gpu(
        "benchmarks",
        "--full",
        "--groups",
        "headline",
        "engines",
        "--model",
        str(identity_2x),
        "--size",
        "60x60",
        "--rounds",
        "1",
        "--seconds",
        "0.05",
        "--only",
        "vapoursynth-mlrt-trt-rtx",
        "--out",
        str(out),
    )
    assert done.returncode == 0, done.stderr
    saved = json.loads(out.with_suffix(".json").read_text())
    assert saved["machine"]["gpus"] == ["Fake RTX"]
    headline, engines = saved["result"]["groups"]
    ours, alone, encode, peer = headline["rows"]
    assert ours["fps"]["median"] > 0
    assert alone["fps"]["median"] > 0
    assert encode["fps"]["median"] > 0
    assert "vapoursynth-mlrt-trt-rtx" in peer["missing"]
    tried = [(row["backend"], row["precision"]) for row in engines["rows"] if row["backend"] == "tensorrt"]
    assert tried == [("tensorrt", p) for p in ("fp16", "mixed", "bf16", "fp32")]
    for row in engines["rows"]:
        assert "fps" in row or (row["backend"] == "native" and "cannot run" in row["error"]), done.stdout
    assert out.with_suffix(".png").exists()
    assert str(tmp_path) not in out.with_suffix(".json").read_text()


def test_layers_of_tensorrt(tiny_model: Path) -> None:
    done = on_fake_gpu("benchmarks.layers", "tensorrt", str(tiny_model), "60x60")
    assert done.returncode == 0, done.stderr
    result = [(name, kind, seconds) for name, kind, seconds in json.loads(done.stdout.splitlines()[-1])]
    assert [name for name, *_ in result] == ["attention_2", "conv_3", "conv_1"]
    assert [(kind, count, round(seconds, 6)) for kind, count, seconds in sum_by_kind(result)] == [
        ("attention", 1, 0.003),
        ("conv", 2, 0.0025),
    ]
    silent = on_fake_gpu("benchmarks.layers", "tensorrt", str(tiny_model), "60x60", faults="silent")
    assert "does not report how long its layers take" in silent.stderr


def test_forms_of_the_graph(tiny_model: Path, tmp_path: Path) -> None:
    asked = ("--size", "60x60", "--frames", "5", "--models", str(tiny_model), "--out", str(tmp_path))
    done = on_fake_gpu("benchmarks.gpu", *asked, "--engines", "tensorrt")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "gpu_60x60.json").read_text())["result"]["rows"]
    assert len(rows) == 7
    assert all(row["fps"] > 0 for row in rows), rows


def test_a_gpu_that_tensorrt_refuses_is_asked_once_and_builds_nothing(tiny_model: Path, tmp_path: Path) -> None:
    asked = ("--size", "60x60", "--frames", "1", "--models", str(tiny_model), "--out", str(tmp_path))
    done = on_fake_gpu("benchmarks.gpu", *asked, faults="invalid")
    assert done.returncode == 0, done.stderr
    first, *others = json.loads((tmp_path / "gpu_60x60.json").read_text())["result"]["rows"]
    assert "cannot run on this GPU" in first["error"]
    assert [row["graph"] for row in others] == ["PyTorch fp16", "PyTorch bf16"]
    assert all(row["fps"] > 0 and row["psnr_db"] > 30 for row in others), others
    layers = on_fake_gpu("benchmarks.layers", "tensorrt", str(tiny_model), "60x60", faults="invalid")
    assert "cannot run on this GPU" in layers.stderr
