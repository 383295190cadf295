"""The kernels of the native backend compared with the network."""

import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.backends.closeness import decibels, run_network
from tests.backends.packed_matrix import integers_of
from tests.silence import BLOCK_PATTERN, FOUR_TIMES, zero_half_of_tail, zero_some_branches
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant_config
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native import backend as native
from vsfdatrd.backends.native import blocks as native_blocks
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.backends.native import threads as native_crew
from vsfdatrd.backends.native.blocks import Channel
from vsfdatrd.backends.native.kernels import MAX_QUANTIZED, TOKENS_PER_BLOCK, KernelArrays, allocate_scratch, c_function
from vsfdatrd.backends.native.network import FrameContext, Weights, unsupported_config_reason
from vsfdatrd.backends.native.threads import RowThreads
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.graph.weights import Weights as Tensors

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason="the processor has no AVX2")

type MakeConfig = Callable[..., FdatRdConfig]
type Maker = Callable[..., dict[str, NDArray[Any]]]


def run_kernels(
    config: FdatRdConfig, tensors: dict[str, NDArray[Any]], picture: FramePlanes, threads: int = 1
) -> FramePlanes:
    """Run a network with the kernels on a picture."""
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
    picture = draw_line_art(*size)
    reference = run_network(config, tensors, picture)
    assert decibels(run_kernels(config, tensors, picture, threads), reference) > 60


@pytest.fixture
def both_sets(monkeypatch: pytest.MonkeyPatch) -> Iterator[Iterable[bool]]:
    """Take AVX-512 with VNNI in one turn of a loop, and AVX2 in the next."""
    if not native_kernels.has_vnni():
        pytest.skip("the processor has no VNNI, or may not use it")

    def turns() -> Iterator[bool]:
        monkeypatch.setattr(native_kernels, "uses_amx", lambda: False)
        for vnni in (True, False):
            monkeypatch.setattr(native_kernels, "has_vnni", lambda vnni=vnni: vnni)
            c_function.cache_clear()
            yield vnni

    yield turns()
    c_function.cache_clear()


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
    one, other = (run_kernels(config, tensors, draw_line_art(*size), threads) for _ in both_sets)
    assert decibels(one, other) > 65


def test_products_of_both_sets_of_instructions_are_equal(both_sets: Iterable[bool]) -> None:
    """To the last bit: sums of integers are exact, and everything else is added in the same order."""
    random = np.random.default_rng(6)
    t, more = (random.standard_normal((1800, 96)).astype(np.float32) for _ in range(2))
    picture = random.random((3, 60, 120), np.float32)
    found: list[list[NDArray[Any]]] = []
    for _ in both_sets:
        own, s = KernelArrays(), allocate_scratch(60, 96, 96, 32)
        weights = list(np.random.default_rng(7).standard_normal((16, 96, 96)))
        many, bias = own.matrices(weights), own.floats(weights[0][0])
        made = [np.zeros((1800, 96), np.float32) for _ in range(3)]
        c_function("conv")(t, more, made[0], 30, 60, 0, 30, many, s)
        c_function("winograd")(t, more, made[1], 30, 60, 0, 15, many, s)
        first = own.matrix(np.random.default_rng(8).standard_normal((96, 108)))
        c_function("first")(picture, made[2], 30, 60, 2, 0, 30, first, bias, s)
        planes = np.zeros((3, 60, 120), np.float32)
        nine = own.matrices([matrix[:12] for matrix in weights[:9]])
        c_function("twice")(t, planes, 30, 60, 0, 30, nine, bias, s)
        packed: list[NDArray[Any]] = []
        for scales in (1792, 32):
            packed += [np.zeros((3, 1792 * 32), np.int16), np.zeros((3, scales), np.float32)]
        c_function("memorise")(t, more, 3, 1792, *packed)
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
    queries = random.integers(-MAX_QUANTIZED, MAX_QUANTIZED, (1, 12, 32)).astype(np.int16)
    scale, shift = np.linspace(0.5, 2, 32), np.linspace(-0.2, 0.2, 32)
    n = (t - t.mean(1, keepdims=True)) / np.sqrt(t.var(1, keepdims=True) + 1e-5) * scale + shift
    expected = n * 0.5 * (1 + np.vectorize(math.erf)(n / math.sqrt(2)))
    found: list[list[NDArray[Any]]] = []
    for _ in both_sets:
        own, s = KernelArrays(), allocate_scratch(30, 32, 64, 64)
        norm, unit = own.norm(scale, shift), own.norm(np.ones(32), np.zeros(32))
        c, sums = np.empty_like(t), np.zeros(32)
        c_function("local")(t, c, 30, 30, 32, 0, 30, norm, weights, sums, None, None, None, s)
        np.testing.assert_allclose(c, expected, atol=2e-5)
        np.testing.assert_allclose(sums, expected.sum(0), atol=5e-2)
        kv, steps = own.matrices([keys]), own.floats(np.full((1, 12), 2e-4))
        result, tops, wholes = np.empty((1, 12, 32), np.float32), *np.empty((2, 1, 12), np.float32)
        c_function("read")(t, 0, 3, norm, unit, kv, 1, 12, queries, steps, result, tops, wholes, s)
        found.append([result, tops, wholes])
    for one, other, tolerance in zip(*found, (2e-4, 0, 2e-5), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["2x_transpose-conv", "2x_unshuffle_transpose-conv", "2x_unshuffle_64d", "4x"])
