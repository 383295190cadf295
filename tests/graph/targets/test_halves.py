"""Half precision: which operators use it, which stay float32, and the error."""

import time
from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto

from tests.graph.emulation import emulate
from tests.graph.running import (
    FRAME,
    HALF,
    TOKENS,
    Array,
    Make,
    build_network,
    graph_for,
    infer_types,
    noise,
    rms_error,
    run_torch,
    tiny,
)
from tests.graph.targets.conftest import Medium
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import GraphTarget, tensorrt_target
from vsfdatrd.options import Precision


def psnr(out: Array, expected: Array) -> float:
    return float(-10 * np.log10(np.mean((np.clip(out, 0, 1) - np.clip(expected, 0, 1)) ** 2, dtype=np.float64)))


@pytest.mark.slow
def test_the_shipped_weights_in_half_precision(medium: Medium) -> None:
    config, tensors, network = medium
    x = draw_line_art(60, 120)[None]
    expected = run_torch(network, x)
    result: dict[str, float] = {}
    for precision in HALF:
        # The small float32 products may be TF32, which is what TensorRT has unless told otherwise.
        run = emulate(graph_for(x, config, tensors, tensorrt_target(precision)), x, tf32=precision == "mixed")
        assert run.first_bad is None
        result[precision] = psnr(run.output, expected)
    # Measured: 78.3, 63.8 and 77.7 dB; weights that are trained anew move it a little.
    assert 75 < result["fp16"] < 83, result
    assert 60 < result["bf16"] < 69, result
    assert result["mixed"] > result["fp16"] - 1.5, result  # by chance no better: what is multiplied is fp16 in both


@tiny
@pytest.mark.parametrize(
    ("precision", "compute", "stream"),
    [
        ("fp16", TensorProto.FLOAT16, TensorProto.FLOAT16),
        ("bf16", TensorProto.BFLOAT16, TensorProto.BFLOAT16),
        ("mixed", TensorProto.FLOAT16, TensorProto.FLOAT),
        ("fp32", TensorProto.FLOAT, TensorProto.FLOAT),
    ],
)
@pytest.mark.parametrize("turing", [False, True])
def test_what_is_multiplied_has_the_precisions_type(
    make_config: Make, make_tensors: Make, precision: Precision, compute: int, stream: int, turing: bool
) -> None:
    config, tokens = make_config(), 60 * 60
    form = tensorrt_target(precision, turing)
    model = fdat_rd_graph(config, make_tensors(), (60, 60), form)
    sampled = 60, config.heads * config.dict_tokens
    types = infer_types(model)
    large, small, sums = Counter[int](), Counter[int](), Counter[int]()
    layers = [
        node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose") and len(node.input) == 3
    ]
    ends = {layers[0], *(layers[-2:] if precision == "bf16" else layers[-1:])}  # bf16 has the whole tail in fp32
    for node in model.graph.node:
        inputs = {types[name][0] for name in node.input if name} - {TensorProto.INT64}
        assert len(inputs) == 1, f"{node.name} mixes types"
        tensor, shape = types[node.output[0]]
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"):
            if form.maps and (node.op_type, tensor, shape) == ("MatMul", TensorProto.FLOAT, sampled):
                continue  # scores of the samples in the dictionary's reading
            # of the frame, or of the channels alone
            values = max(np.prod(shape), np.prod(types[node.input[0]][1]))
            # second moments of queries and keys have more values than a frame as small as this has tokens
            whole = values >= tokens and shape != (2 * config.embed_dim,) * 2
            if node.name in ends:
                assert tensor == TensorProto.FLOAT, "skies would have bands"
                continue
            (large if whole else small)[tensor] += 1
        if node.op_type == "Add" and {node.input[0], node.input[1]}.isdisjoint(c.name for c in model.graph.initializer):
            sums[tensor] += shape in ((tokens, config.embed_dim), (1, config.embed_dim, 60, 60))
    assert set(large) == {compute}
    assert large[compute] >= 18
    assert set(small) - {compute} <= {TensorProto.FLOAT}, "channel attention's matrices and pooled gates are fp32"
    assert small[TensorProto.FLOAT] >= (4 if form.maps else 6)  # with maps, pooled gates are written as sums
    assert sums[stream] >= 6, "two for a block"


