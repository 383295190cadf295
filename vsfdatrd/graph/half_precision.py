"""Convert a float32 graph to half precision, for engines that compute in exactly the types of the graph.

In ``fp16`` and ``bf16`` everything that depends on the image is in half precision. In ``mixed``, products and
convolutions are fp16 and all else is fp32, including residual sums, norms and softmax. Values that do not depend on the
image (sizes, coordinates, masks) stay fp32, because many of them are integers above 2048, which fp16 cannot represent.

Layers whose values are the image itself stay fp32, because fewer bits would cause banding in smooth gradients. In every
precision these are the first and the last layer. In ``bf16``, which has 8 bits, they also include the residual sums
that bypass all other layers, and the layers after the last such sum.
Whether the network tolerates the precision is not decided here: engines are compared with fp32 before they are used.
"""

import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from vsfdatrd.errors import PrecisionUnfit
from vsfdatrd.graph.builder import convert
from vsfdatrd.graph.target import GraphTarget

PRODUCT_OPS = frozenset({"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "MatMul"})
"""Operators that `mixed` computes in half precision."""
DATA_MOVEMENT_OPS = {
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad"),
    *("Reshape", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
}
"""Operators that only move values, so they keep the type of their input."""
MAX_TAIL_LAYERS = 8
"""Largest number of layers after the last residual sum that bf16 keeps in fp32; more layers are not a tail."""
FLOAT32_INPUTS = {"Resize": (1, 2), "Upsample": (1,)}
"""Inputs that are float32 in every precision, by operator."""
FLOAT32_OPS = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "NonMaxSuppression", "QuantizeLinear", "Range"})
RANDOM_OPS = ("Bernoulli", "Multinomial", "Random")


def convert_precision(model: onnx.ModelProto, target: GraphTarget) -> onnx.ModelProto:
    """Convert a graph whose values are all float32 to the target's precision, except for its input and output.

    Args:
        model: A model whose floating-point values are all float32.
        target: The target.

    Returns:
        The converted model; `model` itself for fp32.

    Raises:
        PrecisionUnfit: The graph has loops, branches or functions.
        OverflowError: A constant exceeds the range of the half precision.
    """
    if target.precision == "fp32":
        return model
    attributes = (attribute for node in model.graph.node for attribute in node.attribute)
    if model.functions or any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in attributes):
        raise PrecisionUnfit(f"a graph with loops, branches or functions is not computed in {target.precision}.")
    return _PrecisionConverter(model, target).run()


class _PrecisionConverter:
    def __init__(self, model: onnx.ModelProto, target: GraphTarget) -> None:
        self.half = int(helper.np_dtype_to_tensor_dtype(target.compute_dtype))
        self.half_dtype, self.mixed = target.compute_dtype, target.precision == "mixed"
        self.narrow = target.precision == "bf16"
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.before = _value_types(model)
        self.now = dict(self.before)
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.fixed = set(self.constants) | {""}  # names of values that do not depend on the image
        self.nodes: list[NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        self.full = _fp32_nodes(list(graph.node), self.fixed, [value.name for value in graph.output], not self.narrow)
        results = {value.name for value in graph.output}
        for node in list(graph.node):
            if _has_fixed_type(node, self.fixed):
                self.fixed.update(node.output)
                self.nodes.append(node)
            else:
                self._convert_node(node, results)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input} | results
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return self.model

    def _convert_node(self, node: NodeProto, results: set[str]) -> None:
        target = self._node_type(node)
        for i, name in enumerate(node.input):
            if self.before.get(name) != TensorProto.FLOAT or node.op_type == "Cast":
                continue
            stays = i in FLOAT32_INPUTS.get(node.op_type, ())
            node.input[i] = self._cast_to(name, TensorProto.FLOAT if stays else target)
        after = []
        for i, name in enumerate(node.output):
            if self.before.get(name) != TensorProto.FLOAT:
                continue
            if node.op_type == "Cast":
                next(attribute for attribute in node.attribute if attribute.name == "to").i = target
            if name in results and target != TensorProto.FLOAT:
                node.output[i] = f"{name}/lowered"
                after.append(helper.make_node("Cast", [node.output[i]], [name], to=TensorProto.FLOAT))
            else:
                self.now[name] = target
        self.nodes += [node, *after]

    def _node_type(self, node: NodeProto) -> int:
        """Return the type in which a node computes."""
        full = int(TensorProto.FLOAT)
        if node.op_type in FLOAT32_OPS or node.op_type.startswith(RANDOM_OPS):
            return full
        if node.output and node.output[0] in self.full:
            return full
        if node.op_type == "ConvTranspose" and self.half == TensorProto.BFLOAT16:
            return full  # TensorRT-RTX 1.7 has no bf16 ConvTranspose
        if not self.mixed or node.op_type in PRODUCT_OPS:
            return self.half
        if node.op_type in DATA_MOVEMENT_OPS:
            floats = [name for name in node.input if self.before.get(name) == full and name not in self.fixed]
            return full if any(self.now[name] == full for name in floats) else self.half
        return full

    def _cast_to(self, name: str, target: int) -> str:
        """Cast a value to a type, reusing an earlier cast."""
        if self.now[name] == target:
            return name
        if (name, target) not in self.casts:
            # a suffix that no exporter writes keeps the name unique
            self.casts[name, target] = new = f"{name}/as_{TensorProto.DataType.Name(target).lower()}"
            if name in self.constants:
                values = convert(numpy_helper.to_array(self.constants[name]), self.half_dtype)
                self.model.graph.initializer.append(numpy_helper.from_array(values, new))
            else:
                self.nodes.append(helper.make_node("Cast", [name], [new], to=target))
        return self.casts[name, target]


