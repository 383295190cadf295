"""Every dialect computes what the network computes; in half precision as a GPU does it; TensorRT-RTX takes them all.

Half precision runs in `emulation.py`, on a CPU. Bounds are what was measured, with a little room.
"""

import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from benchmarks.weights import weights_file
from tests.graph.emulation import emulate
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.engines.process import Worker
from vsfdatrd.engines.verify import drawing
from vsfdatrd.graph import fdat_rd_graph, open_graph
from vsfdatrd.graph.dialect import Dialect, tensorrt
from vsfdatrd.graph.tails import _Tail
from vsfdatrd.graph.weights import Weights
from vsfdatrd.graph.writer import Writer
from vsfdatrd.nn.config import UPSAMPLERS, FdatRdConfig
from vsfdatrd.nn.fdat_rd import FdatRd
from vsfdatrd.options import Precision

type Array = NDArray[Any]
type Make = Callable[..., Any]
type Tensors = dict[str, Array]
type Medium = tuple[FdatRdConfig, Tensors, torch.nn.Module]
type Build = Callable[[onnx.ModelProto, str], dict[str, Any]]

FRAME = (540, 720)
TOKENS = 97200
"""Of such a frame, unshuffled by 2."""
# fmt: off
FORMS = (
    Dialect(), Dialect(parts=True), Dialect(attention=True), Dialect(attention=True, parts=True),
    Dialect(parts=True, turing=True), Dialect(attention=True, parts=True, turing=True),
)
PATTERNS: tuple[dict[str, Any], ...] = (
    {"groups": (("spatial",),)},
    {"groups": (("channel",),), "dict_tokens": 0},
    {"groups": (("dictionary",),)},
    {"groups": (("spatial", "spatial", "channel"), ("dictionary", "spatial"))},
    {"groups": (("channel", "dictionary"),) * 2, "embed_dim": 48, "heads": 3, "ffn_dim": 80, "dict_tokens": 20},
    {"embed_dim": 64, "heads": 4, "gate_dim": 8, "tail_scale": 4, "unshuffle": 2},
    {"tail_scale": 4, "unshuffle": 4},
)
TAILS: tuple[dict[str, Any], ...] = (
    {"upsampler": "conv", "tail_scale": 1},
    *({"upsampler": kind, "tail_scale": scale} for kind in UPSAMPLERS[1:] for scale in (2, 3, 4)),
    {"upsampler": "dysample", "tail_scale": 4, "unshuffle": 2, "mid_dim": 16},
)
# fmt: on
HALF: tuple[Precision, ...] = ("fp16", "bf16", "mixed")
tiny = pytest.mark.usefixtures("one_thread")  # threads cost small networks more than they save


def named(changes: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in changes.items())


def by_runtime(model: onnx.ModelProto, x: Array, threads: int = 1) -> Array:
    """What ONNX Runtime makes of a model and its input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out: Array = session.run(["output"], {"input": x})[0]
    return out


def by_torch(network: torch.nn.Module, x: Array) -> Array:
    with torch.inference_mode():
        out: Array = network(torch.from_numpy(x)).numpy()
    return out


def network_of(config: FdatRdConfig, tensors: Tensors) -> FdatRd:
    network = FdatRd(config).eval()
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return network


def noise(config: FdatRdConfig, tokens: int = 60) -> Array:
    """A frame of so many tokens a side."""
    side = tokens * config.unshuffle
    return np.random.default_rng(2).random((1, config.in_channels, side, side), np.float32)


def graph_for(x: Array, config: FdatRdConfig, tensors: Tensors, dialect: Dialect) -> onnx.ModelProto:
    _, _, height, width = x.shape
    return fdat_rd_graph(config, tensors, height, width, dialect)


def off(out: Array, expected: Array) -> float:
    """The largest difference, as a part of the largest value."""
    assert out.shape == expected.shape
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    return float(np.abs(out - expected).max() / np.abs(expected).max())


def strayed(out: Array, expected: Array) -> float:
    """The error's root mean square, as a part of the standard deviation."""
    assert out.shape == expected.shape
    return float(np.sqrt(np.mean((out - expected) ** 2, dtype=np.float64)) / expected.std())


def psnr(out: Array, expected: Array) -> float:
    return float(-10 * np.log10(np.mean((np.clip(out, 0, 1) - np.clip(expected, 0, 1)) ** 2, dtype=np.float64)))


