"""Plans of the CUDA backend, run with NumPy in place of the kernels, equal the PyTorch network."""

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from tests.backends.closeness import decibels, run_network
from tests.backends.plans import assert_fits_compiled, buffer_lives, make_plan_and_constants, tiles, upscale_with_plan
from tests.conftest import tiny_config, tiny_tensors
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant_config
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.cuda import launches
from vsfdatrd.backends.cuda.arena import ALIGNMENT, BufferLifetime, assign_offsets
from vsfdatrd.backends.cuda.packing import ALL_FLOAT32, TYPES
from vsfdatrd.backends.cuda.plan import (
    Constant,
    Frame,
    Region,
    assume_all_active,
    find_active,
    offsets_fit,
    unsupported_config_reason,
)
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.graph.weights import Weights
from vsfdatrd.weights.catalog import CATALOG

MODELS = Path(__file__).resolve().parents[2] / "models"
SHIPPED = tuple(sorted({Path(model.file).stem for model in CATALOG.values()}))
ROUNDING = 105.0
"""Signal to noise in dB of float32: 2⁻²⁴ is 144 dB, and there are thousands of sums in a row."""

pytestmark = pytest.mark.usefixtures("one_thread")

type Tensors = dict[str, np.ndarray[Any, Any]]


def network(groups: Any = None, seed: int = 0, **changes: Any) -> tuple[FdatRdConfig, Tensors]:
    """A network of 96 channels with random weights, of one group."""
    groups = groups or (("spatial", "channel", "dictionary"),)
    fields = {"embed_dim": 96, "heads": 3, "ffn_dim": 192, "gate_dim": 12, "tail_scale": 4, "unshuffle": 2}
    fields |= {"groups": groups, "dict_tokens": 64 if "dictionary" in sum(groups, ()) else 0} | changes
    return tiny_config(**fields), tiny_tensors(seed, **fields)


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * width).random((3, height, width), np.float32)


def assert_equal(config: FdatRdConfig, tensors: Tensors, picture: Any) -> None:
    expected = run_network(config, tensors, picture)
    assert decibels(upscale_with_plan(config, tensors, picture), expected) > ROUNDING


# The whole network


@pytest.mark.parametrize(("name", "groups"), [("small", 2), ("medium", 1), ("large", 1)])
def test_every_variant_equals_the_network(name: str, groups: int) -> None:
    whole = variant_config(name)
    config = replace(whole, groups=whole.groups[:groups])
    fields = {field: getattr(config, field) for field in ("embed_dim", "heads", "groups", "dict_tokens", "ffn_dim")}
    tensors = tiny_tensors(1, gate_dim=config.gate_dim, tail_scale=4, unshuffle=2, **fields)
    assert_equal(config, tensors, draw_line_art(60, 60))


@pytest.mark.parametrize("size", [(60, 120), (119, 47), (31, 60), (29, 60), (1, 1)])
def test_every_size_equals_the_network(size: tuple[int, int]) -> None:
    """Wide and tall, padded by reflection and by replication."""
    assert_equal(*network((("spatial", "spatial", "channel"),)), noise(*size))


@pytest.mark.parametrize("tokens", [1, 47, 48, 130])
def test_dictionaries_of_every_size(tokens: int) -> None:
    assert_equal(*network((("dictionary",),), dict_tokens=tokens), noise(60, 60))


@pytest.mark.parametrize(("unshuffle", "side"), [(1, 30), (4, 120)])
def test_every_unshuffle(unshuffle: int, side: int) -> None:
    assert_equal(*network(unshuffle=unshuffle), noise(side, side))


@pytest.mark.parametrize(("hidden", "parts"), [(96, 1), (144, 1), (100, 1), (240, 2), (384, 2), (400, 3)])
def test_feed_forward_networks_of_every_width(hidden: int, parts: int) -> None:
    """Narrow ones are padded with zeros, wide ones computed in parts of twice the channels."""
    config, tensors = network((("spatial", "channel"),), ffn_dim=hidden)
    plan, _ = make_plan_and_constants(config, tensors, 60, 60)
    assert [launch.kernel for launch in plan.launches].count("ffn_smix_fc2") == 2 * parts
    assert_equal(config, tensors, noise(60, 60))


