"""ONNX files that others made: read as data and checked. `onnx_normal.py` makes graphs for engines of them.

Nothing in a file is believed: weights beside it are read from its own folder only, and whether the graph runs is tried
in a process of its own (`engines.probe`).
"""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, unquote

import onnx
from onnx import AttributeProto, GraphProto, TensorProto, helper

from vsfdatrd.archs.onnx import Layout, OnnxConfig
from vsfdatrd.weights.files import check_file, refuse, sha256

LARGEST = 2**31 - 1
"""Bytes of a message of protobuf."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
PIXELS = (*FLOATS, TensorProto.UINT8)
"""Types in which networks take pictures."""
DOMAINS = ("", "ai.onnx", "com.microsoft", "org.openvinotoolkit")
"""Whose operators engines know."""


# Reading


def read(path: Path) -> tuple[onnx.ModelProto, str]:
    """The graph of a file, all weights in it, and `OnnxConfig.external`.

    Raises CheckpointError for one that is damaged, unsafe or incomplete.
    """
    if (size := check_file(path).st_size) > LARGEST:
        raise refuse(path, f"has {size:,} bytes, more than an ONNX file can have; keep its weights as external data")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf raises what it likes
        raise refuse(path, "is no ONNX file, or a damaged one; download it again") from error
    if not model.graph.node or not model.graph.output:
        raise refuse(path, "is an ONNX file without a network; download it again, or export it again")
    files = external_files(path, model)
    _load_external(path, model, files)
    _check(path, model)
    return model, " ".join(f"{quote(name, safe='')}={sha256(file)}" for name, file in sorted(files.items()))


def external_files(path: Path, model: onnx.ModelProto) -> dict[str, Path]:
    """Files with weights of this one, by the names it gives them. Raises CheckpointError for any outside its folder."""
    found: dict[str, Path] = {}
    for tensor in tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        name = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if name not in found:
            found[name] = _beside(path, name)
    return found


def _beside(path: Path, name: str) -> Path:
    folder = Path(os.path.realpath(path.parent))
    try:
        file = Path(os.path.realpath(folder / name))
        outside = not name or os.path.isabs(name) or "\\" in name or not file.is_relative_to(folder)
        present = file.is_file()
    except (OSError, ValueError):  # too long; a zero byte
        outside, present, file = True, False, path
    if outside:
        raise refuse(path, f"wants weights from {name[:200]!r}, outside its own folder, which is not allowed")
    if not present:
        raise refuse(path, f"keeps its weights in {name!r}, which is not beside it; download that file, too")
    return file


def _load_external(path: Path, model: onnx.ModelProto, files: Mapping[str, Path]) -> None:
    for tensor in tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        said = {entry.key: entry.value for entry in tensor.external_data}
        file = files[said["location"]]
        try:
            offset, wanted = int(said.get("offset", 0)), _bytes(tensor)
            length = int(said.get("length", wanted))
            if offset < 0 or length != wanted or offset + length > file.stat().st_size:
                raise ValueError(f"{said['location']!r} is too short for it")
            with file.open("rb") as opened:
                opened.seek(offset)
                tensor.raw_data = opened.read(length)
        except (OSError, ValueError, KeyError) as error:
            raise refuse(path, f"is damaged: its tensor {tensor.name!r} cannot be read ({error})") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _bytes(tensor: TensorProto) -> int:
    if any(side < 0 for side in tensor.dims):
        raise ValueError(f"a shape of {list(tensor.dims)}")
    size = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return int(math.prod(tensor.dims)) * size


def changed(path: Path, config: OnnxConfig) -> bool:
    """Whether a file with weights beside an ONNX file is another now. Raises CheckpointError if one is gone."""
    said = (entry.partition("=") for entry in config.external.split())
    return any(sha256(_beside(path, unquote(name))) != before for name, _, before in said)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph, and those that its nodes hold, as branches do."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every constant of a graph."""
    for part in graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def _check(path: Path, model: onnx.ModelProto) -> None:
    """Raises CheckpointError for operators nobody knows, and for a graph that is none."""
    own = {function.name for function in model.functions}
    for graph in graphs(model.graph):
        for node in graph.node:
            known = node.domain in DOMAINS[2:] or onnx.defs.has(node.op_type, node.domain)
            if node.op_type not in own and not (node.domain in DOMAINS and known):
                where = f" of {node.domain!r}" if node.domain else ""
                raise refuse(path, f"uses the operator {node.op_type[:60]!r}{where}, which engines do not know")
    known_names = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    known_names |= {tensor.values.name for tensor in model.graph.sparse_initializer} | {""}
    for node in model.graph.node:
        if missing := [name for name in node.input if name not in known_names]:
            raise refuse(path, f"is damaged: {node.op_type} uses {missing[0][:60]!r}, which nothing before it makes")
        if again := [name for name in node.output if name and name in known_names]:
            raise refuse(path, f"is damaged: {again[0][:60]!r} is made twice")
        known_names.update(node.output)
    if missing := [value.name for value in model.graph.output if value.name not in known_names]:
        raise refuse(path, f"is damaged: nothing makes its output {missing[0][:60]!r}")