def typed(model: onnx.ModelProto) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every tensor of a graph, by the rules of ONNX."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {
        value.name: (value.type.tensor_type.elem_type, tuple(d.dim_value for d in value.type.tensor_type.shape.dim))
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    return found | {constant.name: (constant.data_type, tuple(constant.dims)) for constant in graph.initializer}


def parts(model: onnx.ModelProto) -> list[int]:
    """In how many parts every reduction over the whole frame is made."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    types = typed(model)
    return [
        types[node.input[0]][1][0]
        for node in model.graph.node
        if node.op_type in ("ReduceSum", "ReduceMax")
        and numpy_helper.to_array(constants[node.input[1]]).tolist() == [0]
    ]


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Medium:
    """The weights that ship, with all parts at work."""
    checkpoint = open_checkpoint(weights_file("medium", tmp_path_factory.mktemp("medium"))[0])
    assert checkpoint.description.config is not None
    return checkpoint.description.config, dict(checkpoint.tensors()), checkpoint.network()


# ---- float32: every form is the network --------------------------------------------------------------------------


@tiny
@pytest.mark.parametrize("changes", PATTERNS, ids=named)
def test_every_form_computes_what_the_network_computes(
    make_config: Make, make_tensors: Make, changes: dict[str, Any]
) -> None:
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    x = noise(config)
    expected = by_torch(network_of(config, tensors), x)
    kinds = [kind for group in config.groups for kind in group]
    for form in FORMS:
        model = graph_for(x, config, tensors, form)
        onnx.checker.check_model(model, full_check=True)
        assert (3 if form.attention else 0) + 20 == model.opset_import[0].version
        found = parts(model)
        # the second moment once, the reading of the dictionary three times
        assert len(found) == (kinds.count("channel") + 3 * kinds.count("dictionary") if form.parts else 0)
        assert min(found, default=2) > 1, "in one part, it is not tested"
        counts = Counter(node.op_type for node in model.graph.node)
        assert counts["Attention"] == (kinds.count("spatial") + kinds.count("dictionary") if form.attention else 0)
        assert off(by_runtime(model, x), expected) <= 3e-6, form


@tiny
@pytest.mark.parametrize("changes", TAILS, ids=named)
def test_every_tail_in_every_precision(make_config: Make, make_tensors: Make, changes: dict[str, Any]) -> None:
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    x = noise(config)
    expected = by_torch(network_of(config, tensors), x)
    # lda samples at places that are up to 11 tokens away, where the slightest difference of a place is one of values
    bound = 5e-5 if config.upsampler == "lda" else 8e-6
    model = graph_for(x, config, tensors, Dialect(attention=True, parts=True))
    out = by_runtime(model, x)
    assert off(out, expected) <= bound
    assert off(emulate(model, x).output, out) <= bound, "the emulation is wrong"
    errors = {}
    for precision in HALF:
        model = graph_for(x, config, tensors, tensorrt(precision))
        assert ("ConvTranspose" in {node.op_type for node in model.graph.node}) == (
            config.upsampler == "transpose+conv" and precision != "bf16"
        )
        errors[precision] = strayed(emulate(model, x).output, expected)
    assert 1e-4 < errors["fp16"] < 4e-3
    assert 1e-3 < errors["bf16"] < 4e-2
    assert errors["mixed"] < errors["fp16"]


@pytest.mark.slow
def test_the_shipped_weights_in_every_form(medium: Medium) -> None:
    config, tensors, network = medium
    x = drawing(120, 180)[None]
    expected = by_torch(network, x)
    for form in FORMS[:5]:
        model = graph_for(x, config, tensors, form)
        assert min(parts(model), default=0) > 1 or not form.parts
        assert off(by_runtime(model, x, threads=2), expected) <= 3e-6, form
    model = graph_for(x, config, tensors, FORMS[3])
    assert off(emulate(model, x).output, expected) <= 3e-6, "the emulation is wrong"


@tiny
@pytest.mark.parametrize("changes", [{}, {"tail_scale": 4, "unshuffle": 2}], ids=named)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_size_with_padding(make_config: Make, make_tensors: Make, changes: dict[str, Any], form: Dialect) -> None:
    config, tensors = make_config(**changes), make_tensors(**changes)
    network = network_of(config, tensors)
    unknown = None if form.turing else open_graph(config, tensors, form)
    for height, width in ((77, 95), (60, 120), (102, 61)):
        x = np.random.default_rng(height).random((1, 3, height, width), np.float32)
        expected = by_torch(network, x)
        model = graph_for(x, config, tensors, replace(form, padding=True))
        assert off(by_runtime(model, x), expected) <= 3e-6, (height, width)
        if unknown is not None:
            assert off(by_runtime(unknown, x), expected) <= 3e-6, (height, width)


@pytest.mark.parametrize(("step", "side", "pad"), [(2, 4, 1), (3, 3, 0)])
def test_interleaved_convolutions_are_a_transposed_one(make_config: Make, step: int, side: int, pad: int) -> None:
    random = np.random.default_rng(step)
    x, weight, bias = (random.standard_normal(s).astype(np.float32) for s in ((1, 6, 5, 7), (6, 4, side, side), (4,)))
    g = Writer("transposed")
    out = _Tail(g, make_config(), Weights({}))._interleaved("input", weight, bias, step)
    model = g.model((1, 6, 5, 7), out, (1, 4, 5 * step, 7 * step))
    onnx.checker.check_model(model, full_check=True)
    torched = [torch.from_numpy(values) for values in (x, weight, bias)]
    expected = F.conv_transpose2d(torched[0], torched[1], torched[2], step, pad).numpy()
    assert off(by_runtime(model, x), expected) <= 1e-6


# ---- half precision ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_shipped_weights_in_half_precision(medium: Medium) -> None:
    config, tensors, network = medium
    x = drawing(120, 180)[None]
    expected = by_torch(network, x)
    found: dict[str, float] = {}
    for precision in HALF:
        # The small float32 products may be TF32, which is what TensorRT has unless told otherwise.
        run = emulate(graph_for(x, config, tensors, tensorrt(precision)), x, tf32=precision == "mixed")
        assert run.first_bad is None
        found[precision] = psnr(run.output, expected)
    # Measured: 72.4, 52.9 and 72.5 dB; weights that are trained anew move it a little.
    assert 69 < found["fp16"] < 77, found
    assert 50 < found["bf16"] < 58, found
    assert found["mixed"] > found["fp16"] - 0.3, found  # by chance no better: what is multiplied is fp16 in both


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
    model = fdat_rd_graph(config, make_tensors(), 60, 60, tensorrt(precision, turing))
    types = typed(model)
    large, small, sums = Counter[int](), Counter[int](), Counter[int]()
    for node in model.graph.node:
        inputs = {types[name][0] for name in node.input if name} - {TensorProto.INT64}
        assert len(inputs) == 1, f"{node.name} mixes types"
        tensor, shape = types[node.output[0]]
        if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention"):
            # of the frame, or of the channels alone
            whole = np.prod(shape) >= tokens or np.prod(types[node.input[0]][1]) >= tokens
            (large if whole else small)[tensor] += 1
        if node.op_type == "Add" and {node.input[0], node.input[1]}.isdisjoint(c.name for c in model.graph.initializer):
            sums[tensor] += shape == (tokens, config.embed_dim)
    assert set(large) == {compute}
    assert large[compute] >= 20
    assert set(small) - {compute} <= {TensorProto.FLOAT}, "channel attention's matrices and pooled gates are fp32"
    assert small[TensorProto.FLOAT] >= 7
    assert sums[stream] >= 6, "two for a block"


def test_what_is_float32_in_a_whole_frame(medium: Medium) -> None:
    config, tensors, _ = medium
    start = time.process_time()
    model = fdat_rd_graph(config, tensors, *FRAME, tensorrt("fp16"))
    assert time.process_time() - start <= 3
    n, c, m = TOKENS, config.embed_dim, config.dict_tokens
    height, width = (side // config.unshuffle for side in FRAME)
    blocks = sum(group.count("channel") for group in config.groups)
    assert height * width == n
    types = typed(model)
    found: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for node in model.graph.node:
        tensor, shape = types[node.output[0]]
        if tensor == TensorProto.FLOAT and np.prod(shape) > n * c / 10:
            found[node.op_type, shape] += 1
    pictures = (1, 3, 2 * FRAME[0], 2 * FRAME[1])
    allowed = {
        ("Cast", pictures): 1,  # what comes out
        ("Identity", pictures): 1,
        ("Cast", (1, c, height, width)): blocks,  # read by the mean of a pooled gate
        ("Cast", (n, c)): blocks,  # read by the mean of channel attention's tokens
        # shares in the dictionary's reading: to be summed, and divided by their sum
        ("Cast", (n // 1296, config.heads, m, 1296)): blocks,
        ("Div", (n // 1296, config.heads, m, 1296)): blocks,
    }
    # sums over parts, on their way to the sum over all: how many parts there are is up to the norm's weights
    moments = [key for key in found if key[0] == "Cast" and key[1][1:] == (c, c) and np.prod(key[1]) <= n * c / 2]
    assert sum(found.pop(key) for key in moments) == blocks
    assert not found - Counter(allowed)
    assert found["Cast", pictures] == 1


# ---- what the whole frame adds up to -----------------------------------------------------------------------------


def whole_frame(make_config: Make, make_tensors: Make) -> tuple[FdatRdConfig, Tensors]:
    """A group of medium's width whose norms' results have a mean square of 10."""
    changes = {
        "embed_dim": 128, "heads": 4, "dict_tokens": 128, "ffn_dim": 128, "gate_dim": 16,
        "upsampler": "pixelshuffledirect", "tail_scale": 2, "unshuffle": 2,
    }  # fmt: skip
    tensors = make_tensors(3, **changes)
    for name in tensors:
        if name.endswith(("n1.weight", "n2.weight", "r_norm.weight")):
            tensors[name][:] = 10**0.5
    return make_config(**changes), tensors


def of_kind(model: onnx.ModelProto, kind: str) -> list[str]:
    """The results of all operators of a kind."""
    return [node.output[0] for node in model.graph.node if node.op_type == kind]


def second_moments(values: Array) -> onnx.ModelProto:
    """The product over all tokens in one go, in fp16."""
    g = Writer("naive", np.float16)
    n = g.cast("input", np.float32, np.float16)
    s = g.op("MatMul", g.transpose(n, 1, 0), n)
    return g.model(values.shape, g.cast(s, np.float16, np.float32), (values.shape[1],) * 2)


@pytest.mark.slow
@pytest.mark.parametrize("extreme", [False, True])
def test_no_sum_over_a_frame_overflows(make_config: Make, make_tensors: Make, extreme: bool) -> None:
    config, tensors = whole_frame(make_config, make_tensors)
    x = drawing(*FRAME)[None]
    if extreme:
        # One channel outweighs all others in every token, with the largest values that a norm can give: one half of the
        # picture is black and gives -2000, the other is white and gives 2000.
        x[...] = np.arange(FRAME[1]) >= FRAME[1] // 2
        tensors["conv_first.1.weight"][5] = 0
        tensors["conv_first.1.weight"][5, :, 1, 1] = 4000 / 12
        tensors["conv_first.1.bias"][5] = -2000
    model = graph_for(x, config, tensors, tensorrt("fp16"))
    norm = of_kind(model, "LayerNormalization")[2]  # n1 and n2 of the spatial block, n1 of the channel block
    cosines = of_kind(model, "Div")[0]  # of channel attention
    run = emulate(model, x, keep=[norm, cosines])
    assert run.first_bad is None
    n = run.kept[norm]
    assert n.shape == (TOKENS, 128)
    assert np.mean(n**2) == pytest.approx(10, rel=0.01)
    assert (35 < np.abs(n).max() < 36) == extreme
    products = (seen for seen in run.seen.values() if seen.kind == "MatMul" and seen.shape[1:] == (128, 128))
    (sums,) = (seen for seen in products if seen.shape[0] > 1)  # (P, C, C)
    assert sums.dtype == torch.float16
    wq, wk, _ = np.split(tensors["groups.0.blocks.1.attn.qkv.weight"], 3)
    q, k = ((n @ w.T).reshape(TOKENS, 4, 32).transpose(1, 2, 0).astype(np.float64) for w in (wq, wk))  # (h, d, N)
    q, k = (v / np.linalg.norm(v, axis=2, keepdims=True) for v in (q, k))
    # The one channel takes the precision of what others add to a query or key that has little of it.
    assert np.abs(run.kept[cosines] - q @ k.transpose(0, 2, 1)).max() < (3e-2 if extreme else 2e-3)
    # This test can fail: all at once, the same values are beyond fp16.
    naive = emulate(second_moments(n), n)
    assert naive.first_bad is not None
    assert naive.first_bad.kind == "MatMul"
    assert np.isinf(naive.output).any()


def test_a_dictionary_reads_a_whole_frame(make_config: Make, make_tensors: Make) -> None:
    changes: dict[str, Any] = {"groups": (("dictionary",),), "unshuffle": 2, "upsampler": "pixelshuffledirect"}
    config, tensors = make_config(**changes), make_tensors(3, **changes)
    tensors["groups.0.blocks.0.attn.r_q.weight"] *= 8  # so that some keys matter more than others
    x = drawing(*FRAME)[None]
    found = {}
    for precision in ("fp32", "fp16"):
        model = fdat_rd_graph(config, tensors, *FRAME, tensorrt(precision))
        name = of_kind(model, "ReduceSum")[-1]
        run = emulate(model, x, keep=[name])
        assert run.first_bad is None
        found[precision] = run.kept[name]
    assert found["fp32"].shape == (1, 1, 32, 32)
    assert strayed(found["fp16"], found["fp32"]) < 1e-3


@tiny
@pytest.mark.parametrize("scale", [1e-3, 1, 10, 50])
@pytest.mark.parametrize("turing", [False, True])
def test_norms_of_every_size(make_config: Make, make_tensors: Make, scale: float, turing: bool) -> None:
    changes: dict[str, Any] = {"groups": (("channel", "dictionary"),)}
    config, tensors = make_config(**changes), make_tensors(**changes)
    for name in tensors:
        if name.endswith(("n1.weight", "n1.bias")):
            tensors[name] *= scale
    for name in ("0.conv.0", "0.attn.qkv", "1.attn.e_q"):
        tensors[f"groups.0.blocks.{name}.weight"] *= 1 / scale  # the rest stays as it was
    x = noise(config)
    run = emulate(graph_for(x, config, tensors, tensorrt("fp16", turing)), x)
    assert run.first_bad is None
    assert strayed(run.output, by_torch(network_of(config, tensors), x)) < 4e-3


# ---- flat frames -------------------------------------------------------------------------------------------------


@tiny
@pytest.mark.parametrize("precision", [*HALF, "fp32"])
def test_flat_frames_are_finite(make_config: Make, make_tensors: Make, precision: Precision) -> None:
    for seed, groups in enumerate(((("spatial", "channel", "dictionary"),), (("channel", "channel", "dictionary"),))):
        config = make_config(groups=groups)
        model = fdat_rd_graph(config, make_tensors(seed, groups=groups), 60, 60, tensorrt(precision))
        for level in (0, 0.5, 1):
            assert emulate(model, np.full((1, 3, 60, 60), level, np.float32)).first_bad is None, level


@tiny
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 5e-3)])
def test_a_black_frame_into_a_channel_block(
    make_config: Make, make_tensors: Make, precision: Precision, bound: float
) -> None:
    """No window block before it that would make tokens at the frame's border different."""
    changes = {"groups": (("channel",),), "embed_dim": 128, "heads": 4, "upsampler": "pixelshuffledirect"}
    config, tensors = make_config(**changes), make_tensors(5, **changes)
    x = np.zeros((1, 3, 60, 60), np.float32)
    run = emulate(graph_for(x, config, tensors, tensorrt(precision)), x)
    assert run.first_bad is None
    assert strayed(run.output, by_torch(network_of(config, tensors), x)) < bound


