"""ArtCNN as a graph: the same function as its formula, in every target, and built by TensorRT-RTX."""

import numpy as np
import onnx
import pytest

from tests.artcnns import C_LUMA, KINDS, R_LUMA, by_hand, picture, random_tensors, run_graph
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.graph.artcnn import write
from vsfdatrd.graph.target import OPENVINO, tensorrt
from vsfdatrd.options import PRECISIONS, Precision


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("open_size", [False, True])
def test_the_graph_is_the_formula(config: ArtCnnConfig, open_size: bool) -> None:
    tensors, x = random_tensors(config), picture(config)
    model = write(config, tensors, None if open_size else x.shape[1:], OPENVINO)
    onnx.checker.check_model(model, full_check=True)
    out = run_graph(model, x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, by_hand(config, tensors, x), atol=2e-6)


@pytest.mark.parametrize("precision", ["fp16", "mixed"])
@pytest.mark.parametrize("config", [C_LUMA, R_LUMA], ids=["C", "R"])
def test_half_precision_stays_close(config: ArtCnnConfig, precision: Precision) -> None:
    tensors, x = random_tensors(config), picture(config)
    model = write(config, tensors, x.shape[1:], tensorrt(precision))
    out = run_graph(model, x)
    np.testing.assert_allclose(out, by_hand(config, tensors, x), atol=4e-3)
    kinds = [init.data_type for init in model.graph.initializer]
    ends = {kinds[0], kinds[1], kinds[-2], kinds[-1]}
    assert (ends, set(kinds[2:-2])) == ({onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT16})


def test_mixed_adds_in_single_precision() -> None:
    model = write(R_LUMA, random_tensors(R_LUMA), (8, 8), tensorrt("mixed"))
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
    sums = [node.output[0] for node in model.graph.node if node.op_type == "Add"]
    assert len(sums) == R_LUMA.blocks + 1
    assert {types[name] for name in sums} == {onnx.TensorProto.FLOAT}


def test_a_weight_beyond_half_precision_is_an_error() -> None:
    tensors = random_tensors(C_LUMA)
    tensors["conv3.weight"][0, 0, 0, 0] = 1e6
    write(C_LUMA, tensors, (8, 8), OPENVINO)
    with pytest.raises(OverflowError, match="float16"):
        write(C_LUMA, tensors, (8, 8), tensorrt("fp16"))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_builds_it(precision: Precision) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    config = ArtCnnConfig(32, 4, False, 1, 1, 2)
    graph = write(config, random_tensors(config), (240, 320), tensorrt(precision))
    builder = trt.Builder(log := trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(graph.SerializeToString()), parser.get_error(0).desc()
    settings = builder.create_builder_config()
    settings.num_compute_capabilities = 1
    settings.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, settings) is not None