@pytest.mark.parametrize("hidden", [1, 32])
def test_gates_of_every_width(hidden: int) -> None:
    assert_equal(*network((("spatial",),), gate_dim=hidden), noise(60, 60))


def test_a_tail_without_channels_that_work() -> None:
    """The output is then the last convolution of two biases."""
    config, tensors = network((("channel",),))
    tensors["upsampler.2.weight"][...] = 0
    assert_equal(config, tensors, noise(60, 60))


def test_a_group_without_blocks_that_work() -> None:
    config, tensors = network((("channel",), ("dictionary",)))
    for name, values in tensors.items():
        if name.startswith("groups.0.") and name.endswith(("proj.weight", "proj.bias", "conv.0.weight", "fc2.weight")):
            values[...] = 0
    plan, _ = make_plan_and_constants(config, tensors, 60, 60)
    assert [launch.kernel for launch in plan.launches[:3]] == ["conv_first", "conv_group", "refine_dictionary_parts"]
    assert_equal(config, tensors, noise(60, 60))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_flat_frames(level: float) -> None:
    """Tokens inside are equal, so that nothing but rounding may remain of their covariance."""
    assert_equal(*network((("channel", "channel"),)), np.full((3, 60, 60), level, np.float32))


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_equal_the_network_and_leave_out_what_is_idle(name: str) -> None:
    checkpoint = open_checkpoint(MODELS / f"{name}.safetensors")
    config, tensors = checkpoint.descriptor.config, checkpoint.tensors()
    assert isinstance(config, FdatRdConfig)
    picture = draw_line_art(60, 60)
    expected = run_network(config, tensors, picture)
    assert decibels(upscale_with_plan(config, tensors, picture), expected) > ROUNDING
    assert check_psnr(expected, upscale_with_plan(config, tensors, picture, TYPES["fp16"]), "fp16") > 50

    active = find_active(config, Weights(tensors))
    every = make_plan(config, assume_all_active(config), tiles(config.embed_dim), 60, 60, ALL_FLOAT32)
    part = make_plan(config, active, tiles(config.embed_dim), 60, 60, ALL_FLOAT32)
    idle = 2 * config.blocks - len(active.attention) - len(active.ffn)
    assert (len(part.launches) < len(every.launches)) == (idle > 0)


def test_unused_channels_of_the_tail_are_left_out() -> None:
    config, tensors = network((("channel",),))
    tensors["upsampler.2.weight"][31:] = 0
    plan, block = make_plan_and_constants(config, tensors, 60, 60)
    (weight,) = (block.arrays[a] for a in plan.launches[-2].arguments if isinstance(a, Constant) and a.name == "weight")
    assert weight.shape == (4, 4 * 96, 64), "31 channels in tiles of 64"
    assert_equal(config, tensors, noise(60, 60))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precisions_are_near(precision: Any) -> None:
    config, tensors = network()
    picture = noise(60, 60)
    expected = run_network(config, tensors, picture)
    assert (
        decibels(upscale_with_plan(config, tensors, picture, TYPES[precision]), expected)
        > {"fp16": 55, "bf16": 38}[precision]
    )


def test_a_weight_that_a_precision_cannot_hold() -> None:
    config, tensors = network((("spatial",),))
    tensors["groups.0.blocks.0.attn.proj.weight"][3, 4] = 1e5
    with pytest.raises(OverflowError, match=r"a weight of 1e\+05 is beyond the range of float16"):
        make_plan_and_constants(config, tensors, 60, 60, TYPES["fp16"])
    make_plan_and_constants(config, tensors, 60, 60, TYPES["bf16"])


# Memory


def test_buffers_that_are_alive_together_do_not_overlap() -> None:
    """At real size, with every part at work; and no more memory is taken than the fullest moment needs."""
    for name in ("small", "medium", "large"):
        config = variant_config(name)
        plan = make_plan(config, assume_all_active(config), tiles(config.embed_dim), 540, 720, TYPES["fp16"])
        result = buffer_lives(plan)
        for (one, alive), (other, also) in combinations(result.items(), 2):
            if alive.first <= also.last and also.first <= alive.last:
                assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
        moments = [
            sum(r.size for r, lifetime in result.items() if lifetime.first <= i <= lifetime.last)
            for i in range(len(plan.launches))
        ]
        assert max(moments) <= plan.arena <= 1.01 * max(moments)
        assert all(region.offset % ALIGNMENT == 0 and region.offset + region.size <= plan.arena for region in result)


