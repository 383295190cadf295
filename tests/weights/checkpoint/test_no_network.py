"""Files with tensors that are not an image network."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from tests.weights.checkpoint.conftest import Tensors, refused
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE
from vsfdatrd.checkpoint import load_model, open_checkpoint
from vsfdatrd.errors import CheckpointError


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_values_that_are_not_finite(tmp_path: Path, tensors: Tensors, value: float, suffix: str) -> None:
    broken = tensors | {"conv_after.weight": tensors["conv_after.weight"].copy()}
    broken["conv_after.weight"][3, 4, 1, 1] = value
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save({name: torch.from_numpy(values) for name, values in broken.items()}, path)
    else:
        save_file(broken, path)
    checkpoint = open_checkpoint(path)
    for read in (checkpoint.tensors, checkpoint.network):
        with pytest.raises(CheckpointError, match=r"values that are not finite numbers, in 'conv_after.weight'.*; use"):
            read()


def test_values_too_large_for_float32(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors | {"conv_first.bias": np.full(32, 1e300)}, path := tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite numbers, in 'conv_first.bias'"):
        load_model(path)


BERT = {
    f"encoder.layer.0.attention.self.{part}.{kind}": np.zeros((8, 8) if kind == "weight" else 8, np.float32)
    for part in ("query", "key", "value")
    for kind in ("weight", "bias")
}


def test_network_for_something_else(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    save_file(BERT, path := tmp_path / "bert.safetensors")
    message = refused(path)
    assert "is not a known image network (its tensors are encoder.layer.0.attention.self.key.bias, " in message
    assert "give the weights of an FDAT-RD or of an architecture spandrel supports" in message


def test_other_networks_without_spandrel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file(BERT, path := tmp_path / "bert.safetensors")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    assert "is not an FDAT-RD; other image networks need the package spandrel: pip install 'vsfdatrd[spandrel]'" in (
        refused(path)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv_after.weight": None}, "is an incomplete FDAT-RD: it lacks 'conv_after.weight'; download it again"),
        ({"conv_first.weight": None}, "cannot be used: it looks like FDAT-RD but has no tensor 'conv_first.weight'"),
        ({"groups.0.blocks.0.n2.weight": None, "groups.0.blocks.0.n2.bias": None}, "blocks.0.n2.bias' and 1"),
        ({"surplus.weight": np.zeros(2, np.float32)}, "is not a known FDAT-RD: it also has 'surplus.weight'"),
        ({"conv_after.weight": np.zeros((32, 32, 1, 1), np.float32)}, "has shape (32, 32, 1, 1) where the others "),
        ({"conv_first.bias": np.zeros(0, np.float32)}, "its tensor 'conv_first.bias' of shape (0,) holds nothing"),
        ({"conv_first.bias": np.zeros(32, np.int32)}, "stores 'conv_first.bias' as int32; convert it to fp16"),
        (
            {META_UPSAMPLE: np.array([3, 5, 2, 32, 0, 32, 4], np.uint8)},
            "contradicts itself: its tensor 'upsampler.0.weight'",
        ),
        ({META_UPSAMPLE: np.array([3, 5, 2, 32, 3, 32, 4.5], np.float32)}, "is not a list of integers"),
        ({META_UPSAMPLE: np.array([3, 5, 2, 32, 3, 32, np.nan], np.float32)}, "not finite numbers"),
        ({META_UPSAMPLE: np.array([[3]], np.uint8)}, "is not a list of integers"),
        (
            {META_UPSAMPLE: np.array([3, 4, 2, 32, 3, 30, 4], np.uint8)},
            "its dysample tail needs a multiple of 4 channels",
        ),
        (
            {META_UPSAMPLE: np.array([3, 0, 2, 32, 3, 32, 4], np.uint8)},
            "a plain convolution, which cannot enlarge 2 times",
        ),
        ({META_UPSAMPLE: np.array([3, 5, 4, 32, 3, 32, 4], np.uint8)}, "FDAT-RD: it lacks 'upsampler.2.bias' and "),
        ({"groups.0.blocks.0.attn.temp": np.ones((5, 1, 1), np.float32)}, "32 channels cannot be split over 5 "),
    ],
)
def test_fdat_rd_that_does_not_fit_together(tmp_path: Path, tensors: Tensors, change: Tensors, message: str) -> None:
    changed = {name: values for name, values in (tensors | change).items() if values is not None}
    save_file(changed, path := tmp_path / "a.safetensors")
    assert message in refused(path)
