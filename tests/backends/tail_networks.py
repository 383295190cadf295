"""Small networks of every tail, which the CUDA kernels can run."""

from typing import Any, get_args

from tests.conftest import Tensors, tiny_config, tiny_tensors
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.upsamplers import Upsampler
from vsfdatrd.backends.cuda.tails import describe, is_fused

ENLARGING: tuple[Upsampler, ...] = tuple(name for name in get_args(Upsampler.__value__) if name != "conv")
TAILS: list[tuple[Upsampler, int]] = [("conv", 1), *((name, scale) for name in ENLARGING for scale in (2, 3, 4))]
"""Every tail and scale of the architecture."""


def tail_network(upsampler: Upsampler, scale: int, **changes: Any) -> tuple[FdatRdConfig, Tensors]:
    """A network of 96 channels with one block, and random weights."""
    fields = {"embed_dim": 96, "heads": 3, "ffn_dim": 192, "gate_dim": 12, "groups": (("channel",),)}
    fields |= {"upsampler": upsampler, "tail_scale": scale, "unshuffle": 1, "mid_dim": 32} | changes
    return tiny_config(**fields), tiny_tensors(2, **fields)


def calmed(config: FdatRdConfig, tensors: Tensors) -> Tensors:
    """The network with output about 0.5, as that of a picture."""
    last = "upsampler.3"
    if not is_fused(config):
        tail = describe(config)
        last = tail.rgb_conv or (tail.to_planes.module if tail.to_planes else f"{tail.sampling}.end_conv")
    tensors[f"{last}.weight"] *= 0.05
    tensors[f"{last}.bias"][:] = 0.5
    return tensors
