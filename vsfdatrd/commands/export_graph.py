"""Write the ONNX graph of any checkpoint for other programs, for frames of one arbitrary size or of any size.

If the network needs larger frames, the graph reflect-pads them at the bottom and right, as the filter does for an
engine, and crops the result.
"""

from itertools import count
from typing import TYPE_CHECKING

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.options import Precision

if TYPE_CHECKING:
    import onnx


def graph_for_others(checkpoint: Checkpoint, shape: tuple[int, int] | None, precision: Precision) -> "onnx.ModelProto":
    """Build the ONNX model of a network.

    Args:
        checkpoint: The network.
        shape: Frame size (height, width) in pixels; None for a dynamic graph.
        precision: Precision the graph computes in.

    Returns:
        A model from ``input`` (1, C_in, H, W) to ``output`` (1, C_out, H·scale, W·scale), both float32; the channels
        are those of `ModelDescriptor.frame_channels`.

    Raises:
        ValueError: A dynamic graph was requested and this network's graph depends on the size.
        OverflowError: A weight exceeds the range of the precision.
        EngineError: The network cannot be exported to a graph.
    """
    model = checkpoint.descriptor
    target = GraphTarget(precision, padding=True)
    if shape is None or not model.architecture.is_traced:
        return model.architecture.graph(model.config, checkpoint, shape, target)
    from vsfdatrd.backends.network_graphs import create_graph
    from vsfdatrd.graph.half_precision import convert_precision

    padded = model.size.padded(*shape)
    return _with_padding(
        convert_precision(_upgrade_opset(create_graph(checkpoint, *padded), target), target), model, shape, padded
    )


def smallest_side(model: ModelDescriptor) -> int:
    """Return the smallest side in pixels for which reflect padding reaches the size the network needs."""
    return next(n for n in count(1) if model.size.padded(n, n)[0] < 2 * n)


def _upgrade_opset(model: "onnx.ModelProto", target: GraphTarget) -> "onnx.ModelProto":
    """Convert a graph to the operator set of the target, if its own is older."""
    import onnx

    from vsfdatrd.graph.builder import IR_VERSIONS

    if model.opset_import[0].version >= target.opset:
        return model
    newer: onnx.ModelProto = onnx.version_converter.convert_version(model, target.opset)
    newer.ir_version = IR_VERSIONS[target.opset]
    return newer


def _with_padding(
    model: "onnx.ModelProto", network: ModelDescriptor, shape: tuple[int, int], padded: tuple[int, int]
) -> "onnx.ModelProto":
    """Wrap a graph for padded frames (`padded`) with padding and cropping, so that it takes frames of `shape`."""
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    from vsfdatrd.graph.builder import replace_ends

    in_channels, out_channels = network.frame_channels
    out_size = [side * network.scale for side in shape]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    before, after = [], []
    if shape != padded:
        for node in graph.node:
            node.input[:] = ["frame/continued" if name == "input" else name for name in node.input]
            node.output[:] = ["frame/whole" if name == "output" else name for name in node.output]
        sizes = {
            "frame/pads": [0] * 6 + [padded[0] - shape[0], padded[1] - shape[1]],
            "frame/start": [0, 0],
            "frame/end": out_size,
            "frame/axes": [2, 3],
        }
        graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), name) for name, v in sizes.items())
        before.append(helper.make_node("Pad", ["input", "frame/pads"], ["frame/continued"], mode="reflect"))
        after.append(helper.make_node("Slice", ["frame/whole", "frame/start", "frame/end", "frame/axes"], ["output"]))
    replace_ends(graph, before, after, (1, in_channels, *shape), (1, out_channels, *out_size))
    result.producer_name = "vsfdatrd"
    return result
