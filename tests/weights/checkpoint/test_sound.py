"""Sound files: what they hold is found, wherever training programs put it."""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.weights.checkpoint.conftest import Tensors
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig
from vsfdatrd.archs.registry import restore_descriptor
from vsfdatrd.archs.registry.base import BUFFER_SUFFIXES
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.checkpoint import load_model, open_checkpoint
from vsfdatrd.nn.fdat_rd import FdatRd


def _same(result: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float = 0) -> None:
    assert result.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(result[name], values, rtol=tolerance, atol=0, err_msg=name)


def test_every_fixture_is_described_and_read(shared: Path) -> None:
    index = json.loads((shared / "fixtures/index.json").read_text())
    for name, facts in index.items():
        path = shared / f"fixtures/{name}.safetensors"
        checkpoint = open_checkpoint(path)
        result = checkpoint.descriptor
        assert (result.name, result.scale, result.dtype) == ("FDAT-RD", facts["config"]["scale"], "fp32"), name
        assert isinstance(result.config, FdatRdConfig)
        assert result.size == SizeRequirements(30 * result.config.unshuffle), name
        assert result.parameters == sum(p.numel() for p in checkpoint.network().parameters()), name
        _same(checkpoint.tensors(), load_file(path))


def test_shipping_size(shared: Path) -> None:
    result = open_checkpoint(shared / "weights/fdat_rd_medium_2x_standin.safetensors").descriptor
    assert (result.parameters, result.dtype, result.scale, result.size.multiple_of) == (7_728_503, "fp16", 2, 60)
    assert result.sha256 == "d1e6dcf5017b4c2760994271649952d091a9d4474ec7d187ed01cf647b0507bd"
    assert restore_descriptor(json.loads(json.dumps(result.to_dict()))) == result


@pytest.mark.parametrize(
    ("dtype", "name", "tolerance"),
    [
        ("float16", "fp16", 1e-3),
        ("bfloat16", "bf16", 1e-2),
        ("float32", "fp32", 0),
        ("float64", "fp64", 0),
    ],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_every_precision(
    tmp_path: Path, tensors: Tensors, state: Tensors, dtype: str, name: str, tolerance: float, suffix: str
) -> None:
    from safetensors.torch import save_file as save_torch

    path = tmp_path / f"a{suffix}"
    kind = getattr(torch, dtype)
    converted = {key: (value if key.endswith(BUFFER_SUFFIXES) else value.to(kind)) for key, value in state.items()}
    if suffix == ".pth":
        torch.save(converted, path)
    else:
        save_torch(converted, path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.descriptor.dtype == name
    result = checkpoint.tensors()
    assert {key for key, values in result.items() if values.dtype != np.float32} == {META_UPSAMPLE}
    exact = {
        key: (value if key.endswith(BUFFER_SUFFIXES) else value.float()).numpy() for key, value in converted.items()
    }
    _same(result, exact)
    np.testing.assert_allclose(result["conv_first.weight"], tensors["conv_first.weight"], rtol=tolerance, atol=1e-6)


def test_precisions_may_be_mixed_and_meta_may_be_a_fraction(tmp_path: Path, tensors: Tensors) -> None:
    mixed = tensors | {"conv_after.weight": tensors["conv_after.weight"].astype(np.float16)}
    mixed[META_UPSAMPLE] = tensors[META_UPSAMPLE].astype(np.float16)
    save_file(mixed, path := tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.descriptor.dtype == "fp16+fp32"
    network = checkpoint.network()
    assert network.get_buffer(META_UPSAMPLE).tolist() == tensors[META_UPSAMPLE].tolist()


def _wrapped(state: Tensors) -> Iterator[tuple[str, object]]:
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    for key in ("params", "params_ema", "state_dict", "model", "net"):
        yield key, {key: state, "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}
    yield "averaged first", {"params": other, "params_ema": state}
    yield "averaged by name", {"net": other, "ema": state, "opt": {}, "step": 5}
    yield "twice", {"model": {"state_dict": state}}
    yield "only key", {"weights_of_the_generator": state}
    yield "unknown key", {"weights_of_the_generator": state, "epoch": 1, "log": ["a"]}
    yield "ordered", OrderedDict(state)
    for prefix in ("module.", "net_g.", "_orig_mod.", "module._orig_mod.", "my.own.prefix."):
        yield prefix, {f"{prefix}{name}": value for name, value in state.items()}
    yield "compiled inside", {name.replace("groups.0.", "groups.0._orig_mod."): value for name, value in state.items()}
    both = {f"net_d.{name}": value for name, value in list(other.items())[:3]}
    yield "with a discriminator", {"state_dict": {f"net_g.{name}": value for name, value in state.items()} | both}
    yield "parameters", {name: torch.nn.Parameter(v) if v.is_floating_point() else v for name, v in state.items()}


def test_weights_are_found_wherever_training_programs_put_them(
    tmp_path: Path, tensors: Tensors, state: Tensors
) -> None:
    for number, (what, tree) in enumerate(_wrapped(state)):
        path = tmp_path / f"{number}.pth"
        torch.save(tree, path)
        checkpoint = open_checkpoint(path)
        assert checkpoint.descriptor.name == "FDAT-RD", what
        _same(checkpoint.tensors(), tensors)


def test_prefixes_in_safetensors(tmp_path: Path, tensors: Tensors) -> None:
    for number, prefix in enumerate(("params_ema.", "module.", "net_g.")):
        path = tmp_path / f"{number}.safetensors"
        zeros = {f"params.{name}": np.zeros_like(values) for name, values in tensors.items()}
        save_file({f"{prefix}{name}": values for name, values in tensors.items()} | zeros, path)
        if prefix == "params_ema.":
            _same(open_checkpoint(path).tensors(), tensors)
        save_file({f"{prefix}{name}": values for name, values in tensors.items()}, path)
        _same(open_checkpoint(path).tensors(), tensors)


def test_legacy_pth_and_names_that_mislead(tmp_path: Path, tensors: Tensors, state: Tensors) -> None:
    torch.save(state, path := tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    _same(open_checkpoint(path).tensors(), tensors)
    torch.save(state, path := tmp_path / "torch.safetensors")
    _same(open_checkpoint(path).tensors(), tensors)
    save_file(tensors, path := tmp_path / "safetensors.pth")
    _same(open_checkpoint(path).tensors(), tensors)
    save_file(tensors, path := tmp_path / "no suffix")
    _same(open_checkpoint(path).tensors(), tensors)


def test_network_has_the_weights_and_is_new_each_time(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, path := tmp_path / "a.safetensors")
    network = load_model(path)
    assert isinstance(network, FdatRd)
    assert not network.training
    _same({name: value.numpy() for name, value in network.state_dict().items()}, tensors)
    assert all(parameter.requires_grad for parameter in network.parameters())
    checkpoint = open_checkpoint(path)
    assert checkpoint.network() is not checkpoint.network()


def test_load_model_is_public(tiny_model: Path) -> None:
    import vsfdatrd

    assert isinstance(vsfdatrd.load_model(str(tiny_model)), FdatRd)


def test_identity_networks_are_exact(identity_1x: Path, identity_2x: Path) -> None:
    x = torch.rand(1, 3, 33, 47)
    with torch.inference_mode():
        assert torch.equal(load_model(identity_1x)(x), x)
        assert torch.equal(load_model(identity_2x)(x), x.repeat_interleave(2, -1).repeat_interleave(2, -2))
