"""Products with Intel AMX on a processor that has it: the same as without, to the last bit. Skipped elsewhere."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.packed_matrix import integers_of
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native import amx, kernels
from vsfdatrd.backends.native.kernels import MAX_QUANTIZED, KernelArrays, c_function
from vsfdatrd.backends.native.network import FrameContext, Weights
from vsfdatrd.checkpoint import open_checkpoint

pytestmark = pytest.mark.skipif(
    kernels.unsupported_reason() is not None or not kernels.has_amx_int8(), reason="the processor has no AMX"
)
FORBIDDEN = "the operating system does not permit it"

type Switch = Callable[[bool], None]
MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Switch]:
    """A function that turns AMX on or off; where it is on, it is used for every panel that is not zero."""
    monkeypatch.setattr(amx, "BLOCK_COST", 0)
    monkeypatch.setattr(amx, "PANEL_COST", 0)
    if kernels.amx_unused_reason() == FORBIDDEN:
        pytest.skip(FORBIDDEN)

    def turn(on: bool) -> None:
        monkeypatch.setattr(kernels, "uses_amx", lambda: on)
        c_function.cache_clear()

    yield turn
    c_function.cache_clear()


def render(config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes, threads: int) -> FramePlanes:
    _, height, width = picture.shape
    result = np.full((3, height * config.scale, width * config.scale), np.nan, np.float32)
    FrameContext(Weights(config, tensors), height, width, threads).run(np.ascontiguousarray(picture), result)
    return result


def with_and_without(
    switch: Switch, config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes
) -> tuple[FramePlanes, FramePlanes]:
    """Render a picture with AMX and without, on one thread."""
    switch(True)
    one = render(config, tensors, picture, 1)
    switch(False)
    return one, render(config, tensors, picture, 1)


def test_it_is_used_unless_it_is_slow() -> None:
    reason = kernels.amx_unused_reason()
    assert reason in (None, FORBIDDEN) or re.fullmatch(r"a product takes .+ instead of .+ µs", reason)


@pytest.mark.parametrize("inner", [16, 32, 48, 64, 80, 112, 128, 192, 384, 1024])
@pytest.mark.parametrize("rows", [6, 30, 36, 66, 300])
def test_products_are_exact(inner: int, rows: int, switch: Switch) -> None:
    """Every length of a product, some zeros among the weights, and tokens at the ends of their range."""
    random = np.random.default_rng(inner)
    weights = random.standard_normal((80, inner)).astype(np.float32)
    weights[16:32, 8:] = 0
    weights[32:48] = 0
    a = random.integers(-MAX_QUANTIZED, MAX_QUANTIZED, (rows, inner), endpoint=True).astype(np.int16)
    a[::2] = random.choice([-MAX_QUANTIZED, -256, -255, -1, 0, 127, 128, 255, 256, MAX_QUANTIZED], a[::2].shape)
    steps = random.random(rows, np.float32)
    results = np.zeros((2, rows, 80), np.float32)
    own = KernelArrays()
    for on, result in zip((True, False), results, strict=True):
        switch(on)
        c_function("multiply")(a, steps, rows, own.matrix(weights), result)
    np.testing.assert_array_equal(*results)
    integers, scale = integers_of(own.matrix(weights))
    sums = (a.astype(np.int64) @ integers.astype(np.int64).T).astype(np.float32)
    np.testing.assert_array_equal(results[0], sums * (scale * steps[:, None]))


@pytest.mark.parametrize("model", ["small", "medium"])
def test_the_shipped_weights_compute_the_same_picture(model: str, switch: Switch) -> None:
    checkpoint = open_checkpoint(MODELS / f"fdat_rd_{model}_2x.safetensors")
    config, tensors = checkpoint.descriptor.config, checkpoint.tensors()
    assert isinstance(config, FdatRdConfig)
    one, other = with_and_without(switch, config, tensors, draw_line_art(60, 120))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("changes", [{}, {"embed_dim": 192, "heads": 6, "dict_tokens": 256, "ffn_dim": 384}], ids=str)
def test_attention_computes_the_same_picture(
    make_config: Callable[..., FdatRdConfig],
    make_tensors: Callable[..., dict[str, NDArray[Any]]],
    changes: dict[str, Any],
    switch: Switch,
) -> None:
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    one, other = with_and_without(switch, config, tensors, draw_line_art(60, 90))
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)
    # Threads have tiles of their own; only sums over the frame are put together in another order, as without AMX.
    switch(True)
    together = render(config, tensors, draw_line_art(60, 90), 3)
    assert np.sqrt(np.mean((together - one) ** 2)) < 1e-3 * one.std()
