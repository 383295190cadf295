"""The kernels of the native engine: against the network, and their integers against overflow."""

import ctypes
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.closeness import decibels, of_network
from tests.silence import FOUR_TIMES, PATTERN, silence, unheard
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant
from vsfdatrd.backends.accuracy import drawing
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import blocks as native_blocks
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.backends.native import network as native_network
from vsfdatrd.backends.native import threads as native_crew
from vsfdatrd.backends.native.blocks import Channel
from vsfdatrd.backends.native.kernels import BLOCK, LEVELS, KernelArrays, function, nonzero_blocks, scratch
from vsfdatrd.backends.native.network import FrameContext, Weights, unsuitable
from vsfdatrd.backends.native.threads import RowThreads
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.graph.weights import Weights as Tensors

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2")

type MakeConfig = Callable[..., FdatRdConfig]
type Maker = Callable[..., dict[str, NDArray[Any]]]


def of_kernels(
    config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes, threads: int = 1
) -> FramePlanes:
    """What the kernels make of it."""
    _, height, width = picture.shape
    result = np.full((3, height * config.scale, width * config.scale), np.nan, np.float32)
    FrameContext(Weights(config, tensors), height, width, threads).run(np.ascontiguousarray(picture), result)
    return result


SHAPES: tuple[tuple[dict[str, Any], tuple[int, int], int], ...] = (
    ({}, (30, 30), 1),  # one window of either kind
    ({}, (60, 90), 2),  # rows of 90: a block of 60 and one of 30
    ({}, (30, 330), 3),
    ({}, (120, 30), 4),
    ({"unshuffle": 2, "tail_scale": 4}, (60, 120), 1),
    ({"unshuffle": 2, "tail_scale": 4}, (180, 60), 3),
    ({"unshuffle": 1, "tail_scale": 4}, (60, 60), 2),
    ({"embed_dim": 96, "heads": 3, "dict_tokens": 64, "ffn_dim": 192, "gate_dim": 12}, (60, 60), 2),  # as in small
    ({"embed_dim": 192, "heads": 6, "dict_tokens": 256, "ffn_dim": 384, "gate_dim": 24}, (30, 60), 2),  # as in large
    ({"groups": (("spatial", "spatial"), ("dictionary", "channel"), ("channel",))}, (60, 60), 2),
    ({"dict_tokens": 16}, (30, 60), 1),
)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("changes", "size", "threads"), SHAPES, ids=str)
def test_the_kernels_compute_what_the_network_computes(
    make_config: MakeConfig, make_tensors: Maker, changes: dict[str, Any], size: tuple[int, int], threads: int
) -> None:
    tensors, config = make_tensors(7, **changes), make_config(**changes)
    picture = drawing(*size)
    reference = of_network(config, tensors, picture)
    assert decibels(of_kernels(config, tensors, picture, threads), reference) > 60


@pytest.fixture
def both_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterable[bool]]:
    """Take AVX-512 with VNNI in one turn of a loop, and AVX2 in the next."""
    if not native_kernels.has_vnni():
        pytest.skip("the processor has no VNNI, or may not use it")

    def turns() -> Iterator[bool]:
        for vnni in (True, False):
            monkeypatch.setattr(native_kernels, "has_vnni", lambda vnni=vnni: vnni)
            function.cache_clear()
            yield vnni

    yield turns()
    function.cache_clear()


@pytest.mark.parametrize(("changes", "size", "threads"), SHAPES, ids=str)
def test_both_sets_of_instructions_compute_the_same_picture(
    make_config: MakeConfig,
    make_tensors: Maker,
    changes: dict[str, Any],
    size: tuple[int, int],
    threads: int,
    both_sets: Iterable[bool],
) -> None:
    """AVX2 and AVX-512 with VNNI: only GELU and powers differ, in the sixth digit."""
    tensors, config = make_tensors(7, **changes), make_config(**changes)
    one, other = (of_kernels(config, tensors, drawing(*size), threads) for _ in both_sets)
    assert decibels(one, other) > 65


