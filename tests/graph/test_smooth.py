"""No banding in a smooth sky in half precision, for graphs of every architecture, emulated on the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.artcnns import C_LUMA, R_RGB, random_tensors
from tests.fdats import SMALL, fdat
from tests.graph.emulation import emulate
from tests.onnx_files import write_onnx
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.backends.accuracy import MIN_STEP_RATIO, count_levels, draw_sky
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.graph import artcnn
from vsfdatrd.graph.half_precision import convert_precision
from vsfdatrd.graph.target import OPENVINO, GraphTarget, tensorrt_target

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (60, 180)
PRECISIONS = ("bf16", "fp16", "mixed")

type Written = Callable[[GraphTarget], onnx.ModelProto]


def shares(written: Written, precision: Any, channels: int = 3) -> list[float]:
    """Return the share of a sky's steps that remains in a precision, for the graphs of each engine."""
    picture = draw_sky(*SIZE)[None, :channels]
    before = count_levels(emulate(written(OPENVINO), picture).output[0])
    assert before > 100, "there is no sky to lose"
    forms = (GraphTarget(precision), tensorrt_target(precision))
    return [count_levels(emulate(written(form), picture).output[0]) / before for form in forms]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_weights_that_ship(precision: Any) -> None:
    checkpoint = open_checkpoint(Path(__file__).parents[2] / "models/fdat_rd_small_2x.safetensors")
    assert min(shares(lambda form: checkpoint.graph(*SIZE, form), precision)) >= MIN_STEP_RATIO


@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_fdat_rd_that_repeats_pixels(identity_2x: Path, precision: Any) -> None:
    checkpoint = open_checkpoint(identity_2x)
    assert min(shares(lambda form: checkpoint.graph(*SIZE, form), precision)) >= MIN_STEP_RATIO


@pytest.mark.parametrize("kind", [C_LUMA, R_RGB], ids=["C", "R"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_artcnn(kind: ArtCnnConfig, precision: Any) -> None:
    tensors = almost_repeating(kind)
    result = shares(lambda form: artcnn.write(kind, tensors, SIZE, form), precision, kind.in_channels)
    assert min(result) >= MIN_STEP_RATIO


def almost_repeating(kind: ArtCnnConfig) -> dict[str, Any]:
    """Return an ArtCNN whose first and last layers copy the picture while the other layers add small values."""
    tensors = random_tensors(kind)
    names = [name for name in tensors if name.endswith(".weight")]
    middle = kind.kernel // 2
    for name in names[1:-1]:
        tensors[name] *= 0.3
    first, last = tensors[names[0]], tensors[names[-1]]
    first *= 0.02
    last *= 0.02
    for channel in range(kind.in_channels):
        first[channel, channel, middle, middle] = 1
        last[channel * kind.scale**2 : (channel + 1) * kind.scale**2, channel, middle, middle] = 1
    return tensors


def residual(path: Path) -> onnx.ModelProto:
    """Write a typical network: first convolution, residual branch, long skip, and two layers after upscaling."""
    random = np.random.default_rng(0)
    passing = np.zeros((16, 3, 3, 3), np.float32)
    passing[range(3), range(3), 1, 1] = 1
    up = np.zeros((64, 16, 3, 3), np.float32)
    for channel in range(16):
        up[4 * channel : 4 * channel + 4, channel, 1, 1] = 1
    ending = np.ascontiguousarray(passing.transpose(1, 0, 2, 3))

    def noise(shape: tuple[int, ...], size: float) -> Any:
        return (size * random.standard_normal(shape)).astype(np.float32)

    weights = {
        "first": passing + noise(passing.shape, 0.01),
        "a": noise((16, 16, 3, 3), 0.05),
        "b": noise((16, 16, 3, 3), 0.01),
        "up": up + noise(up.shape, 0.003),
        "last": ending + noise(ending.shape, 0.003),
    }
    around: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "strides": [1, 1], "group": 1}
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["f"], **around),
        helper.make_node("Conv", ["f", "a"], ["c"], **around),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["d"], **around),
        helper.make_node("Add", ["f", "d"], ["s"]),
        helper.make_node("Conv", ["s", "up"], ["u"], **around),
        helper.make_node("DepthToSpace", ["u"], ["h"], blocksize=2, mode="CRD"),
        helper.make_node("Conv", ["h", "last"], ["y"], **around),
    ]
    ends = [
        helper.make_tensor_value_info(*end)
        for end in (
            ("x", TensorProto.FLOAT, [1, 3, *SIZE]),
            ("y", TensorProto.FLOAT, [1, 3, *(2 * n for n in SIZE)]),
        )
    ]
    return onnx.load(write_onnx(path, nodes, ends[:1], ends[1], weights))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_networks_of_others(tmp_path: Path, precision: Any) -> None:
    model = residual(tmp_path / "x.onnx")
    assert min(shares(lambda form: convert_precision(model, form), precision)) >= MIN_STEP_RATIO


def test_what_bf16_leaves_of_a_network_of_others(tmp_path: Path) -> None:
    """The long skip, the first layer and the two behind the sum are fp32; the branch is not."""
    half = convert_precision(residual(tmp_path / "x.onnx"), GraphTarget("bf16"))
    graph = onnx.shape_inference.infer_shapes(half).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    assert {types[name] for name in "fsuh"} == {TensorProto.FLOAT}
    assert {types[name] for name in "crd"} == {TensorProto.BFLOAT16}


def test_fdat(tmp_path: Path) -> None:
    checkpoint = fdat(tmp_path / "fdat.safetensors", **SMALL)
    graph = checkpoint.graph(64, 64, GraphTarget("bf16")).graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3]
    assert constants[layers[0].input[1]] == constants[layers[-1].input[1]] == TensorProto.FLOAT
    assert TensorProto.BFLOAT16 in constants.values()
