"""What `export` writes computes the same elsewhere, keeps its values, and replaces nothing before it is sound."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks.architectures import saved as made
from tests.apart import apart
from tests.artcnns import KINDS, random_tensors
from tests.fdats import fdat, named
from tests.onnx_files import doubler
from vsfdatrd import __version__
from vsfdatrd import export as module
from vsfdatrd.catalog import MEDIUM_SHA256
from vsfdatrd.checkpoint import Checkpoint, load_model, open_checkpoint
from vsfdatrd.engines import verify
from vsfdatrd.errors import ArgumentError, CheckpointError, EngineBuildError, EngineUnavailable, FdatrdError
from vsfdatrd.export import Exported, export
from vsfdatrd.nn.config import META
from vsfdatrd.nn.other_archs import OtherNetwork
from vsfdatrd.options import Precision

type Array = NDArray[Any]
type Make = Callable[..., dict[str, Array]]
type Plugin = Callable[[str, Path, Array], Array]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]

# vs-mlrt's plugins bring ONNX Runtime and OpenVINO of their own, so they run in a process without Python's.
RUNNER = """
import numpy as np
import vapoursynth as vs

def filled(picture, n, f):
    out = f.copy()
    for i, plane in enumerate(picture):
        np.asarray(out[i])[:] = plane
    return out

def compute(namespace, graph, picture):
    clip = vs.core.std.BlankClip(width=picture.shape[2], height=picture.shape[1], format=vs.RGBS, length=1)
    clip = clip.std.ModifyFrame(clip, lambda n, f: filled(picture, n, f))
    frame = getattr(vs.core, namespace).Model(clip, network_path=graph).get_frame(0)
    return np.stack([np.asarray(frame[i]) for i in range(3)])
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """What a plugin of vs-mlrt (``ort`` or ``ov``) makes of a picture (3, H, W) with a file."""
    with apart(RUNNER, tmp_path_factory.mktemp("plugin")) as compute:
        yield compute


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    """Where to export to; at the end there must be nothing beside it that a test did not put there."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder / "x.onnx"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def noise(height: int, width: int) -> Array:
    """A picture (3, H, W) that is none of those an export is verified with."""
    return np.random.default_rng(height * 1000 + width).random((3, height, width), np.float32)


def by_torch(model: Path, picture: Array) -> Array:
    with torch.inference_mode():
        out: Array = load_model(model)(torch.from_numpy(picture[None]))[0].numpy()
    return out


def by_onnxruntime(graph: Path | bytes, picture: Array) -> Array:
    content = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    out: Array = session.run(["output"], {"input": picture[None]})[0][0]
    return out


def off(out: Array, expected: Array) -> float:
    """The largest difference, as a part of the expected values' standard deviation. Nothing is clipped."""
    assert out.shape == expected.shape
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    return float(np.abs(out - expected).max() / expected.std())


def interface(path: Path) -> list[tuple[str, list[int | str], int]]:
    """Name, shape and type of the input and of the output."""
    model = onnx.load(path)
    return [
        (
            value.name,
            [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim],
            value.type.tensor_type.elem_type,
        )
        for value in (*model.graph.input, *model.graph.output)
    ]


def weight_types(path: Path) -> set[int]:
    """Types of the graph's larger constants."""
    return {tensor.data_type for tensor in onnx.load(path).graph.initializer if np.prod(tensor.dims) > 500}


# ---- graphs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(60, 30), (61, 47), (16, 44), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_the_graph_is_the_network(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None)
    for width, height in [size] if size else [(60, 30), (61, 47), (16, 44)]:
        picture = noise(height, width)
        out = by_onnxruntime(target, picture)
        assert out.shape == (3, 2 * height, 2 * width)
        assert off(out, by_torch(tiny_model, picture)) < 1e-4
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
        assert np.abs(by_onnxruntime(target, picture) - picture.repeat(2, 1).repeat(2, 2)).max() < 1e-6


