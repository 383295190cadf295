"""FDATs are recognized by their tensors, and other networks are not mistaken for one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

pytest.importorskip("spandrel")

from tests.fdats import BODIES, TAILS, case_id, fdat
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE
from vsfdatrd.archs.fdat_shapes import fdat_config_from_shapes, tensor_shapes
from vsfdatrd.archs.registry import restore_descriptor
from vsfdatrd.checkpoint import open_checkpoint

type Tensors = dict[str, NDArray[Any]]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


def config_of(tensors: Tensors) -> FdatConfig | None:
    return fdat_config_from_shapes(
        {name: values.shape for name, values in tensors.items()}, tensors[META_UPSAMPLE].tolist()
    )


@pytest.fixture
def tensors(tmp_path: Path) -> Tensors:
    """A small FDAT's."""
    return load_file(fdat(tmp_path / "fdat.safetensors").path)


@pytest.mark.parametrize("changes", [*TAILS, *BODIES], ids=case_id)
def test_every_fdat_is_found(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = fdat(tmp_path / "fdat.safetensors", **changes)
    result, config = checkpoint.descriptor, checkpoint.descriptor.config
    assert isinstance(config, FdatConfig)
    assert tensor_shapes(config) == {name: values.shape for name, values in load_file(checkpoint.path).items()}
    network: Any = checkpoint.network()
    assert (result.name, result.scale, result.parameters) == (
        network.architecture,
        network.scale,
        sum(parameter.numel() for parameter in network.parameters()),
    )
    # What spandrel's module holds on its way; windows over the edge of its small frame are the difference.
    largest = max(config.largest_in_body, config.largest_in_tail) / config.unshuffle**2
    assert largest <= network.largest() <= 1.6 * largest + 1
    assert config.window == changes.get("window_size", 8)
    assert restore_descriptor(json.loads(json.dumps(result.to_dict()))) == result


CHANGES: dict[str, Callable[[Tensors], Tensors]] = {
    "a tensor more": lambda t: t | {"groups.0.blocks.0.attn.qkv.bias": np.zeros(96, np.float32)},
    "a tensor less": lambda t: {name: values for name, values in t.items() if name != "conv_after.weight"},
    "a window that is no square": lambda t: t | {"groups.0.blocks.0.attn.bias": np.zeros((2, 60, 60), np.float32)},
    "heads that do not divide": lambda t: t | {"groups.0.blocks.0.attn.bias": np.zeros((3, 64, 64), np.float32)},
    "a tail that is not known": lambda t: t | {META_UPSAMPLE: np.array([3, 9, 2, 32, 3, 64, 4], np.uint8)},
    "a tail of five times": lambda t: t | {META_UPSAMPLE: np.array([3, 5, 5, 32, 3, 64, 4], np.uint8)},
    "a short note": lambda t: t | {META_UPSAMPLE: np.array([3, 5, 2], np.uint8)},
    "blocks in one group only": lambda t: t | {"groups.1.blocks.0.n1.weight": np.zeros(32, np.float32)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_exactly_an_fdat_is_left_to_spandrel(tensors: Tensors, change: str) -> None:
    assert config_of(tensors) is not None
    assert config_of(CHANGES[change](tensors)) is None


@pytest.mark.parametrize("unshuffle", [False, True])
def test_networks_of_one_plane_are_found(tmp_path: Path, unshuffle: bool) -> None:
    checkpoint = fdat(tmp_path / "gray.safetensors", num_in_ch=1, num_out_ch=1, unshuffle_mod=unshuffle)
    result = checkpoint.descriptor
    assert isinstance(result.config, FdatConfig)
    assert (result.config.in_channels, result.config.unshuffle) == (1, 2 if unshuffle else 1)
    assert (result.scale, result.planes) == (2, "luma")


def test_weights_as_whole_numbers_are_none(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors | {"conv_after.weight": tensors["conv_after.weight"].astype(np.int8)}, tmp_path / "x.safetensors")
    assert open_checkpoint(tmp_path / "x.safetensors").descriptor.architecture.name == "spandrel"


def test_all_tensors_in_fp16_are_an_fdat(tmp_path: Path, tensors: Tensors) -> None:
    """Some converters cast the integers of the tail, too."""
    path = tmp_path / "half.safetensors"
    save_file({name: values.astype(np.float16) for name, values in tensors.items()}, path)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint.descriptor.config, FdatConfig)
    assert checkpoint.network()(torch.zeros(1, 3, 16, 24)).shape == (1, 3, 32, 48)


def test_it_is_described_and_written_without_torch(tmp_path: Path) -> None:
    path = fdat(tmp_path / "fdat.safetensors").path
    code = f"""
import sys
from vsfdatrd.checkpoint import open_checkpoint

open_checkpoint({str(path)!r}).graph(16, 16)
print([name for name in ("torch", "spandrel") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
