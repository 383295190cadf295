"""The OpenVINO engine: built, exported, loaded, and refused if its file is damaged."""

import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.engines import run
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.backends.openvino.worker import FILE, compile_settings, last_line
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError


@pytest.fixture(scope="module")
def spec(tiny: Checkpoint) -> EngineSpec:
    return EngineSpec(tiny, 60, 90, "fp32")


@pytest.fixture(scope="module")
def engine_files(spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network, built."""
    directory = tmp_path_factory.mktemp("engine")
    openvino.build(spec, directory)
    return directory


def once(engine: Engine, picture: FramePlanes, slot: int = 0) -> FramePlanes:
    """One frame, sent and collected; the engine is closed."""
    result = run(engine, picture, slot)
    engine.close()
    return result


def expected(checkpoint: Checkpoint, picture: FramePlanes) -> FramePlanes:
    """Run the PyTorch network on a picture."""
    import torch

    with torch.inference_mode():
        result: FramePlanes = checkpoint.network()(torch.from_numpy(picture)[None])[0].numpy()
    return result


def test_it_computes_what_the_network_computes(spec: EngineSpec, engine_files: Path) -> None:
    picture = draw_line_art(60, 90)
    engine = openvino.load(spec, engine_files)
    assert engine.slots == openvino.STREAMS
    assert engine.input(0).shape == (3, 60, 90)
    assert engine.input(0).flags.c_contiguous
    result = once(engine, picture)
    assert result.shape == (3, 120, 180)
    reference = expected(spec.checkpoint, picture)
    assert reference.std() > 0.1
    np.testing.assert_allclose(result, reference, atol=2e-5 * np.abs(reference).max())


def test_the_artifact_is_the_exported_model_alone(engine_files: Path) -> None:
    assert [file.name for file in engine_files.iterdir()] == [FILE]


def test_an_engine_runs_frame_after_frame(spec: EngineSpec, engine_files: Path) -> None:
    engine = openvino.load(spec, engine_files)
    first, second = draw_line_art(60, 90), draw_line_art(60, 90)[:, ::-1]
    results = []
    for picture in (first, second, first):
        np.copyto(engine.input(0), picture)
        engine.submit(0)
        results.append(engine.collect(0).copy())
    engine.close()
    np.testing.assert_array_equal(results[0], results[2])
    assert np.abs(results[0] - results[1]).max() > 0.1


def test_two_streams_give_what_one_gives(spec: EngineSpec, engine_files: Path, tmp_path: Path) -> None:
    pictures = [draw_line_art(60, 90), draw_line_art(60, 90)[:, :, ::-1]]
    alone = [once(openvino.load(spec, engine_files), picture) for picture in pictures]
    two = replace(spec, streams=2)
    openvino.build(two, tmp_path)
    engine = openvino.load(two, tmp_path)
    assert engine.slots == 2
    for slot, picture in enumerate(pictures):
        np.copyto(engine.input(slot), picture)
        engine.submit(slot)
    for slot in (1, 0):
        np.testing.assert_allclose(engine.collect(slot), alone[slot], atol=1e-5 * np.abs(alone[slot]).max())
    engine.close()


@pytest.mark.parametrize("damage", ["truncated", "random bytes", "empty", "missing", "flipped"])
def test_a_damaged_engine_is_an_error_and_nothing_worse(
    spec: EngineSpec, engine_files: Path, tmp_path: Path, damage: str
) -> None:
    data = (engine_files / FILE).read_bytes()
    match damage:
        case "truncated":
            (tmp_path / FILE).write_bytes(data[: len(data) // 2])
        case "random bytes":
            (tmp_path / FILE).write_bytes(np.random.default_rng(1).bytes(len(data)))
        case "empty":
            (tmp_path / FILE).touch()
        case "flipped":  # in the description of the network, before the weights
            broken = bytearray(data)
            broken[16:64] = b"\xff" * 48
            (tmp_path / FILE).write_bytes(broken)
    with pytest.raises(EngineError) as caught:
        openvino.load(spec, tmp_path)
    assert "Traceback" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    once(openvino.load(spec, engine_files), draw_line_art(60, 90))  # the next one starts as if nothing had been


def test_a_network_that_cannot_be_compiled_is_a_build_error(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nonsense:
        def ByteSize(self) -> int:  # noqa: N802
            return 8

        def SerializeToString(self, deterministic: bool) -> bytes:  # noqa: N802
            return b"no graph"

    monkeypatch.setattr(openvino, "create_graph", lambda *_: Nonsense())
    with pytest.raises(EngineBuildError, match="OpenVINO could not compile the network"):
        openvino.build(spec, tmp_path)
    assert not list(tmp_path.iterdir()), "the graph is left behind"


def test_a_process_that_dies_while_building_is_a_build_error(spec: EngineSpec, tmp_path: Path) -> None:
    openvino._standby.start()._process.kill()
    with pytest.raises(EngineBuildError, match=r"ended unexpectedly \(signal 9\)"):
        openvino.build(spec, tmp_path)
    assert not list(tmp_path.iterdir())
    openvino.build(spec, tmp_path)


def test_unavailable_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    assert openvino.unavailable() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert openvino.unavailable() == "OpenVINO is not installed; pip install openvino"


def test_the_processor_is_part_of_the_identity(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vsfdatrd.backends import selection
    from vsfdatrd.options import Options

    keys: list[Key] = []

    class Noting(EngineCache):
        def open[T](self, key: Key, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
            keys.append(key)
            return super().open(key, build, load)

    options = Options(model=str(spec.checkpoint.path), backend="openvino", precision="fp32")
    selection.open_engine(spec.checkpoint, 55, 90, options, Noting(tmp_path)).engine.close()
    key = keys[0]
    assert openvino.version() in key.engine
    assert openvino.version()[0].isdigit()
    assert key.device == openvino.device_name(spec)
    assert "FP32" in key.device
    assert (key.shape, key.precision, key.graph) == ("90x60", "fp32", openvino.GRAPH_VERSION)
    monkeypatch.setattr(openvino, "version", lambda device: "1999.1.0")
    selection.open_engine(spec.checkpoint, 55, 90, options, Noting(tmp_path)).engine.close()
    assert keys[1].digest != key.digest


def test_precisions_end_with_fp32_and_hold_what_the_processor_has(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    abilities = openvino._standby.describe()["abilities"]
    result = openvino.precisions(tiny)
    assert result[-1] == "fp32"
    assert ("bf16" in result, "fp16" in result) == ("BF16" in abilities, "FP16" in abilities)
    monkeypatch.setattr(openvino._standby, "_about", {"name": "some Xeon", "abilities": ["BF16", "FP16", "FP32"]})
    assert openvino.precisions(tiny) == ("bf16", "fp16", "fp32")


def test_memory_grows_with_frame_and_streams(spec: EngineSpec) -> None:
    needed, free = openvino.memory_estimate(replace(spec, streams=1))
    assert 0 < needed < free
    large = replace(spec, height=600, width=900, streams=1)
    sizes = [openvino.memory_estimate(it)[0] - openvino.PROCESS_BYTES for it in (large, replace(large, streams=3))]
    assert 50 < sizes[0] / (needed - openvino.PROCESS_BYTES) <= 100
    assert sizes[1] == pytest.approx(3 * sizes[0], rel=0.05)


# Peak resident MiB of the engine's process, measured.
@pytest.mark.parametrize(
    ("height", "width", "streams", "measured"),
    [(240, 240, 1, 294), (240, 240, 2, 426), (480, 480, 1, 540), (540, 720, 1, 766), (540, 720, 2, 1339)],
)
def test_memory_of_medium_is_estimated_as_measured(
    shared: Path, height: int, width: int, streams: int, measured: int
) -> None:
    medium = open_checkpoint(shared / "weights/fdat_rd_medium_2x_standin.safetensors")
    needed, _ = openvino.memory_estimate(EngineSpec(medium, height, width, "fp32", streams=streams))
    assert measured <= needed / 2**20 <= 1.4 * measured


def test_one_stream_where_memory_is_short(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def machine(total: int) -> None:
        memory = psutil.virtual_memory()._replace(total=total)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    large = replace(spec, height=3000, width=3000)
    one, two = (openvino.memory_estimate(replace(large, streams=streams))[0] for streams in (1, 2))
    machine(2 * two)
    assert openvino.memory_estimate(large)[0] == two
    machine(2 * two - 1)
    assert openvino.memory_estimate(large)[0] == one
    assert openvino.memory_estimate(replace(large, streams=2))[0] == two, "what was asked for is not changed"


def test_settings_use_all_cores_for_one_frame_and_exact_arithmetic() -> None:
    assert compile_settings("fp32", 1)["INFERENCE_PRECISION_HINT"] == "f32"
    assert compile_settings("bf16", 2) == {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": "2",
        "INFERENCE_PRECISION_HINT": "dynamic",
    }


def test_reasons_are_the_last_line_that_says_something() -> None:
    assert last_line(RuntimeError("Exception from src/a.cpp:1:\nCheck failed\n\n  it is too large \n")) == (
        "it is too large"
    )
    assert last_line(RuntimeError()) == "RuntimeError"


@pytest.mark.slow
def test_half_precision_agrees_with_fp32_on_a_real_frame(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    medium = open_checkpoint(shared / "weights/fdat_rd_medium_2x_standin.safetensors")
    half = [name for name in openvino.precisions(medium) if name != "fp32"]
    if not half:
        pytest.skip("this CPU has instructions for neither bf16 nor fp16")
    with Image.open(shared / "data/eval/morevna_sita.webp") as image:
        pixels = np.asarray(image.convert("RGB").crop((510, 330, 570, 390)), np.float32)
    picture = (pixels / np.float32(255)).transpose(2, 0, 1)
    results = {}
    with caplog.at_level(logging.INFO):
        for precision in (half[0], "fp32"):
            spec = EngineSpec(medium, 60, 60, precision)
            directory = tmp_path / precision
            directory.mkdir()
            openvino.build(spec, directory)
            results[precision] = once(openvino.load(spec, directory), picture)
    assert f"{half[0]} agrees with fp32 to" in caplog.text
    assert check_psnr(results["fp32"], results[half[0]], half[0]) >= 50
    assert np.abs(results["fp32"] - results[half[0]]).max() > 0, "it was computed in fp32 after all"


def test_its_process_starts_without_what_it_does_not_need() -> None:
    """No converter, no telemetry, no architectures; the converter can still be loaded afterwards."""
    script = (
        "import sys, vsfdatrd.backends.openvino.worker\n"
        "print([name for name in sys.modules if 'telemetry' in name or 'ovc' in name or 'archs.registry' in name])\n"
        "from openvino.tools.ovc import convert_model"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
