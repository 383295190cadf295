"""Products with Intel AMX: a model of the instructions gives the same sums as the other kernels, to the last bit."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.amx_model import ModelLibrary, compile_model, disassembly, missing_instructions
from tests.backends.packed_matrix import integers_of
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native import amx, kernels
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import threads as native_threads
from vsfdatrd.backends.native.kernels import (
    MAX_QUANTIZED,
    KernelArrays,
    Matrix,
    allocate_scratch,
    c_function,
    nonzero_blocks,
)
from vsfdatrd.backends.native.network import FrameContext, Weights
from vsfdatrd.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2"),
    pytest.mark.skipif(sys.platform != "linux", reason="AMX is used on Linux only"),
]

type MakeConfig = Callable[..., FdatRdConfig]
type Maker = Callable[..., dict[str, NDArray[Any]]]
type Switch = Callable[[bool], ModelLibrary]


@pytest.fixture(scope="module", params=["avx2", "vnni"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModelLibrary:
    """The kernels with the model: on a processor without AVX-512, all else is as with AVX2."""
    if request.param == "vnni" and not kernels.has_vnni():
        pytest.skip("the processor has no VNNI, or may not use it")
    return ModelLibrary(compile_model(tmp_path_factory.mktemp("amx"), request.param == "vnni"), request.param == "vnni")


@pytest.fixture
def switch(model: ModelLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """A function that turns the model on or off."""
    monkeypatch.setattr(kernels, "load_library", lambda: model)
    monkeypatch.setattr(kernels, "has_vnni", lambda: model.vnni)

    def turn(on: bool) -> ModelLibrary:
        monkeypatch.setattr(kernels, "uses_amx", lambda: on)
        c_function.cache_clear()
        return model

    yield turn
    c_function.cache_clear()


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use AMX for every panel that is not zero, whatever it is expected to cost."""
    monkeypatch.setattr(amx, "BLOCK_COST", 0)
    monkeypatch.setattr(amx, "PANEL_COST", 0)


