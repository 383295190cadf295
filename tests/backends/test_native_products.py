"""Matrix products and convolutions of the native kernels: exact sums, blocks of zeros, and no overflow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.packed_matrix import integers_of
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import network as native_network
from vsfdatrd.backends.native.kernels import MAX_QUANTIZED, KernelArrays, allocate_scratch, c_function, nonzero_blocks
from vsfdatrd.backends.native.threads import RowThreads

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2")


type MakeConfig = Callable[..., FdatRdConfig]


def test_where_a_matrix_is_not_zero() -> None:
    weights = np.zeros((48, 32), np.float32)
    weights[3, 9] = weights[5, 20] = weights[15, 31] = 1  # rows 8 to 16 and 16 to 32 of the first panel: one span
    weights[47, 0] = weights[32, 24] = np.nan
    spans, bounds = nonzero_blocks(weights)
    assert spans.tolist() == [[8, 24], [0, 8], [24, 8]]
    assert bounds.tolist() == [0, 1, 1, 3]
    spans, bounds = nonzero_blocks(np.ones((32, 16), np.float32))
    assert (spans.tolist(), bounds.tolist()) == ([[0, 16], [0, 16]], [0, 1, 2])


def run_convolution(taps: Any, t: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty_like(t)
    c_function("conv")(t, more, out, 30, len(t) // 30, 0, 30, taps, allocate_scratch(len(t) // 30, 64, 64, 32))
    return out


def convolved(weight: NDArray[Any], t: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float64]:
    """weight: (O, C, 9); t, more: (30 rows, C)."""
    rows = t.reshape(30, -1, t.shape[-1])
    wide = np.pad(rows, ((1, 1), (1, 1), (0, 0))).astype(np.float64)
    expected = more.reshape(rows.shape).astype(np.float64)
    for i in range(9):
        expected += wide[i // 3 :, i % 3 :][:30, : rows.shape[1]] @ weight[:, :, i].T
    return expected.reshape(t.shape)


@pytest.mark.parametrize("width", [30, 60, 90, 150])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("threads", [1, 4])
def test_minimal_filtering_is_a_convolution(
    make_config: MakeConfig, width: int, share: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every edge, in groups of tiles of any length, with blocks of zeros."""
    random = np.random.default_rng(width)
    there = np.kron(random.random((4, 8, 1)) < share, np.ones((16, 8, 9)))
    weight = there * random.standard_normal((64, 64, 9))
    t, more = (random.standard_normal((30 * width, 64)).astype(np.float32) for _ in range(2))
    out, kept = np.full_like(t, np.nan), KernelArrays()
    monkeypatch.setattr(native_network, "WINOGRAD_OVERHEAD", -1.0)
    convolution = native_network.Convolution(kept, weight.reshape(64, 64, 3, 3))
    convolution.run(RowThreads(30, width, make_config(embed_dim=64, heads=2), threads), t, more, out)
    np.testing.assert_allclose(out, convolved(weight, t, more), atol=3e-2)


