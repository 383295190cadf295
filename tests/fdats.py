"""Small FDATs with random weights large enough that every branch contributes, unlike spandrel's initial ones."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from vsfdatrd.checkpoint import Checkpoint, open_checkpoint

SMALL: dict[str, Any] = {"embed_dim": 32, "num_heads": 2, "num_groups": 1, "depth_per_group": 2, "scale": 2}

TAILS: tuple[dict[str, Any], ...] = (
    {"upsampler_type": "conv", "scale": 1},
    *(
        {"upsampler_type": kind, "scale": scale}
        for kind in ("pixelshuffledirect", "pixelshuffle", "nearest+conv", "dysample", "transpose+conv", "lda", "pa_up")
        for scale in (2, 3, 4)
    ),
)
"""What makes an FDAT of every tail and scale."""
BODIES: tuple[dict[str, Any], ...] = (
    {"window_size": 5},
    {"window_size": 16, "num_heads": 1},
    {"embed_dim": 54, "num_heads": 2, "ffn_expansion_ratio": 1.5, "num_groups": 2, "depth_per_group": 1},
    {"unshuffle_mod": True},
    {"unshuffle_mod": True, "scale": 1, "upsampler_type": "pixelshuffle"},
    {"unshuffle_mod": True, "upsampler_type": "dysample", "mid_dim": 32},
    {"unshuffle_mod": True, "scale": 3},
    {"scale": 8, "upsampler_type": "pixelshuffledirect"},
)
"""What makes other FDATs."""


def case_id(changes: dict[str, Any]) -> str:
    """Return a name for a test case."""
    return " ".join(f"{key}={value}" for key, value in changes.items())


def fdat(path: Path, seed: int = 0, **changes: Any) -> Checkpoint:
    """An FDAT as a file, opened. changes: of `SMALL`, as spandrel's constructor takes them."""
    from spandrel.architectures.FDAT import FDAT

    state: dict[str, Tensor] = FDAT(**(SMALL | changes)).state_dict()
    random = torch.Generator().manual_seed(seed)
    for name, tensor in state.items():
        if not tensor.is_floating_point() or name.endswith("init_pos"):
            continue
        noise = torch.randn(tensor.shape, generator=random)
        fan_in = int(np.prod(tensor.shape[1:])) if tensor.ndim > 1 else 0
        matrix = fan_in and not name.endswith("temp")
        state[name] = noise * fan_in**-0.5 if matrix else tensor + 0.1 * noise
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return open_checkpoint(path)


def run_spandrel(checkpoint: Checkpoint, picture: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run spandrel's module on a picture (1, 3, H, W), without clamping."""
    network: Any = checkpoint.network()
    with torch.inference_mode():
        result: NDArray[np.float32] = network.forward_unpadded(torch.from_numpy(picture)).numpy()
    return result
