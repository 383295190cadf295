"""Every form of the graph computes what the network computes, and every tail in every precision."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from tests.fdats import case_id
from tests.graph.emulation import emulate
from tests.graph.running import (
    HALF,
    Make,
    build_network,
    count_reduction_parts,
    graph_for,
    noise,
    relative_error,
    rms_error,
    run_onnxruntime,
    run_torch,
    tiny,
)
from tests.graph.targets.conftest import Medium
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import GraphTarget, tensorrt_target

FORMS = (
    GraphTarget(),
    GraphTarget(split_reductions=True),
    GraphTarget(attention=True),
    GraphTarget(attention=True, split_reductions=True),
    GraphTarget(split_reductions=True, sm75=True),
    GraphTarget(attention=True, split_reductions=True, sm75=True),
    GraphTarget(attention=True, split_reductions=True, maps=True, head_multiple=8),
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


@tiny
@pytest.mark.parametrize("changes", PATTERNS, ids=case_id)
def test_every_form_computes_what_the_network_computes(
    make_config: Make, make_tensors: Make, changes: dict[str, Any]
) -> None:
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    x = noise(config)
    expected = run_torch(build_network(config, tensors), x)
    kinds = [kind for group in config.groups for kind in group]
    for form in FORMS:
        model = graph_for(x, config, tensors, form)
        onnx.checker.check_model(model, full_check=True)
        assert (3 if form.attention else 0) + 20 == model.opset_import[0].version
        result = count_reduction_parts(model)
        # the second moment once, the reading of the dictionary three times; with maps once
        reading = (1 if form.maps else 3) * kinds.count("dictionary")
        assert len(result) == (kinds.count("channel") + reading if form.split_reductions else 0)
        assert min(result, default=2) > 1, "in one part, it is not tested"
        counts = Counter(node.op_type for node in model.graph.node)
        windows = kinds.count("dictionary" if form.maps else "spatial")
        assert counts["Attention"] == (windows + kinds.count("dictionary") if form.attention else 0)
        assert relative_error(run_onnxruntime(model, x), expected) <= 3e-6, form


@tiny
@pytest.mark.parametrize("changes", TAILS, ids=case_id)
def test_every_tail_in_every_precision(make_config: Make, make_tensors: Make, changes: dict[str, Any]) -> None:
    config, tensors = make_config(**changes), make_tensors(7, **changes)
    x = noise(config)
    expected = run_torch(build_network(config, tensors), x)
    # lda samples at places that are up to 11 tokens away, where the slightest difference of a place is one of values
    bound = 5e-5 if config.upsampler == "lda" else 8e-6
    model = graph_for(x, config, tensors, GraphTarget(attention=True, split_reductions=True))
    out = run_onnxruntime(model, x)
    assert relative_error(out, expected) <= bound
    assert relative_error(emulate(model, x).output, out) <= bound, "the emulation is wrong"
    errors = {}
    for precision in HALF:
        model = graph_for(x, config, tensors, tensorrt_target(precision))
        kinds = {node.op_type for node in model.graph.node}
        assert ("ConvTranspose" in kinds) == (config.upsampler == "transpose+conv")
        errors[precision] = rms_error(emulate(model, x).output, expected)
    assert 1e-4 < errors["fp16"] < 4e-3
    assert 1e-3 < errors["bf16"] < 4e-2
    assert errors["mixed"] < 1.1 * errors["fp16"]  # by chance no better: what is multiplied is fp16 in both


@pytest.mark.slow
def test_the_shipped_weights_in_every_form(medium: Medium) -> None:
    config, tensors, network = medium
    x = draw_line_art(120, 120)[None]
    expected = run_torch(network, x)
    for form in (*FORMS[:5], FORMS[6]):
        model = graph_for(x, config, tensors, form)
        assert min(count_reduction_parts(model), default=0) > 1 or not form.split_reductions
        assert relative_error(run_onnxruntime(model, x, threads=2), expected) <= 3e-6, form
    model = graph_for(x, config, tensors, FORMS[3])
    assert relative_error(emulate(model, x).output, expected) <= 3e-6, "the emulation is wrong"


@tiny
@pytest.mark.parametrize("changes", [{}, {"tail_scale": 4, "unshuffle": 2}], ids=case_id)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_any_size_with_padding(
    make_config: Make, make_tensors: Make, changes: dict[str, Any], form: GraphTarget
) -> None:
    config, tensors = make_config(**changes), make_tensors(**changes)
    network = build_network(config, tensors)
    unknown = None if form.sm75 else fdat_rd_graph(config, tensors, None, form)
    for height, width in ((77, 95), (60, 120), (102, 61)):
        x = np.random.default_rng(height).random((1, 3, height, width), np.float32)
        expected = run_torch(network, x)
        model = graph_for(x, config, tensors, replace(form, padding=True))
        assert relative_error(run_onnxruntime(model, x), expected) <= 3e-6, (height, width)
        if unknown is not None:
            assert relative_error(run_onnxruntime(unknown, x), expected) <= 3e-6, (height, width)
