"""Exports of other networks: FDAT, ArtCNN, and traced ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import save_file

from benchmarks.architectures import save_network as made
from tests.artcnns import KINDS, random_tensors
from tests.commands.export.conftest import (
    Array,
    assert_refused,
    convert_to_fp32,
    interface,
    noise,
    relative_error,
    run_onnxruntime,
    run_torch,
)
from tests.fdats import case_id, fdat
from tests.onnx_files import write_doubler
from vsfdatrd.archs.registry import base
from vsfdatrd.checkpoint import load_model, open_checkpoint
from vsfdatrd.commands.export import export
from vsfdatrd.errors import ArgumentError, EngineBuildError
from vsfdatrd.nn.spandrel_network import SpandrelNetwork
from vsfdatrd.options import Precision

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    """A small network of another architecture (Compact)."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.Compact import Compact

    make: Any = Compact  # has no annotations
    network = make(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2)
    state = {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}
    save_file(state, tmp_path / "compact.safetensors")
    return tmp_path / "compact.safetensors"


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_of_other_networks(compact: Path, target: Path, kind: str) -> None:
    target = target.with_suffix(f".{kind}")
    export(compact, target, precision="fp16")
    assert open_checkpoint(target).descriptor.name == "Compact"
    assert open_checkpoint(target).descriptor.dtype == "fp16"
    picture = noise(20, 21)
    difference = relative_error(run_torch(target, picture), run_torch(compact, picture))
    assert 1e-6 < difference < 1e-2


def bare(model: Path, picture: Array) -> Array:
    """Run the module in a file without spandrel's clamping to [0, 1]."""
    network: Any = load_model(model)
    with torch.inference_mode():
        out: Array = network.forward_unpadded(torch.from_numpy(picture[None]))[0].numpy()
    return out


@pytest.mark.parametrize("changes", [{}, {"unshuffle_mod": True, "upsampler_type": "pixelshuffle"}], ids=case_id)
@pytest.mark.parametrize("size", [(48, 40), (61, 47), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_graphs_of_fdat(tmp_path: Path, target: Path, changes: dict[str, Any], size: tuple[int, int] | None) -> None:
    model = fdat(tmp_path / "fdat.safetensors", **changes).path
    done = export(model, target, size=size, dynamic=size is None)
    assert done.verified is not None
    for width, height in [size] if size else [(48, 40), (61, 47)]:
        picture = noise(height, width)
        assert relative_error(run_onnxruntime(target, picture), bare(model, picture)) < 1e-4


@pytest.mark.parametrize("kind", ["C", "R", "C chroma"])
def test_graphs_of_artcnn(tmp_path: Path, target: Path, kind: str) -> None:
    config = KINDS[kind]
    save_file(random_tensors(config), model := tmp_path / "art.safetensors")
    for size in ((47, 31), None):
        done = export(model, target, size=size, dynamic=size is None)
        assert done.verified is not None
        picture = noise(31, 47)[: config.in_channels]
        out = run_onnxruntime(target, picture)
        assert relative_error(out, run_torch(model, picture)) < 1e-4
        assert out.shape == (config.out_channels, 31 * config.scale, 47 * config.scale)


def test_graphs_of_traced_networks(compact: Path, target: Path) -> None:
    for size in ((47, 31), (30, 20)):
        done = export(compact, target, size=size)
        assert done.verified is not None
        assert f"at {size[0]}×{size[1]}:" in done.verified
        picture = noise(size[1], size[0])
        assert relative_error(run_onnxruntime(target, picture), bare(compact, picture)) < 1e-4
    about = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert (about["model"], about["scale"]) == ("compact.safetensors", "2")
    assert onnx.load(target).producer_name == "vsfdatrd"


@pytest.mark.parametrize(("name", "size", "whole"), [("SAFMN", (45, 35), (48, 40)), ("HAT", (40, 9), (40, 16))])
def test_their_graphs_pad_as_the_network_asks(
    tmp_path: Path, target: Path, name: str, size: tuple[int, int], whole: tuple[int, int]
) -> None:
    """SAFMN: multiples of 8; HAT: 16 at least."""
    model = made(name, tmp_path).path
    assert export(model, target, size=size).verified is not None
    picture = noise(size[1], size[0])
    continued = np.pad(picture, ((0, 0), (0, whole[1] - size[1]), (0, whole[0] - size[0])), "reflect")
    expected = bare(model, continued)[:, : 2 * size[1], : 2 * size[0]]
    out = run_onnxruntime(target, picture)
    assert out.shape == expected.shape == (3, 2 * size[1], 2 * size[0])
    assert np.abs(out - expected).max() < 1e-4 * max(1.0, float(expected.std()))
    assert interface(target)[0][1] == [1, 3, size[1], size[0]]


def test_a_large_traced_graph_is_verified_by_a_small_one(
    compact: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, seen = SpandrelNetwork.forward_unpadded, [0]

    def watched(self: SpandrelNetwork, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[2:].numel())
        return through(self, x)

    monkeypatch.setattr(SpandrelNetwork, "forward_unpadded", watched)
    done = export(compact, target, size=(400, 296))
    assert 0 < max(seen) < 200 * 200, "nor does PyTorch see a large frame"
    assert done.verified is not None
    assert "against PyTorch at 80×40, with a smaller graph written in the same way: PSNR" in done.verified
    assert interface(target)[1][1] == [1, 3, 592, 800]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_traced_graphs_in_half_precision(compact: Path, target: Path, precision: Precision) -> None:
    done = export(compact, target, size=(47, 31), precision=precision)
    content = convert_to_fp32(target) if precision == "bf16" else target
    picture = noise(31, 47)
    assert 1e-5 < relative_error(run_onnxruntime(content, picture), bare(compact, picture)) < 0.1
    assert (done.verified is None) == (precision == "bf16") or done.verified
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}


def test_a_wrong_traced_graph(compact: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = base.trace_checkpoint

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(trace(*arguments))
        weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return model

    monkeypatch.setattr(base, "trace_checkpoint", wrong)
    assert_refused(EngineBuildError, "was not kept: .*; choose another", target, compact, size=(47, 31))


def test_what_traced_networks_cannot(compact: Path, tmp_path: Path, target: Path) -> None:
    assert_refused(
        ArgumentError,
        r"dynamic=True is not possible .*compact.safetensors': a graph of Compact is traced for one "
        "size of frame; give the size instead",
        target,
        compact,
        dynamic=True,
    )
    hat = made("HAT", tmp_path).path
    assert_refused(
        ArgumentError,
        "size=40x8 is too small: frames are mirrored up to 40×16, which takes 9 pixels a side; give 40x9 or larger",
        target,
        hat,
        size=(40, 8),
    )


def test_onnx_files_are_no_weights(tmp_path: Path, target: Path) -> None:
    model = write_doubler(tmp_path / "given.onnx")
    assert_refused(ArgumentError, "given.onnx' is an ONNX file already; use it as it is", target, model)
