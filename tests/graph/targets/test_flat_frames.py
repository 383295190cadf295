"""Frames of one color, and tokens that are all zero."""

import numpy as np
import pytest

from tests.graph.emulation import emulate
from tests.graph.running import HALF, Make, build_network, find_divisions, graph_for, rms_error, run_torch, tiny
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import tensorrt_target
from vsfdatrd.options import Precision


@tiny
@pytest.mark.parametrize("precision", [*HALF, "fp32"])
def test_flat_frames_are_finite(make_config: Make, make_tensors: Make, precision: Precision) -> None:
    for seed, groups in enumerate(((("spatial", "channel", "dictionary"),), (("channel", "channel", "dictionary"),))):
        config = make_config(groups=groups)
        model = fdat_rd_graph(config, make_tensors(seed, groups=groups), (60, 60), tensorrt_target(precision))
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
    run = emulate(graph_for(x, config, tensors, tensorrt_target(precision)), x)
    assert run.first_bad is None
    assert rms_error(run.output, run_torch(build_network(config, tensors), x)) < bound


@tiny
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_norm_without_weights(make_config: Make, make_tensors: Make, precision: Precision) -> None:
    config, tensors = make_config(), make_tensors()
    for name in tensors:
        if ".n1." in name:
            tensors[name] = np.zeros_like(tensors[name])
    x = np.random.default_rng(0).random((1, 3, 60, 60), np.float32)
    run = emulate(graph_for(x, config, tensors, tensorrt_target(precision)), x)
    assert run.first_bad is None
    assert rms_error(run.output, run_torch(build_network(config, tensors), x)) < {"fp32": 1e-5, "fp16": 4e-3}[precision]


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
    model = graph_for(x, config, tensors, tensorrt_target(precision, turing))
    products = find_divisions(model)[0]
    run = emulate(model, x, keep=[*products.input])
    assert run.first_bad is None
    assert not run.kept[products.input[0]].any()
    assert 0 < run.kept[products.input[1]].max() < 1e-20
    bound = {"fp32": 1e-5, "mixed": 4e-3, "fp16": 4e-3, "bf16": 4e-2}[precision]
    assert rms_error(run.output, run_torch(build_network(config, tensors), x)) < bound
