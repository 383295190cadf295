"""Every tail, from its weights to a picture: the plan of the CUDA backend, run by the kernels themselves."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.backends.closeness import run_network
from tests.conftest import tiny_config, tiny_tensors
from tests.kernels.interpreted_plan import upscaled
from tests.kernels.interpreter import Case
from vsfdatrd.options import Precision

TAILS: tuple[tuple[str, int, int, int, Precision], ...] = (
    ("conv", 1, 64, 96, "fp16"),
    ("pixelshuffledirect", 3, 64, 96, "bf16"),
    ("transpose+conv", 2, 64, 128, "fp16"),
    ("transpose+conv", 3, 64, 192, "bf16"),
    ("pixelshuffle", 4, 20, 128, "fp16"),
    ("nearest+conv", 3, 64, 96, "fp16"),
    ("pa_up", 2, 24, 128, "bf16"),
    ("dysample", 2, 96, 96, "fp16"),
    ("dysample", 3, 12, 128, "bf16"),
    ("lda", 2, 96, 96, "bf16"),
    ("lda", 2, 40, 128, "fp16"),
)
"""Tail, scale, inner channels, channels and precision."""
IDLE = ("attn.proj.weight", "attn.proj.bias", "conv.0.weight", "ffn.fc2.weight")


def cases() -> Iterator[Case]:
    for upsampler, scale, mid_dim, channels, precision in TAILS:
        fields: dict[str, Any] = {
            "embed_dim": channels,
            "heads": channels // 32,
            "groups": (("channel",),),
            "upsampler": upsampler,
            "tail_scale": scale,
            "mid_dim": mid_dim,
        }
        config, tensors = tiny_config(**fields), tiny_tensors(1, **fields)
        for name in tensors:
            if name.endswith(IDLE):
                tensors[name][...] = 0  # the block is left out
        picture = np.random.default_rng(2).random((3, 30, 30), np.float32)
        expected = run_network(config, tensors, picture)
        result = upscaled(config, tensors, picture, precision)
        limit = {"fp16": 55, "bf16": 42}[precision]
        yield Case(
            f"{upsampler} {scale} {mid_dim} {channels} {precision}",
            result - expected.mean(),
            expected - expected.mean(),
            10 ** (-limit / 20),
        )
