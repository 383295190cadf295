"""A small network that the CUDA kernels can run."""

from typing import Any

FIELDS: dict[str, Any] = {
    "embed_dim": 96,
    "heads": 3,
    "groups": (("spatial", "channel", "dictionary"),),
    "dict_tokens": 40,
    "ffn_dim": 192,
    "gate_dim": 12,
    "tail_scale": 4,
    "unshuffle": 2,
}