def _value_types(model: onnx.ModelProto) -> dict[str, int]:
    """Return the type of every value in the graph."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=False).graph
    result = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for values in (graph.input, graph.value_info, graph.output):
        result |= {value.name: int(value.type.tensor_type.elem_type) for value in values}
    for node in graph.node:
        if missing := [name for name in node.output if name and not result.get(name)]:
            raise PrecisionUnfit(f"the type of {missing[0]!r} ({node.op_type}) is not known, so it stays in fp32.")
    return result


def _fp32_nodes(nodes: list[NodeProto], constant: set[str], results: list[str], layers_only: bool) -> set[str]:
    """Select the nodes that stay fp32, each by the name of its first output.

    Args:
        nodes: All nodes in topological order.
        constant: Names of values that do not depend on the image.
        results: Names of the graph's outputs.
        layers_only: Select only the first and the last layers; otherwise also the nodes that bypass the layers between
            them, and the tail.
    """
    fixed = set(constant)
    moving: list[tuple[NodeProto, list[str]]] = []  # nodes that depend on the image, with their inputs that do, too
    for node in nodes:
        if _has_fixed_type(node, fixed):
            fixed.update(node.output)
        else:
            moving.append((node, [name for name in node.input if name not in fixed]))
    kept: set[str] = set()
    before: dict[str, int] = {}  # number of layers on the shortest path from the input
    for node, inputs in moving:
        depths = [before.get(name, 0) for name in inputs] or [0]
        # Concatenated values share one type: use the longest path, otherwise all of a dense block would be fp32.
        depth = (max if node.op_type in DATA_MOVEMENT_OPS else min)(depths) + (node.op_type in PRODUCT_OPS)
        before.update(dict.fromkeys(node.output, depth))
        if depth <= 1 and (not layers_only or node.op_type in PRODUCT_OPS):
            kept.add(node.output[0])
    after = dict.fromkeys(results, 0)  # number of layers on the shortest path to the output
    for node, inputs in reversed(moving):
        depths = [after[name] for name in node.output if name in after]
        if not depths:
            continue
        depth = min(depths) + (node.op_type in PRODUCT_OPS)
        for name in inputs:
            after[name] = min(after.get(name, depth), depth)
        if depth <= 1 and (not layers_only or node.op_type in PRODUCT_OPS):
            kept.add(node.output[0])
    return kept if layers_only else kept | _tail_nodes(moving, results)


def _tail_nodes(moving: list[tuple[NodeProto, list[str]]], results: list[str]) -> set[str]:
    """Return the nodes between the last residual sum that a layer follows and the output, by their first output's name.

    Empty if there is no such sum, or if more than `MAX_TAIL_LAYERS` layers follow it.
    """
    producers = {name: (node, inputs) for node, inputs in moving for name in node.output}
    result: set[str] = set()
    layers: set[str] = set()
    seen: set[tuple[str, bool]] = set()
    waiting = [(name, False) for name in results]
    while waiting:
        name, crossed = waiting.pop()
        if (name, crossed) in seen:
            continue
        seen.add((name, crossed))
        if name not in producers:
            if crossed:
                return set()  # no residual sum: this would be the entire network
            continue
        node, inputs = producers[name]
        result.add(node.output[0])
        if node.op_type in PRODUCT_OPS:
            layers.add(name)
            crossed = True
        if len(layers) > MAX_TAIL_LAYERS:
            return set()
        if not (crossed and node.op_type == "Add" and len(inputs) > 1):
            waiting += [(source, crossed) for source in inputs]
    return result


def _has_fixed_type(node: NodeProto, fixed: set[str]) -> bool:
    if node.op_type.startswith(RANDOM_OPS):
        return False
    return node.op_type in ("Shape", "Size") or all(name in fixed for name in node.input)
