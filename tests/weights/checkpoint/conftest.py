"""Weights of a small FDAT-RD, and files that must be refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import CheckpointError

type Tensors = dict[str, Any]
type Maker = Callable[..., Tensors]


@pytest.fixture(scope="module")
def tensors(make_tensors: Maker) -> Tensors:
    """Weights of a small FDAT-RD; its window bias, most of the file, is left out."""
    return make_tensors(groups=(("channel", "dictionary"),))


@pytest.fixture(scope="module")
def state(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The same as torch tensors."""
    return {name: torch.from_numpy(values) for name, values in tensors.items()}


def refused(path: Path) -> str:
    """Return the error message for a refused file, which must contain its name."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    output = str(caught.value)
    assert str(path) in output
    return output.replace(str(path), "FILE")
