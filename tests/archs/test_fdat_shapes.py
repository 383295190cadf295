"""The list of tensors is the network's own, for every tail, scale and pattern."""

from collections.abc import Callable
from typing import Any

import pytest

from vsfdatrd.archs.fdat_shapes import tensor_shapes
from vsfdatrd.archs.registry.base import BUFFER_SUFFIXES
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.nn.fdat_rd import FdatRd

type Make = Callable[..., Any]


TAILS = [(kind, scale) for kind in UPSAMPLERS for scale in (1, 2, 3, 4) if kind != "conv" or scale == 1]


@pytest.mark.parametrize("mid_dim", [32, 24])
@pytest.mark.parametrize(("upsampler", "tail_scale"), TAILS)
def test_tensors_of_every_tail(make_config: Make, upsampler: str, tail_scale: int, mid_dim: int) -> None:
    config = make_config(upsampler=upsampler, tail_scale=tail_scale, mid_dim=mid_dim)
    network = FdatRd(config)
    assert tensor_shapes(config) == {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    weights = {name for name in tensor_shapes(config) if not name.endswith(BUFFER_SUFFIXES)}
    assert weights == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_tensors_of_other_bodies(make_config: Make, unshuffle: int) -> None:
    config = make_config(
        embed_dim=48,
        heads=3,
        groups=(("channel",), ("dictionary", "spatial")),
        dict_tokens=7,
        ffn_dim=72,
        gate_dim=6,
        tail_scale=4,
        unshuffle=unshuffle,
    )
    shapes = {name: tuple(tensor.shape) for name, tensor in FdatRd(config).state_dict().items()}
    assert tensor_shapes(config) == shapes


@pytest.mark.parametrize(
    ("upsampler", "width"), [("dysample", 4), ("dysample", 30), ("lda", 4), ("lda", 12), ("conv", 32)]
)
def test_tails_that_cannot_be(make_config: Make, upsampler: str, width: int) -> None:
    config = make_config(upsampler=upsampler, mid_dim=width)
    with pytest.raises(ValueError, match=r"its .*tail"):
        tensor_shapes(config)
