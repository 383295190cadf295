"""ArtCNN as a graph: the same function as its formula, in every target, and built by TensorRT-RTX."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.artcnns import C_CHROMA, C_LUMA, KINDS, R_LUMA, compute_by_formula, random_picture, random_tensors, run_graph
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.graph.artcnn import write
from vsfdatrd.graph.target import OPENVINO, GraphTarget, tensorrt_target
from vsfdatrd.options import PRECISIONS, Precision


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("open_size", [False, True])
def test_the_graph_is_the_formula(config: ArtCnnConfig, open_size: bool) -> None:
    tensors, x = random_tensors(config), random_picture(config)
    model = write(config, tensors, None if open_size else x.shape[1:], OPENVINO)
    onnx.checker.check_model(model, full_check=True)
    out = run_graph(model, x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, compute_by_formula(config, tensors, x), atol=2e-6)


@pytest.mark.parametrize(
    "config", [*KINDS.values(), replace(C_LUMA, kernel=5), replace(C_CHROMA, kernel=1)], ids=[*KINDS, "5×5", "1×1"]
)
@pytest.mark.parametrize("size", [(24, 20), (6, 13), (5, 30)], ids=str)
def test_joined_layers_are_the_formula_up_to_the_border(config: ArtCnnConfig, size: tuple[int, int]) -> None:
    tensors, x = random_tensors(config), random_picture(config, *size)
    joined = write(config, tensors, size, GraphTarget(joined_layers=True))
    onnx.checker.check_model(joined, full_check=True)
    sides = {constant.dims[2] for constant in joined.graph.initializer if len(constant.dims) == 4}
    assert (2 * config.kernel - 1 in sides) == (min(size) >= 6 * (config.kernel // 2))
    np.testing.assert_allclose(run_graph(joined, x), compute_by_formula(config, tensors, x), atol=2e-6)


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
@pytest.mark.parametrize("config", [C_LUMA, R_LUMA], ids=["C", "R"])
def test_half_precision_stays_close(config: ArtCnnConfig, precision: Precision) -> None:
    tensors, x = random_tensors(config), random_picture(config)
    model = write(config, tensors, x.shape[1:], tensorrt_target(precision))
    out = run_graph(model, x)
    np.testing.assert_allclose(out, compute_by_formula(config, tensors, x), atol=4e-3)
    types = {constant.name: constant.data_type for constant in model.graph.initializer}
    result: dict[str, set[int]] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            result.setdefault(node.name.partition("/")[0], set()).add(types[node.input[1]])
    full, half = {onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT16}
    # what sees the image is float32, and so is the last layer where it is written by itself
    assert result == {"first": full, "body": half, "last": full | half, "border": full | half}


def test_mixed_adds_in_single_precision() -> None:
    model = write(R_LUMA, random_tensors(R_LUMA), (8, 8), tensorrt_target("mixed"))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    sums = [node.output[0] for node in model.graph.node if node.op_type == "Add"]
    assert len(sums) == R_LUMA.blocks + 1 + 2  # the features once, and at two pairs of borders
    assert {types[name] for name in sums} == {onnx.TensorProto.FLOAT}


def test_a_weight_beyond_half_precision_is_an_error() -> None:
    tensors = random_tensors(C_LUMA)
    tensors["conv3.weight"][0, 0, 0, 0] = 1e6
    write(C_LUMA, tensors, (8, 8), OPENVINO)
    with pytest.raises(OverflowError, match="float16"):
        write(C_LUMA, tensors, (8, 8), tensorrt_target("fp16"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: Precision) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    config = ArtCnnConfig(32, 4, False, 1, 1, 2)
    graph = write(config, random_tensors(config), (240, 320), tensorrt_target(precision))
    builder = trt.Builder(log := trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(graph.SerializeToString()), parser.get_error(0).desc()
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, settings) is not None
