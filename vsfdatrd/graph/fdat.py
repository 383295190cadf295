"""FDAT-RD and FDAT as ONNX: padding, the body (`fdat_body` or `fdat_rd_maps`), cropping."""

from collections.abc import Mapping
from dataclasses import replace

import onnx

from vsfdatrd.archs.fdat_rd import FdatFamilyConfig
from vsfdatrd.graph.builder import Name, Side, Writer
from vsfdatrd.graph.fdat_body import Network
from vsfdatrd.graph.fdat_rd_maps import MapNetwork
from vsfdatrd.graph.target import OPENVINO, GraphTarget
from vsfdatrd.graph.weights import Array, Weights


def write(
    config: FdatFamilyConfig,
    tensors: Mapping[str, Array],
    size: tuple[int, int] | None,
    target: GraphTarget = OPENVINO,
) -> onnx.ModelProto:
    """Write the complete network.

    Args:
        config: The configuration.
        tensors: The checkpoint's tensors by the network's names.
        size: (height, width) of the frame in pixels, multiples of `config.multiple` unless the target pads. None for a
            graph with dynamic H and W, which pads and crops.
        target: The engine to write for.

    Returns:
        A model from ``input`` (1, C, H, W) to ``output`` (1, C, H·scale, W·scale), both float32.

    Raises:
        ValueError: The size is not a multiple of `config.multiple`, or is dynamic and the upsampler needs to know it.
        OverflowError: A weight exceeds the range of the target's half precision.
    """
    if size is None:
        target = replace(target, padding=True)
    elif min(size) <= 0 or (not target.padding and any(side % config.multiple for side in size)):
        raise ValueError(f"{size[1]}×{size[0]} is not a multiple of {config.multiple}; pad the frame first")
    weights = Weights(tensors)
    g = Writer(config.graph_name, target.compute_dtype, target.opset)
    height, width = size or (g.length("input", 2), g.length("input", 3))
    x, padded_height, padded_width = "input", height, width
    if target.padding:
        x, padded_height, padded_width = _pad_frame(g, config, height, width)
    form = MapNetwork if target.maps and size else Network
    out = form(config, weights, padded_height, padded_width, target, g).body(x)
    if (padded_height, padded_width) != (height, width):
        out = g.crop(out, 2, g.dim_op("Mul", height, config.scale), g.dim_op("Mul", width, config.scale))
    sides = [(n, n * config.scale) for n in size] if size else [("height", "height_out"), ("width", "width_out")]
    (h, h_out), (w, w_out) = sides
    return g.model((1, config.in_channels, h, w), out, (1, config.out_channels, h_out, w_out))


def _pad_frame(g: Writer, config: FdatFamilyConfig, height: Side, width: Side) -> tuple[Name, Side, Side]:
    """Pad the frame at the bottom and right by reflection. Returns the padded frame, its height and its width."""
    pad_bottom, pad_right = (g.dim_op("Mod", g.dim_op("Sub", 0, n), config.multiple) for n in (height, width))
    if pad_bottom == pad_right == 0:
        return "input", height, width
    x = g.op("Pad", "input", g.shape_tensor(0, 0, 0, 0, 0, 0, pad_bottom, pad_right), mode="reflect")
    return x, g.dim_op("Add", height, pad_bottom), g.dim_op("Add", width, pad_right)