@pytest.mark.parametrize("size", [(90, 60), (61, 47), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_half_precision(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None, precision="fp16")
    picture = noise(47, 61) if size != (90, 60) else noise(60, 90)
    out, expected = by_onnxruntime(target, picture), by_torch(tiny_model, picture)
    assert 1e-4 < off(out, expected) < 2e-2
    assert done.precision == "fp16"
    assert done.psnr is not None
    assert 50 <= done.psnr < 100
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in weight_types(target)
    assert done.bytes < 0.6 * export(tiny_model, target, size=size, dynamic=size is None, verify=False).bytes


def widened(path: Path) -> bytes:
    """A bf16 graph with everything that is bf16 made fp32, its weights' values as they are."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT
    content: bytes = model.SerializeToString()
    return content


@pytest.mark.parametrize("size", [(61, 47), None], ids=["static", "dynamic"])
def test_bf16_is_not_called_verified(tiny_model: Path, target: Path, size: tuple[int, int] | None) -> None:
    done = export(tiny_model, target, size=size, dynamic=size is None, precision="bf16")
    assert TensorProto.BFLOAT16 in weight_types(target)
    assert TensorProto.FLOAT16 not in weight_types(target)
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}
    picture = noise(47, 61)
    assert 1e-4 < off(by_onnxruntime(widened(target), picture), by_torch(tiny_model, picture)) < 0.1
    if done.verified is None:
        said = f"ONNX Runtime {onnxruntime.__version__} cannot compute bf16 on a CPU (its structure was checked)"
        assert (done.unverified, done.psnr, done.difference) == (said, None, None)
        with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
            by_onnxruntime(target, picture)
    else:  # an ONNX Runtime of the future
        assert 1e-4 < off(by_onnxruntime(target, picture), by_torch(tiny_model, picture)) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_medium(plugin: Plugin, target: Path, precision: Precision) -> None:
    done = export("medium", target, size=(120, 120), precision=precision)
    assert done.psnr is not None
    assert done.psnr > (110 if precision == "fp32" else 70)
    about = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert about == {
        "model": "medium", "weights_sha256": MEDIUM_SHA256, "scale": "2", "precision": precision,
        "vsfdatrd": __version__,
    }  # fmt: skip
    picture = verify.drawing(120, 120)
    expected = by_torch(Path(__file__).parents[1] / "models/fdat_rd_medium_2x.safetensors", picture)
    assert off(plugin("ort", target, picture), expected) < (1e-4 if precision == "fp32" else 1e-2)


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
    assert f"against PyTorch at {at}, by a graph that was written alike: PSNR" in done.verified
    assert interface(target)[0][1] == [1, 3, size[1], size[0]]


@pytest.mark.parametrize("found", [[90.0, 60.0], [60.0, 90.0]])
def test_the_worst_picture_counts(
    identity_2x: Path, target: Path, monkeypatch: pytest.MonkeyPatch, found: list[float]
) -> None:
    answers = iter(found)
    monkeypatch.setattr(verify, "compare", lambda *_: next(answers))
    assert export(identity_2x, target, dynamic=True).psnr == 60


def test_the_usual_size_is_that_of_a_dvd(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target, verify=False).size == (720, 540)
    assert [side[1] for side in interface(target)] == [[1, 3, 540, 720], [1, 3, 1080, 1440]]


@pytest.mark.parametrize("upsampler", ["dysample", "lda"])
def test_tails_that_look_up_places(make_tensors: Make, tmp_path: Path, target: Path, upsampler: str) -> None:
    save_file(make_tensors(upsampler=upsampler), model := tmp_path / "model.safetensors")
    export(model, target, size=(47, 61))
    picture = noise(61, 47)
    assert off(by_onnxruntime(target, picture), by_torch(model, picture)) < 1e-4
    before = target.read_bytes()
    with pytest.raises(ArgumentError, match=f"dynamic=True is not possible .*: its {upsampler} tail needs a fixed .*x"):
        export(model, target, dynamic=True)
    with pytest.raises(ArgumentError, match=f"size=8000x6000 is too large for the {upsampler} tail, .* smaller size"):
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
        assert about["weights_sha256"] == open_checkpoint(tiny_model).description.sha256
        assert about["precision"] == precision


# ---- in VapourSynth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("namespace", ["ort", "ov"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plugins_of_vs_mlrt_run_it(
    plugin: Plugin, tiny_model: Path, target: Path, namespace: str, precision: Precision
) -> None:
    bound = 1e-4 if precision == "fp32" else 2e-2
    for width, height in ((60, 90), (97, 61)):
        picture = verify.drawing(height, width)
        expected = by_torch(tiny_model, picture)
        export(tiny_model, target, size=(width, height), precision=precision, verify=False)
        assert off(plugin(namespace, target, picture), expected) < bound
        export(tiny_model, target, dynamic=True, precision=precision, verify=False)
        assert off(plugin(namespace, target, picture), expected) < bound


def test_openvino_in_vapoursynth_runs_bf16(plugin: Plugin, tiny_model: Path, target: Path) -> None:
    picture = verify.drawing(61, 47)
    export(tiny_model, target, dynamic=True, precision="bf16", verify=False)
    assert 1e-4 < off(plugin("ov", target, picture), by_torch(tiny_model, picture)) < 0.1


def test_medium_in_vapoursynth_is_what_the_filter_gives(plugin: Plugin, target: Path) -> None:
    """As in a script: the same picture through core.ov.Model and core.fdatrd.upscale."""
    import vapoursynth as vs

    picture = verify.drawing(75, 122)
    export("medium", target, dynamic=True, verify=False)

    def filled(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(picture):
            np.asarray(out[i])[:] = plane
        return out

    clip = vs.core.std.BlankClip(width=122, height=75, format=vs.RGBS, length=1)
    clip = clip.std.ModifyFrame(clip, filled)
    with clip.fdatrd.upscale(backend="torch", precision="fp32").get_frame(0) as frame:
        expected = np.stack([np.asarray(frame[i]) for i in range(3)])
    out = plugin("ov", target, picture)
    assert np.abs(np.clip(out, 0, 1) - np.clip(expected, 0, 1)).max() < 1e-4


# ---- weights -------------------------------------------------------------------------------------------------------

TYPES: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_weights_keep_their_values(tiny_model: Path, target: Path, kind: str, precision: Precision) -> None:
    target = target.with_suffix(f".{kind}")
    done = export(tiny_model, target, precision=precision)
    assert done == Exported(target, done.format, precision, None, target.stat().st_size, "by reading it back", None)
    assert done.format == kind
    source = load_file(tiny_model)
    expected = {name: v if name == META else v.astype(TYPES[precision]) for name, v in source.items()}
    written: dict[str, Array]
    if kind == "safetensors":
        written = {name: values.view(expected[name].dtype) for name, values in load_file(target).items()}
        with safe_open(target, "np") as file:
            about = json.loads(file.metadata()["vsfdatrd"])
        assert (about["model"], about["precision"]) == (tiny_model.name, precision)
    else:
        state = torch.load(target, weights_only=True)
        assert set(state) == {"params_ema"}
        kinds = {v.dtype for name, v in state["params_ema"].items() if name != META}
        assert kinds == {{"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]}
        assert state["params_ema"][META].dtype == torch.uint8
        written = {name: v.numpy() if name == META else v.float().numpy() for name, v in state["params_ema"].items()}
        expected = {name: v if name == META else v.astype(np.float32) for name, v in expected.items()}
    assert written.keys() == expected.keys()
    for name, values in expected.items():
        assert written[name].dtype == values.dtype
        assert np.array_equal(written[name], values), name
    again = open_checkpoint(target)
    assert again.description.dtype == precision
    assert again.description.config == open_checkpoint(tiny_model).description.config
    picture = noise(30, 31)
    difference = off(by_torch(target, picture), by_torch(tiny_model, picture))
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


@pytest.fixture
def compact(tmp_path: Path) -> Path:
    """A network that is no FDAT-RD: a small Compact."""
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
    assert open_checkpoint(target).description.architecture == "Compact"
    assert open_checkpoint(target).description.dtype == "fp16"
    picture = noise(20, 21)
    difference = off(by_torch(target, picture), by_torch(compact, picture))
    assert 1e-6 < difference < 1e-2


# ---- graphs of other networks --------------------------------------------------------------------------------------


def bare(model: Path, picture: Array) -> Array:
    """What the module in a file makes of a picture, before spandrel limits it to [0, 1]."""
    network: Any = load_model(model)
    with torch.inference_mode():
        out: Array = network.bare(torch.from_numpy(picture[None]))[0].numpy()
    return out


@pytest.mark.parametrize("changes", [{}, {"unshuffle_mod": True, "upsampler_type": "pixelshuffle"}], ids=named)
@pytest.mark.parametrize("size", [(48, 40), (61, 47), None], ids=lambda s: "dynamic" if s is None else str(s))
def test_graphs_of_fdat(tmp_path: Path, target: Path, changes: dict[str, Any], size: tuple[int, int] | None) -> None:
    model = fdat(tmp_path / "fdat.safetensors", **changes).path
    done = export(model, target, size=size, dynamic=size is None)
    assert done.verified is not None
    for width, height in [size] if size else [(48, 40), (61, 47)]:
        picture = noise(height, width)
        assert off(by_onnxruntime(target, picture), bare(model, picture)) < 1e-4


@pytest.mark.parametrize("kind", ["C", "R", "C chroma"])
def test_graphs_of_artcnn(tmp_path: Path, target: Path, kind: str) -> None:
    config = KINDS[kind]
    save_file(random_tensors(config), model := tmp_path / "art.safetensors")
    for size in ((47, 31), None):
        done = export(model, target, size=size, dynamic=size is None)
        assert done.verified is not None
        picture = noise(31, 47)[: config.in_channels]
        out = by_onnxruntime(target, picture)
        assert off(out, by_torch(model, picture)) < 1e-4
        assert out.shape == (config.out_channels, 31 * config.scale, 47 * config.scale)


def test_graphs_of_traced_networks(compact: Path, target: Path) -> None:
    for size in ((47, 31), (30, 20)):
        done = export(compact, target, size=size)
        assert done.verified is not None
        assert f"at {size[0]}×{size[1]}:" in done.verified
        picture = noise(size[1], size[0])
        assert off(by_onnxruntime(target, picture), bare(compact, picture)) < 1e-4
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
    out = by_onnxruntime(target, picture)
    assert out.shape == expected.shape == (3, 2 * size[1], 2 * size[0])
    assert np.abs(out - expected).max() < 1e-4 * max(1.0, float(expected.std()))
    assert interface(target)[0][1] == [1, 3, size[1], size[0]]


def test_a_large_traced_graph_is_verified_by_a_small_one(
    compact: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, seen = OtherNetwork.bare, [0]

    def watched(self: OtherNetwork, x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[2:].numel())
        return through(self, x)

    monkeypatch.setattr(OtherNetwork, "bare", watched)
    done = export(compact, target, size=(400, 296))
    assert 0 < max(seen) < 200 * 200, "nor does PyTorch see a large frame"
    assert done.verified is not None
    assert "against PyTorch at 80×40, by a graph that was written alike: PSNR" in done.verified
    assert interface(target)[1][1] == [1, 3, 592, 800]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_traced_graphs_in_half_precision(compact: Path, target: Path, precision: Precision) -> None:
    done = export(compact, target, size=(47, 31), precision=precision)
    content = widened(target) if precision == "bf16" else target
    picture = noise(31, 47)
    assert 1e-5 < off(by_onnxruntime(content, picture), bare(compact, picture)) < 0.1
    assert (done.verified is None) == (precision == "bf16") or done.verified
    assert {side[2] for side in interface(target)} == {TensorProto.FLOAT}


def test_a_wrong_traced_graph(compact: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsfdatrd.graph import of_module

    trace = of_module.traced

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(trace(*arguments))
        weight = max(model.graph.initializer, key=lambda tensor: np.prod(tensor.dims))
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
        return model

    monkeypatch.setattr(of_module, "traced", wrong)
    refuses(EngineBuildError, "was not kept: .*; choose another", target, compact, size=(47, 31))


def test_what_traced_networks_cannot(compact: Path, tmp_path: Path, target: Path) -> None:
    refuses(ArgumentError, r"dynamic=True is not possible .*compact.safetensors': a graph of Compact is traced for one "
            "size of frame; give the size instead", target, compact, dynamic=True)  # fmt: skip
    hat = made("HAT", tmp_path).path
    refuses(ArgumentError, "size=40x8 is too small: frames are mirrored up to 40×16, which takes 9 pixels a side; give "
            "40x9 or larger", target, hat, size=(40, 8))  # fmt: skip


def test_onnx_files_are_no_weights(tmp_path: Path, target: Path) -> None:
    model = doubler(tmp_path / "given.onnx")
    refuses(ArgumentError, "given.onnx' is an ONNX file already, which is not taken apart; use it as it is",
            target, model)  # fmt: skip


# ---- what fails leaves everything as it was -----------------------------------------------------------------------


def refuses(
    error: type[FdatrdError], match: str, target: Path, model: str | Path, **arguments: Any
) -> pytest.ExceptionInfo[FdatrdError]:
    """Exporting fails so, over an existing file and without one, and changes nothing."""
    beside = set(target.parent.iterdir())
    target.write_bytes(b"what was there")
    with pytest.raises(error, match=match):
        export(model, target, **arguments)
    assert target.read_bytes() == b"what was there"
    target.unlink()
    with pytest.raises(error, match=match) as caught:
        export(model, target, **arguments)
    assert set(target.parent.iterdir()) == beside
    return caught


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_that_fails_the_comparison(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    def compare(reference: Array, candidate: Array, what: str) -> float:
        raise EngineBuildError(f"the {what} engine agrees with fp32 to 12.3 dB only, 50 are needed.")

    monkeypatch.setattr(verify, "compare", compare)
    refuses(
        EngineBuildError, rf"not kept: the exported {precision} engine agrees .* 12\.3 dB only, 50 are needed; choose",
        target, tiny_model, size=(60, 30), precision=precision,
    )  # fmt: skip
    assert export(tiny_model, target, size=(60, 30), precision=precision, verify=False).verified is None


@pytest.mark.parametrize("arguments", [{"size": (60, 30)}, {"size": (720, 540)}, {"dynamic": True}], ids=str)
def test_a_wrong_graph(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """A network that is another by less than anyone could see is refused in fp32."""
    from vsfdatrd.graph import network

    write = network.write

    def wrong(config: Any, tensors: dict[str, Array], *rest: Any) -> onnx.ModelProto:
        return write(config, tensors | {"conv_after.weight": tensors["conv_after.weight"] * np.float32(1.0005)}, *rest)

    monkeypatch.setattr(network, "write", wrong)
    refuses(EngineBuildError, "its values differ by up to .* from PyTorch's, .* are allowed; choose another",
            target, tiny_model, **arguments)  # fmt: skip


def test_a_graph_of_another_size(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module._graph
    monkeypatch.setattr(module, "_graph", lambda a, shape, b, c: write(a, (30, 30), b, c))
    refuses(EngineBuildError, "not kept: ONNX Runtime does not run it .*; choose", target, tiny_model, size=(60, 30))


def test_a_graph_that_crops_elsewhere(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsfdatrd.graph import network

    crop = network._cropped
    monkeypatch.setattr(network, "_cropped", lambda g, x, height, width: crop(g, x, height - 1, width))
    refuses(EngineBuildError, "not kept: onnx finds it unsound .*output.*; choose", target, tiny_model, size=(61, 47))


def test_sums_beyond_fp16(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    """A real failure: weights that fit and values that do not."""
    tensors = make_tensors()
    tensors["conv_first.weight"] *= 6e4
    tensors["conv_first.bias"][:] = 6e4
    tensors["upsampler.0.weight"] /= 3e5
    save_file(tensors, model := tmp_path / "large.safetensors")
    refuses(EngineBuildError, "the exported fp16 engine's output has .* values that are not finite; choose another",
            target, model, size=(30, 30), precision="fp16")  # fmt: skip
    assert export(model, target, size=(30, 30)).verified is not None


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "pth"])
def test_weights_beyond_fp16(make_tensors: Make, tmp_path: Path, target: Path, suffix: str) -> None:
    tensors = make_tensors()
    tensors["conv_after.weight"][0, 0, 0, 0] = -1e5
    save_file(tensors, model := tmp_path / "large.safetensors")
    refuses(EngineBuildError, r"large.safetensors' cannot be written in fp16: a weight of 1e\+05 .*range.*bf16 or fp32",
            target.with_suffix(f".{suffix}"), model, precision="fp16")  # fmt: skip
    export(model, target.with_suffix(f".{suffix}"), precision="bf16", verify=suffix != "onnx")


def test_weights_beyond_bf16(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    tensors = make_tensors()
    tensors["conv_after.weight"][0, 0, 0, 0] = np.finfo(np.float32).max
    save_file(tensors, model := tmp_path / "large.safetensors")
    refuses(EngineBuildError, r"in bf16: a weight of 3.4e\+38 in 'conv_after.weight' is beyond .*; write it in fp32",
            target.with_suffix(".pth"), model, precision="bf16")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t | {"conv_after.weight": t["conv_after.weight"] * 2}, "its tensor 'conv_after.weight' has other v"),
        (lambda t: t | {"conv_first.bias": t["conv_first.bias"].astype(np.float16)}, "conv_first.bias' has other val"),
        (lambda t: {n: v for n, v in t.items() if n != "conv_after.weight"}, "it cannot be read back .*incomplete"),
        (lambda t: {f"x.{n}": v for n, v in t.items()} | {"y": t[META]}, None),  # a prefix is no difference
    ],
)
def test_weights_that_do_not_read_back(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], said: str | None
) -> None:
    write = module._safetensors
    monkeypatch.setattr(module, "_safetensors", lambda tensors, about: write(change(tensors), about))
    target = target.with_suffix(".safetensors")
    if said is None:
        export(tiny_model, target)
        return
    refuses(EngineBuildError, f"was not kept: .*{said}", target, tiny_model)
    export(tiny_model, target, verify=False)


def test_weights_in_another_precision_than_they_should_be(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._safetensors
    wide = {np.dtype(np.float16): np.float32}
    monkeypatch.setattr(
        module, "_safetensors",
        lambda tensors, about: write({n: v.astype(wide.get(v.dtype, v.dtype)) for n, v in tensors.items()}, about),
    )  # fmt: skip
    refuses(EngineBuildError, "it is taken for FDAT-RD 2x in fp32", target.with_suffix(".safetensors"), tiny_model,
            precision="fp16")  # fmt: skip


def test_interrupted(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "drawing", stop)
    target.write_bytes(b"what was there")
    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, target, size=(30, 30))
    assert target.read_bytes() == b"what was there"


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("x.bin", {}, r"x.bin' does not tell its format; name it .onnx, .safetensors or .pth, or give format"),
        ("x", {}, "does not tell its format"),
        ("x.onnx", {"format": "engine"}, "format='engine' is unknown; choose one of onnx, safetensors, pth"),
        ("x.onnx", {"precision": "int8"}, "precision='int8' is unknown; choose one of fp32, fp16, bf16"),
        ("x.onnx", {"precision": "mixed"}, "precision='mixed' is unknown"),
        ("x.pth", {"size": (720, 540)}, "size=720x540 means nothing for weights, .*; leave it out, or write .onnx"),
        ("x.pth", {"dynamic": True}, "dynamic=True means nothing for weights"),
        ("x.onnx", {"dynamic": True, "size": (60, 30)}, "size=60x30 contradicts dynamic=True, .*; give one of them"),
        ("x.onnx", {"size": (0, 30)}, "size=0x30 is out of range; give width and height in pixels, each 1 to 32,768"),
        ("x.onnx", {"size": (60, 10**20)}, "is out of range; .* for example 720x540"),
        ("x.onnx", {"size": (60.5, 30)}, "size=60.5x30 is out of range"),
        ("x.onnx", {"size": (15, 60)}, "size=15x60 is too small: .* multiples of 30, which takes 16 .*; give 16x60 or"),
        ("x.onnx", {"size": (60, 15)}, "size=60x15 is too small: .*; give 60x16 or larger"),
    ],
)
def test_what_cannot_be_asked_for(
    tiny_model: Path, target: Path, name: str, arguments: dict[str, Any], said: str
) -> None:
    refuses(ArgumentError, said, target.with_name(name), tiny_model, **arguments)


def test_the_smallest_size(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target, size=(16, 16)).verified is not None
    with pytest.raises(ArgumentError, match="too small"):
        export(tiny_model, target, size=(16, 15))


def test_suffixes_in_capitals(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target.with_suffix(".ONNX"), size=(30, 30), verify=False).format == "onnx"


def test_models_that_are_not_there(target: Path, tmp_path: Path) -> None:
    refuses(ArgumentError, "model='medum' is neither .*; did you mean 'medium'", target, "medum")
    refuses(CheckpointError, "does not exist; check the path", target, tmp_path / "none.safetensors")


def test_without_onnxruntime(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_checkpoint", None)  # it is said before any work
        refuses(EngineUnavailable, r"needs ONNX Runtime, .*: pip install onnxruntime, or .* \(--no-verify\)",
                target, tiny_model)  # fmt: skip
    done = export(tiny_model, target, verify=False)
    assert (done.verified, done.unverified, done.psnr) == (None, "it was not asked for", None)
    assert export(tiny_model, target.with_suffix(".pth")).verified is not None


def test_targets_that_cannot_be_written(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "tensors", None)  # it is said before any work

    def refused(path: Path, said: str) -> None:
        with pytest.raises(ArgumentError, match=said):
            export(tiny_model, path, format="onnx")

    refused(target.parent / "none" / "x.onnx", "x.onnx' cannot be written: there is no directory '.*none'; create it")
    refused(target.parent, "out' is a directory or a device; give the path of a file")
    refused(Path("/dev/null"), "is a directory or a device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    refused(target.with_name("a\0b"), r"cannot be written \(.*null.*\); give a path where you may write")
    refused(target.with_name("a" * 300), r"cannot be written \(File name too long\)")
    if sys.platform == "linux":  # a directory in which not even root may write
        refused(Path("/proc/x.onnx"), r"'/proc/x.onnx' cannot be written \(.*\); give a path where you may write")


def test_a_full_disk(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArgumentError, match=r"x.onnx' cannot be written \(No space left on device\); give a path"):
        export(tiny_model, target, size=(30, 30))
    assert not list(target.parent.iterdir())


def test_the_models_own_file_stays(tiny_model: Path, target: Path) -> None:
    before = tiny_model.read_bytes()
    for path in (tiny_model, target.with_suffix(".safetensors")):
        if path != tiny_model:
            path.symlink_to(tiny_model)
        with pytest.raises(ArgumentError, match=r"is the model's own weights file; give the path of another"):
            export(tiny_model, path, precision="fp16")
    assert tiny_model.read_bytes() == before


def test_a_link_stays_one_and_permissions_are_usual(tiny_model: Path, target: Path, tmp_path: Path) -> None:
    target.symlink_to(tmp_path / "behind.onnx")
    mask = os.umask(0o027)
    try:
        export(tiny_model, target, size=(30, 30), verify=False)
    finally:
        os.umask(mask)
    assert target.is_symlink()
    assert stat.S_IMODE((tmp_path / "behind.onnx").stat().st_mode) == 0o640


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "safetensors", "openvino", "vapoursynth", "ml_dtypes")
    code = f"import sys, vsfdatrd.export; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
