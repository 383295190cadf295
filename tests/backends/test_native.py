"""The native engine: built, loaded, run, and chosen."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from tests.backends.closeness import decibels, run_network
from tests.engines import run
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig
from vsfdatrd.backends import reference, selection, weights_file
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import kernels, worker
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import EngineBuildError, EngineError, EngineUnavailable
from vsfdatrd.options import Options

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2")


@pytest.fixture(scope="module")
def spec(tiny: Checkpoint) -> EngineSpec:
    return EngineSpec(tiny, 60, 90, "int16")


@pytest.fixture(scope="module")
def engine_files(spec: EngineSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("native")
    native.build(spec, directory)
    return directory


@pytest.mark.parametrize("streams", [None, 1, 3])
def test_an_engine_runs_frame_after_frame(
    tiny: Checkpoint, spec: EngineSpec, engine_files: Path, streams: int | None
) -> None:
    engine = native.load(replace(spec, streams=streams), engine_files)
    try:
        assert engine.slots == (streams or 2)
        first, second = draw_line_art(60, 90), np.ascontiguousarray(draw_line_art(60, 90)[:, ::-1])
        results = [run(engine, picture, slot % engine.slots) for slot, picture in enumerate((first, second, first))]
        config = tiny.descriptor.config
        assert isinstance(config, FdatRdConfig)
        for picture, result in zip((first, second, first), results, strict=True):
            assert decibels(result, run_network(config, tiny.tensors(), picture)) > 60
    finally:
        engine.close()


def test_frames_in_flight_together_do_not_meet(spec: EngineSpec, engine_files: Path) -> None:
    engine = native.load(replace(spec, streams=2), engine_files)
    try:
        pictures = [draw_line_art(60, 90), np.ascontiguousarray(draw_line_art(60, 90)[:, ::-1])]
        alone = [run(engine, picture) for picture in pictures]
        for slot, picture in enumerate(pictures):
            np.copyto(engine.input(slot), picture)
        for slot in (0, 1):
            engine.submit(slot)
        for slot in (1, 0):
            assert np.array_equal(engine.collect(slot), alone[slot])
    finally:
        engine.close()


def test_a_closed_engine_says_so(spec: EngineSpec, engine_files: Path) -> None:
    engine = native.load(spec, engine_files)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.submit(0)


def test_the_log_names_the_instructions(spec: EngineSpec, engine_files: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "vsfdatrd"):
        native.load(spec, engine_files).close()
    assert f"the native engine uses {kernels.instruction_set()}" in caplog.text


def test_the_artifact_is_the_weights_alone(engine_files: Path) -> None:
    assert [file.name for file in engine_files.iterdir()] == [weights_file.FILE]


def test_weights_are_stored_without_loss(
    engine_files: Path, tmp_path: Path, make_tensors: Callable[..., dict[str, np.ndarray[Any, Any]]]
) -> None:
    tensors = make_tensors()
    name, bias = "conv_after.weight", next(name for name in tensors if name.endswith(".bias"))
    assert not np.array_equal(tensors[name].astype(np.float16), tensors[name])
    exact = {**tensors, name: np.sign(tensors[name]), bias: np.full_like(tensors[bias], 1e6)}
    sizes = []
    for stored in (tensors, exact):
        weights_file.write_weights(tmp_path, stored)
        sizes.append((tmp_path / weights_file.FILE).stat().st_size)
        _, result = weights_file.read_weights(tmp_path, "native")
        assert result.keys() == stored.keys()
        for key, tensor in stored.items():
            assert result[key].dtype == tensor.dtype
            assert np.array_equal(result[key], tensor), key
    assert sizes[0] - sizes[1] > tensors[name].nbytes * 0.45  # half of it, but for the header


def test_damaged_weights_are_a_sentence(spec: EngineSpec, engine_files: Path, tmp_path: Path) -> None:
    whole = (engine_files / weights_file.FILE).read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"x" * 1000):
        (tmp_path / weights_file.FILE).write_bytes(content)
        with pytest.raises(EngineError, match="weights cannot be read"):
            native.load(spec, tmp_path)


def test_every_tensor_is_compared_with_the_architecture(engine_files: Path, tmp_path: Path) -> None:
    """A kernel that is given a smaller array than it takes would read beyond it."""
    tensors: dict[str, np.ndarray[Any, Any]] = load_file(engine_files / weights_file.FILE)
    assert len(tensors) > 40

    def refused(changed: dict[str, np.ndarray[Any, Any]]) -> bool:
        save_file(changed, tmp_path / weights_file.FILE)
        with pytest.raises(EngineError, match="weights cannot be read: "):
            worker._load_weights(str(tmp_path))
        return True

    for name, tensor in tensors.items():
        for axis in range(tensor.ndim):
            shorter = np.delete(tensor, -1, axis)
            assert refused({**tensors, name: shorter}), (name, axis)
        assert refused({**tensors, name: tensor[None]})
        assert refused({other: values for other, values in tensors.items() if other != name})
        if name != META_UPSAMPLE:
            assert refused({**tensors, name: tensor.astype(np.int32)})
    meta = tensors[META_UPSAMPLE]
    for place in range(len(meta)):
        for value in (np.nan, np.inf, -1.0, 0.0, 99.0):
            changed = meta.astype(np.float64)
            changed[place] = value
            save_file({**tensors, META_UPSAMPLE: changed}, tmp_path / weights_file.FILE)
            with contextlib.suppress(EngineError):  # some numbers mean nothing to this network
                worker._load_weights(str(tmp_path))


def test_another_networks_weights_are_refused(
    spec: EngineSpec, tmp_path: Path, make_tensors: Callable[..., dict[str, Any]]
) -> None:
    save_file(make_tensors(tail_scale=4), tmp_path / weights_file.FILE)
    with pytest.raises(EngineError, match="belongs to another network"):
        native.load(spec, tmp_path)


def test_an_engine_that_strays_is_not_built(spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another(graph: Path, target: Path, sky: Path) -> int:
        with target.open("wb") as file:
            np.save(file, np.zeros((3, 240, 360), np.float16))
        return 0

    monkeypatch.setattr(reference, "compute_reference", another)
    with pytest.raises(EngineBuildError, match=r"agrees with fp32 to .* dB only"):
        native.build(spec, tmp_path)


def test_an_engine_whose_sky_has_bands_is_not_built(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through = reference.compute_reference
    monkeypatch.setattr(reference, "compute_reference", lambda *files: 2 * through(*files))
    with pytest.raises(EngineBuildError, match=r"leaves \d+ of a sky's \d+ steps of ten bits, which shows as bands"):
        native.build(spec, tmp_path)


@pytest.mark.parametrize(("physical", "cores"), [(4, 4), (16, 8), (None, 8)])
def test_all_cores_are_used_where_the_system_does_not_tell_physical_ones(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, cores: int
) -> None:
    monkeypatch.setattr(native, "usable_cpus", lambda: list(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    assert native._physical_cores() == cores


@pytest.mark.parametrize(
    ("cores", "memory", "streams"),
    [(1, 64, 2), (2, 64, 2), (8, 64, 2), (16, 64, 4), (64, 64, 8), (64, 8, 4), (2, 1, 1)],
)
def test_frames_in_flight_go_by_cores_and_memory(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, cores: int, memory: int, streams: int
) -> None:
    monkeypatch.setattr(native, "_physical_cores", lambda: cores)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory << 30))
    assert native._stream_count(EngineSpec(tiny, 1080, 1440, "int16")) == streams


@pytest.mark.parametrize("size", [(60, 90), (120, 300)])
def test_memory_is_estimated(tiny: Checkpoint, size: tuple[int, int]) -> None:
    needed, free = native.memory_estimate(EngineSpec(tiny, *size, "int16"))
    assert 0 < needed < free
    more, _ = native.memory_estimate(EngineSpec(tiny, *size, "int16", streams=8))
    assert more > needed


# ---- which engine runs ---------------------------------------------------------------------------------------------


def names(requested: str, checkpoint: Checkpoint) -> list[str]:
    return [name for name, _ in selection.usable_backends(requested, checkpoint)]


def set_instructions(monkeypatch: pytest.MonkeyPatch, *available: str) -> None:
    for name in ("avx512", "vnni"):
        monkeypatch.setattr(kernels, f"has_{name}", lambda name=name: name in available)


def test_it_comes_first_where_openvino_has_no_better_instructions(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "gpu_count", lambda: 0)
    for available in ("", "avx512 vnni"):
        set_instructions(monkeypatch, *available.split())
        assert names("auto", tiny)[:2] == ["native", "openvino"]
    set_instructions(monkeypatch, "avx512")
    assert names("auto", tiny)[:2] == ["openvino", "native"]
    monkeypatch.setattr(kernels, "unsupported_reason", lambda: "the processor has no AVX2")
    assert "native" not in names("auto", tiny)
    with pytest.raises(EngineUnavailable, match="no AVX2"):
        names("native", tiny)


def test_networks_it_cannot_run_go_to_others(identity_2x: Path) -> None:
    other = open_checkpoint(identity_2x)
    assert "native" not in names("auto", other)
    with pytest.raises(EngineUnavailable, match="pixelshuffledirect, 2 times"):
        names("native", other)


def test_a_wish_for_fp32_goes_to_another_engine(
    tiny: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool = selection.open_engine(tiny, 60, 60, Options(precision="fp32"), EngineCache(tmp_path))
    assert not caplog.records
    del pool
    assert [entry.fields["engine"].split()[0] for entry in EngineCache(tmp_path).entries()] == ["openvino"]


def test_a_wish_for_integers_goes_to_it_wherever_it_stands(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "is_preferred_to_openvino", lambda: False)
    selection.open_engine(tiny, 60, 60, Options(precision="int16"), EngineCache(tmp_path))
    assert [entry.fields["engine"].split()[0] for entry in EngineCache(tmp_path).entries()] == ["native"]


def test_one_artifact_serves_every_size(tiny: Checkpoint, tmp_path: Path) -> None:
    store, options = EngineCache(tmp_path), Options(backend="native")
    small = selection.open_engine(tiny, 60, 60, options, store)
    large = selection.open_engine(tiny, 90, 120, options, store)
    assert small.engine.input(0).shape == (3, 60, 60)
    assert large.engine.input(0).shape == (3, 90, 120)
    assert selection.open_engine(tiny, 60, 60, options, store) is small
    (entry,) = store.entries()
    assert entry.fields["shape"] == "any"