@tiny
@pytest.mark.parametrize("turing", [False, True])
@pytest.mark.parametrize("precision", [*HALF, "fp32"])
def test_tokens_of_nothing(make_config: Make, make_tensors: Make, precision: Precision, turing: bool) -> None:
    """Norms without variance, and then norms over the frame of zero: what is divided by is the floor of both."""
    config, tensors = make_config(), make_tensors()
    for name in tensors:
        if name.startswith("conv_first") or name.endswith(("n1.bias", "n2.bias", "norm.bias")):
            tensors[name][...] = 0
    tensors["groups.0.blocks.0.attn.proj.bias"][...] = 0  # the stream stays zero up to channel attention
    x = np.zeros((1, 3, 60, 60), np.float32)
    model = graph_for(x, config, tensors, tensorrt(precision, turing))
    products = next(node for node in model.graph.node if node.op_type == "Div")
    run = emulate(model, x, keep=[*products.input])
    assert run.first_bad is None
    assert not run.kept[products.input[0]].any()
    assert 0 < run.kept[products.input[1]].max() < 1e-20
    bound = {"fp32": 1e-5, "mixed": 4e-3, "fp16": 4e-3, "bf16": 4e-2}[precision]
    assert strayed(run.output, by_torch(network_of(config, tensors), x)) < bound


