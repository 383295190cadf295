"""The speed harness: what is measured, in turns and for real; what it says of contestants that cannot run."""

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as front
from benchmarks import anatomy, guard
from benchmarks.ceiling import best, ceiling
from benchmarks.layers import by_kind, layers
from benchmarks.speed import race as racing
from benchmarks.speed.cases import OURS, Case, Extent, Group, groups
from benchmarks.speed.contestant import Missing
from benchmarks.speed.material import drawings
from benchmarks.speed.meter import GpuMeter, cpu_seconds, peak_memory
from benchmarks.speed.peers import PEERS
from benchmarks.speed.plot import draw
from benchmarks.speed.race import Remote, Row, Runner, Settings, race, steps, turn_length
from benchmarks.speed.table import compared, table
from benchmarks.weights import weights_file
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError, FdatrdError


def plan(extent: Extent, **given: Any) -> dict[str, Group]:
    usual: dict[str, Any] = {"gpu": False, "backends": [("openvino", ("fp32",))], "peers": tuple(PEERS)}
    found = groups(extent, **usual | given)
    return {group.name: group for group in found}


def row(label: str, fps: float, **given: Any) -> Row:
    rates = {"median": fps, "min": fps * 0.9, "max": fps * 1.1, "rounds": [fps]}
    return {
        "label": label, "contestant": label, "model": "medium", "size": [720, 540], "clip": None, "fps": rates,
        "first_frame_s": 1.0, "cpu_seconds_per_frame": 2.0, "peak_memory_mib": 700, "same_network": True,
    } | given  # fmt: skip


def result(*rows: Row, gpus: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "machine": {"gpus": list(gpus), "cpu": "a CPU", "cores": 2},
        "result": {"groups": [{"name": "headline", "title": "medium, 720×540", "rows": list(rows)}]},
    }


# What is measured


def test_quick_is_one_group_and_full_has_all() -> None:
    assert list(plan("quick")) == ["headline"]
    assert list(plan("standard")) == ["headline", "models"]
    assert list(plan("full")) == ["headline", "models", "streams", "sizes", "sweep"]
    many = plan("full", gpu=True, backends=[("tensorrt", ("fp16", "fp32")), ("torch", ("fp16",))], clip="clip.mkv")
    assert list(many) == ["headline", "models", "engines", "streams", "sizes", "sweep", "held"]
    assert [(c.backend, c.precision) for c in many["engines"].cases] == [
        ("tensorrt", "fp16"), ("tensorrt", "fp32"), ("torch", "fp16"),
    ]  # fmt: skip


def test_sizes_of_the_headline() -> None:
    assert plan("quick")["headline"].cases[0].size == (240, 240)
    assert plan("quick", gpu=True)["headline"].cases[0].size == (720, 540)
    assert plan("full")["headline"].cases[0].size == (720, 540)
    assert plan("quick", size=(120, 90))["headline"].cases[0].size == (120, 90)


def test_cases_of_a_group_can_be_told_apart_and_travel() -> None:
    for group in plan("full", clip="clip.mkv", backends=[("openvino", ("bf16", "fp32"))]).values():
        names = {(case.label, case.model, case.size) for case in group.cases}
        assert len(names) == len(group.cases)
        for case in group.cases:
            assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case


def test_random_weights_stand_in_for_those_that_are_not_trained(tmp_path: Path) -> None:
    file, trained = weights_file("large", tmp_path)
    again, _ = weights_file("large", tmp_path)
    assert file == again
    assert open_checkpoint(file).description.scale == 2
    assert trained == (tmp_path not in file.parents)
    assert weights_file("my.safetensors", tmp_path) == (Path("my.safetensors"), True)
    with pytest.raises(FdatrdError, match="nowhere"):
        weights_file("nowhere", tmp_path)


