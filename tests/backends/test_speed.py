"""``auto`` selects the engine that was fastest in a measurement on this machine."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.backends.fake_backend import FakeBackend, FakeEngine
from vsfdatrd.backends import selection, speed
from vsfdatrd.backends.base import EngineSpec, FramePlanes, SlotPool
from vsfdatrd.backends.native import backend as native
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineError
from vsfdatrd.options import BACKENDS, Options

type Opened = Callable[..., str]


class Clock:
    """Simulated clock that advances only while a frame is computed, independent of other programs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "time", CLOCK)


class TimedEngine(FakeEngine):
    """An engine that takes a given time for each frame on the simulated clock."""

    def __init__(self, spec: EngineSpec, name: str, seconds: float) -> None:
        super().__init__(spec)
        self.name, self.seconds = name, seconds

    def input(self, slot: int) -> FramePlanes:
        return np.zeros((3, 20, 20), np.float32)

    def collect(self, slot: int) -> FramePlanes:
        if self.seconds < 0:
            raise EngineError("the engine's process ended unexpectedly")
        CLOCK.now += self.seconds
        return np.zeros((3, 40, 40), np.float32)


class TimedBackend(FakeBackend):
    """A backend whose engines take `seconds` for a frame."""

    def __init__(self, name: str, seconds: float) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds
        self.revision = "1.0"
        self.opened: list[tuple[int, int]] = []

    def version(self, device: object = (0,)) -> str:
        return self.revision

    def load(self, spec: EngineSpec, directory: Path) -> TimedEngine:
        if self.loading:
            raise self.loading
        self.opened.append((spec.height, spec.width))
        return TimedEngine(spec, self.name, self.seconds)

    def rest(self) -> None:
        pass


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch) -> dict[str, TimedBackend]:
    """Two backends: OpenVINO is tried first without a measurement, and is much slower than the native one."""
    fakes = {name: TimedBackend(name, 0.03) for name in BACKENDS}
    fakes["native"].seconds = 0.001
    fakes["tensorrt"].reason = "there is no NVIDIA GPU here, or no driver for it"
    monkeypatch.setattr(selection, "import_backend", fakes.__getitem__)
    monkeypatch.setattr(selection, "gpu_count", lambda: 0)
    monkeypatch.setattr(native, "is_preferred_to_openvino", lambda: False)
    monkeypatch.setattr(speed, "MEASURE_SECONDS", 0.02)
    monkeypatch.setattr(speed, "TURN_SECONDS", 0.01)
    selection._shared_pools.clear()
    return fakes


@pytest.fixture
def opened(tiny: Checkpoint, tmp_path: Path) -> Opened:
    """Opens an engine as after a start of the program, and returns the backend's name."""

    def opener(height: int = 40, width: int = 50, **given: Any) -> str:
        selection._shared_pools.clear()
        options = Options(model=str(tiny.path), **given)
        engine = selection.open_engine(tiny, height, width, options, EngineCache(tmp_path / "cache")).engine
        assert isinstance(engine, TimedEngine)
        return engine.name

    return opener


def test_the_fastest_is_taken_and_timed_once(rivals: dict[str, TimedBackend], opened: Opened, tmp_path: Path) -> None:
    assert opened() == "native"
    assert (rivals["native"].opened, rivals["openvino"].opened) == ([(60, 60)], [(60, 60)]), "opened once, not twice"
    rivals["native"].seconds = 0.3
    assert opened() == "native", "it was measured again"
    assert rivals["openvino"].opened == [(60, 60)], "a warm start opens the fastest alone"
    assert rivals["torch"].opened == []
    (line,) = selection.measured_speeds(EngineCache(tmp_path / "cache"))
    assert line.startswith("tiny_2x.safetensors at 60×60: native ")
    assert ", openvino " in line


def test_what_changes_the_speed_is_timed_anew(
    rivals: dict[str, TimedBackend], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FDATRD_MAX_ISA", raising=False)
    opened()
    rivals["native"].seconds = 0.3
    assert opened(80, 90) == "openvino"
    assert opened(streams=1) == "openvino"
    rivals["native"].revision = "2.0"
    assert opened() == "openvino"
    rivals["native"].seconds = 0.0005
    rivals["native"].GRAPH_VERSION = "2"
    assert opened() == "native"
    rivals["native"].seconds = 0.3
    monkeypatch.setenv("FDATRD_MAX_ISA", "avx2")
    assert opened() == "openvino"


def test_a_large_frame_is_timed_by_a_smaller_one(rivals: dict[str, TimedBackend], opened: Opened) -> None:
    assert opened(540, 720) == "native"
    assert rivals["openvino"].opened == [(240, 330)]
    assert rivals["native"].opened == [(240, 330), (540, 720)]
    assert opened(480, 720) == "native"
    assert rivals["openvino"].opened == [(240, 330)], "another large size needs no measurement"


@pytest.mark.parametrize("given", [{"backend": "openvino"}, {"precision": "fp32"}])
def test_what_is_asked_for_is_not_timed(rivals: dict[str, TimedBackend], opened: Opened, given: dict[str, str]) -> None:
    assert opened(**given) == "openvino"
    assert rivals["native"].opened == []


def test_equals_keep_their_order(
    rivals: dict[str, TimedBackend], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "measure_rates", lambda engines: {"openvino": 9.9, "native": 10.0})
    assert opened() == "openvino"


def test_a_gpu_is_not_timed(rivals: dict[str, TimedBackend], opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "gpu_count", lambda: 1)
    rivals["tensorrt"].reason = None
    assert opened() == "tensorrt"
    assert rivals["native"].opened == rivals["openvino"].opened == []


def test_an_engine_that_cannot_be_opened_is_not_tried_at_every_start(
    rivals: dict[str, TimedBackend], opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    rivals["openvino"].loading = EngineError("it does not load")
    assert opened() == "native"
    assert "The openvino engine cannot be used: it does not load" in caplog.text
    rivals["openvino"].loading = None
    assert opened() == "native"
    assert rivals["openvino"].opened == []


def test_a_measurement_that_breaks_leaves_the_order_as_it_is(
    rivals: dict[str, TimedBackend], opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(engines: object) -> dict[str, float]:
        raise EngineError("the engine's process ended unexpectedly")

    monkeypatch.setattr(speed, "measure_rates", broken)
    assert opened() == "openvino"


def test_filters_that_use_an_engine_are_not_disturbed() -> None:
    """Slots in use are waited for, and all are free afterwards."""
    pool = SlotPool(TimedEngine.__new__(TimedEngine))
    pool.engine.name, pool.engine.seconds, pool.engine.spec = "x", 0.001, None  # type: ignore[attr-defined]
    pool.engine.closed = 0  # type: ignore[attr-defined]
    assert speed.measure_rates({"x": pool})["x"] == pytest.approx(1000)
    with pool.slot() as slot:
        assert slot == 0


def _find(folder: str) -> dict[str, Any]:
    def find() -> dict[str, Any]:
        with (Path(folder) / "found").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return {"answer": 42}

    return EngineCache(folder + "/cache").get_or_compute("speed", "0" * 64, "a test", find)


def test_processes_at_once_find_a_thing_out_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(_find, [str(tmp_path)] * 3) == [{"answer": 42}] * 3
    assert (tmp_path / "found").read_text() == "x"