# ---- types and their range ---------------------------------------------------------------------------------------


def test_a_weight_beyond_half_precision_is_refused(make_config: Make, make_tensors: Make) -> None:
    config, tensors = make_config(), make_tensors()
    tensors["groups.0.blocks.0.ffn.fc1.weight"][3, 4] = -7e4
    x = noise(config)
    for dialect in (tensorrt("fp16"), tensorrt("mixed"), Dialect("fp16")):
        with pytest.raises(OverflowError, match=r"a weight of 7e\+04 is beyond the range of float16"):
            graph_for(x, config, tensors, dialect)
    for dialect in (tensorrt("bf16"), tensorrt("fp32"), Dialect("bf16")):
        assert emulate(graph_for(x, config, tensors, dialect), x).first_bad is None


def test_the_emulation_names_where_it_overflows() -> None:
    g = Writer("overflow", np.float16)
    x = g.cast("input", np.float32, np.float16)
    squares = g.op("Mul", x, x)
    out = g.op("Sqrt", squares)
    model = g.model((1, 4), g.cast(out, np.float16, np.float32), (1, 4))
    run = emulate(model, np.array([[1, 2, 255, 254]], np.float32))
    assert run.first_bad is None
    assert run.seen[squares].largest == 65024
    run = emulate(model, np.array([[1, 2, 256, 254]], np.float32))
    assert run.first_bad is not None
    assert (run.first_bad.name, run.first_bad.largest) == (
        squares,
        64512,
    )  # 254² = 64516; numbers of fp16 are 32 apart there
    model.graph.node[1].input[1] = "input"
    with pytest.raises(TypeError, match=r"Mul of torch.float16, torch.float32"):
        emulate(model, np.ones((1, 4), np.float32))