def test_products_of_both_sets_of_instructions_are_equal(both_sets: Iterable[bool]) -> None:
    """To the last bit: sums of integers are exact, and everything else is added in the same order."""
    random = np.random.default_rng(6)
    t, more = (random.standard_normal((1800, 96)).astype(np.float32) for _ in range(2))
    picture = random.random((3, 60, 120), np.float32)
    found: list[list[NDArray[Any]]] = []
    for _ in both_sets:
        own, s = KernelArrays(), scratch(60, 96, 96, 32)
        weights = list(np.random.default_rng(7).standard_normal((16, 96, 96)))
        many, bias = own.matrices(weights), own.floats(weights[0][0])
        made = [np.zeros((1800, 96), np.float32) for _ in range(3)]
        function("conv")(t, more, made[0], 30, 60, 0, 30, many, s)
        function("winograd")(t, more, made[1], 30, 60, 0, 15, many, s)
        first = own.matrix(np.random.default_rng(8).standard_normal((96, 108)))
        function("first")(picture, made[2], 30, 60, 2, 0, 30, first, bias, s)
        planes = np.zeros((3, 60, 120), np.float32)
        nine = own.matrices([matrix[:12] for matrix in weights[:9]])
        function("twice")(t, planes, 30, 60, 0, 30, nine, bias, s)
        packed: list[NDArray[Any]] = []
        for scales in (1792, 32):
            packed += [np.zeros((3, 1792 * 32), np.int16), np.zeros((3, scales), np.float32)]
        function("memorise")(t, more, 3, 1792, *packed)
        found.append([*made, planes, *packed])
    for one, other in zip(*found, strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, other)


def test_gelu_and_powers_of_both_sets_are_exact_to_five_digits(both_sets: Iterable[bool]) -> None:
    random = np.random.default_rng(3)
    t = (random.standard_normal((900, 32)) ** 3).astype(np.float32)
    weights = np.zeros((9, 32), np.float32)
    weights[4] = 1  # a convolution that changes nothing
    keys = random.standard_normal((64, 32)).astype(np.float32)
    queries = random.integers(-LEVELS, LEVELS, (1, 12, 32)).astype(np.int16)
    scale, shift = np.linspace(0.5, 2, 32), np.linspace(-0.2, 0.2, 32)
    n = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5) * scale + shift
    expected = n * 0.5 * (1 + np.vectorize(math.erf)(n / math.sqrt(2)))
    found: list[list[NDArray[Any]]] = []
    for _ in both_sets:
        own, s = KernelArrays(), scratch(30, 32, 64, 64)
        norm, unit = own.norm(scale, shift), own.norm(np.ones(32), np.zeros(32))
        c, sums = np.empty_like(t), np.zeros(32)
        function("local")(t, c, 30, 30, 32, 0, 30, norm, weights, sums, None, None, None, s)
        np.testing.assert_allclose(c, expected, atol=2e-5)
        np.testing.assert_allclose(sums, expected.sum(0), atol=5e-2)
        kv, steps = own.matrices([keys]), own.floats(np.full((1, 12), 2e-4))
        result, tops, wholes = np.empty((1, 12, 32), np.float32), *np.empty((2, 1, 12), np.float32)
        function("read")(t, 0, 3, norm, unit, kv, 1, 12, queries, steps, result, tops, wholes, s)
        found.append([result, tops, wholes])
    for one, other, tolerance in zip(*found, (2e-4, 0, 2e-5), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["2x_transpose-conv", "2x_unshuffle_transpose-conv", "2x_unshuffle_64d", "4x"])
def test_fixtures_of_the_reference_are_reproduced(shared: Path, name: str) -> None:
    checkpoint = open_checkpoint(shared / "fixtures" / f"fdatrd_{name}.safetensors")
    config = checkpoint.description.config
    assert isinstance(config, FdatRdConfig)
    assert unsuitable(config) is None
    with np.load(shared / "fixtures" / f"fdatrd_{name}.npz") as pictures:
        sizes = [name.removeprefix("in_") for name in pictures if name.startswith("in_")]
        for size in sizes:
            height, width = map(int, size.split("x"))
            if height % config.multiple == 0 and width % config.multiple == 0:  # others are padded before an engine
                out = of_kernels(config, checkpoint.tensors(), pictures[f"in_{size}"][0])
                assert decibels(out, pictures[f"out_{size}"][0]) > 60
                break
        else:
            pytest.fail(f"no size of {sizes} is a multiple of {config.multiple}")


@pytest.mark.parametrize("variant_name", ["small", "medium", "large"])
def test_our_variants_suit_it(variant_name: str) -> None:
    assert unsuitable(variant(variant_name, scale=2, unshuffle_mod=True)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"upsampler": "dysample"}, "dysample, 2 times"),
        ({"tail_scale": 3}, "transpose\\+conv, 3 times"),
        ({"embed_dim": 64}, "64 channels, not 32"),
        ({"dict_tokens": 24}, "multiples of 16"),
        ({"in_channels": 1, "out_channels": 1}, "not for RGB"),
    ],
)
def test_what_does_not_suit_it_is_told(make_config: MakeConfig, changes: dict[str, Any], reason: str) -> None:
    found = unsuitable(make_config(**changes))
    assert found is not None
    assert re.search(reason, found)
    with pytest.raises(ValueError, match=reason):
        Weights(make_config(**changes), {})


