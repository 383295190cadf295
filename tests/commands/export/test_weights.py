"""Weights keep their values in every precision and both formats."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from tests.commands.export.conftest import Array, Make, noise, relative_error, run_torch
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands.export import Exported, export
from vsfdatrd.options import Precision

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]

TYPES: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_keep_their_values(tiny_model: Path, target: Path, kind: str, precision: Precision) -> None:
    target = target.with_suffix(f".{kind}")
    done = export(tiny_model, target, precision=precision)
    assert done == Exported(target, done.format, precision, None, target.stat().st_size, "by reading it back", None)
    assert done.format == kind
    source = load_file(tiny_model)
    expected = {name: v if name == META_UPSAMPLE else v.astype(TYPES[precision]) for name, v in source.items()}
    written: dict[str, Array]
    if kind == "safetensors":
        written = {name: values.view(expected[name].dtype) for name, values in load_file(target).items()}
        with safe_open(target, "np") as file:
            about = json.loads(file.metadata()["vsfdatrd"])
        assert (about["model"], about["precision"]) == (tiny_model.name, precision)
    else:
        state = torch.load(target, weights_only=True)
        assert set(state) == {"params_ema"}
        kinds = {v.dtype for name, v in state["params_ema"].items() if name != META_UPSAMPLE}
        assert kinds == {{"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
        assert state["params_ema"][META_UPSAMPLE].dtype == torch.uint8
        written = {
            name: v.numpy() if name == META_UPSAMPLE else v.float().numpy() for name, v in state["params_ema"].items()
        }
        expected = {name: v if name == META_UPSAMPLE else v.astype(np.float32) for name, v in expected.items()}
    assert written.keys() == expected.keys()
    for name, values in expected.items():
        assert written[name].dtype == values.dtype
        assert np.array_equal(written[name], values), name
    again = open_checkpoint(target)
    assert again.descriptor.dtype == precision
    assert again.descriptor.config == open_checkpoint(tiny_model).descriptor.config
    picture = noise(30, 31)
    difference = relative_error(run_torch(target, picture), run_torch(tiny_model, picture))
    assert (difference == 0) if precision == "fp32" else 1e-4 < difference < 0.1


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_are_always_the_same_file(tiny_model: Path, target: Path, kind: str) -> None:
    export(tiny_model, target, format=kind.upper())
    first = target.read_bytes()
    export(tiny_model, target.with_name("another"), format=kind)
    assert target.with_name("another").read_bytes() == first


def test_weights_of_a_training_program(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    """What lies beside the averaged weights stays behind, and prefixes go."""
    averaged, last = make_tensors(1), make_tensors(2)
    states = [{f"module.{n}": torch.from_numpy(v) for n, v in tensors.items()} for tensors in (last, averaged)]
    torch.save({"params": states[0], "params_ema": states[1], "iter": 7}, model := tmp_path / "net_g.pth")
    target = target.with_suffix(".safetensors")
    export(model, target)
    written = load_file(target)
    assert written.keys() == averaged.keys()
    assert all(np.array_equal(written[name], averaged[name]) for name in averaged)