def test_the_emulation_rounds_results_not_sums() -> None:
    x = np.full((1, 4096), 1 + 2**-9, np.float32)
    g = Writer("sum", np.float16)
    half = g.cast("input", np.float32, np.float16)
    product = g.op("MatMul", half, g.constant(np.ones((4096, 1))))
    total = g.op("Add", product, g.constant([[1]]))
    model = g.model((1, 4096), g.cast(total, np.float16, np.float32), (1, 1))
    assert emulate(model, x).output.item() == 4104  # 4096 · (1 + 2⁻⁹) = 4104; numbers of fp16 are 4 apart there


# ---- TensorRT-RTX ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Parses and builds for a kind of GPU, without one. A process of its own, since TensorRT prints."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    folder = tmp_path_factory.mktemp("rtx")
    worker = Worker("vsfdatrd.engines.tensorrt_process")

    def ask(model: onnx.ModelProto, target: str) -> dict[str, Any]:
        (folder / "graph.onnx").write_bytes(model.SerializeToString())
        facts: dict[str, Any] = worker.ask(
            "build", library="tensorrt_rtx", graph=str(folder / "graph.onnx"), directory=str(folder),
            targets=[target], how={}, log=str(folder / "log"),
        )  # fmt: skip
        return facts | {"size": (folder / "engine.trt").stat().st_size}

    yield ask
    worker.close()


