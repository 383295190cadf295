"""Third-party ONNX files: parsing and validation. `graph.adapt_io` turns them into graphs for engines.

The content of a file is not trusted: external data is only read from the file's own folder, and whether the graph runs
is tried in a separate process (`onnx_probe`).
"""

import contextlib
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import quote, unquote

import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, TensorProto, helper, numpy_helper

from vsfdatrd.archs.onnx import Layout, OnnxConfig
from vsfdatrd.errors import first_line
from vsfdatrd.weights.files import check_file, refusal, sha256

MAX_BYTES = 2**31 - 1
"""Largest protobuf message in bytes."""
FLOAT_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
IMAGE_TYPES = (*FLOAT_TYPES, TensorProto.UINT8)
"""Accepted data types of image inputs."""
MAX_NODES = 50_000
"""Largest accepted number of operators; the largest known networks, traced at a fixed size, have about 20,000."""
MAX_ITERATIONS = 1_000_000
"""Largest accepted trip count of a Loop; a network that iterates over the pixels of a picture would need as many."""
MAX_CALLS = 30
"""Largest accepted nesting depth of function calls."""
OTHER_DOMAINS = ("com.microsoft", "org.openvinotoolkit")
"""Operator set domains that the engines support, besides ONNX's own."""


# Reading


def read_model(path: Path) -> tuple[onnx.ModelProto, str]:
    """Parse and validate an ONNX file, inlining functions and loading external data.

    Args:
        path: The file.

    Returns:
        The model with all weights in it, and the value of `OnnxConfig.external`.

    Raises:
        CheckpointError: The file is damaged, unsafe or incomplete.
    """
    if (size := check_file(path).st_size) > MAX_BYTES:
        raise refusal(path, f"has {size:,} bytes, more than an ONNX file can have; keep its weights as external data")
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception as error:  # protobuf documents no exception types
        raise refusal(path, "is not an ONNX file, or is damaged; download it again") from error
    if not model.graph.node or not model.graph.output:
        raise refusal(path, "is an ONNX file without a network; download it again, or export it again")
    if (count := _count_operators(path, model)) > MAX_NODES:
        raise refusal(path, f"has {count:,} operators, more than the limit of {MAX_NODES:,}; simplify it")
    if model.functions:
        try:
            model = onnx.inliner.inline_local_functions(model)
        except Exception as error:  # onnx documents no exception types
            reason = first_line(error)
            raise refusal(path, f"has functions that cannot be inlined: {reason[:160]}") from error
    files = _load_external(path, model)
    _check_model(path, model)
    return model, " ".join(f"{quote(name, safe='')}={sha256(file)}" for name, file in sorted(files.items()))


def _locate_external(path: Path, name: str) -> Path:
    """Locate a file by name in the folder of the ONNX file, or in the folder of the file that it is a symlink to."""
    # Symlinks are followed: the cache of huggingface_hub consists of them, and an ONNX file cannot create one.
    inside = PurePosixPath(name).parts and not PureWindowsPath(name).anchor and ".." not in PureWindowsPath(name).parts
    if not inside or name.startswith("/") or "\\" in name:
        raise refusal(path, f"refers to weights in {name[:200]!r}, outside its own folder, which is not allowed")
    for folder in (path.parent, Path(os.path.realpath(path)).parent):
        with contextlib.suppress(OSError, ValueError):  # too long; a zero byte
            if (file := folder / name).is_file():
                return file
    raise refusal(path, f"stores its weights in {name[:200]!r}, which is not in its folder; download that file too")


def _load_external(path: Path, model: onnx.ModelProto) -> dict[str, Path]:
    """Read the external data of all tensors into the model.

    Returns:
        The files by the names used in the model.

    Raises:
        CheckpointError: A file is missing, too short or outside the folder of the ONNX file.
    """
    files: dict[str, Path] = {}
    for tensor in iter_tensors(model.graph):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        name = fields.get("location", "")
        if name not in files:
            files[name] = _locate_external(path, name)
        try:
            if any(side < 0 for side in tensor.dims):
                raise ValueError(f"a shape of {list(tensor.dims)}")
            expected = math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", expected))
            if offset < 0 or length != expected or offset + length > files[name].stat().st_size:
                raise ValueError(f"{name!r} is too short for it")
            with files[name].open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(length)
        except (OSError, ValueError, KeyError) as error:
            raise refusal(path, f"is damaged: its tensor {tensor.name!r} cannot be read ({error})") from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
    return files


