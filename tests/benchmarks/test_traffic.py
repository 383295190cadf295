"""Kernels and memory traffic of engines for TensorRT-RTX, which a change of the graph must not increase unnoticed."""

from dataclasses import replace

import pytest

from benchmarks.builds import ARTCNNS, fdat_config
from benchmarks.traffic import Kernel, Traffic, build, kernels
from benchmarks.weights import random_artcnn, random_weights
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.graph.artcnn import write as artcnn_graph
from vsfdatrd.graph.fdat import write as fdat_graph
from vsfdatrd.graph.target import tensorrt_target
from vsfdatrd.options import Precision

LOG = (
    "VERBOSE: Name: is no kernel\n"
    "INFO: Name: first_1, LayerType: kgen, Inputs: [ { Name: a, Dimensions: [10,8], Strides: [8,1], Datatype: Half, "
    "Format: (Linear) Linear }, { Name: b, Dimensions: [], Strides: [], Datatype: Float, Format: x }], "
    "Constants: [ { Name: c, Dimensions: [8], Strides: [1], Datatype: Float, Format: x }], Outputs: [ { Name: d, "
    "Dimensions: [10,1], Strides: [1,1], Datatype: BFloat16, Format: x }], TacticName: __myl_Add_0x6bcf, StreamId: 0, "
    "Metadata: [ONNX Layer: tail/add_12][ONNX Layer: channel/norm/mul_9]\n"
    "INFO: Name: second, LayerType: gemm, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: "
)


def test_kernels_are_read_from_the_log() -> None:
    first, second = kernels(LOG)
    assert first == Kernel("first_1", "kgen", "Add", 160 + 4 + 32, 20, ("tail/add_12", "channel/norm/mul_9"))
    assert (first.part, second.part, second.moved) == ("tail", "-", 0)
    traffic = Traffic((first, second, first), 0, 0, 0)
    assert traffic.by_part() == {"tail": (2, 432), "-": (1, 0)}
    assert traffic.by_kind() == {"kgen": (2, 432), "gemm": (1, 0)}


def test_a_log_without_kernels_is_an_error() -> None:
    with pytest.raises(ValueError, match="lists no kernels"):
        kernels("INFO: Total Activation Memory: 398522880 bytes")
    with pytest.raises(ValueError, match="not understood: INFO: Name: first_1, LayerType: kgen, Inputs: none"):
        kernels("INFO: Name: first_1, LayerType: kgen, Inputs: none")


def test_what_is_cut_out_is_read_once() -> None:
    tensor = "{ Name: a, Dimensions: [%s], Strides: [1], Datatype: Half, Format: x }"
    line = "Name: %s, LayerType: %s, Inputs: [ %s], Constants: [], Outputs: [ %s], TacticName: __myl_%s_0x1, Metadata: "
    log = "\n".join(
        line % (name, kind, tensor % "100", tensor % "10", tactic)
        for name, kind, tactic in (("a", "kgen", "SlicConc"), ("b", "kgen", "SlicAdd"), ("c", "wait", ""))
    )
    assert [(kernel.name, kernel.read, kernel.written) for kernel in kernels(log)] == [("a", 20, 20), ("b", 200, 20)]


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(
    ("name", "precision", "parts", "count", "moved"),  # measured with TensorRT-RTX 1.7.1
    [
        ("medium", "fp16", "spatial channel dictionary local feed-forward norm tail", 58, 324.9e6),
        ("medium", "mixed", "spatial channel dictionary local feed-forward norm tail", 57, 388.2e6),
        ("fdat_medium", "fp16", "spatial channel local feed-forward norm tail", 40, 768.6e6),
        ("artcnn_c4f32", "fp16", "body last border", 17, 33.8e6),
    ],
)
def test_a_network_moves_no_more_memory(name: str, precision: Precision, parts: str, count: int, moved: float) -> None:
    """After an intended change of the graph, measure with `python -m benchmarks.builds` and adapt the bounds."""
    target = tensorrt_target(precision)
    if name in ARTCNNS:
        artcnn = ARTCNNS[name]
        graph = artcnn_graph(artcnn, random_artcnn(artcnn), (180, 240), target)
    else:  # one block of each kind; 180 is no multiple of FDAT's windows
        config = fdat_config(name)
        config = replace(config, groups=(tuple(dict.fromkeys(config.groups[0])),))
        graph = fdat_graph(config, random_weights(config), (180, 240), target)
    traffic = build(graph, "sm89")
    assert len(traffic.kernels) <= count, traffic.by_part()
    assert traffic.moved <= 1.02 * moved, traffic.by_part()
    assert set(parts.split()) <= set(traffic.by_part())