def test_what_is_measured_has_all_parts_at_work(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    file, trained = weights_file("medium", tmp_path)
    assert trained
    assert all(values.any() for values in load_file(file).values())
    assert weights_file("medium", tmp_path)[0] == file


# The race, with real processes


@pytest.mark.slow
def test_a_race(identity_2x: Path, tmp_path: Path) -> None:
    """The plugin, its engine, vspipe into ffmpeg, another plugin, PyTorch: the same picture, and a rate for each."""
    ours = Case(OURS, str(identity_2x), (60, 60))
    others = ("PyTorch", "vapoursynth-mlrt-ov", "nnedi3", "vapoursynth-mlrt-trt")
    cases = (
        ours, replace(ours, measure="engine"), replace(ours, measure="encode"),
        *(replace(ours, contestant=name) for name in others),
    )  # fmt: skip
    done: list[int] = []
    group = Group("headline", "a test", cases, rounds=2)
    rows = race(group, Settings(0.05, tmp_path), lambda _: None, done.append)
    assert sum(done) == steps(group)
    rated = {row["label"]: row for row in rows if "fps" in row}
    assert list(rated) == [
        "vsfdatrd", "vsfdatrd, engine alone", "vsfdatrd, vspipe into ffmpeg",
        "PyTorch", "vapoursynth-mlrt-ov", "nnedi3",
    ]  # fmt: skip
    for name, found in rated.items():
        fps = found["fps"]
        assert 0 < fps["min"] <= fps["median"] <= fps["max"], name
        assert len(fps["rounds"]) == 2
        assert found["model"] == identity_2x.name
    for name in ("vsfdatrd", "vsfdatrd, engine alone", "vapoursynth-mlrt-ov"):
        assert rated[name]["psnr_to_pytorch_db"] > 100
        assert rated[name]["cpu_seconds_per_frame"] > 0
        assert 50 < rated[name]["peak_memory_mib"] < 3000
    assert "psnr_to_pytorch_db" not in rated["nnedi3"]
    assert rated["vsfdatrd"]["first_frame_cold_s"] > 0
    assert rows[-1]["missing"] == "needs an NVIDIA GPU"
    assert "not measured: needs an NVIDIA GPU" in table(rows)
    assert not list(tmp_path.glob("picture*"))


def test_what_cannot_run_is_a_row_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\0" * 64)
    group = Group("headline", "a test", (Case(OURS, str(damaged), (60, 60)),), rounds=1)
    (found,) = race(group, Settings(0.05, tmp_path), lambda _: None, lambda _: None)
    assert "fps" not in found
    assert "damaged.safetensors" in found["error"]
    assert str(tmp_path) not in found["error"]


def test_a_process_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    remote = Remote(program)
    with pytest.raises(RuntimeError, match=r"ended with code 3: no such library"):
        remote.ask("open")
    remote.close()


def test_no_contestant_is_opened_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pid = os.getpid()

    class Free:
        available = 1 << 20

    runner = Runner(Case(OURS, "medium", (60, 60)), {}, Process())  # type: ignore[arg-type]
    racing._make_sure_of_memory([runner])
    monkeypatch.setattr("psutil.virtual_memory", Free)
    racing._make_sure_of_memory([])
    with pytest.raises(Missing, match=r"0\.0 GiB of memory are free"):
        racing._make_sure_of_memory([runner])


@pytest.mark.parametrize(("noise", "good"), [(0.0, True), (0.5, False)])
def test_garbage_is_no_result(noise: float, good: bool, tmp_path: Path) -> None:
    """A peer that is fast because it computes nonsense has no rate."""
    picture = drawings(60, 60, 1)[0].repeat(2, axis=1).repeat(2, axis=2)
    picture = (picture + np.random.default_rng(0).normal(0, noise, picture.shape)).astype(np.float32)

    class Peer:
        def ask(self, do: str, file: str) -> bool:
            np.save(file, picture)
            return True

    case = Case("nnedi3", "medium", (60, 60))
    found = row("nnedi3", 9.0, trained=True, same_network=False)
    racing._compare_pictures([Runner(case, found, Peer())], tmp_path)  # type: ignore[arg-type]
    assert ("fps" in found) == good
    assert ("error" in found) != good


# What contestants use


def test_cpu_time_and_memory_are_those_of_the_whole_family() -> None:
    """A child that is busy for a while and holds 200 MiB counts as its parent's."""
    child = (
        "import time; held = bytearray(200 << 20); end = time.process_time() + 1\nwhile time.process_time() < end: pass"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); input()"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE)
    largest = 0
    try:
        deadline = time.monotonic() + 30
        while cpu_seconds(process.pid) < 1 and time.monotonic() < deadline:
            largest = max(largest, peak_memory(process.pid))
            time.sleep(0.05)
        assert 1 <= cpu_seconds(process.pid) < 5
        assert largest > 200 << 20
    finally:
        process.communicate(b"\n")
    assert cpu_seconds(process.pid) == 0


def test_the_gpu_is_read_while_frames_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "1000, 0, 300, 60.5, 40"\necho "[N/A], 0, 300, 60.5, 40"\nsleep 0.3\n'
        'echo "3000, 90, 1980, 300.5, 60"\necho "2000, 70, 1900, 200.5, 61"\nexec sleep 60\n'
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def wait(meter: GpuMeter, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(meter.readings) < count and time.monotonic() < deadline:
            time.sleep(0.02)

    with GpuMeter() as meter:
        wait(meter, 1)
        mark = meter.mark()
        wait(meter, 3)
        found = meter.since(mark)
    assert found == {
        "memory_mib": 3000, "busy": pytest.approx(0.8), "clock_mhz": 1940, "power_w": 250.5, "temperature_c": 61,
    }  # fmt: skip
    assert meter.since(meter.mark()) == {}


def test_without_a_gpu_nothing_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with GpuMeter() as meter:
        assert meter.since(0) == {}


# Tables and pictures


def test_table() -> None:
    about = {"busy_seconds_per_frame": 0.05, "joules_per_frame": 12.3, "memory_mib": 900}
    rows = [
        row(OURS, 20.0, psnr_to_pytorch_db=72.4),
        row("PyTorch", 10.0),
        row("x", 1.0, missing="not there"),
    ]
    del rows[2]["fps"]
    lines = table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "20.00" in lines[2]
    assert "72 dB" in lines[2]
    assert "2.00×" in lines[3]
    assert "not measured: not there" in lines[4]
    assert "VRAM" not in lines[0]
    rows[0]["gpu"] = about
    lines = table(rows).splitlines()
    assert "VRAM" in lines[0]
    assert "12.3" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_two_results_compared() -> None:
    old, new = result(row(OURS, 10.0), row("gone", 1.0))["result"], result(row(OURS, 15.0), row("new", 1.0))["result"]
    text = compared(old, new)
    assert "| 1.50" in text
    assert "gone" not in text
    assert compared(old, result(row("new", 1.0))["result"]) == "The two results have no case in common."


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    sweep = [row(OURS, 400 / w, size=[w, w]) for w in (100, 200, 400)]
    one = result(row(OURS, 20.0), row("PyTorch", 10.0))
    one["result"]["groups"].append({"name": "sweep", "title": "", "rows": sweep})
    draw([one], tmp_path / "one.png")
    draw([one, result(row(OURS, 30.0), gpus=("a GPU",))], tmp_path / "two.png")
    one["result"]["groups"] = one["result"]["groups"][1:]
    draw([one], tmp_path / "curve.png")
    for name in ("one.png", "two.png", "curve.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50
    with pytest.raises(ValueError, match="nothing in these results"):
        draw([result()], tmp_path / "none.png")


def test_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    files = []
    for name, fps in (("old", 10.0), ("new", 12.0)):
        files.append(f"{name}.json")
        Path(files[-1]).write_text(json.dumps(result(row(OURS, fps))))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", *files])
    assert front.main() == 0
    assert "1.20" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--chart", *files])
    assert front.main() == 0
    assert Path("chart.png").stat().st_size > 10_000
    Path("bad.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", "old.json", "bad.json"])
    with pytest.raises(SystemExit, match=r"bad\.json cannot be read as a result"):
        front.main()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--size", "large"])
    with pytest.raises(SystemExit):
        front.main()
    assert "'large' is not a size" in capsys.readouterr().err


# Where the time goes


def test_ceiling_is_above_what_a_loop_reaches() -> None:
    found = ceiling(gpu=False)
    assert 1e9 < found.flops < 1e13
    assert 1e9 < found.bandwidth < 1e12
    assert 0.01 < best(lambda: time.sleep(0.01), lambda: None, times=3) < 0.2


@pytest.mark.slow
def test_anatomy(tiny_model: Path) -> None:
    steps = anatomy.timeline(open_checkpoint(tiny_model), 60, 60)
    assert list(steps)[-1] == "the whole filter"
    assert all(seconds > 0 for seconds in steps.values())
    found = layers("openvino", tiny_model, 60, 60)
    assert found == sorted(found, key=lambda layer: -layer[2])
    kinds = by_kind(found)
    assert {"Convolution", "FullyConnected"} <= {kind for kind, _, _ in kinds}
    assert sum(seconds for _, _, seconds in kinds) == pytest.approx(sum(seconds for _, _, seconds in found))
    with pytest.raises(EngineError):
        layers("tensorrt", tiny_model, 60, 60)


# On a GPU, made of Python

FAKE_GPU = Path(__file__).parents[1] / "engines" / "fake_gpu"


def on_fake_gpu(module: str, *arguments: str, faults: str = "") -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": f"{FAKE_GPU}{os.pathsep}{guard.ROOT}", "FAKE_GPU": faults}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "wanted", "frames"),
    [(1, 0.3, 2), (1, 7.2, 8), (2, 1.3, 4), (2, 4.1, 6), (3, 7, 9), (12, 30, 36), (5, 1e9, 4095)],
)
def test_a_turn_is_a_multiple_of_the_frames_in_flight(depth: int, wanted: float, frames: int) -> None:
    assert turn_length(depth, wanted) == frames


def test_the_harness_on_a_gpu(identity_2x: Path, tmp_path: Path) -> None:
    out = tmp_path / "speed"
    done = on_fake_gpu(
        "benchmarks", "--full", "--groups", "headline", "engines", "--model", str(identity_2x), "--size", "60x60",
        "--rounds", "1", "--seconds", "0.05", "--only", "vapoursynth-mlrt-trt-rtx", "--out", str(out),
    )  # fmt: skip
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
    found = [(name, kind, seconds) for name, kind, seconds in json.loads(done.stdout.splitlines()[-1])]
    assert [name for name, *_ in found] == ["attention_2", "conv_3", "conv_1"]
    assert [(kind, count, round(seconds, 6)) for kind, count, seconds in by_kind(found)] == [
        ("attention", 1, 0.003), ("conv", 2, 0.0025),
    ]  # fmt: skip
    silent = on_fake_gpu("benchmarks.layers", "tensorrt", str(tiny_model), "60x60", faults="silent")
    assert "does not tell how long its layers take" in silent.stderr


# The guard


def test_guard_names_a_commit_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere is not a commit"):
        guard.source_of("nowhere", tmp_path)


@pytest.mark.slow
def test_guard_measures_the_code_of_the_other_commit(tmp_path: Path) -> None:
    """An environment made from changed files runs those, plugin and all, and everything else of this one."""
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=guard.ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in listed.stdout.split():
        if (
            name.startswith(("vsfdatrd/", "pyproject", "README", "LICENSE", "models/"))
            and (guard.ROOT / name).is_file()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((guard.ROOT / name).read_bytes())
    version = source / "vsfdatrd" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "99.'))
    plugin = source / "vsfdatrd" / "_plugin.py"
    plugin.write_text(plugin.read_text() + "\nprint('the changed plugin')\n")
    python = guard.environment(source, tmp_path / "environment")
    script = (
        "import vapoursynth as vs, vsfdatrd; print(vsfdatrd.__version__, vsfdatrd.__file__)\n"
        "clip = vs.core.std.BlankClip(width=60, height=60)\n"
        "try:\n    vs.core.fdatrd.upscale(clip, model='nowhere.pth')\nexcept vs.Error as error:\n    print(error)"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("99.")
    assert str(tmp_path / "environment") in done.stdout.splitlines()[0]
    assert "the changed plugin" in done.stdout + done.stderr
    assert "fdatrd.upscale:" in done.stdout