def test_what_is_float32_in_a_whole_frame(medium: Medium) -> None:
    config, tensors, _ = medium
    start = time.process_time()
    # In the form with maps, such values are between operators of one kernel: `test_traffic` sees those that are not.
    model = fdat_rd_graph(config, tensors, FRAME, tensorrt_target("fp16", portable=False))
    assert time.process_time() - start <= 10
    n, c, m = TOKENS, config.embed_dim, config.dict_tokens
    height, width = (side // config.unshuffle for side in FRAME)
    blocks = sum(group.count("channel") for group in config.groups)
    assert height * width == n
    types = infer_types(model)
    result: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for node in model.graph.node:
        tensor, shape = types[node.output[0]]
        if tensor == TensorProto.FLOAT and np.prod(shape) > n * c / 10:
            result[node.op_type, shape] += 1
    pictures = (1, 3, 2 * FRAME[0], 2 * FRAME[1])
    allowed = {
        ("Cast", pictures): 1,  # what the last layer reads
        ("Conv", pictures): 1,
        ("Identity", pictures): 1,
        # the first layer, the last sum, and what is added to it; read by the mean of a pooled gate
        ("Conv", (1, c, height, width)): 1,
        ("Add", (1, c, height, width)): 1,
        ("Cast", (1, c, height, width)): blocks + 1,
        ("Cast", (n, c)): blocks,  # read by the mean of channel attention's tokens
        # shares in the dictionary's reading: to be summed, and divided by their sum
        ("Cast", (n // 1296, config.heads, m, 1296)): blocks,
        ("Div", (n // 1296, config.heads, m, 1296)): blocks,
    }
    # sums over parts, on their way to the sum over all: how many parts there are is up to the norm's weights
    moments = [key for key in result if key[0] == "Cast" and key[1][1:] == (c, c) and np.prod(key[1]) <= n * c / 2]
    assert sum(result.pop(key) for key in moments) == blocks
    assert not result - Counter(allowed)
    assert result["Cast", pictures] == 1


def test_a_weight_beyond_half_precision_is_refused(make_config: Make, make_tensors: Make) -> None:
    config, tensors = make_config(), make_tensors()
    tensors["groups.0.blocks.0.ffn.fc1.weight"][3, 4] = -7e4
    x = noise(config)
    for target in (tensorrt_target("fp16"), tensorrt_target("mixed"), GraphTarget("fp16")):
        with pytest.raises(OverflowError, match=r"a weight of \S+e\+04 is beyond the range of float16"):
            graph_for(x, config, tensors, target)
    for target in (tensorrt_target("bf16"), tensorrt_target("fp32"), GraphTarget("bf16")):
        assert emulate(graph_for(x, config, tensors, target), x).first_bad is None


@tiny
@pytest.mark.parametrize("precision", ["fp16", "mixed"])
def test_maps_are_as_precise_as_tokens(make_config: Make, make_tensors: Make, precision: Precision) -> None:
    """With sharp attention everywhere: within 2 dB of the form that they replace, and above 55 dB."""
    config, tensors = make_config(), make_tensors(5)
    for name in tensors:
        if name.endswith("temp"):
            tensors[name][...] = 8
        elif name.endswith(("attn.dictionary", "r_q.weight")):
            tensors[name] *= 8
    x = noise(config)
    expected = run_torch(build_network(config, tensors), x)
    forms = tensorrt_target(precision, portable=False), tensorrt_target(precision)
    assert [form.maps for form in forms] == [False, True]
    tokens, maps = (
        -20 * np.log10(rms_error(emulate(graph_for(x, config, tensors, form), x).output, expected)) for form in forms
    )
    assert maps > max(55, tokens - 2), (maps, tokens)