def has_external_data_changed(path: Path, config: OnnxConfig) -> bool:
    """Return whether an external data file of an ONNX file differs from when its configuration was derived.

    Args:
        path: The ONNX file.
        config: Its configuration when it was described.

    Raises:
        CheckpointError: An external data file is missing.
    """
    fields = (entry.partition("=") for entry in config.external.split())
    return any(sha256(_locate_external(path, unquote(name))) != before for name, _, before in fields)


def _count_operators(path: Path, model: onnx.ModelProto) -> int:
    """Count the operators of a graph with every function call expanded.

    A small file can expand to millions of operators, so they are counted before anything is inlined.
    """
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def total(nodes: Iterable[onnx.NodeProto], calls: frozenset[tuple[str, str]]) -> int:
        result = 0
        for node in nodes:
            called = (node.domain, node.op_type)
            if called in calls or len(calls) > MAX_CALLS:
                raise refusal(
                    path,
                    f"has a function {node.op_type[:60]!r} that calls itself, or is nested too deeply; export it again",
                )
            if called in bodies and called not in counts:
                counts[called] = total(bodies[called], calls | {called})
            result += counts.get(called, 1)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    result += total(graph.node, calls)
            if result > MAX_NODES:
                break
        return result

    return total(model.graph.node, frozenset())


def iter_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all its subgraphs (the bodies of If, Loop and Scan)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from iter_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from iter_graphs(inner)


def iter_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield every constant tensor of a graph and its subgraphs."""
    for part in iter_graphs(graph):
        yield from part.initializer
        for node in part.node:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def _check_model(path: Path, model: onnx.ModelProto) -> None:
    """Check operators, loops and names of values.

    Raises:
        CheckpointError: An operator is not supported, a loop is too long, or a value is undefined or defined twice.
    """
    for graph in iter_graphs(model.graph):
        integers = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.INT64}
        for node in graph.node:
            if node.domain not in OTHER_DOMAINS and (node.domain or not onnx.defs.has(node.op_type)):
                domain = f" of {node.domain!r}" if node.domain else ""
                raise refusal(path, f"uses the operator {node.op_type[:60]!r}{domain}, which no engine supports")
            if node.op_type == "Loop" and node.input[0] in integers:
                turns = numpy_helper.to_array(integers[node.input[0]])
                if turns.size == 1 and turns.item() > MAX_ITERATIONS:
                    raise refusal(
                        path, f"has a loop of {turns.item():,} iterations, more than the limit of {MAX_ITERATIONS:,}"
                    )
    known_names = {value.name for value in model.graph.input} | {tensor.name for tensor in model.graph.initializer}
    known_names |= {tensor.values.name for tensor in model.graph.sparse_initializer} | {""}
    for node in model.graph.node:
        if missing := [name for name in node.input if name not in known_names]:
            raise refusal(
                path, f"is damaged: {node.op_type} uses {missing[0][:60]!r}, which no earlier operator produces"
            )
        if again := [name for name in node.output if name and name in known_names]:
            raise refusal(path, f"is damaged: {again[0][:60]!r} is defined twice")
        known_names.update(node.output)
    if missing := [value.name for value in model.graph.output if value.name not in known_names]:
        raise refusal(path, f"is damaged: no operator produces its output {missing[0][:60]!r}")


# Inputs and outputs


def io_spec(path: Path, model: onnx.ModelProto) -> list[OnnxConfig]:
    """Derive the input configuration from the shapes that the file declares.

    Nothing is known about the output before the network has run. Several candidates are returned if the file leaves the
    layout or the number of channels open.

    Args:
        path: The file, for error messages.
        model: Its content.

    Returns:
        Candidates, most likely first.

    Raises:
        CheckpointError: The network does not take images.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if not 1 <= len(inputs) <= 2:
        names = ", ".join(repr(value.name[:40]) for value in inputs[:4]) or "none"
        raise refusal(
            path,
            f"has {len(inputs)} inputs ({names}); supported networks have one for the frame, and may "
            "have a second one for a style picture",
        )
    output = model.graph.output[0].name
    candidates = [
        [_image_input(path, value, output, *layout) for layout in _possible_layouts(path, model, value)]
        for value in inputs
    ]
    if len(inputs) == 1:
        return candidates[0]
    pairs = [(frame, style) for frame, style in product(*candidates) if frame.channels == style.channels == 3]
    if not pairs:
        raise refusal(path, "has two inputs that are not both RGB pictures; only those of 3 channels can be used")
    return [
        replace(a, style=b.input, style_layout=b.layout, style_height=b.height, style_width=b.width) for a, b in pairs
    ]


