"""Hyper-parameters: found from shapes, from names, and what follows from them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, VARIANTS, FdatRdConfig, config_from_shapes, is_fdat_rd, variant_config
from vsfdatrd.archs.fdat_shapes import tensor_shapes
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.errors import CheckpointError

type Make = Callable[..., Any]


def _shapes(config: FdatRdConfig) -> dict[str, tuple[int, ...]]:
    return dict(tensor_shapes(config))


def _meta(config: FdatRdConfig) -> list[int]:
    index = UPSAMPLERS.index(config.upsampler)
    return [3, index, config.tail_scale, config.embed_dim, config.out_channels, config.mid_dim, 4]


def test_every_fixture_is_recognized_with_its_configuration(shared: Path) -> None:
    index = json.loads((shared / "fixtures/index.json").read_text())
    assert len(index) > 20
    for name, facts in index.items():
        with safe_open(shared / f"fixtures/{name}.safetensors", "numpy") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            result = config_from_shapes(shapes, file.get_tensor(META_UPSAMPLE).tolist())
        arguments = facts["config"]
        assert is_fdat_rd(shapes), name
        assert result.embed_dim == arguments["embed_dim"], name
        assert result.heads == arguments["num_heads"], name
        assert len(result.groups) == arguments["num_groups"], name
        assert result.groups[0] == ("spatial", "channel", "dictionary") * arguments["depth_per_group"], name
        assert result.dict_tokens == arguments["num_dict_tokens"], name
        assert result.scale == arguments["scale"], name
        assert result.unshuffle == (4 // arguments["scale"] if arguments.get("unshuffle_mod") else 1), name
        assert result.upsampler == arguments.get("upsampler_type", "transpose+conv"), name
        assert result.mid_dim == arguments["mid_dim"], name
        assert tensor_shapes(result) == shapes, name


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("unshuffle", [True, False])
def test_variants_are_found_again_from_their_shapes(name: str, scale: int, unshuffle: bool) -> None:
    config = variant_config(name, scale=scale, unshuffle_mod=unshuffle)
    assert config.scale == scale
    assert config_from_shapes(_shapes(config), _meta(config)) == config


@pytest.mark.parametrize(
    "pattern",
    [("dictionary",), ("channel", "spatial"), ("spatial", "spatial", "channel", "dictionary", "channel"), ("channel",)],
)
def test_any_pattern_of_blocks_is_found(make_config: Make, pattern: tuple[str, ...]) -> None:
    tokens, gate = (32 if "dictionary" in pattern else 0), (0 if set(pattern) == {"dictionary"} else 4)
    config = make_config(groups=(pattern, pattern[::-1], pattern[:1]), dict_tokens=tokens, gate_dim=gate)
    assert config_from_shapes(_shapes(config), _meta(config)) == config


@pytest.mark.parametrize(
    ("name", "parameters", "work"), [("small", 4.88, 0.61), ("medium", 7.73, 1.07), ("large", 22.39, 3.45)]
)
def test_parameters_and_work_of_the_published_sizes(name: str, parameters: float, work: float) -> None:
    config = variant_config(name)
    count = sum(np.prod(shape) for key, shape in tensor_shapes(config).items() if key != META_UPSAMPLE)
    assert count / 1e6 == pytest.approx(parameters, abs=0.006)
    assert config.flops(540, 720) / 1e12 == pytest.approx(work, rel=0.03)


TAILS = [("conv", 1), *((kind, scale) for kind in UPSAMPLERS for scale in (2, 3, 4) if kind != "conv")]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("upsampler", "tail_scale"), TAILS)
def test_work_is_what_pytorch_counts(make_config: Make, upsampler: str, tail_scale: int) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vsfdatrd.nn.fdat_rd import FdatRd

    config = make_config(upsampler=upsampler, tail_scale=tail_scale)
    network, counter = FdatRd(config).requires_grad_(False), FlopCounterMode(display=False)
    with counter:
        network(torch.zeros(1, 3, 50, 60))
    # PyTorch leaves out sampling between pixels, of which the two moving tails do much in a network this small.
    tolerance = 0.06 if upsampler in ("dysample", "lda") else 0.001
    assert config.flops(50, 60) == pytest.approx(counter.get_total_flops(), rel=tolerance)


def test_work_counts_the_padding() -> None:
    config = variant_config("medium")
    assert config.flops(481, 720) == config.flops(540, 720) > config.flops(480, 720)


def test_names_that_are_no_variant() -> None:
    with pytest.raises(
        ValueError, match="'huge' is not an FDAT-RD variant; choose one of small, medium, large, aligned"
    ):
        variant_config("huge")
    with pytest.raises(ValueError, match="scale 5 is not possible"):
        variant_config("small", scale=5)
    assert variant_config("aligned") == variant_config("medium")


def test_many_groups_are_read_soon() -> None:
    shapes: dict[str, tuple[int, ...]] = {"conv_first.weight": (1, 3, 3, 3)}
    for group in range(20_000):
        block = f"groups.{group}.blocks.0"
        shapes |= {f"{block}.n1.weight": (1,), f"{block}.ffn.fc1.weight": (1, 1)}
        shapes |= {f"{block}.attn.temp": (1, 1, 1), f"{block}.inter.cg.1.weight": (1, 1, 1, 1)}
    begin = time.process_time()
    assert config_from_shapes(shapes, [3, 0, 1, 1, 3, 64, 4]).blocks == 20_000
    assert time.process_time() - begin < 10


def test_fdat_and_others_are_not_taken_for_fdat_rd() -> None:
    fdat = {META_UPSAMPLE, "conv_first.weight", "groups.0.blocks.0.attn.bias", "groups.0.blocks.1.attn.temperature"}
    assert not is_fdat_rd(fdat)
    assert not is_fdat_rd({"encoder.layer.0.attention.self.query.weight"})
    assert not is_fdat_rd({"groups.0.blocks.0.attn.rel_pos_bias"})
    assert not is_fdat_rd(())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_first.weight": None}, "no tensor 'conv_first.weight'"),
        ({"groups.0.blocks.1.attn.temp": None}, "of an unknown kind"),
        ({"groups.0.blocks.0.attn.rel_pos_bias": (1, 64, 64)}, "hold 64 tokens"),
        ({"groups.0.blocks.1.attn.temp": (5, 1, 1)}, "32 channels cannot be split over 5 heads"),
        ({"conv_first.weight": (32, 3, 3)}, "where FDAT-RD has 4 dimensions"),
        ({"groups.0.blocks.0.ffn.fc1.weight": None}, "no tensor"),
        ({"groups.0.blocks.0.n1.weight": None}, "has no blocks"),
    ],
)
def test_shapes_that_fit_no_network(make_config: Make, change: dict[str, Any], message: str) -> None:
    config = make_config(groups=(("spatial", "channel"),), dict_tokens=0)
    shapes = {name: shape for name, shape in (_shapes(config) | change).items() if shape is not None}
    with pytest.raises(CheckpointError, match=message):
        config_from_shapes(shapes, _meta(config))


META_OF_NO_NETWORK: tuple[list[int], ...] = (
    [],
    [3] * 6,
    [2, 5, 2, 32, 3, 64, 4],
    [3, 9, 2, 32, 3, 64, 4],
    [3, 5, 0, 32, 3, 64, 4],
)


@pytest.mark.parametrize("meta", META_OF_NO_NETWORK)
def test_meta_numbers_no_network_writes(make_config: Make, meta: list[int]) -> None:
    with pytest.raises(CheckpointError, match=r"MetaUpsample is .*, which no known FDAT-RD writes"):
        config_from_shapes(_shapes(make_config()), meta)
