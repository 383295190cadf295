"""Selection of backend, precision and device, and the order in which they are tried."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backends.fake_backend import FakeBackend, FakeEngine
from vsfdatrd.backends import selection
from vsfdatrd.backends.base import SlotPool
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import kernels
from vsfdatrd.backends.openvino import backend as openvino
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import (
    ArgumentError,
    EngineBuildError,
    EngineError,
    EngineUnavailable,
    InsufficientMemory,
)
from vsfdatrd.options import BACKENDS, Options

type Backends = dict[str, FakeBackend]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backends]:
    """Every backend replaced by a fake; no GPU, and a processor without AVX2."""
    fakes = {name: FakeBackend() for name in BACKENDS}
    fakes["native"].reason = "the processor has no AVX2"
    monkeypatch.setattr(kernels, "unsupported_reason", lambda: fakes["native"].reason)
    fakes["tensorrt"].reason = "there is no NVIDIA GPU here, or no driver for it"
    monkeypatch.setattr(selection, "import_backend", fakes.__getitem__)
    monkeypatch.setattr(selection, "gpu_count", lambda: 0)
    selection._shared_pools.clear()
    yield fakes
    selection._shared_pools.clear()


@pytest.fixture
def opened(tiny: Checkpoint, tmp_path: Path) -> Callable[..., FakeEngine]:
    """Opens an engine for 50×40 pixels and returns it."""

    def opener(checkpoint: Checkpoint = tiny, **options: object) -> FakeEngine:
        requested = Options(model=str(checkpoint.path), **options)  # type: ignore[arg-type]
        engine = selection.open_engine(checkpoint, 40, 50, requested, EngineCache(tmp_path / "cache")).engine
        assert isinstance(engine, FakeEngine)
        return engine

    return opener


type Opened = Callable[..., FakeEngine]


def test_the_first_precision_is_taken_and_the_frame_padded(backends: Backends, opened: Opened) -> None:
    spec = opened().spec
    assert (spec.height, spec.width, spec.precision, spec.streams) == (60, 60, "fp16", None)
    assert backends["openvino"].built == ["fp16"]
    assert backends["torch"].built == []


def test_the_next_safer_precision_is_tried_with_a_warning(
    backends: Backends, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    backends["openvino"].failing = ("fp16", "bf16")
    assert opened().spec.precision == "fp32"
    assert backends["openvino"].built == ["fp16", "bf16", "fp32"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "openvino with fp16" in warnings[0]
    assert "31.4 dB" in warnings[0]
    assert "next safer precision" in warnings[0]


def test_a_precision_that_strayed_too_far_is_not_built_at_every_start(backends: Backends, opened: Opened) -> None:
    fake = backends["openvino"]
    fake.failing = ("fp16",)
    assert opened().spec.precision == "bf16"
    selection._shared_pools.clear()
    assert opened().spec.precision == "bf16"
    assert fake.built == ["fp16", "bf16"], "a warm start built an engine"
    with pytest.raises(EngineBuildError, match="the fp16 engine agrees"):
        opened(precision="fp16", backend="openvino")  # a backend that is requested by name raises its reason


def test_an_engine_that_could_not_be_built_is_tried_again(
    backends: Backends, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    fake = backends["openvino"]
    fake.breaking = ("fp16",)
    assert opened().spec.precision == "bf16"
    assert "openvino with fp16 did not pass: the compiler ran out of memory. Trying the next safer" in caplog.text
    fake.breaking = ()
    assert opened().spec.precision == "fp16"


def test_when_the_last_precision_fails_it_is_an_error(backends: Backends, opened: Opened, tmp_path: Path) -> None:
    backends["openvino"].failing = ("fp16", "bf16", "fp32")
    with pytest.raises(EngineBuildError, match="the fp32 engine agrees"):
        opened(backend="openvino")
    assert not list((tmp_path / "cache").glob("store-1/engines/*")), "a failed engine is in the cache"


def test_a_precision_asked_for_is_never_replaced(backends: Backends, opened: Opened) -> None:
    backends["openvino"].failing = ("bf16",)
    with pytest.raises(EngineBuildError, match="the bf16 engine agrees"):
        opened(precision="bf16", backend="openvino")
    assert backends["openvino"].built == ["bf16"]


def test_an_engine_that_does_not_load_is_no_reason_for_another_precision(backends: Backends, opened: Opened) -> None:
    backends["openvino"].loading = EngineError("the device is lost")
    with pytest.raises(EngineError, match="the device is lost"):
        opened(backend="openvino")
    assert set(backends["openvino"].built) == {"fp16"}


def test_a_frame_that_does_not_fit_is_refused_before_anything_is_built(backends: Backends, opened: Opened) -> None:
    backends["openvino"].needs = 20 << 30
    backends["openvino"].has = 15 << 30
    with pytest.raises(
        InsufficientMemory, match=r"60×60 .* needs about 20\.0 GiB .* 15\.0 GiB are free; .* tile="
    ) as caught:
        opened(backend="openvino")
    assert not caught.value.divide
    assert backends["openvino"].built == []


def test_auto_takes_another_engine_of_the_cpu_if_the_first_lacks_memory(
    backends: Backends, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    backends["openvino"].needs, backends["openvino"].has = 20 << 30, 15 << 30
    opened()
    assert backends["torch"].built == ["fp16"]
    assert "The openvino engine cannot be used: a frame of 60×60 pixels" in caplog.text
    backends["torch"].needs, backends["torch"].has = 30 << 30, 15 << 30
    with pytest.raises(InsufficientMemory, match=r"needs about 20\.0 GiB"):
        opened()


def test_what_fits_once_only_is_run_once_at_a_time(
    backends: Backends, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    backends["openvino"].needs, backends["openvino"].has = 10 << 30, 15 << 30
    assert opened().spec.streams == 1
    assert "memory for one frame in flight only" in caplog.text
    with pytest.raises(InsufficientMemory, match=r"streams=2 .* needs about 20\.0 GiB .* give fewer streams"):
        opened(streams=2, backend="openvino")
    backends["openvino"].has = 5 << 30
    with pytest.raises(InsufficientMemory, match=r"^a frame .* needs about 10\.0 GiB"):
        opened(streams=2, backend="openvino")


@pytest.mark.parametrize(
    ("backend", "gpus", "divide"),
    [("tensorrt", 1, True), ("torch", 1, True), ("torch", 0, False), ("openvino", 1, False)],
)
def test_parts_are_for_gpus(
    backends: Backends, opened: Opened, monkeypatch: pytest.MonkeyPatch, backend: str, gpus: int, divide: bool
) -> None:
    monkeypatch.setattr(selection, "gpu_count", lambda: gpus)
    backends["tensorrt"].reason = None
    backends[backend].needs = 20 << 30
    with pytest.raises(InsufficientMemory) as caught:
        opened(backend=backend)
    assert caught.value.divide == divide


@pytest.mark.parametrize(
    ("backend", "gpus", "device", "message"),
    [
        ("openvino", 0, (1,), "device 0, the only one here"),
        ("openvino", 4, (1,), "device 0, the only one here"),
        ("torch", 0, (3,), "device 0, the only one here"),
        ("torch", 2, (0, 2), "the 2 GPUs of this machine"),
    ],
)
def test_a_device_that_is_not_there(
    backends: Backends,
    opened: Opened,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    gpus: int,
    device: tuple[int, ...],
    message: str,
) -> None:
    monkeypatch.setattr(selection, "gpu_count", lambda: gpus)
    with pytest.raises(ArgumentError) as caught:
        opened(backend=backend, device=device)
    assert f"device={list(device)} does not exist" in str(caught.value)
    assert f"the {backend} engine can use {message}" in str(caught.value)


def test_every_gpu_there_is_can_be_used(
    backends: Backends, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "gpu_count", lambda: 2)
    options, store = Options(model=str(tiny.path), backend="torch"), EngineCache(tmp_path)
    chosen = ((0,), (1, 0), (1,))
    pools = [selection.open_engine(tiny, 60, 60, replace(options, device=device), store) for device in chosen]
    assert [pool.engine.spec.device for pool in pools if isinstance(pool.engine, FakeEngine)] == list(chosen)
    assert backends["torch"].built == ["fp16"]


def test_a_network_of_one_size_takes_frames_of_at_most_that_size(
    tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(tiny.descriptor), "fixed_size", (60, 80))
    assert [selection.padded_size(tiny.descriptor, *size) for size in ((60, 80), (8, 9))] == [(60, 80)] * 2
    for height, width in ((61, 80), (60, 81)):
        with pytest.raises(ArgumentError, match=rf"and {width}×{height} are more; give tile=\[80, 60\]"):
            selection.padded_size(tiny.descriptor, height, width)


def first(requested: str, checkpoint: Checkpoint) -> str:
    return selection.usable_backends(requested, checkpoint)[0][0]


def test_an_engine_that_lost_a_frame_is_shared_with_nobody_new(
    backends: Backends, tiny: Checkpoint, tmp_path: Path
) -> None:
    def open() -> SlotPool:
        return selection.open_engine(tiny, 50, 40, Options(model=str(tiny.path)), EngineCache(tmp_path))

    first = open()
    assert open() is first
    with first.slot():
        pass
    assert open() is first
    with pytest.raises(EngineError, match="lost"), first.slot():
        raise EngineError("the GPU is lost")
    second = open()
    assert second is not first
    assert open() is second
    with first.slot():  # its holder may continue to try
        pass


def test_auto_takes_openvino_on_a_cpu_and_tensorrt_on_a_gpu(
    backends: Backends, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert first("auto", tiny) == "openvino"
    backends["openvino"].reason = "OpenVINO is not installed; pip install openvino"
    assert first("auto", tiny) == "torch"
    backends["openvino"].reason = None
    monkeypatch.setattr(selection, "gpu_count", lambda: 1)
    assert [name for name, _ in selection.usable_backends("auto", tiny)] == ["torch", "openvino"]
    backends["tensorrt"].reason = None
    assert [name for name, _ in selection.usable_backends("auto", tiny)] == ["tensorrt", "torch", "openvino"]
    backends["torch"].reason = "PyTorch is not installed; pip install 'vsfdatrd[torch]'"
    assert [name for name, _ in selection.usable_backends("auto", tiny)] == ["tensorrt", "openvino"]


def test_auto_goes_on_to_the_next_engine_with_a_warning(
    backends: Backends, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    backends["openvino"].failing = ("fp16", "bf16", "fp32")
    opened()
    assert backends["torch"].built == ["fp16"]
    assert "The openvino engine cannot be used: the fp32 engine agrees" in caplog.text
    backends["torch"].built.clear()
    with pytest.raises(EngineBuildError):
        opened(backend="openvino")
    assert backends["torch"].built == []


def test_no_backend_is_an_error_with_every_reason(backends: Backends, tiny: Checkpoint) -> None:
    backends["openvino"].reason = "OpenVINO is not installed; pip install openvino"
    backends["torch"].reason = "PyTorch is not installed; pip install 'vsfdatrd[torch]'"
    every = r"tensorrt: there is no .*; openvino: OpenVINO is .*; native: .* AVX2; torch: PyTorch is"
    with pytest.raises(EngineUnavailable, match=every):
        selection.usable_backends("auto", tiny)
    with pytest.raises(EngineUnavailable, match="backend='torch' cannot be used here: PyTorch is not installed"):
        selection.usable_backends("torch", tiny)
    assert selection.unavailable_reasons() == {name: fake.reason for name, fake in backends.items()}


@pytest.mark.parametrize(("name", "other"), [("cuda", "tensorrt"), ("native", "openvino")])
def test_a_backend_that_can_run_the_network_is_named(
    backends: Backends, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch, name: str, other: str
) -> None:
    backends[name].reason = None
    monkeypatch.setattr(backends[name], "unsupported_reason", lambda model: "it is not for RGB")
    message = rf"backend='{name}' cannot run 'tiny_2x\.safetensors': it is not for RGB; leave it out, or give {other}$"
    with pytest.raises(EngineUnavailable, match=message):
        selection.usable_backends(name, tiny)


def test_workers_that_nobody_needs_are_ended(
    backends: Backends, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []
    for module in (native, openvino):
        monkeypatch.setattr(module, "shutdown", lambda name=module.__name__: ended.append(name.split(".")[-2]))
    opened()
    assert sorted(ended) == ["native", "openvino"]


def test_warming_up_never_fails(backends: Backends, tiny: Checkpoint) -> None:
    backends["openvino"].loading = EngineError("there is no Python")
    selection.warm_up(tiny.descriptor, "auto")
    selection.warm_up(tiny.descriptor, "torch")
    backends["torch"].reason = "PyTorch is not installed; pip install 'vsfdatrd[torch]'"
    selection.warm_up(tiny.descriptor, "torch")
    assert (backends["openvino"].warm, backends["torch"].warm) == (1, 1)


def test_a_backend_that_cannot_run_the_network_is_not_warmed_up(
    backends: Backends, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_cpu_backends", lambda: ("openvino", "torch"))
    monkeypatch.setattr(backends["openvino"], "unsupported_reason", lambda model: "it is not for RGB")
    selection.warm_up(tiny.descriptor, "auto")
    assert (backends["openvino"].warm, backends["torch"].warm) == (0, 1)


def test_nothing_is_warmed_up_beside_an_open_engine(backends: Backends, tiny: Checkpoint, tmp_path: Path) -> None:
    options, store = Options(model=str(tiny.path), backend="openvino"), EngineCache(tmp_path)
    pool = selection.open_engine(tiny, 60, 60, options, store)
    selection.warm_up(tiny.descriptor, "auto")
    selection.warm_up(tiny.descriptor, "torch")
    assert (backends["openvino"].warm, backends["torch"].warm) == (0, 1)
    pool.failed = True  # the next filter opens another
    selection.warm_up(tiny.descriptor, "openvino")
    pool.failed = False
    del pool
    selection.warm_up(tiny.descriptor, "openvino")
    assert backends["openvino"].warm == 2


def test_filters_share_an_engine_until_the_last_one_lets_go(
    backends: Backends, tiny: Checkpoint, tmp_path: Path
) -> None:
    options, store = Options(model=str(tiny.path)), EngineCache(tmp_path)
    first = selection.open_engine(tiny, 60, 60, options, store)
    second = selection.open_engine(tiny, 31, 45, options, store)
    assert first is second
    assert selection.open_engine(tiny, 61, 60, options, store) is not first
    assert selection.open_engine(tiny, 60, 60, replace(options, streams=1), store) is not first
    engine = first.engine
    assert isinstance(engine, FakeEngine)
    del first
    assert engine.closed == 0
    del second
    assert engine.closed == 1
    assert backends["openvino"].built == ["fp16"] * 2, "streams are no part of this backend's artifact"
