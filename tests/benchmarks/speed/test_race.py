"""Measurements in turns with real processes, and messages about contestants that cannot run."""

import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.errors import Missing
from benchmarks.speed import race as racing
from benchmarks.speed.cases import OURS, Case, Group
from benchmarks.speed.material import drawings
from benchmarks.speed.race import Remote, Runner, Settings, race, steps, turn_length
from benchmarks.speed.table import table
from tests.benchmarks.speed.results import row


@pytest.mark.slow
def test_a_race(identity_2x: Path, tmp_path: Path) -> None:
    """The plugin, its engine, vspipe into ffmpeg, another plugin, PyTorch: the same picture, and a rate for each."""
    ours = Case(OURS, str(identity_2x), (60, 60))
    others = ("PyTorch", "vapoursynth-mlrt-ov", "nnedi3", "vapoursynth-mlrt-trt")
    cases = (
        ours,
        replace(ours, measure="engine"),
        replace(ours, measure="encode"),
        *(replace(ours, contestant=name) for name in others),
    )
    done: list[int] = []
    group = Group("headline", "a test", cases, rounds=2)
    rows = race(group, Settings(0.05, tmp_path), lambda _: None, done.append)
    assert sum(done) == steps(group)
    rated = {row["label"]: row for row in rows if "fps" in row}
    assert list(rated) == [
        "vsfdatrd",
        "vsfdatrd, engine alone",
        "vsfdatrd, vspipe into ffmpeg",
        "PyTorch",
        "vapoursynth-mlrt-ov",
        "nnedi3",
    ]
    for name, result in rated.items():
        fps = result["fps"]
        assert 0 < fps["min"] <= fps["median"] <= fps["max"], name
        assert len(fps["rounds"]) == 2
        assert result["model"] == identity_2x.name
    for name in ("vsfdatrd", "vsfdatrd, engine alone", "vapoursynth-mlrt-ov"):
        assert rated[name]["psnr_to_pytorch_db"] > 50, "less than `auto` promises"  # it may take half precision
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
    (result,) = race(group, Settings(0.05, tmp_path), lambda _: None, lambda _: None)
    assert "fps" not in result
    assert "damaged.safetensors" in result["error"]
    assert str(tmp_path) not in result["error"]


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
    racing._require_memory([runner])
    monkeypatch.setattr("psutil.virtual_memory", Free)
    racing._require_memory([])
    with pytest.raises(Missing, match=r"0\.0 GiB of memory are free"):
        racing._require_memory([runner])


@pytest.mark.parametrize(("noise", "good"), [(0.0, True), (0.5, False)])
def test_garbage_is_no_result(noise: float, good: bool, tmp_path: Path) -> None:
    """A peer that is fast because it computes nonsense has no rate."""
    picture = drawings(60, 60, 1)[0].repeat(2, axis=1).repeat(2, axis=2)
    picture = (picture + np.random.default_rng(0).normal(0, noise, picture.shape)).astype(np.float32)
    case = Case("nnedi3", "medium", (60, 60))
    result = row("nnedi3", 9.0, trained=True, same_network=False)
    racing._compare_pictures([Runner(case, result, Peer(picture))], tmp_path)  # type: ignore[arg-type]
    assert ("fps" in result) == good
    assert ("error" in result) != good


class Peer:
    """The process of a contestant that gives this picture."""

    def __init__(self, picture: NDArray[np.float32]) -> None:
        self._picture = picture

    def ask(self, do: str, file: str) -> bool:
        if not self._picture.size:
            raise RuntimeError(f"its process ended, and {file} is not written")
        np.save(file, self._picture)
        return True


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_networks_of_every_scale_are_results(scale: int, tmp_path: Path) -> None:
    picture = drawings(60, 60, 1)[0].repeat(scale, axis=1).repeat(scale, axis=2)
    result = row(OURS, 9.0, trained=True, same_network=True)
    racing._compare_pictures([Runner(Case(OURS, "mine", (60, 60)), result, Peer(picture))], tmp_path)  # type: ignore[arg-type]
    assert "fps" in result


def test_a_contestant_that_dies_after_its_turns_keeps_its_rate(tmp_path: Path) -> None:
    result = row(OURS, 9.0, trained=True, same_network=True)
    dead = Peer(np.empty(0, np.float32))
    racing._compare_pictures([Runner(Case(OURS, "mine", (60, 60)), result, dead)], tmp_path)  # type: ignore[arg-type]
    assert "fps" in result
    assert result["picture_error"] == "its process ended, and picture_0.npy is not written"


@pytest.mark.parametrize(
    ("depth", "requested", "frames"),
    [(1, 0.3, 2), (1, 7.2, 8), (2, 1.3, 4), (2, 4.1, 6), (3, 7, 9), (12, 30, 36), (5, 1e9, 4095)],
)
def test_a_turn_is_a_multiple_of_the_frames_in_flight(depth: int, requested: float, frames: int) -> None:
    assert turn_length(depth, requested) == frames