@pytest.mark.usefixtures("one_thread")
def test_idle_parts_are_left_out(make_config: MakeConfig, make_tensors: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left computes what the network computes; windows go on turning over blocks that are left out."""
    config, tensors, picture = make_config(**PATTERN), silence(make_tensors(7, **PATTERN)), drawing(60, 60)
    calls: list[str] = []

    def counted(name: str) -> Any:
        calls.append(name)
        return function(name)

    monkeypatch.setattr(native_blocks, "function", counted)
    assert decibels(of_kernels(config, tensors, picture), of_network(config, tensors, picture)) > 60
    assert calls.count("feed_forward") == 2, "of six"


@pytest.mark.usefixtures("one_thread")
def test_a_tail_computes_only_what_is_heard(make_config: MakeConfig, make_tensors: Maker) -> None:
    config, tensors, picture = make_config(**FOUR_TIMES), unheard(make_tensors(7, **FOUR_TIMES)), drawing(60, 60)
    assert decibels(of_kernels(config, tensors, picture), of_network(config, tensors, picture)) > 60
    weights = Weights(config, tensors)
    assert weights.squares is not None
    assert not integers_of(weights.squares[0])[0][1::2].any()


def test_where_a_matrix_is_not_zero() -> None:
    weights = np.zeros((48, 32), np.float32)
    weights[3, 9] = weights[5, 20] = weights[15, 31] = 1  # rows 8 to 16 and 16 to 32 of the first panel: one span
    weights[47, 0] = weights[32, 24] = np.nan
    spans, bounds = nonzero_blocks(weights)
    assert spans.tolist() == [[8, 24], [0, 8], [24, 8]]
    assert bounds.tolist() == [0, 1, 1, 3]
    spans, bounds = nonzero_blocks(np.ones((32, 16), np.float32))
    assert (spans.tolist(), bounds.tolist()) == ([[0, 16], [0, 16]], [0, 1, 2])


def of_convolution(taps: Any, t: NDArray[np.float32], more: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.empty_like(t)
    function("conv")(t, more, out, 30, len(t) // 30, 0, 30, taps, scratch(len(t) // 30, 64, 64, 32))
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
    monkeypatch.setattr(native_network, "TRANSFORMS", -1.0)
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
    found = of_convolution(kept.matrices(taps), t, more)
    np.testing.assert_allclose(found, convolved(np.stack(taps, -1), t, more), atol=2e-2)

    first, bias = matrix(112), random.standard_normal(64).astype(np.float32)
    picture = random.random((3, 60, 60), np.float32)
    out = np.full((900, 64), np.nan, np.float32)
    function("first")(picture, out, 30, 30, 2, 0, 30, kept.matrix(first), kept.floats(bias), scratch(30, 64, 64, 32))
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
    function("conv")(t, np.zeros_like(t), out, 30, 30, 0, 30, matrices, scratch(30, channels, 64, 32))
    middle = out.reshape(30, 30, channels)[15, 15]
    np.testing.assert_allclose(middle[:3], 1e4 * np.array([27 * channels, -27 * channels, 0]), rtol=1e-3, atol=1e4)


def integers_of(matrix: native_kernels.Matrix) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """A packed matrix's integers (columns, inner) and scales (columns)."""
    size = matrix.columns * matrix.inner
    panels = np.ctypeslib.as_array(ctypes.cast(matrix.panels, ctypes.POINTER(ctypes.c_int16)), (size,))
    scale = np.ctypeslib.as_array(ctypes.cast(matrix.scale, ctypes.POINTER(ctypes.c_float)), (matrix.columns,))
    # (columns / 16, inner / 2, 16, 2) -> (columns / 16, 16, inner / 2, 2)
    return panels.reshape(-1, matrix.inner // 2, 16, 2).transpose(0, 2, 1, 3).reshape(matrix.columns, -1), scale


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
    assert (np.abs(integers.astype(np.int64)).sum(1) * LEVELS < 2**31).all()
    error = np.abs(integers * scale[:, None].astype(np.float64) - weights).max(1)
    assert (error <= 0.51 * scale).all()
    assert (scale[[0, 1, 4, 5]] <= np.abs(weights[[0, 1, 4, 5]]).max(1) / 600).all()  # 10 bits at least, and a sign
    assert scale[2] == 0


def test_products_are_exact() -> None:
    """Sums of integers, compared with NumPy's, times the two steps."""
    random, kept = np.random.default_rng(2), KernelArrays()
    matrix = kept.matrix(random.standard_normal((48, 112)))
    a = random.integers(-LEVELS, LEVELS, (12, 112), endpoint=True).astype(np.int16)
    steps, out = random.random(12, np.float32), np.empty((12, 48), np.float32)
    function("multiply")(a, steps, 12, matrix, out)
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(make_config: MakeConfig, make_tensors: Maker, value: float) -> None:
    picture = drawing(60, 60)
    picture[1, 30, 30] = value
    result = of_kernels(make_config(), make_tensors(1), picture)
    assert not np.isfinite(result[:, 60, 60]).any()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_frame_of_one_color_is_no_special_case(make_config: MakeConfig, make_tensors: Maker, value: float) -> None:
    picture = np.full((3, 60, 60), value, np.float32)
    tensors = make_tensors(3)
    reference = of_network(make_config(), tensors, picture)
    assert decibels(of_kernels(make_config(), tensors, picture), reference) > 60


def test_only_frames_of_the_right_shape_reach_the_kernels(make_config: MakeConfig, make_tensors: Maker) -> None:
    context = FrameContext(Weights(make_config(), make_tensors()), 60, 90, 1)
    picture, result = np.zeros((3, 60, 90), np.float32), np.zeros((3, 120, 180), np.float32)
    for frames in (
        (picture[:, :30], result),
        (picture, result[:2]),
        (picture.astype(np.float64), result),
        (picture, result[::-1]),
    ):
        with pytest.raises(ValueError, match="not contiguous float32"):
            context.run(*frames)


def test_threads_do_not_change_the_picture_much(make_config: MakeConfig, make_tensors: Maker) -> None:
    """Only sums over the frame are put together in another order."""
    tensors, picture = make_tensors(5), drawing(60, 90)
    alone = of_kernels(make_config(), tensors, picture, 1)
    assert np.array_equal(alone, of_kernels(make_config(), tensors, picture, 1))
    assert decibels(of_kernels(make_config(), tensors, picture, 5), alone) > 75


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, (60, 960)),
        ({"embed_dim": 192, "heads": 6, "dict_tokens": 256, "ffn_dim": 768}, (30, 300)),
        ({"unshuffle": 2, "tail_scale": 4, "embed_dim": 64, "heads": 2}, (60, 1440)),
        ({"ffn_dim": 32, "dict_tokens": 256}, (60, 30)),
    ],
    ids=str,
)
def test_scratch_is_never_left(
    make_config: MakeConfig,
    make_tensors: Maker,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    size: tuple[int, int],
) -> None:
    guards = []

    def guarded(*arguments: int) -> NDArray[np.uint8]:
        length = native_kernels.scratch_bytes(*arguments)
        buffer = np.full(length + (1 << 20), 0xA5, np.uint8)
        start = -buffer.ctypes.data % 64
        guards.append(buffer[start + length :])
        return buffer[start : start + length]

    monkeypatch.setattr(native_crew, "scratch", guarded)
    assert np.isfinite(of_kernels(make_config(**changes), make_tensors(**changes), drawing(*size), 2)).all()
    assert len(guards) == 2
    assert all((guard == 0xA5).all() for guard in guards)


