"""What every test on a GPU needs: a GPU, networks, and what they make of a picture on the CPU."""

from pathlib import Path

import pytest

from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.engines.base import Frames
from vsfdatrd.engines.devices import gpus
from vsfdatrd.engines.verify import drawing

SIDES = (240, 300)


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    if not gpus():
        pytest.skip("there is no NVIDIA GPU here, or no driver for it")


@pytest.fixture(scope="session")
def medium() -> Checkpoint:
    """The weights that ship."""
    return open_checkpoint(Path(__file__).resolve().parents[2] / "models/fdat_rd_medium_2x.safetensors")


def on_cpu(checkpoint: Checkpoint, picture: Frames) -> Frames:
    """What the network makes of a picture (3, H, W) in float32 on the CPU."""
    import torch

    with torch.inference_mode():
        result: Frames = checkpoint.network()(torch.from_numpy(picture.copy())[None])[0].numpy()
    return result


@pytest.fixture(scope="session")
def reference(medium: Checkpoint) -> Frames:
    """What the shipped network makes of the drawing on the CPU."""
    return on_cpu(medium, drawing(*SIDES))