def _image_dims(path: Path, value: onnx.ValueInfoProto) -> list[int]:
    """Return the dimensions of an input, 0 for dynamic ones. Raises CheckpointError if it is not an image."""
    tensor = value.type.tensor_type
    dims = [max(0, int(dim.dim_value)) for dim in tensor.shape.dim]
    if tensor.elem_type in IMAGE_TYPES and not tensor.HasField("shape"):
        dims = [0] * 4  # no shape is declared
    kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "something other than tensors"
    if tensor.elem_type not in IMAGE_TYPES or len(dims) != 4:
        raise refusal(
            path,
            f"is not an image network: its input {value.name[:40]!r} takes {kind} of {len(dims)} dimensions, "
            "and pictures are fractions of 4 (1, channels, height, width)",
        )
    if dims[0] > 1:
        raise refusal(path, f"takes {dims[0]} frames at once; export it for a batch of one")
    return dims


def _possible_layouts(path: Path, model: onnx.ModelProto, value: onnx.ValueInfoProto) -> list[tuple[Layout, int]]:
    """List the possible layouts of an input, each with its number of channels; the most likely first."""
    dims = _image_dims(path, value)
    axes: tuple[tuple[Layout, int], ...] = (("NCHW", 1), ("NHWC", 3))
    for layout, axis in axes:
        if 1 <= dims[axis] <= 3:
            return [(layout, dims[axis])]
    open_axes = [(layout, axis) for layout, axis in axes if not dims[axis]]
    if dims[1] and not dims[2]:  # a channel count above 3: if it were H of NHWC, W would be fixed, too
        open_axes = [pair for pair in open_axes if pair[0] == "NCHW"]
    if not open_axes:
        shape = " × ".join(str(side) if side > 0 else "?" for side in dims)
        raise refusal(path, f"has an input of {shape}, and networks of 1, 2 or 3 channels are supported")
    counts = _first_conv_channels(model, value.name)
    if counts and not counts & {1, 2, 3}:
        raise refusal(
            path,
            f"does not say how many channels its input {value.name[:40]!r} has, and its first convolution takes "
            f"{min(counts)}; networks of 1, 2 or 3 channels are supported",
        )
    return [(layout, count) for layout, _ in open_axes for count in (3, 1, 2) if not counts or count in counts]


def _first_conv_channels(model: onnx.ModelProto, name: str) -> set[int]:
    """Return the input channels of the first convolutions after an input; empty if other operators precede them."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    pixels = {name}
    result: set[int] = set()
    for node in model.graph.node:
        if node.input and node.input[0] in pixels:
            if node.op_type in ("Identity", "Cast", "Transpose", "Mul", "Add", "Sub", "Div", "Clip", "Pad"):
                pixels.update(node.output)
            elif node.op_type == "Conv" and (weight := weights.get(node.input[1])) is not None:
                groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
                result.add(int(weight.dims[1]) * groups)
    return result


def _image_input(path: Path, value: onnx.ValueInfoProto, output: str, layout: Layout, channels: int) -> OnnxConfig:
    """Create the configuration of an image input for one layout."""
    dims = _image_dims(path, value)
    height, width = dims[2:] if layout == "NCHW" else dims[1:3]
    if height or width:
        height, width = height or width, width or height  # if one side is dynamic, use a square
        if max(height, width) > 16384:
            raise refusal(
                path, f"takes pictures of {width} × {height} pixels; export it for a size that frames can have"
            )
    config = OnnxConfig(value.name, layout, output, "NCHW", channels=channels)
    return replace(config, height=height, width=width) if height else config
