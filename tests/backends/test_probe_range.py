"""Value of white of ONNX networks found by a trial: 255 only if that is certain, otherwise 1."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper

from tests.engines import run_in_openvino
from tests.onnx_files import write_doubler, write_onnx
from vsfdatrd.archs.onnx import OnnxConfig
from vsfdatrd.archs.onnx_probe import probe
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands.export import export

node = helper.make_node
PICTURE = draw_line_art(48, 64)
SHIPPED = Path(__file__).resolve().parents[2] / "models/fdat_rd_medium_2x.safetensors"


def network(path: Path, *nodes: NodeProto, kind: int = TensorProto.FLOAT, **constants: Any) -> Path:
    """From x to y, of three channels and the same size."""
    value = helper.make_tensor_value_info
    taken, given = value("x", kind, [1, 3, "h", "w"]), value("y", TensorProto.FLOAT, [1, 3, "h", "w"])
    return write_onnx(path, nodes, [taken], given, {name: np.float32(values) for name, values in constants.items()})


def ranges(path: Path, **arguments: Any) -> tuple[str, str]:
    ends = open_checkpoint(path, **arguments).descriptor.config
    assert isinstance(ends, OnnxConfig)
    return ends.range, ends.output_range


def test_a_network_that_divides_by_255_gets_bytes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = network(tmp_path / "x.onnx", node("Div", ["x", "c"], ["d"]), node("Mul", ["d", "c"], ["y"]), c=255)
    assert ranges(path) == ("255", "255")
    assert caplog.messages == [
        'x.onnx: white is assumed to be 255, as its first operators imply; input_range="1" overrides that'
    ]
    np.testing.assert_allclose(run_in_openvino(open_checkpoint(path), PICTURE, tmp_path / "engine"), PICTURE, atol=1e-5)
    assert ranges(path, input_range="1")[0] == "1"


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_bytes_in_and_fractions_out(tmp_path: Path, kind: int) -> None:
    """What many a network with a first layer for bytes is; its pictures were black before."""
    nodes = [node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), node("Div", ["f", "c"], ["y"])]
    path = network(tmp_path / "x.onnx", *nodes, kind=kind, c=255)
    assert ranges(path) == ("255", "1")
    result = run_in_openvino(open_checkpoint(path), PICTURE, tmp_path / "engine")
    np.testing.assert_allclose(result, PICTURE, atol=0.5 / 255 + 1e-5)
    assert ranges(path, input_range="255") == ("255", "1")


def test_fractions_in_and_bytes_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = network(tmp_path / "x.onnx", node("Mul", ["x", "c"], ["y"]), c=255)
    assert ranges(path) == ("1", "255")
    assert "its output is assumed to range from 0 to 255" in caplog.text
    np.testing.assert_allclose(run_in_openvino(open_checkpoint(path), PICTURE, tmp_path / "engine"), PICTURE, atol=1e-5)


def test_a_network_that_makes_no_picture_of_fractions_gets_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    middle = np.zeros((3, 3, 3, 3))
    middle[range(3), range(3), 1, 1] = 1
    path = network(  # nothing is darker than 9 of 255; the first operator does not show what numbers it is for
        tmp_path / "x.onnx",
        node("Conv", ["x", "w", "a"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("Add", ["r", "b"], ["y"]),
        w=middle,
        a=[-9.0] * 3,
        b=9.0,
    )
    assert ranges(path) == ("255", "255")
    (line,) = caplog.messages
    assert "white is assumed to be 255: with values up to 1 the output for a test drawing is not a picture" in line
    assert 'input_range="1" overrides that' in line
    assert ranges(path, input_range="1") == ("1", "1")


def enhancer(path: Path) -> Path:
    """x + 0.9 (1 - tanh x): makes fractions much brighter, and leaves bytes as they are."""
    return network(
        path,
        node("Tanh", ["x"], ["a"]),
        node("Sub", ["one", "a"], ["b"]),
        node("Mul", ["b", "much"], ["c"]),
        node("Add", ["x", "c"], ["y"]),
        one=1,
        much=0.9,
    )


def test_a_network_that_changes_pictures_is_left_at_1(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes would come out as themselves: a trial alone would get it wrong, and the log says no more than that."""
    path = enhancer(tmp_path / "x.onnx")
    assert ranges(path) == ("1", "1")
    (line,) = caplog.messages
    assert line.startswith("x.onnx: white is assumed to be 1, although with values up to 255 the output is more like")
    assert line.endswith('if colors are wrong, give input_range="255"')


@pytest.mark.filterwarnings("error")
def test_what_is_no_number_decides_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """√(200 - x): no picture from 0 to 1, and no number from 0 to 255."""
    nodes = [node("Sub", ["c", "x"], ["d"]), node("Sqrt", ["d"], ["y"])]
    assert ranges(network(tmp_path / "x.onnx", *nodes, c=200)) == ("1", "1")
    assert not caplog.messages


def test_networks_that_ship_are_for_1(tmp_path: Path, shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {SHIPPED: (60, 60), shared / "data/artcnn/artcnn_c4f32.safetensors": (48, 40)}
    for number, (model, size) in enumerate(files.items()):
        export(model, path := tmp_path / f"{number}.onnx", size=size, verify=False)
        ends = probe(path)["config"]
        assert (ends["range"], ends["output_range"]) == ("1", "1")
    with caplog.at_level(logging.DEBUG, "vsfdatrd"):
        assert ranges(write_doubler(tmp_path / "random.onnx")) == ("1", "1")
    assert not caplog.messages