def packed(integers: NDArray[np.int16], own: KernelArrays) -> Matrix:
    """A matrix of these integers (columns, inner), which no weights need to become."""
    columns, inner = integers.shape
    # (columns, inner) -> (columns / 16, inner / 2, 16, 2)
    panels = own.keep_alive(np.ascontiguousarray(integers.reshape(-1, 16, inner // 2, 2).transpose(0, 2, 1, 3)))
    spans, bounds = map(own.keep_alive, nonzero_blocks(integers.astype(np.float32)))
    blocks = amx.blocks_of(panels, spans, bounds)
    scale = own.floats(np.ones(columns))
    arrays = (blocks.data, blocks.rows, blocks.bounds)
    pointers = (own.keep_alive(array).ctypes.data for array in (spans, bounds, *arrays))
    return Matrix(panels.ctypes.data, scale.ctypes.data, inner, columns, *pointers)


EXTREMES = [-32768, -32767, -32641, -32640, -256, -255, -129, -128, -1, 0, 1, 127, 128, 255, 256, 32639, 32640, 32767]
"""Both bytes at the ends of their ranges, with and without a sign."""


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("inner", [16, 32, 48, 64, 80, 96, 112, 128, 144, 192, 384, 1008, 1024])
@pytest.mark.parametrize("share", [0.3, 1.0])
def test_sums_are_exact(inner: int, share: float, switch: Switch) -> None:
    """Every length of a product, every number of rows, blocks of zeros, and integers at the ends of their range."""
    random = np.random.default_rng(inner)
    there = np.kron(random.random((3, inner // 8)) < share, np.ones((16, 8))).astype(bool)
    there[:16, :8] = True
    for values in (EXTREMES, np.arange(-32768, 32768)):
        own = KernelArrays()
        integers = np.where(there, random.choice(values, (48, inner)), 0).astype(np.int16)
        matrix = packed(integers, own)
        for rows in (6, 12, 30, 36, 66, 300):
            a = random.choice(values, (rows, inner)).astype(np.int16)
            before = switch(True).products
            results = np.zeros((2, rows, 48), np.int32)
            for on, result in zip((True, False), results, strict=True):
                switch(on)
                c_function("sums")(a, rows, matrix, result)
            assert (switch(True).products > before) == (rows >= 15)
            expected = a.astype(np.int64) @ integers.astype(np.int64).T
            np.testing.assert_array_equal(results[0], (expected & 0xFFFFFFFF).astype(np.uint32).view(np.int32))
            np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("value", [-32768, 32767, 128, 255, -1, -256])
def test_one_value_everywhere(value: int, switch: Switch) -> None:
    """All products at once at the end of a range: no sum of bytes overflows."""
    own = KernelArrays()
    matrix = packed(np.full((16, 1024), value, np.int16), own)
    for other in (-32768, 32767, 128, 255):
        a, result = np.full((30, 1024), other, np.int16), np.zeros((30, 16), np.int32)
        before = switch(True).products
        c_function("sums")(a, 30, matrix, result)
        assert switch(True).products == before + 2 * 16 * 4
        assert (result.view(np.uint32) == (1024 * value * other) % 2**32).all()


@pytest.mark.parametrize("rows", [6, 30, 36, 60, 300])
def test_products_are_equal(rows: int, switch: Switch) -> None:
    """As floats, with the scales of weights, some of whose panels are multiplied without AMX and some are zero."""
    random, own = np.random.default_rng(2), KernelArrays()
    weights = random.standard_normal((80, 128)).astype(np.float32)
    weights[16:32, 8:] = 0
    weights[32:48] = 0
    a = random.integers(-MAX_QUANTIZED, MAX_QUANTIZED, (rows, 128), endpoint=True).astype(np.int16)
    steps = random.random(rows, np.float32)
    results = np.zeros((2, rows, 80), np.float32)
    for on, result in zip((True, False), results, strict=True):
        before = switch(on).products
        c_function("multiply")(a, steps, rows, own.matrix(weights), result)
        assert switch(on).products - before == on * (rows // 30) * 2 * 3 * 2 * 4  # three panels of two blocks
    np.testing.assert_array_equal(*results)
    integers, scale = integers_of(own.matrix(weights))
    sums = (a.astype(np.int64) @ integers.astype(np.int64).T).astype(np.float32)
    np.testing.assert_array_equal(results[0], sums * (scale * steps[:, None]))


def test_panels_with_many_zeros_are_left_to_other_instructions() -> None:
    weights = np.zeros((96, 128), np.float32)
    weights[16:32, :16] = 1  # a quarter of a block
    weights[32:48, :64] = 1
    weights[48:64, 64:] = 1
    weights[64:80] = 1
    weights[80:96, ::64] = 1  # eight rows of either block
    own = KernelArrays()
    matrix = own.matrix(weights, for_amx=True)
    panels = integers_of(matrix)[0].reshape(6, 16, 64, 2).transpose(0, 2, 1, 3)
    blocks = amx.blocks_of(panels, *nonzero_blocks(weights))
    assert blocks.bounds.tolist() == [0, 0, 0, 1, 2, 4, 4]
    assert blocks.rows.tolist() == [0, 1, 0, 1]
    assert blocks.data.shape == (4, 2, 16, 64)
    assert blocks.data.ctypes.data % 64 == 0
    assert own.matrix(weights, for_amx=False).block_bounds is None


def guarded(guards: list[NDArray[np.uint8]]) -> Callable[..., NDArray[np.uint8]]:
    """Scratch memory of exactly the size that is asked for, with a guard behind it."""

    def allocate(*arguments: int) -> NDArray[np.uint8]:
        length = kernels.scratch_bytes(*arguments)
        buffer = np.full(length + (1 << 20) + 64, 0xA5, np.uint8)
        start = -buffer.ctypes.data % 64
        guards.append(buffer[start + length :])
        return buffer[start : start + length]

    return allocate


def of_both(
    config: FdatRdConfig,
    tensors: dict[str, NDArray[Any]],
    picture: FramePlanes,
    switch: Switch,
    monkeypatch: pytest.MonkeyPatch,
    threads: int = 1,
) -> tuple[FramePlanes, FramePlanes]:
    """What the kernels make of a picture, with the model and without."""
    _, height, width = picture.shape
    results, guards = list[FramePlanes](), list[NDArray[np.uint8]]()
    monkeypatch.setattr(native_threads, "allocate_scratch", guarded(guards))
    for on in (True, False):
        before = switch(on).products
        result = np.full((3, height * config.scale, width * config.scale), np.nan, np.float32)
        FrameContext(Weights(config, tensors), height, width, threads).run(np.ascontiguousarray(picture), result)
        assert (switch(on).products > before) is on
        assert np.isfinite(result).all()
        results.append(result)
    assert guards
    assert all((guard == 0xA5).all() for guard in guards)
    one, other = results
    return one, other


SHAPES: tuple[tuple[dict[str, Any], tuple[int, int]], ...] = (
    ({}, (30, 30)),
    ({}, (60, 90)),  # rows of 90: a block of 60 and one of 30
    ({"unshuffle": 2, "tail_scale": 4}, (60, 120)),
    ({"unshuffle": 1, "tail_scale": 4}, (60, 60)),
    ({"embed_dim": 96, "heads": 3, "dict_tokens": 64, "ffn_dim": 192, "gate_dim": 12}, (60, 60)),  # as in small
    ({"embed_dim": 192, "heads": 6, "dict_tokens": 256, "ffn_dim": 384, "gate_dim": 24}, (30, 60)),  # as in large
    ({"groups": (("spatial", "spatial"), ("dictionary", "channel"), ("channel",))}, (60, 60)),
    ({"dict_tokens": 16}, (30, 60)),
)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize(("changes", "size"), SHAPES, ids=str)
def test_a_network_computes_the_same_picture(
    make_config: MakeConfig,
    make_tensors: Maker,
    changes: dict[str, Any],
    size: tuple[int, int],
    switch: Switch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the last bit, without leaving its scratch memory."""
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    np.testing.assert_array_equal(*of_both(config, tensors, draw_line_art(*size), switch, monkeypatch))


def test_panels_are_chosen_one_by_one(
    make_config: MakeConfig, make_tensors: Maker, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a real processor: panels that are expected to be slower with AMX are multiplied without."""
    changes = {"embed_dim": 96, "heads": 3, "ffn_dim": 192, "gate_dim": 12}
    config, tensors = make_config(**changes), make_tensors(3, **changes)
    np.testing.assert_array_equal(*of_both(config, tensors, draw_line_art(60, 60), switch, monkeypatch))


def test_every_thread_has_tiles_of_its_own(
    make_config: MakeConfig, make_tensors: Maker, switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only sums over the frame are put together in another order, as without AMX."""
    changes = {"embed_dim": 96, "heads": 3, "ffn_dim": 192, "gate_dim": 12}
    config, tensors = make_config(**changes), make_tensors(5, **changes)
    one, other = of_both(config, tensors, draw_line_art(60, 60), switch, monkeypatch, threads=3)
    assert np.sqrt(np.mean((one - other) ** 2)) < 1e-4 * other.std()


@pytest.mark.parametrize("channels", [32, 96])
@pytest.mark.parametrize("width", [30, 60, 90])
@pytest.mark.usefixtures("everywhere")
def test_convolutions_are_equal(channels: int, width: int, switch: Switch) -> None:
    """Both forms, at every edge, with a matrix of zeros among them."""
    random = np.random.default_rng(width)
    t, more = (random.standard_normal((30 * width, channels)).astype(np.float32) for _ in range(2))
    weights = random.standard_normal((16, channels, channels))
    weights[5] = 0
    results = np.full((2, 2, 30 * width, channels), np.nan, np.float32)
    for on, (conv, winograd) in zip((True, False), results, strict=True):
        switch(on)
        own, s = KernelArrays(), allocate_scratch(width, channels, 64, 32)
        matrices = own.matrices(list(weights))
        c_function("conv")(t, more, conv, 30, width, 0, 30, matrices, s)
        c_function("winograd")(t, more, winograd, 30, width, 0, 15, matrices, s)
    assert np.isfinite(results).all()
    np.testing.assert_array_equal(*results)


def test_the_shipped_weights_compute_the_same_picture(switch: Switch, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = open_checkpoint(Path(__file__).parents[2] / "models" / "fdat_rd_small_2x.safetensors")
    config = checkpoint.descriptor.config
    assert isinstance(config, FdatRdConfig)
    np.testing.assert_array_equal(*of_both(config, checkpoint.tensors(), draw_line_art(60, 60), switch, monkeypatch))


# ---- which instructions are used -----------------------------------------------------------------------------------


class Clock:
    """Time that passes by a step with each question: the first product takes one, the second the other."""

    def __init__(self, *steps: float) -> None:
        self.steps, self.now, self.asked = steps, 0.0, 0

    def perf_counter(self) -> float:
        if self.asked % 2:
            self.now += self.steps[self.asked // 2 % len(self.steps)]
        self.asked += 1
        return self.now


@pytest.fixture
def asked(model: ModelLibrary, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelLibrary]:
    """The model on a processor that has AMX, before anybody has asked whether to use it."""
    if not model.vnni:
        pytest.skip("processors with AMX have VNNI")
    monkeypatch.setattr(kernels, "load_library", lambda: model)
    kernels.amx_unused_reason.cache_clear()
    c_function.cache_clear()
    yield model
    model.permitted = 1
    kernels.amx_unused_reason.cache_clear()
    c_function.cache_clear()


def test_amx_is_used_if_it_is_right_and_fast(asked: ModelLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "time", Clock(1e-6, 2e-6))
    assert kernels.uses_amx()
    assert asked.products > 0
    assert kernels.instructions_in_use() == "AVX-512 VNNI and AMX"
    assert KernelArrays().matrix(np.ones((64, 64))).block_bounds is not None
    assert native.version().endswith("AVX-512 VNNI AMX")
    assert native.device_name(SimpleNamespace()) == "AVX-512 VNNI", "the same image"  # type: ignore[arg-type]


def test_slow_products_are_not_used(asked: ModelLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "time", Clock(2e-6, 2e-6))
    assert not kernels.uses_amx()
    assert re.fullmatch(r"a product takes 2\.0 instead of 2\.0 µs", kernels.amx_unused_reason() or "")
    assert KernelArrays().matrix(np.ones((64, 64))).block_bounds is None


def test_wrong_sums_are_not_used(asked: ModelLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels._kernel

    def wrong(name: str) -> Callable[..., None]:
        def call(a: Any, rows: int, matrix: Matrix, result: NDArray[np.int32]) -> None:
            right(name)(a, rows, matrix, result)
            result[-1, -1] += name.startswith("fdatrd_amx")

        return call if name.endswith("_sums") else right(name)

    monkeypatch.setattr(kernels, "_kernel", wrong)
    assert kernels.amx_unused_reason() == "its sums differ from those of AVX-512"
    assert kernels.instructions_in_use().startswith("AVX-512 VNNI, not AMX: its sums differ")


def test_a_system_that_refuses(asked: ModelLibrary) -> None:
    asked.permitted = 0
    before = asked.products
    assert kernels.amx_unused_reason() == "the operating system does not permit it"
    assert asked.products == before
    own, out = KernelArrays(), np.zeros((30, 64), np.float32)
    c_function("multiply")(np.ones((30, 64), np.int16), np.ones(30, np.float32), 30, own.matrix(np.ones((64, 64))), out)
    assert asked.products == before
    assert (out > 0).all()


def test_a_processor_without_amx_is_not_asked() -> None:
    """On a processor with AMX, the sums agree with those of AVX-512; AMX may still be unused because it is slower."""
    if kernels.has_amx_int8():
        assert "differ" not in (kernels.amx_unused_reason() or "")
    else:
        assert kernels.amx_unused_reason() == "the processor has none, or may not use it"


def test_the_real_kernels_have_these_instructions() -> None:
    """The plugin's AMX kernels contain every AMX instruction they need; its AVX2 and VNNI kernels contain none."""
    if not hasattr(kernels.load_library(), "fdatrd_amx_sums"):
        pytest.skip("the compiler is too old for AMX")
    text = disassembly(Path(kernels.load_library()._name))
    if text is None:
        pytest.skip("no installed objdump can disassemble AMX instructions")
    assert missing_instructions(text) == set()
    others = re.findall(r"<fdatrd_(?:cpu|vnni)_\w+>:\n(.*?)(?:\n\n|\Z)", text, re.DOTALL)
    assert len(others) > 20
    assert not any("tmm" in body or "tilerelease" in body for body in others)