def test_no_launch_reads_what_it_writes() -> None:
    """Programs of one launch run in any order. The first to use a buffer writes it, and it has no other as output."""
    plan, _ = make_plan_and_constants(*network(), 60, 60)
    result = buffer_lives(plan)
    for step, launch in enumerate(plan.launches):
        buffers = [argument for argument in launch.arguments if isinstance(argument, Region)]
        written = [buffer for buffer in buffers if result[buffer].first == step]
        assert written or Frame(is_output=True) in launch.arguments
        assert len(set(written)) == len(written)
        if written:  # inputs come before outputs
            assert buffers[-len(written) :] == written


def test_memory_given_back_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fill of NaN in `evaluate` works."""
    monkeypatch.setattr(
        launches,
        "assign_offsets",
        lambda lifetimes: assign_offsets(
            [replace(lifetime, last=max(lifetime.first, lifetime.last - 1)) for lifetime in lifetimes]
        ),
    )
    config, tensors = network((("spatial",),))
    assert not np.isfinite(upscale_with_plan(config, tensors, noise(60, 60))).all()


LIVES = some.lists(
    some.builds(
        lambda size, first, length: BufferLifetime(size, first, first + length),
        some.integers(1, 5000),
        some.integers(0, 12),
        some.integers(0, 6),
    ),
    max_size=14,
)


@given(LIVES)
def test_offsets_of_any_buffers_are_apart(lifetimes: list[BufferLifetime]) -> None:
    offsets, size = assign_offsets(lifetimes)
    for (one, at), (other, there) in combinations(zip(lifetimes, offsets, strict=True), 2):
        if one.overlaps(other):
            assert at + one.size <= there or there + other.size <= at
    assert all(at % ALIGNMENT == 0 for at in offsets)
    assert size == max(
        (-(-(at + one.size) // ALIGNMENT) * ALIGNMENT for one, at in zip(lifetimes, offsets, strict=True)), default=0
    )


def test_constants_have_places_of_their_own() -> None:
    _, block = make_plan_and_constants(*network(), 60, 60, TYPES["fp16"])
    ends = sorted((block.offsets[name], block.offsets[name] + array.nbytes) for name, array in block.arrays.items())
    assert all(before <= start for (_, before), (start, _) in pairwise(ends))
    assert all(start % ALIGNMENT == 0 for start, _ in ends)
    assert ends[-1][1] <= block.size


# What the kernels can do


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"heads": 2}, "its heads have 48 channels, not 32"),
        ({"gate_dim": 40}, "its gates have 40 channels, and 32 are the most"),
        ({"in_channels": 1}, "it is not for RGB"),
    ],
)
def test_networks_without_kernels(changes: dict[str, Any], reason: str) -> None:
    config, _ = network()
    assert unsupported_config_reason(config) is None
    result = unsupported_config_reason(replace(config, **changes))
    assert result is not None
    assert reason in result


def test_frames_with_more_values_than_offsets() -> None:
    config = variant_config("medium")
    assert offsets_fit(config, 2160, 3840)
    assert not offsets_fit(config, 4320 + 60, 7680)


def test_grids_are_within_cudas_limits() -> None:
    for name in ("small", "medium", "large"):
        config = variant_config(name)
        plan = make_plan(config, assume_all_active(config), tiles(config.embed_dim), 2160, 3840, TYPES["fp16"])
        for launch in plan.launches:
            x, y, z = launch.grid
            assert 1 <= x < 2**31
            assert 1 <= y <= 65535
            assert 1 <= z <= 65535
            assert all(abs(argument) < 2**31 for argument in launch.arguments if isinstance(argument, int))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("channels", [96, 128, 192])
def test_launches_fit_the_compiled_kernels(channels: int, precision: Any) -> None:
    """Those of every tail are in `test_cuda_tails.py`."""
    config, tensors = network(embed_dim=channels, heads=channels // 32, ffn_dim=2 * channels, gate_dim=channels // 8)
    assert_fits_compiled(config, tensors, precision)
