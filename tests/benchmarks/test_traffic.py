"""Kernels and memory traffic of engines for TensorRT-RTX, which a change of the graph must not increase unnoticed."""

from dataclasses import replace

import pytest

from benchmarks.traffic import Kernel, Traffic, build, kernels
from benchmarks.weights import random_weights
from vsfdatrd.archs.fdat_rd import variant
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import tensorrt

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


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
def test_a_block_of_each_kind_moves_no_more_memory() -> None:
    """After an intended change of the graph, measure with `python -m benchmarks.builds` and adapt the bounds."""
    config = replace(variant("medium"), groups=(("spatial", "channel", "dictionary"),))
    traffic = build(fdat_rd_graph(config, random_weights(config), (180, 240), tensorrt("fp16")), "sm89")
    # Measured with TensorRT-RTX 1.7.1: 59 kernels and 325.5 MB.
    assert len(traffic.kernels) <= 59, traffic.by_part()
    assert traffic.moved <= 1.02 * 325.5e6, traffic.by_part()
    assert {"spatial", "channel", "dictionary", "local", "feed-forward", "norm", "tail"} <= set(traffic.by_part())