def test_fixtures_of_the_reference_are_reproduced(shared: Path, name: str) -> None:
    checkpoint = open_checkpoint(shared / "fixtures" / f"fdatrd_{name}.safetensors")
    config = checkpoint.descriptor.config
    assert isinstance(config, FdatRdConfig)
    assert unsupported_config_reason(config) is None
    with np.load(shared / "fixtures" / f"fdatrd_{name}.npz") as pictures:
        sizes = [name.removeprefix("in_") for name in pictures if name.startswith("in_")]
        for size in sizes:
            height, width = map(int, size.split("x"))
            if height % config.multiple == 0 and width % config.multiple == 0:  # others are padded before an engine
                out = run_kernels(config, checkpoint.tensors(), pictures[f"in_{size}"][0])
                assert decibels(out, pictures[f"out_{size}"][0]) > 60
                break
        else:
            pytest.fail(f"no size of {sizes} is a multiple of {config.multiple}")


@pytest.mark.parametrize("variant_name", ["small", "medium", "large"])
def test_our_variants_suit_it(variant_name: str) -> None:
    assert unsupported_config_reason(variant_config(variant_name, scale=2, unshuffle_mod=True)) is None


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
    found = unsupported_config_reason(make_config(**changes))
    assert found is not None
    assert re.search(reason, found)
    with pytest.raises(ValueError, match=reason):
        Weights(make_config(**changes), {})


@pytest.mark.usefixtures("one_thread")
def test_idle_parts_are_left_out(make_config: MakeConfig, make_tensors: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left computes what the network computes; windows go on turning over blocks that are left out."""
    config, tensors, picture = (
        make_config(**BLOCK_PATTERN),
        zero_some_branches(make_tensors(7, **BLOCK_PATTERN)),
        draw_line_art(60, 60),
    )
    calls: list[str] = []

    def counted(name: str) -> Any:
        calls.append(name)
        return c_function(name)

    monkeypatch.setattr(native_blocks, "c_function", counted)
    assert decibels(run_kernels(config, tensors, picture), run_network(config, tensors, picture)) > 60
    assert calls.count("feed_forward") == 2, "of six"


@pytest.mark.usefixtures("one_thread")
def test_a_tail_computes_only_what_is_heard(make_config: MakeConfig, make_tensors: Maker) -> None:
    config, tensors, picture = (
        make_config(**FOUR_TIMES),
        zero_half_of_tail(make_tensors(7, **FOUR_TIMES)),
        draw_line_art(60, 60),
    )
    assert decibels(run_kernels(config, tensors, picture), run_network(config, tensors, picture)) > 60
    weights = Weights(config, tensors)
    assert weights.squares is not None
    assert not integers_of(weights.squares[0])[0][1::2].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(make_config: MakeConfig, make_tensors: Maker, value: float) -> None:
    picture = draw_line_art(60, 60)
    picture[1, 30, 30] = value
    result = run_kernels(make_config(), make_tensors(1), picture)
    assert not np.isfinite(result[:, 60, 60]).any()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_frame_of_one_color_is_no_special_case(make_config: MakeConfig, make_tensors: Maker, value: float) -> None:
    picture = np.full((3, 60, 60), value, np.float32)
    tensors = make_tensors(3)
    reference = run_network(make_config(), tensors, picture)
    assert decibels(run_kernels(make_config(), tensors, picture), reference) > 60


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
    tensors, picture = make_tensors(5), draw_line_art(60, 90)
    alone = run_kernels(make_config(), tensors, picture, 1)
    assert np.array_equal(alone, run_kernels(make_config(), tensors, picture, 1))
    assert decibels(run_kernels(make_config(), tensors, picture, 5), alone) > 75


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

    monkeypatch.setattr(native_crew, "allocate_scratch", guarded)
    assert np.isfinite(run_kernels(make_config(**changes), make_tensors(**changes), draw_line_art(*size), 2)).all()
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


def test_results_are_added_in_order_whichever_thread_is_first(make_config: MakeConfig) -> None:
    def work(first: int, last: int, _: Any) -> tuple[int, int]:
        time.sleep(0.2 if first == 0 else 0)
        return first, last

    assert RowThreads(60, 60, make_config(), 3).run_ranges(3600, work, 60) == [(0, 1200), (1200, 2400), (2400, 3600)]


def test_a_stretch_is_shared_out_whole(make_config: MakeConfig) -> None:
    pool = RowThreads(60, 60, make_config(), 7)
    for count in (1, 2, 6, 7, 8, 60, 3600 // TOKENS_PER_BLOCK):
        parts: list[tuple[int, int]] = []
        pool.run_ranges(count, lambda first, last, _, parts=parts: parts.append((first, last)))  # type: ignore[misc]
        assert [n for first, last in sorted(parts) for n in range(first, last)] == list(range(count))