def test_the_form_of_a_convolution_goes_by_its_zeros() -> None:
    """Dense weights are filtered minimally; taps that are zero are cheaper to leave out."""
    weight = np.random.default_rng(0).standard_normal((64, 64, 3, 3))
    kept = KernelArrays()
    assert native_network.Convolution(kept, weight)._minimal
    weight[:, :, 0] = weight[:, :, 2] = weight[:, :, 1, 0] = 0
    assert not native_network.Convolution(kept, weight)._minimal


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_blocks_of_zeros_are_left_out_of_products(share: float) -> None:
    """A convolution, whose products are added to what is there, and the first one's, which are not."""
    random = np.random.default_rng(4)

    def matrix(inner: int) -> NDArray[np.float32]:
        there = np.kron(random.random((4, inner // 8)) < share, np.ones((16, 8)))
        return (there * random.standard_normal((64, inner))).astype(np.float32)

    kept = KernelArrays()
    t, more = (random.standard_normal((900, 64)).astype(np.float32) for _ in range(2))
    taps = [matrix(64) for _ in range(9)]
    result = run_convolution(kept.matrices(taps), t, more)
    np.testing.assert_allclose(result, convolved(np.stack(taps, -1), t, more), atol=2e-2)

    first, bias = matrix(112), random.standard_normal(64).astype(np.float32)
    picture = random.random((3, 60, 60), np.float32)
    out = np.full((900, 64), np.nan, np.float32)
    c_function("first")(
        picture, out, 30, 30, 2, 0, 30, kept.matrix(first), kept.floats(bias), allocate_scratch(30, 64, 64, 32)
    )
    patch = np.zeros(112)
    patch[:108] = np.pad(picture, ((0, 0), (2, 2), (2, 2)))[:, 20:26, 40:46].ravel()  # around token (10, 20)
    np.testing.assert_allclose(out[320], first @ patch + bias, atol=5e-3)


@pytest.mark.parametrize("channels", [32, 128, 192])
def test_the_largest_weights_and_tokens_do_not_overflow(channels: int) -> None:
    """Every weight of a column at its largest and every value of a token too: the sum is the largest there can be."""
    weights = np.full((channels, channels), 3.0)
    weights[1] = -3
    weights[2, ::2] = -3
    taps = KernelArrays()
    matrices = taps.matrices([weights] * 9)
    t = np.full((900, channels), 1e4, np.float32)
    out = np.empty_like(t)
    c_function("conv")(t, np.zeros_like(t), out, 30, 30, 0, 30, matrices, allocate_scratch(30, channels, 64, 32))
    middle = out.reshape(30, 30, channels)[15, 15]
    np.testing.assert_allclose(middle[:3], 1e4 * np.array([27 * channels, -27 * channels, 0]), rtol=1e-3, atol=1e4)


@pytest.mark.parametrize("inner", [16, 112, 128, 384])
def test_packed_weights_leave_room_for_any_token(inner: int) -> None:
    random = np.random.default_rng(inner)
    weights = random.standard_normal((32, inner)).astype(np.float32)
    weights[1] = 2.5  # all at the largest
    weights[2] = 0
    weights[3, :-1] = 0  # a single one
    weights[4] *= 1e-20
    weights[5] *= 1e20
    kept = KernelArrays()
    integers, scale = integers_of(kept.matrix(weights))
    assert (np.abs(integers.astype(np.int64)).sum(1) * MAX_QUANTIZED < 2**31).all()
    error = np.abs(integers * scale[:, None].astype(np.float64) - weights).max(1)
    assert (error <= 0.51 * scale).all()
    assert (scale[[0, 1, 4, 5]] <= np.abs(weights[[0, 1, 4, 5]]).max(1) / 600).all()  # 10 bits at least, and a sign
    assert scale[2] == 0


def test_products_are_exact() -> None:
    """Sums of integers, compared with NumPy's, times the two steps."""
    random, kept = np.random.default_rng(2), KernelArrays()
    matrix = kept.matrix(random.standard_normal((48, 112)))
    a = random.integers(-MAX_QUANTIZED, MAX_QUANTIZED, (12, 112), endpoint=True).astype(np.int16)
    steps, out = random.random(12, np.float32), np.empty((12, 48), np.float32)
    c_function("multiply")(a, steps, 12, matrix, out)
    integers, scale = integers_of(matrix)
    sums = (a.astype(np.int64) @ integers.astype(np.int64).T).astype(np.float32)
    np.testing.assert_array_equal(out, sums * (scale * steps[:, None]))


def test_weights_that_are_not_finite_show() -> None:
    kept = KernelArrays()
    weights = np.ones((16, 32), np.float32)
    weights[3, 5] = np.inf
    weights[4, 5] = np.nan
    _, scale = integers_of(kept.matrix(weights))
    assert np.flatnonzero(~np.isfinite(scale)).tolist() == [3, 4]