# Ends


def ends(path: Path, model: onnx.ModelProto) -> OnnxConfig:
    """What the file itself says of its ends' shapes; of the output nothing is known before it has run.

    Raises CheckpointError for a network that does not take pictures.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not 1 <= len(inputs) <= 2:
        names = ", ".join(repr(value.name[:40]) for value in inputs[:4]) or "none"
        raise refuse(
            path, f"has {len(inputs)} inputs ({names}); networks that are used here have one for the frame, and may "
            "have a second one for a picture whose style it is given"
        )  # fmt: skip
    layouts = [_layout(path, value) for value in inputs]
    sizes = [_size(path, value, layout) for value, layout in zip(inputs, layouts, strict=True)]
    if len(inputs) == 2 and any(channels(value, layout) != 3 for value, layout in zip(inputs, layouts, strict=True)):
        raise refuse(path, "has two inputs that are not both RGB pictures; only those of 3 channels can be used")
    output = model.graph.output[0].name
    found = OnnxConfig(
        inputs[0].name, layouts[0], output, "NCHW",
        height=sizes[0] and sizes[0][0], width=sizes[0] and sizes[0][1],
    )  # fmt: skip
    if len(inputs) == 1:
        return found
    style = sizes[1]
    return replace(
        found, style=inputs[1].name, style_layout=layouts[1],
        style_height=style and style[0], style_width=style and style[1],
    )  # fmt: skip


def channels(value: onnx.ValueInfoProto, layout: Layout) -> int:
    """Channels of a picture's value."""
    return int(value.type.tensor_type.shape.dim[1 if layout == "NCHW" else 3].dim_value)


def _layout(path: Path, value: onnx.ValueInfoProto) -> Layout:
    tensor = value.type.tensor_type
    dims = [int(dim.dim_value) for dim in tensor.shape.dim]
    kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "things that are no tensors"
    if tensor.elem_type not in PIXELS or len(dims) != 4:
        raise refuse(
            path, f"is no network for pictures: its input {value.name[:40]!r} takes {kind} of {len(dims)} dimensions, "
            "and pictures are fractions of 4 (1, channels, height, width)"
        )  # fmt: skip
    if dims[0] > 1:
        raise refuse(path, f"takes {dims[0]} frames at once; export it for a batch of one")
    layouts: tuple[tuple[Layout, int], ...] = (("NCHW", 1), ("NHWC", 3))
    for layout, axis in layouts:
        if 1 <= dims[axis] <= 3:
            return layout
    shape = " × ".join(str(side) if side > 0 else "?" for side in dims)
    raise refuse(path, f"has an input of {shape}, and networks of 1, 2 or 3 channels are used here")


def _size(path: Path, value: onnx.ValueInfoProto, layout: Layout) -> tuple[int, int] | None:
    dims = [int(dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    height, width = dims[2:] if layout == "NCHW" else dims[1:3]
    if height <= 0 and width <= 0:
        return None
    if min(height, width) <= 0 or max(height, width) > 16384:
        raise refuse(path, f"takes pictures of {width} × {height} pixels; export it for a size that frames can have")
    return height, width