def test_channel_attention_does_not_cancel(make_config: MakeConfig, make_tensors: Maker) -> None:
    """Where all tokens are nearly alike, their second moment alone would lose what sets them apart."""
    config, tensors = make_config(), make_tensors(2)
    block = Tensors(tensors, "groups.0.blocks.1.")
    channel = Channel(config, block, KernelArrays(), (10, 30))
    random = np.random.default_rng(0)
    n = (3 + random.standard_normal(32) + 1e-6 * random.standard_normal((900, 32))).astype(np.float64)
    q, k, v = block["attn.qkv.weight"].reshape(3, 1, 32, 32) @ n.T
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    logits = q @ k.transpose(0, 2, 1) * block["attn.temp"]
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True) @ v)[0].T @ block["attn.proj.weight"].T
    around = n[0].astype(np.float32).astype(np.float64)
    matrix = channel.fold_attention((n - around).T @ (n - around), (n - around).sum(0), around, len(n))
    np.testing.assert_allclose(n @ matrix.T, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_a_stretch_is_shared_out_whole(make_config: MakeConfig) -> None:
    pool = RowThreads(60, 60, make_config(), 7)
    for count in (1, 2, 6, 7, 8, 60, 3600 // BLOCK):
        parts: list[tuple[int, int]] = []
        pool.run_ranges(count, lambda first, last, _, parts=parts: parts.append((first, last)))  # type: ignore[misc]
        assert [n for first, last in sorted(parts) for n in range(first, last)] == list(range(count))
