"""ArtCNN out of an ONNX graph: its weights as data, if the graph computes just what `artcnn_config` describes.

The published files are such graphs. Read this way they are written anew for each engine, as other weights are. Whatever
is connected or activated in another way, experiments of the same project among it, is no ArtCNN here and runs as the
graph that it is.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from vsfdatrd.archs.artcnn import ArtCnnConfig, from_shapes, layers
from vsfdatrd.weights.files import Entry, check_file, finite

type Array = NDArray[Any]

MAX_BYTES = 64 << 20
"""Largest file that is looked at; the largest ArtCNN there is has 17 megabytes."""

_SAME = ("Identity", "Cast", "Transpose", "Dropout")
"""What changes types or layouts only; converters put transposes around everything."""
_LIMITS = {"Clip": (0, 1), "Max": (0,), "Min": (1,)}
"""How a graph is clamped to [0, 1], and by which constants."""


class ArtCnnFile:
    """The weights of an ArtCNN in an ONNX file (`weights_file.WeightsFile`)."""

    def __init__(self, path: Path, tensors: Mapping[str, Array], dtype: str) -> None:
        self.path = path
        self._tensors = tensors
        self.entries: Mapping[str, Entry] = {name: Entry(dtype, values.shape) for name, values in tensors.items()}

    @classmethod
    def of(cls, path: Path) -> "ArtCnnFile | None":
        """The file, if it is an ONNX file of an ArtCNN; None if it is anything else."""
        if check_file(path).st_size > MAX_BYTES:
            return None
        try:
            graph = onnx.load_model_from_string(path.read_bytes()).graph
        except Exception:  # damaged ones raise what protobuf likes; whoever reads ONNX files says what is wrong
            return None
        tensors = tensors_of(graph)
        if tensors is None:
            return None
        half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
        return cls(path, tensors, "fp16" if half else "fp32")

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """See `WeightsFile.read`."""
        for name, key in names.items():
            yield name, finite(self.path, name, self._tensors[key])


def tensors_of(graph: onnx.GraphProto) -> dict[str, Array] | None:
    """The weights of an ArtCNN by the names of `artcnn_config.layers`, float32; None if the graph is something else.

    graph: without external data, which no ArtCNN has. Nothing of it is believed before it is checked.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1 or any(_is_external(tensor) for tensor in constants.values()):
        return None
    try:
        trace = _Trace(inputs[0], constants)
        for node in graph.node:  # in the order in which they run
            trace.follow(node)
        return trace.network(graph.output[0].name)
    except Exception:  # a graph may be broken in any way; here it is only no ArtCNN
        return None


class _Other(Exception):
    """It is another network."""


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


