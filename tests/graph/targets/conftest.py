"""Fixtures with the shipped weights.

Half precision is emulated on the CPU (``emulation.py``); limits are measured values with a margin.
"""

import pytest
import torch

from benchmarks.weights import weights_file
from tests.graph.running import Tensors
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.checkpoint import open_checkpoint

type Medium = tuple[FdatRdConfig, Tensors, torch.nn.Module]


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Medium:
    """The shipped weights with all branches active."""
    checkpoint = open_checkpoint(weights_file("medium", tmp_path_factory.mktemp("medium"))[0])
    config = checkpoint.descriptor.config
    assert isinstance(config, FdatRdConfig)
    return config, dict(checkpoint.tensors()), checkpoint.network()
