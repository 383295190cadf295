"""A whole network, from its weights to a picture: the plan of the CUDA backend, run by the kernels themselves."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.backends.closeness import run_network
from tests.conftest import tiny_config, tiny_tensors
from tests.kernels.interpreted_plan import upscaled
from tests.kernels.interpreter import Case


def cases() -> Iterator[Case]:
    fields: dict[str, Any] = {
        "embed_dim": 96,
        "heads": 3,
        "ffn_dim": 192,
        "gate_dim": 12,
        "tail_scale": 4,
        "unshuffle": 2,
        "groups": (("spatial", "channel", "dictionary", "spatial"),),
        "dict_tokens": 19,
    }
    config, tensors = tiny_config(**fields), tiny_tensors(1, **fields)
    for idle in (0, 2):
        tensors[f"groups.0.blocks.{idle}.ffn.fc2.weight"][...] = 0  # left out
    picture = np.random.default_rng(2).random((3, 60, 60), np.float32)
    expected = run_network(config, tensors, picture)
    result = upscaled(config, tensors, picture, "fp16")
    # 55 dB of signal to noise, as with NumPy in place of the kernels
    yield Case("network", result - expected.mean(), expected - expected.mean(), 10 ** (-55 / 20))