class _Trace:
    """What every tensor of the graph is, as a number; equal numbers mean the same computation."""

    def __init__(self, picture: str, constants: Mapping[str, onnx.TensorProto]) -> None:
        self._constants = dict(constants)
        self._known: dict[tuple[Any, ...], int] = {}
        self._values = {picture: self._number("picture")}
        self._weights: list[Array] = []
        self._biases: list[Array | None] = []
        self._latest = -1
        """The number of the latest convolution's result."""
        self._shuffle: tuple[int, bool] | None = None
        """Scale, and whether a pixel's channels come first (``DCR``)."""

    def _number(self, *what: Any) -> int:
        return self._known.setdefault(what, len(self._known))

    def _constant(self, name: str) -> Array:
        return np.asarray(numpy_helper.to_array(self._constants[name]))

    def follow(self, node: onnx.NodeProto) -> None:
        """Find out what a node gives. Raises _Other, KeyError and the like if it has no place in an ArtCNN."""
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        output = node.output[0]
        if node.op_type == "Constant":
            tensor = attributes.get("value")
            if isinstance(tensor, onnx.TensorProto) and not _is_external(tensor):
                self._constants[output] = tensor
        elif node.op_type in _SAME:
            self._values[output] = self._values[node.input[0]]
        elif node.op_type in _LIMITS:
            self._values[output] = self._clamped(node, attributes)
        elif node.op_type == "Relu":
            self._values[output] = self._number("relu", self._values[node.input[0]])
        elif node.op_type == "Conv":
            self._values[output] = self._convolution(node, attributes)
        elif node.op_type == "Add":
            self._values[output] = self._sum(*node.input)
        elif node.op_type == "DepthToSpace" and self._shuffle is None:
            self._shuffle = (int(attributes["blocksize"]), attributes.get("mode", b"DCR") != b"CRD")
            self._values[output] = self._number("shuffled", self._values[node.input[0]])
        else:
            raise _Other

    def _convolution(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        weight = self._constant(node.input[1])
        side = weight.shape[2]
        border = list(attributes.get("pads", [0] * 4))
        same = attributes.get("auto_pad", b"NOTSET") in (b"SAME_UPPER", b"SAME_LOWER") or border == [side // 2] * 4
        plain = all(set(attributes.get(name, [1])) == {1} for name in ("strides", "dilations"))
        if weight.ndim != 4 or not same or not plain or attributes.get("group", 1) != 1:
            raise _Other
        self._weights.append(weight.astype(np.float32))
        has_bias = len(node.input) > 2 and node.input[2]
        self._biases.append(self._constant(node.input[2]).astype(np.float32) if has_bias else None)
        self._latest = self._number("conv", len(self._weights) - 1, self._values[node.input[0]])
        return self._latest

    def _clamped(self, node: onnx.NodeProto, attributes: Mapping[str, Any]) -> int:
        limits = [self._constant(name).item() for name in node.input if name in self._constants]
        limits += [attributes[name] for name in ("min", "max") if name in attributes]
        if tuple(limits) != _LIMITS[node.op_type]:
            raise _Other
        (value,) = (self._values[name] for name in node.input if name in self._values)
        return self._number("clamped", value)

    def _sum(self, left: str, right: str) -> int:
        if left in self._values and right in self._values:
            return self._number("add", *sorted((self._values[left], self._values[right])))
        value, constant = (left, right) if left in self._values else (right, left)
        # a bias by itself, of the convolution that has just been
        latest = len(self._weights) - 1
        number = self._values[value]
        bias = self._constant(constant).astype(np.float32).reshape(-1)
        if number != self._latest or self._biases[latest] is not None or len(bias) != len(self._weights[latest]):
            raise _Other
        self._biases[latest] = bias
        return number

    def network(self, output: str) -> dict[str, Array] | None:
        """The tensors, if what comes out is what an ArtCNN computes."""
        scale, pixels_first = self._shuffle or (1, False)
        inside = {number: key[1] for key, number in self._known.items() if key[0] == "clamped"}
        found = self._values[output]
        while found in inside:  # we clamp, too
            found = inside[found]
        for residual in (False, True):
            config = self._config(residual)
            if config is None or config.scale != scale:
                continue
            result = self._expected(config)
            if self._shuffle:
                result = self._number("shuffled", result)
            if result == found:
                return self._named(config, pixels_first)
        return None

    def _config(self, residual: bool) -> ArtCnnConfig | None:
        body, rest = divmod(len(self._weights) - 3, 3 if residual else 1)
        if rest or body < 1:
            return None
        # channels and scale are found by the same rules as in other files
        guess = ArtCnnConfig(1, body, residual, 1, 1, 2)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, weight in zip(layers(guess), self._weights, strict=True):
            shapes |= {f"{name}.weight": weight.shape, f"{name}.bias": (len(weight),)}
        return from_shapes(shapes)

    def _expected(self, config: ArtCnnConfig) -> int:
        """The number of what this ArtCNN computes before it is shuffled."""
        convolutions = iter(range(len(self._weights)))

        def conv(value: int) -> int:
            return self._number("conv", next(convolutions), value)

        def relu(value: int) -> int:
            return self._number("relu", value)

        def add(left: int, right: int) -> int:
            return self._number("add", *sorted((left, right)))

        first = conv(self._number("picture"))
        y = first
        for _ in range(config.blocks):
            y = add(y, conv(relu(conv(relu(conv(y)))))) if config.residual else relu(conv(y))
        return conv(add(first, conv(y)))

    def _named(self, config: ArtCnnConfig, pixels_first: bool) -> dict[str, Array]:
        tensors: dict[str, Array] = {}
        for name, weight, bias in zip(layers(config), self._weights, self._biases, strict=True):
            given = np.zeros(len(weight), np.float32) if bias is None else bias
            if given.shape != (len(weight),):
                raise _Other
            tensors |= {f"{name}.weight": weight, f"{name}.bias": given}
        if pixels_first and config.out_channels > 1:
            last = layers(config)[-1]
            order = np.arange(config.scale**2 * config.out_channels).reshape(-1, config.out_channels).T.reshape(-1)
            tensors |= {f"{last}.{part}": tensors[f"{last}.{part}"][order] for part in ("weight", "bias")}
        return tensors
