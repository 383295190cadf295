"""One entry in the registry is all that a new architecture needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, override

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from vsfdatrd import checkpoint as checkpoints
from vsfdatrd.archs import registry
from vsfdatrd.archs.config import NetworkConfig, from_plain
from vsfdatrd.archs.registry.base import Architecture, TensorIndex
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.backends import network_graphs, selection
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.options import BACKENDS


@dataclass(frozen=True, slots=True)
class OneConfig(NetworkConfig):
    """One convolution and a pixel shuffle."""

    scale: int
    sides: tuple[tuple[int, int], ...] = ((3, 3),)
    in_channels: ClassVar[int] = 3
    out_channels: ClassVar[int] = 3
    size: ClassVar[SizeRequirements] = SizeRequirements()
    name: ClassVar[str] = "One"

    @override
    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        return ({"largest": 3 * self.scale**2},)


class One(Architecture[OneConfig]):
    name = "one"
    config = OneConfig

    @override
    def detect(self, tensors: TensorIndex) -> bool:
        return tensors.entries.keys() == {"0.weight", "0.bias"}

    @override
    def configure(self, tensors: TensorIndex) -> OneConfig:
        return OneConfig(round((tensors.shapes["0.weight"][0] / 3) ** 0.5))

    @override
    def build(self, config: OneConfig) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 3 * config.scale**2, 3, padding=1), nn.PixelShuffle(config.scale))


@pytest.fixture
def one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file of a newly registered architecture, which no other code knows."""
    architectures = (*registry.ARCHITECTURES[:-1], One(), registry.ARCHITECTURES[-1])
    monkeypatch.setattr(registry, "ARCHITECTURES", architectures)
    monkeypatch.setattr(checkpoints, "ARCHITECTURES", architectures)
    random = np.random.default_rng(0)
    tensors = {"0.weight": random.normal(0, 0.1, (12, 3, 3, 3)), "0.bias": random.normal(0, 0.1, 12)}
    save_file({name: values.astype(np.float32) for name, values in tensors.items()}, tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def test_a_new_architecture_is_opened_cached_run_and_written_as_a_graph(one: Path) -> None:
    checkpoint = open_checkpoint(one)
    result = checkpoint.descriptor
    assert (result.name, result.scale, result.planes, result.parameters, result.dtype) == ("One", 2, "rgb", 336, "fp32")
    assert registry.restore_descriptor(json.loads(json.dumps(result.to_dict()))) == result
    assert checkpoint.network()(torch.rand(1, 3, 8, 10)).shape == (1, 3, 16, 20)
    psnr = network_graphs.check_trace(checkpoint)
    assert psnr is not None
    assert psnr > 70


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_every_backend_estimates_its_memory(one: Path, name: str) -> None:
    job = EngineSpec(open_checkpoint(one), 400, 600, "fp32", streams=1)
    assert selection.import_backend(name).memory_estimate(job)[0] > 4 * 12 * 400 * 600


def test_backends_say_what_they_cannot_run(one: Path) -> None:
    model = open_checkpoint(one).descriptor
    reasons = {name: selection.import_backend(name).unsupported_reason(model) for name in BACKENDS}
    assert {name for name, reason in reasons.items() if reason} == {"native", "cuda"}


def test_architectures_can_be_told_apart() -> None:
    assert len({known.name for known in registry.ARCHITECTURES}) == len(registry.ARCHITECTURES)
    assert len({known.config for known in registry.ARCHITECTURES}) == len(registry.ARCHITECTURES)


@pytest.mark.parametrize(
    "plain",
    [{"scale": 2}, {"scale": "2", "sides": []}, {"scale": True, "sides": []}, {"scale": 2, "sides": 5}, [], None],
    ids=str,
)
def test_plain_values_of_another_form_are_refused(plain: object) -> None:
    assert from_plain(OneConfig, {"scale": 2, "sides": [[3, 3], [5, 5]]}) == OneConfig(2, ((3, 3), (5, 5)))
    with pytest.raises(ValueError, match=r"is no|are not the fields"):
        from_plain(OneConfig, plain)
