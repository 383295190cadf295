"""The tails in the plan of the CUDA backend: with NumPy in place of the kernels they compute what PyTorch does."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from tests.backends.closeness import decibels, run_network
from tests.backends.plans import assert_fits_compiled, buffer_lives, make_plan_and_constants, tiles, upscale_with_plan
from tests.backends.tail_networks import ENLARGING, TAILS, tail_network
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant_config
from vsfdatrd.archs.upsamplers import Upsampler
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import Region, assume_all_active, offsets_fit, unsupported_config_reason
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.cuda.tails import describe, is_fused, largest_buffer
from vsfdatrd.kernels import manifest
from vsfdatrd.options import Precision

ROUNDING = {"lda": 100.0}
"""Signal to noise in dB of float32, in which positions are rounded, too. Of the other tails: 105."""

pytestmark = pytest.mark.usefixtures("one_thread")


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * width).random((3, height, width), np.float32)


def assert_equal(config: FdatRdConfig, tensors: dict[str, Any], picture: Any) -> None:
    assert unsupported_config_reason(config) is None
    expected = run_network(config, tensors, picture)
    assert decibels(upscale_with_plan(config, tensors, picture), expected) > ROUNDING.get(config.upsampler, 105.0)


@pytest.mark.parametrize(("upsampler", "scale"), TAILS)
def test_every_tail_equals_the_network(upsampler: Upsampler, scale: int) -> None:
    assert_equal(*tail_network(upsampler, scale), noise(30, 60))


@pytest.mark.parametrize("upsampler", ENLARGING)
def test_tails_after_a_pixel_unshuffle(upsampler: Upsampler) -> None:
    """A padded frame, too."""
    assert_equal(*tail_network(upsampler, 4, unshuffle=2), noise(51, 60))
    assert_equal(*tail_network(upsampler, 2, unshuffle=2), noise(60, 37))


@pytest.mark.parametrize("upsampler", ENLARGING)
def test_a_tail_that_does_not_enlarge_is_a_convolution(upsampler: Upsampler) -> None:
    config, tensors = tail_network(upsampler, 1)
    plan, _ = make_plan_and_constants(config, tensors, 30, 30)
    assert [launch.kernel for launch in plan.launches[-2:]] == ["conv_after", "conv_pixel_shuffle"]
    assert_equal(config, tensors, noise(30, 30))


@pytest.mark.parametrize(
    ("upsampler", "mid_dim"),
    [
        *(("pixelshuffle", mid_dim) for mid_dim in (1, 33, 96)),
        *(("pa_up", mid_dim) for mid_dim in (1, 33, 96)),
        *(("dysample", mid_dim) for mid_dim in (8, 36, 96)),
        *(("lda", mid_dim) for mid_dim in (8, 56, 96, 248)),
    ],
)
def test_inner_channels_of_every_number(upsampler: Upsampler, mid_dim: int) -> None:
    """With as many as tokens have, tails that sample have no convolution before."""
    assert_equal(*tail_network(upsampler, 2, mid_dim=mid_dim), noise(30, 30))


@pytest.mark.parametrize(("upsampler", "scale"), TAILS)
def test_half_precision_is_near(upsampler: Upsampler, scale: int) -> None:
    config, tensors = tail_network(upsampler, scale)
    picture = draw_line_art(30, 30)
    expected = run_network(config, tensors, picture)
    precisions: dict[Precision, int] = {"fp16": 52, "bf16": 38}
    for precision, limit in precisions.items():
        less = 4 * (upsampler == "lda")  # errors of its input move positions
        assert decibels(upscale_with_plan(config, tensors, picture, TYPES[precision]), expected) > limit - less, (
            precision
        )


@pytest.mark.parametrize(("upsampler", "scale"), TAILS)
def test_buffers_fit_and_are_apart(upsampler: Upsampler, scale: int) -> None:
    """At real size. No buffer has more values than `largest_buffer` says, and no launch reads what it writes."""
    config = variant_config("medium", scale=scale, unshuffle_mod=False, upsampler=upsampler)
    kernels = manifest.load().kernels.items()
    compiled = {name: each.constants for (name, *of), each in kernels if of == [128, "fp16"]}
    height, width = 270, 480
    plan = make_plan(config, assume_all_active(config), compiled, height, width, TYPES["fp16"])
    found = buffer_lives(plan)
    for (one, alive), (other, also) in combinations(found.items(), 2):
        if alive.first <= also.last and also.first <= alive.last:
            assert one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
    tail = {a for launch in plan.launches if launch.module.startswith("upsampler") for a in launch.arguments}
    sizes = [int(np.prod(region.shape)) for region in tail if isinstance(region, Region)]
    assert max(sizes) <= height * width * max(largest_buffer(config), config.embed_dim)
    for step, launch in enumerate(plan.launches):
        assert all(1 <= count <= limit for count, limit in zip(launch.grid, (2**31 - 1, 65535, 65535), strict=True))
        if launch.module.startswith("upsampler"):
            used = [argument for argument in launch.arguments if isinstance(argument, Region)]
            written = [region for region in used if found[region].first == step]
            assert len(used) == len(set(used))
            assert used[len(used) - len(written) :] == written, "inputs come before outputs"


def test_frames_whose_tail_has_more_values_than_offsets() -> None:
    """Four pixels a side of 64 channels: with 1080 × 1920 tokens they are 2.1 · 10⁹, nearly all there are."""
    config = variant_config("medium", scale=4, unshuffle_mod=False, upsampler="pixelshuffle")
    assert largest_buffer(config) == 16 * 64
    assert offsets_fit(config, 1080, 1920)
    assert not offsets_fit(config, 1110, 1920)


def test_every_tail_fits_the_compiled_kernels() -> None:
    """Together, networks with every tail and one with dictionary blocks use every compiled kernel."""
    used: set[str] = set()
    for precision in ("fp16", "bf16"):
        for channels in (96, 128, 192):
            fields = {"embed_dim": channels, "heads": channels // 32, "ffn_dim": 2 * channels, "mid_dim": 40}
            for upsampler, scale in TAILS:
                config, tensors = tail_network(upsampler, scale, **fields)
                used |= assert_fits_compiled(config, tensors, precision)
    body, _ = tail_network("conv", 1, groups=(("spatial", "dictionary"),), dict_tokens=8)
    plan = make_plan(body, assume_all_active(body), tiles(96), 30, 30, TYPES["fp16"])
    used |= {launch.kernel for launch in plan.launches}
    assert used == {key[0] for key in manifest.load().kernels}


def test_channels_are_multiples_of_the_tiles_of_maps() -> None:
    """Else tokens would be numbered differently by what writes them and by what reads them."""
    for (name, channels, _), kernel in manifest.load().kernels.items():
        if name == "conv_maps":
            assert channels % kernel.constants["BLOCK_COLUMNS"] == 0
        if name in ("conv_maps", "conv_pixel_shuffle"):
            assert kernel.constants["BLOCK_K"] == 32
            assert channels % 32 == 0


def test_launches_of_the_tails() -> None:
    """What is fused: activations, repetition and pixel shuffle cost no launch of their own."""
    expected: dict[tuple[Upsampler, int], int] = {
        ("conv", 1): 1,
        ("pixelshuffledirect", 4): 1,
        ("transpose+conv", 2): 2,
        ("transpose+conv", 4): 2,
        ("pixelshuffle", 4): 4,
        ("nearest+conv", 3): 3,
        ("pa_up", 2): 4,
        ("dysample", 3): 3,
        ("lda", 2): 7,
    }
    for (upsampler, scale), count in expected.items():
        config, tensors = tail_network(upsampler, scale)
        plan, _ = make_plan_and_constants(config, tensors, 30, 30)
        assert sum(launch.module.startswith("upsampler") for launch in plan.launches) == count, upsampler
        assert is_fused(config) or len(describe(config).maps) < count
