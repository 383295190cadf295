"""The engine graph computes what the network computes: fixtures, every tail, every scale, every pattern."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.apart import start_process
from tests.backends.closeness import decibels, run_network
from tests.reference import FIXTURES
from tests.silence import BLOCK_PATTERN, FOUR_TIMES, zero_half_of_tail, zero_some_branches
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig, config_from_shapes, variant_config
from vsfdatrd.archs.fdat_shapes import tensor_shapes
from vsfdatrd.archs.size import round_up
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.graph import GRAPH_VERSION
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.nn.fdat_rd import FdatRd
from vsfdatrd.video.tiling import fill_padding

type Make = Callable[..., Any]
type Array = NDArray[Any]
type Run = Callable[[onnx.ModelProto, Array], Array]

pytestmark = pytest.mark.usefixtures("one_thread")


VARIANTS: tuple[dict[str, Any], ...] = (
    {"upsampler": "conv", "tail_scale": 1},
    *({"upsampler": kind, "tail_scale": scale} for kind in UPSAMPLERS[1:] for scale in (2, 3, 4)),
    # a tail of scale 1 is one convolution, whatever it is called
    {"upsampler": "lda", "tail_scale": 1},
    {"tail_scale": 2, "unshuffle": 2},
    {"tail_scale": 4, "unshuffle": 2},
    {"tail_scale": 4, "unshuffle": 4},
    {"tail_scale": 4, "unshuffle": 2, "upsampler": "dysample"},
    {"groups": (("spatial",),)},
    {"groups": (("channel",),), "dict_tokens": 0},
    {"groups": (("dictionary",),)},
    {"groups": (("spatial", "spatial", "channel"), ("dictionary", "spatial"))},  # windows turn across groups
    {"groups": (("channel", "dictionary"),) * 2, "embed_dim": 48, "heads": 3, "ffn_dim": 80, "dict_tokens": 20},
    {"embed_dim": 64, "heads": 2, "gate_dim": 8, "ffn_dim": 96, "mid_dim": 32, "upsampler": "dysample"},
    {"embed_dim": 64, "heads": 4, "mid_dim": 32, "upsampler": "lda"},
    {"embed_dim": 64, "heads": 4, "mid_dim": 16, "upsampler": "pa_up", "tail_scale": 4},
)


# OpenVINO must not meet VapourSynth, which loads plugins with a build of their own, so it runs in another process.
RUNNER = """
import openvino
from vsfdatrd.backends.openvino.worker import compile_settings

core = openvino.Core()

