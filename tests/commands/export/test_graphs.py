"""Graphs of FDAT-RD compute what PyTorch computes, in every precision and of every size."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto
from safetensors.numpy import save_file

from tests.commands.export.conftest import (
    Make,
    convert_to_fp32,
    interface,
    noise,
    relative_error,
    run_onnxruntime,
    run_torch,
)
from vsfdatrd import __version__
from vsfdatrd.backends import accuracy
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands.export import export
from vsfdatrd.errors import ArgumentError
from vsfdatrd.options import Precision

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


def weight_types(path: Path) -> set[int]:
    """Types of the graph's larger constants."""
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 500}


@pytest.mark.parametrize("size", [(60, 30), (61, 47), (16, 44), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_the_graph_is_the_network(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None)
    for width, height in [size] if size else [(60, 30), (61, 47), (16, 44)]:
        picture = noise(height, width)
        out = run_onnxruntime(target, picture)
        assert out.shape == (3, 2 * height, 2 * width)
        assert relative_error(out, run_torch(tiny_model, picture)) < 1e-4
    assert done.path == target
    assert (done.format, done.precision, done.size) == ("onnx", "fp32", size)
    assert done.bytes == target.stat().st_size
    at = f"{size[0]}×{size[1]}:" if size else "60×30 and 143×97:"
    assert done.verified is not None
    assert done.verified.startswith(f"in ONNX Runtime {onnxruntime.__version__} against PyTorch at {at} PSNR ")
    assert done.unverified is None
    assert done.psnr is not None
    assert done.difference is not None
    assert 100 < done.psnr < 200
    assert 0 < done.difference < 1e-5
    sides = (size[::-1], (2 * size[1], 2 * size[0])) if size else (("height", "width"), ("height_out", "width_out"))
    assert interface(target) == [
        ("input", [1, 3, *sides[0]], TensorProto.FLOAT),
        ("output", [1, 3, *sides[1]], TensorProto.FLOAT),
    ]


def test_pixels_are_where_they_were(identity_2x: Path, target: Path) -> None:
    """Held against the picture itself, not against another implementation."""
    export(identity_2x, target, dynamic=True)
    for height, width in ((31, 44), (60, 30)):
        picture = noise(height, width)
        assert np.abs(run_onnxruntime(target, picture) - picture.repeat(2, 1).repeat(2, 2)).max() < 1e-6


@pytest.mark.parametrize("size", [(90, 60), (61, 47), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_half_precision(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None, precision="fp16")
    picture = noise(47, 61) if size != (90, 60) else noise(60, 90)
    out, expected = run_onnxruntime(target, picture), run_torch(tiny_model, picture)
    assert 1e-4 < relative_error(out, expected) < 2e-2
    assert done.precision == "fp16"
    assert done.psnr is not None
    assert 50 <= done.psnr < 100
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in weight_types(target)
    assert done.bytes < 0.6 * export(tiny_model, target, size=size, dynamic=size is None, verify=False).bytes


@pytest.mark.parametrize("size", [(61, 47), None], ids=["static", "dynamic"])
def test_bf16_is_not_called_verified(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None, precision="bf16")
    assert TensorProto.BFLOAT16 in weight_types(target)
    assert TensorProto.FLOAT16 not in weight_types(target)
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}
    picture = noise(47, 61)
    assert (
        1e-4 < relative_error(run_onnxruntime(convert_to_fp32(target), picture), run_torch(tiny_model, picture)) < 0.1
    )
    if done.verified is None:
        message = f"ONNX Runtime {onnxruntime.__version__} cannot compute bf16 on a CPU (its structure was checked)"
        assert (done.unverified, done.psnr, done.difference) == (message, None, None)
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
            run_onnxruntime(target, picture)
    else:  # an ONNX Runtime of the future
        assert 1e-4 < relative_error(run_onnxruntime(target, picture), run_torch(tiny_model, picture)) < 0.1


@pytest.mark.parametrize(
    ("changes", "size", "at"),
    [
        ({}, (720, 540), "90×60"),
        ({}, (725, 541), "65×31"),  # as much padding as the graph has: 25 columns and 29 rows
        ({}, (151, 150), "61×60"),  # padded, it is more than 150×150 tokens
        ({}, (1000, 17), "70×17"),
        ({"tail_scale": 4, "unshuffle": 2}, (720, 540), "180×120"),
    ],
)
def test_a_large_graph_is_verified_by_a_small_one(
    make_tensors: Make, tmp_path: Path, target: Path, changes: dict[str, Any], size: tuple[int, int], at: str
) -> None:
    save_file(make_tensors(**changes), tmp_path / "model.safetensors")
    done = export(tmp_path / "model.safetensors", target, size=size)
    assert done.size == size
    assert done.verified is not None
    assert f"against PyTorch at {at}, with a smaller graph written in the same way: PSNR" in done.verified
    assert interface(target)[0][1] == [1, 3, size[1], size[0]]


@pytest.mark.parametrize("result", [[90.0, 60.0], [60.0, 90.0]])
def test_the_worst_picture_counts(
    identity_2x: Path, target: Path, monkeypatch: pytest.MonkeyPatch, result: list[float]
) -> None:
    answers = iter(result)
    monkeypatch.setattr(accuracy, "check_psnr", lambda *_: next(answers))
    assert export(identity_2x, target, dynamic=True).psnr == 60


def test_the_usual_size_is_that_of_a_dvd(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target, verify=False).size == (720, 540)
    assert [side[1] for side in interface(target)] == [[1, 3, 540, 720], [1, 3, 1080, 1440]]


@pytest.mark.parametrize("upsampler", ["dysample", "lda"])
def test_tails_that_look_up_places(make_tensors: Make, tmp_path: Path, target: Path, upsampler: str) -> None:
    save_file(make_tensors(upsampler=upsampler), model := tmp_path / "model.safetensors")
    export(model, target, size=(47, 61))
    picture = noise(61, 47)
    assert relative_error(run_onnxruntime(target, picture), run_torch(model, picture)) < 1e-4
    before = target.read_bytes()
    with pytest.raises(ArgumentError, match=f"dynamic=True is not possible .*: its {upsampler} tail needs a fixed .*x"):
        export(model, target, dynamic=True)
    with pytest.raises(ArgumentError, match=r"size=8000x6000 is too large for this network, .* smaller size"):
        export(model, target, size=(8000, 6000))
    assert target.read_bytes() == before


def test_networks_of_one_plane(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    changes = {"in_channels": 1, "out_channels": 1}
    save_file(make_tensors(**changes), model := tmp_path / "model.safetensors")
    assert export(model, target, size=(47, 61)).verified is not None
    assert [side[1] for side in interface(target)] == [[1, 1, 61, 47], [1, 1, 122, 94]]


def test_the_graph_is_plain_and_always_the_same(tiny_model: Path, target: Path, tmp_path: Path) -> None:
    opsets: dict[Precision, int] = {"fp32": 20, "fp16": 20, "bf16": 23}
    for precision, version in opsets.items():
        export(tiny_model, target, dynamic=True, precision=precision, verify=False)
        export(tiny_model, tmp_path / "again", format="onnx", dynamic=True, precision=precision, verify=False)
        assert target.read_bytes() == (tmp_path / "again").read_bytes()
        model = onnx.load(target)
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", version)]
        assert {node.domain for node in model.graph.node} == {""}
        assert "Attention" not in {node.op_type for node in model.graph.node}
        assert (model.producer_name, model.producer_version) == ("vsfdatrd", __version__)
        about = {entry.key: entry.value for entry in model.metadata_props}
        assert about["model"] == tiny_model.name  # and not where it lies
        assert about["weights_sha256"] == open_checkpoint(tiny_model).descriptor.sha256
        assert about["precision"] == precision