BUILDS: tuple[tuple[Precision, str, dict[str, Any]], ...] = (
    *((precision, "sm89", {}) for precision in (*HALF, "fp32")),
    ("fp16", "sm75", {}),
    ("bf16", "sm120", {"embed_dim": 64, "heads": 2, "tail_scale": 4, "unshuffle": 2}),
    *(
        (precision, "sm89", {"upsampler": kind, "tail_scale": 1 + (kind != "conv"), "groups": (("channel",),)})
        for kind in UPSAMPLERS
        for precision in ("fp16", "bf16")
    ),
    *(("bf16", "sm89", {"tail_scale": scale, "groups": (("channel",),)}) for scale in (3, 4)),
)


@pytest.mark.parametrize(("precision", "target", "changes"), BUILDS, ids=[f"{p} {t} {named(c)}" for p, t, c in BUILDS])
def test_tensorrt_builds_it(
    make_config: Make, make_tensors: Make, build: Build, precision: Precision, target: str, changes: dict[str, Any]
) -> None:
    config = make_config(**changes)
    side = 60 * config.unshuffle
    model = fdat_rd_graph(config, make_tensors(**changes), side, side, tensorrt(precision, target == "sm75"))
    assert min(parts(model)) > 1
    facts = build(model, target)
    assert facts["targets"] == [target]
    assert facts["activation_bytes"] > 0
    assert facts["size"] > 10000