def compute(graph, x):
    return core.compile_model(core.read_model(graph), "CPU", compile_settings("fp32", 1))(x)[0]
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run a model in OpenVINO, in another process."""
    folder = tmp_path_factory.mktemp("graphs")
    graph = folder / "graph.onnx"
    with start_process(RUNNER, folder) as compute:

        def infer(model: onnx.ModelProto, x: Array) -> Array:
            graph.write_bytes(model.SerializeToString())
            return compute(graph, x)

        yield infer


def continued(picture: Array, multiple: int) -> Array:
    """Pad a picture (1, C, H, W) like the pipeline."""
    height, width = picture.shape[2:]
    large = np.zeros((*picture.shape[:2], round_up(height, multiple), round_up(width, multiple)), np.float32)
    large[..., :height, :width] = picture
    for plane in large[0]:
        fill_padding(plane, height, width)
    return large


@pytest.mark.parametrize("name", FIXTURES)
def test_reproduces_the_published_network(shared: Path, run: Run, name: str) -> None:
    facts = json.loads((shared / "fixtures/index.json").read_text())[f"fdatrd_{name}"]
    tensors = load_file(shared / f"fixtures/fdatrd_{name}.safetensors")
    config = config_from_shapes({key: tensor.shape for key, tensor in tensors.items()}, tensors[META_UPSAMPLE].tolist())
    with np.load(shared / f"fixtures/fdatrd_{name}.npz") as pictures:
        for height, width in facts["sizes"]:
            source, expected = pictures[f"in_{height}x{width}"], pictures[f"out_{height}x{width}"]
            x = continued(source, config.multiple)
            out = run(fdat_rd_graph(config, tensors, (x.shape[2], x.shape[3])), x)
            out = out[..., : height * config.scale, : width * config.scale]
            assert out.shape == expected.shape
            assert np.abs(out - expected).max() <= 1e-4 * facts["out_std"], (height, width)


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: " ".join(f"{k}={v}" for k, v in c.items()))
def test_computes_what_the_network_computes(
    make_config: Make, make_tensors: Make, run: Run, changes: dict[str, Any]
) -> None:
    config: FdatRdConfig = make_config(**changes)
    tensors = make_tensors(7, **changes)
    network = FdatRd(config).eval()
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    height, width = config.multiple, config.multiple * (2 if config.unshuffle == 1 else 1)
    x = np.random.default_rng(2).random((1, config.in_channels, height, width), np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(x)).numpy()
    model = fdat_rd_graph(config, tensors, (height, width))
    onnx.checker.check_model(model, full_check=True)
    out = run(model, x)
    assert out.shape == expected.shape == (1, config.out_channels, height * config.scale, width * config.scale)
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    assert np.abs(out - expected).max() <= 2e-5 * np.abs(expected).max()


def test_idle_parts_are_left_out(make_config: Make, make_tensors: Make, run: Run) -> None:
    """What is left computes what the network computes; windows go on turning over blocks that are left out."""
    config: FdatRdConfig = make_config(**BLOCK_PATTERN)
    tensors = make_tensors(7, **BLOCK_PATTERN)
    silenced = zero_some_branches(tensors)
    picture = np.random.default_rng(2).random((3, 30, 60), np.float32)
    expected = run_network(config, silenced, picture)
    assert decibels(run_network(config, tensors, picture), expected) < 40, "they did nothing before either"
    model = fdat_rd_graph(config, silenced, (30, 60))
    assert decibels(run(model, picture[None])[0], expected) > 90
    whole = fdat_rd_graph(config, tensors, (30, 60))
    counts = [Counter(node.op_type for node in graph.graph.node) for graph in (whole, model)]
    # Normalized are tokens for attention and feed-forward networks, and for a dictionary to read.
    assert [count["LayerNormalization"] for count in counts] == [14, 5]


@pytest.mark.parametrize("changes", [FOUR_TIMES, {"unshuffle": 1, "tail_scale": 4}], ids=str)
def test_a_tail_computes_only_what_is_heard(
    make_config: Make, make_tensors: Make, run: Run, changes: dict[str, int]
) -> None:
    config, tensors = make_config(**changes), zero_half_of_tail(make_tensors(7, **changes))
    picture = np.random.default_rng(2).random((3, 60, 60), np.float32)
    model = fdat_rd_graph(config, tensors, (60, 60))
    assert decibels(run(model, picture[None])[0], run_network(config, tensors, picture)) > 90
    sizes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    first, second = (node for node in model.graph.node if node.op_type == "ConvTranspose")
    assert (sizes[first.input[1]][:2], sizes[second.input[1]][:2]) == ([32, 16], [16, 3])
    deaf = {**tensors, "upsampler.2.weight": 0 * tensors["upsampler.2.weight"]}
    plain = run(fdat_rd_graph(config, deaf, (60, 60)), picture[None])[0]
    assert np.ptp(plain[:, 8:-8, 8:-8], axis=(1, 2)).max() < 1e-5


def test_the_graph_depends_on_every_tensor(make_config: Make, make_tensors: Make) -> None:
    config = make_config()
    tensors = make_tensors()
    before = fdat_rd_graph(config, tensors, (30, 30)).SerializeToString(deterministic=True)
    assert fdat_rd_graph(config, tensors, (30, 30)).SerializeToString(deterministic=True) == before
    for name in tensors:
        changed = tensors | {name: tensors[name] + (1 if name == META_UPSAMPLE else np.float32(0.5))}
        after = fdat_rd_graph(config, changed, (30, 30)).SerializeToString(deterministic=True)
        # The pooled gate is stored in channel blocks and the per-token gate in spatial ones, where they are not used.
        unused = name == META_UPSAMPLE or ".blocks.1.inter.cg." in name or ".blocks.0.inter.sg." in name
        assert (after == before) is unused, name


@pytest.mark.parametrize(("height", "width"), [(30, 31), (29, 30), (0, 30), (30, 0), (-30, 30), (15, 60)])
def test_a_size_that_is_no_multiple_is_refused(make_config: Make, make_tensors: Make, height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width}×{height} is not a multiple of 30"):
        fdat_rd_graph(make_config(), make_tensors(), (height, width))


def test_with_unshuffle_the_multiple_is_larger(make_config: Make, make_tensors: Make) -> None:
    changes = {"tail_scale": 4, "unshuffle": 2}
    with pytest.raises(ValueError, match="90×60 is not a multiple of 60; pad the frame first"):
        fdat_rd_graph(make_config(**changes), make_tensors(**changes), (60, 90))


def test_a_large_network_becomes_a_graph_within_seconds() -> None:
    config = variant_config("large")
    random = np.random.default_rng(0)
    tensors = {name: random.random(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    spent, data = [], b""
    for _ in range(2):  # the machine may be busy once
        start = time.process_time()
        model = fdat_rd_graph(config, tensors, (540, 720))
        data = model.SerializeToString()
        spent.append(time.process_time() - start)
    assert min(spent) <= 6
    weights = sum(values.nbytes for values in tensors.values())
    # Padded grids and positions are small beside the weights: constants are not written twice, nor in float64.
    assert 0.9 * weights < len(data) < 1.2 * weights


def test_the_model_states_its_interface(make_config: Make, make_tensors: Make) -> None:
    changes = {"tail_scale": 4, "unshuffle": 2}
    model = fdat_rd_graph(make_config(**changes), make_tensors(**changes), (60, 120))
    shapes = [
        (value.name, [side.dim_value for side in value.type.tensor_type.shape.dim], value.type.tensor_type.elem_type)
        for value in (*model.graph.input, *model.graph.output)
    ]
    floats = onnx.TensorProto.FLOAT
    assert shapes == [("input", [1, 3, 60, 120], floats), ("output", [1, 3, 120, 240], floats)]
    assert GRAPH_VERSION.isdigit()
