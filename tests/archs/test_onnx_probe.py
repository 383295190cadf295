"""Third-party ONNX files: inspection, results in OpenVINO, and error messages."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from tests.artcnns import C_CHROMA, C_LUMA, random_tensors
from tests.engines import run_in_openvino
from tests.onnx_files import double_in_numpy, mostly_identity_kernel, write_doubler, write_onnx
from vsfdatrd.archs import onnx_probe
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import ArgumentError, CheckpointError, EngineError, TrialError
from vsfdatrd.graph.artcnn import write as write_artcnn
from vsfdatrd.graph.target import OPENVINO

value = helper.make_tensor_value_info
node = helper.make_node


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({}, {"scale": 2, "planes": "rgb", "multiple": 1}),
        ({"kind": "fp16", "scale": 3}, {"scale": 3, "dtype": "fp16"}),
        ({"kind": "bf16", "channels": 1}, {"planes": "luma", "dtype": "bf16"}),
        ({"nhwc": True, "scale": 1}, {"scale": 1, "planes": "rgb"}),
        ({"nhwc": True, "channels": 1, "kind": "fp16"}, {"planes": "luma"}),
        ({"multiple": 8}, {"multiple": 8}),
        ({"size": (48, 64)}, {"fixed": (48, 64)}),
    ],
    ids=str,
)
def test_what_a_file_is_and_what_it_computes(tmp_path: Path, made: dict[str, Any], message: dict[str, Any]) -> None:
    checkpoint = open_checkpoint(write_doubler(tmp_path / "x.onnx", **made))
    about = checkpoint.descriptor
    found = about.to_dict() | about.to_dict()["config"] | {"fixed": about.fixed_size, "planes": about.planes}
    assert {name: found[name] for name in message} == message
    assert about.name == "ONNX"
    assert about.config.peak_values_per_pixel() == ({"largest": about.config.in_channels * about.scale**2},)
    picture = np.random.default_rng(0).random((about.frame_channels[0], 48, 64), np.float32)
    result = run_in_openvino(checkpoint, picture, tmp_path / "engine")
    reference = double_in_numpy(picture, about.scale, kind=made.get("kind", "fp32"))
    np.testing.assert_allclose(result, reference, atol=2e-5)


def test_white_is_255_where_the_script_says_so(tmp_path: Path) -> None:
    path = write_doubler(tmp_path / "x.onnx", white=255)
    checkpoint = open_checkpoint(path, input_range="255")
    picture = np.random.default_rng(0).random((3, 40, 40), np.float32)
    result = run_in_openvino(checkpoint, picture, tmp_path / "engine")
    np.testing.assert_allclose(result, double_in_numpy(picture, white=255), atol=2e-5)
    fractions = open_checkpoint(path, input_range="1")
    assert np.abs(run_in_openvino(fractions, picture, tmp_path / "other") - result).max() > 1


def test_networks_of_two_channels_get_the_chroma(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_doubler(tmp_path / "x.onnx", channels=2, scale=1))
    assert checkpoint.descriptor.planes == "chroma"
    picture = np.random.default_rng(0).random((3, 40, 40), np.float32)
    result = run_in_openvino(checkpoint, picture, tmp_path / "engine")
    np.testing.assert_allclose(result, double_in_numpy(picture[1:], 1), atol=2e-5)


def test_a_multiple_is_taken_from_the_script(tmp_path: Path) -> None:
    path = write_doubler(tmp_path / "x.onnx", multiple=8)
    assert open_checkpoint(path, multiple=16).descriptor.size.multiple_of == 16
    with pytest.raises(CheckpointError, match="does not run as an image network"):
        open_checkpoint(path, multiple=3)


def test_what_is_said_of_onnx_files_is_not_for_weights(tiny_model: Path) -> None:
    with pytest.raises(ArgumentError, match="multiple=8 is for ONNX files"):
        open_checkpoint(tiny_model, multiple=8)


class Memory:
    """A `checkpoint.DescriptorCache` in memory."""

    def __init__(self) -> None:
        self.descriptions: dict[str, Any] = {}

    def get(self, sha256: str) -> Any:
        return self.descriptions.get(sha256)

    def put(self, sha256: str, description: Any) -> None:
        self.descriptions[sha256] = dict(description)


def external(folder: Path, location: str = "weights.bin") -> Path:
    """A doubler with its weights in a separate file of the same folder."""
    path = write_doubler(folder / "x.onnx")
    model = onnx.load(path)
    with (folder / "weights.bin").open("wb") as file:
        for tensor in model.graph.initializer:
            message = {"location": location, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            file.write(tensor.raw_data)
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, text in message.items():
                tensor.external_data.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_beside_the_file_are_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = external(tmp_path), Memory()
    checkpoint = open_checkpoint(path, cache=memory)
    picture = np.random.default_rng(0).random((3, 40, 40), np.float32)
    np.testing.assert_allclose(
        run_in_openvino(checkpoint, picture, tmp_path / "engine"), double_in_numpy(picture), atol=2e-5
    )
    with monkeypatch.context() as patch:
        patch.setattr(onnx_probe, "probe", lambda *_: pytest.fail("it was found out before"))
        assert open_checkpoint(path, cache=memory) == checkpoint
    weights = tmp_path / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[:4] = np.float32(2).tobytes()
    weights.write_bytes(data)
    again = open_checkpoint(path, cache=memory)
    assert again.descriptor != checkpoint.descriptor, "other weights would get the engine of these"
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"stores its weights in 'weights.bin', which is not in its folder"):
        open_checkpoint(path, cache=memory)


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "a/../../weights.bin", "..\\w", "C:/w", ""])
def test_weights_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(4096))
    path = external(folder, location)
    with pytest.raises(CheckpointError, match="outside its own folder"):
        open_checkpoint(path)


def test_a_second_location_is_checked_too(tmp_path: Path) -> None:
    path = external(tmp_path)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data.add(key="location", value="../weights.bin")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"refers to weights in '../weights.bin', outside its own folder"):
        open_checkpoint(path)


FRAME = value("x", TensorProto.FLOAT, [1, 3, "h", "w"])
PICTURE = value("y", TensorProto.FLOAT, [1, 3, "h", "w"])


def _cycle(path: Path) -> Path:
    return write_onnx(
        path,
        [node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])],
        [FRAME],
        PICTURE,
        {},
    )


def _huge(path: Path) -> Path:
    nodes = [
        node("ConstantOfShape", ["shape"], ["big"]),
        node("ReduceSum", ["big"], ["sum"], keepdims=0),
        node("Add", ["x", "sum"], ["y"]),
    ]
    return write_onnx(path, nodes, [FRAME], PICTURE, {"shape": np.array([2**31, 2**20], np.int64)})


def _unknown(path: Path) -> Path:
    return write_onnx(path, [node("Frobnicate", ["x"], ["y"])], [FRAME], PICTURE, {})


def _foreign(path: Path) -> Path:
    return write_onnx(path, [node("Relu", ["x"], ["y"], domain="evil.example")], [FRAME], PICTURE, {})


def _audio(path: Path) -> Path:
    sound = value("wave", TensorProto.FLOAT, [1, "n"])
    return write_onnx(path, [node("Relu", ["wave"], ["y"])], [sound], value("y", TensorProto.FLOAT, [1, "n"]), {})


def _text(path: Path) -> Path:
    tokens = value("ids", TensorProto.INT64, [1, "n"])
    return write_onnx(path, [node("Identity", ["ids"], ["y"])], [tokens], value("y", TensorProto.INT64, [1, "n"]), {})


def _three(path: Path) -> Path:
    inputs = [value(name, TensorProto.FLOAT, [1, 3, "h", "w"]) for name in "abc"]
    return write_onnx(path, [node("Sum", ["a", "b", "c"], ["y"])], inputs, PICTURE, {})


def _shrinking(path: Path) -> Path:
    pool = node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], strides=[2, 2])
    return write_onnx(path, [pool], [FRAME], PICTURE, {})


def _to_one(path: Path) -> Path:
    return write_onnx(path, [node("ReduceMean", ["x"], ["y"], keepdims=1)], [FRAME], PICTURE, {})


def _many(path: Path) -> Path:
    return write_doubler(path, channels=3, given=1, scale=1)


def _four(path: Path) -> Path:
    frame = value("x", TensorProto.FLOAT, [1, 4, "h", "w"])
    return write_onnx(path, [node("Relu", ["x"], ["y"])], [frame], PICTURE, {})


def _truncated(path: Path) -> Path:
    write_doubler(path)
    path.write_bytes(path.read_bytes()[:-60])
    return path


def _no_onnx(path: Path) -> Path:
    path.write_bytes(b"MZ this is a program" * 10)
    return path


def _negative(path: Path) -> Path:
    write_doubler(path)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = -(2**40)
    path.write_bytes(model.SerializeToString())
    return path


def _nan(path: Path) -> Path:
    weight = mostly_identity_kernel(3, 3)
    weight[0, 0, 0, 0] = np.nan
    conv = node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3], pads=[1] * 4)
    return write_onnx(path, [conv], [FRAME], PICTURE, {"w": weight})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_cycle, "'b', which no earlier operator produces"),
        (_huge, "does not run as an image network|makes OpenVINO crash|cannot be used"),
        (_unknown, "uses the operator 'Frobnicate', which no engine supports"),
        (_foreign, "uses the operator 'Relu' of 'evil.example'"),
        (_audio, "its input 'wave' takes float of 2 dimensions"),
        (_text, "its input 'ids' takes int64 of 2 dimensions"),
        (_three, r"has 3 inputs \('a', 'b', 'c'\)"),
        (_shrinking, "not an integer multiple of the frame's"),
        (_to_one, "not an integer multiple of the frame's|not an image"),
        (_many, "is a network from 3 to 1 channels"),
        (_four, "networks of 1, 2 or 3 channels are supported"),
        (_truncated, "is not an ONNX file, or is damaged|does not run|is damaged"),
        (_no_onnx, "is not an ONNX file, or is damaged"),
        (_negative, "cannot be used|does not run|is damaged"),
        (_nan, "its output is not finite"),
    ],
    ids=lambda given: getattr(given, "__name__", None),
)
def test_bad_files_are_refused_in_a_sentence(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(make(tmp_path / "x.onnx"))
    text = str(caught.value)
    assert text.startswith(f"the weights file '{tmp_path}/x.onnx'")
    assert "\n" not in text
    assert "Traceback" not in text


def test_a_file_that_takes_for_ever_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_probe, "TIMEOUT", 0.1)
    with pytest.raises(CheckpointError, match="did not finish a small picture"):
        open_checkpoint(write_doubler(tmp_path / "x.onnx"))


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("precision", ["fp16", "mixed", "bf16", "fp32"])
def test_tensorrt_builds_onnx_files(tmp_path: Path, precision: Any) -> None:
    checkpoint = open_checkpoint(write_doubler(tmp_path / "x.onnx", nhwc=True, kind="fp16"))
    facts = tensorrt.build_for(EngineSpec(checkpoint, 48, 64, precision), tmp_path, RTX, ["sm89"])
    assert facts["activation_bytes"] > 0
    assert np.load(tmp_path / "reference.npy").shape == (3, 96, 128)


def test_a_file_that_was_given_up_is_not_tried_again_for_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, memory = write_doubler(tmp_path / "x.onnx"), Memory()
    monkeypatch.setattr(onnx_probe, "TIMEOUT", 0.01)
    with pytest.raises(CheckpointError, match="did not finish a small picture within 0 seconds, and is not"):
        open_checkpoint(path, cache=memory)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_probe, "probe", lambda *_: pytest.fail("it was tried again"))
        with pytest.raises(CheckpointError, match=r"x.onnx' did not finish a small picture within 0 seconds.*; give"):
            open_checkpoint(path, cache=memory)
    monkeypatch.setattr(onnx_probe, "TIMEOUT", 100)
    (description,) = memory.descriptions.values()
    description["at"] -= 90_000
    assert open_checkpoint(path, cache=memory).descriptor.scale == 2
    assert open_checkpoint(path, cache=memory).descriptor.scale == 2


def test_a_process_that_cannot_run_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"cannot be imported \(ImportError: libtbb.so is missing\)"):
        open_checkpoint(write_doubler(tmp_path / "x.onnx"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
def test_a_crash_is_told_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "openvino.py").write_text("import os; os.kill(os.getpid(), 11)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(TrialError, match=r"makes OpenVINO crash \(signal 11\).*is not tried again for a day"):
        open_checkpoint(write_doubler(tmp_path / "x.onnx"))


@pytest.mark.parametrize("config", [C_LUMA, C_CHROMA], ids=["luma", "chroma"])
def test_artcnn_as_onnx_is_the_same_picture_as_its_weights(tmp_path: Path, config: ArtCnnConfig) -> None:
    tensors = random_tensors(config)
    save_file(tensors, tmp_path / "a.safetensors")
    onnx.save(write_artcnn(config, tensors, None, OPENVINO), tmp_path / "a.onnx")
    pictures = []
    for name in ("a.safetensors", "a.onnx"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.descriptor.planes == ("chroma" if config is C_CHROMA else "luma")
        frame = np.random.default_rng(0).random((checkpoint.descriptor.frame_channels[0], 40, 48), np.float32)
        pictures.append(run_in_openvino(checkpoint, frame, tmp_path / f"engine {name}"))
    np.testing.assert_allclose(pictures[0], pictures[1], atol=1e-5)
