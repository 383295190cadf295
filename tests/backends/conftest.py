"""Networks for every backend, and frames on a fake GPU."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from tests.backends.cuda_network import FIELDS
from tests.backends.on_fake_gpu import Outcome, Upscale, upscale_on_fake_gpu
from tests.backends.tail_networks import calmed
from tests.conftest import identity_tensors, tiny_config, tiny_tensors
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Checkpoint:
    """The network of `tiny_model`."""
    return open_checkpoint(tiny_model)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file: repeats every pixel, and its blocks compute something, which precisions differ in."""
    path = tmp_path_factory.mktemp("networks") / "identity.safetensors"
    save_file(identity_tensors(2, idle=False), path)
    return path


@pytest.fixture(scope="module")
def cuda_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a network that the CUDA kernels can run, with output about 0.5."""
    path = tmp_path_factory.mktemp("cuda") / "network_2x.safetensors"
    save_file(calmed(tiny_config(**FIELDS), tiny_tensors(**FIELDS)), path)
    return path


@pytest.fixture
def upscale(identity: Path, tmp_path: Path) -> Upscale:
    """`upscale_on_fake_gpu` with a network that repeats every pixel and a cache of the test's own."""

    def run(faults: str = "", gpu: dict[str, str] | None = None, **arguments: Any) -> Outcome:
        return upscale_on_fake_gpu(
            faults, gpu or {}, {"model": str(identity), "cache": str(tmp_path / "cache")} | arguments
        )

    return run
