"""Pack the weights of the tails for the CUDA kernels; see `packing`.

Channels are padded with zeros to multiples of the kernels' tiles.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.upsamplers import GROUPS
from vsfdatrd.backends.cuda.packing import Constants, StoredTypes, convert, to_float32
from vsfdatrd.backends.cuda.plan import Kernels, Launch
from vsfdatrd.backends.cuda.tails import LDA_GROUPS, Convolution, describe, padded
from vsfdatrd.graph.weights import Array, Weights

TAP_COLUMNS = 64
"""Columns of the product of the second transposed convolution: 16 for each color, the rest zero."""


def pack_tail(
    launch: Launch, config: FdatRdConfig, tensors: Weights, kernels: Kernels, types: StoredTypes
) -> Constants:
    """Pack the constants of a launch of the tail.

    Args:
        launch: The launch.
        config: The network.
        tensors: The tensors of its module.
        kernels: Compile-time constants of the kernels.
        types: StoredTypes of the buffers.
    """
    match launch.kernel:
        case "spread":
            columns = kernels["spread"]["COLUMNS"]
            return spread(tensors, zero_branches.used_channels(tensors), columns, types)
        case "convolve_maps":
            (layer,) = (each for each in describe(config).maps if each.module == launch.module)
            return convolve_maps(tensors, layer, kernels["convolve_maps"]["COLUMNS"], types)
        case "convolve_pixels":
            return _pack_pixels(launch.module, config, tensors, kernels, types)
        case "sample_pixels":
            return {"start": to_float32(tensors["init_pos"].reshape(-1)), "bias": to_float32(tensors["end_conv.bias"])}
    return PACKED[launch.kernel](tensors)


def spread(tail: Weights, used: NDArray[np.bool_], columns: int, types: StoredTypes) -> Constants:
    """Pack the first transposed convolution, and the second one as a product.

    Args:
        tail: Tensors of the tail.
        used: Mask of the channels between the two that the second one uses; the others are left out.
        columns: Their number is padded with zeros to a multiple of this.
        types: StoredTypes.

    Returns:
        ``weight`` (4, 4·C, middle): for pixel (a, b) of a square, input token (p, q) of the four it depends on, and
        channel c, row ((2p + q) · C + c) of matrix 2a + b; ``bias`` (middle); ``last`` (middle, `TAP_COLUMNS`).
    """
    missing = -int(used.sum()) % columns
    first, second = tail["0.weight"][:, used], tail["2.weight"][used]
    taps = ((3, 1), (2, 0))  # rows of the kernel by a, then p; columns by b, then q
    squares = [
        np.concatenate([first[:, :, taps[a][p], taps[b][q]] for p in (0, 1) for q in (0, 1)])
        for a in (0, 1)
        for b in (0, 1)
    ]
    last = second.reshape(len(second), -1)
    return {
        "weight": convert(np.pad(np.stack(squares), ((0, 0), (0, 0), (0, missing))), types.tail),
        "bias": to_float32(np.pad(tail["0.bias"][used], (0, missing))),
        "last": convert(np.pad(last, ((0, missing), (0, TAP_COLUMNS - last.shape[1]))), types.tail),
    }


def gather(tail: Weights) -> Constants:
    """Pack the bias of the second transposed convolution and the last convolution."""
    return {
        "bias": to_float32(tail["2.bias"]),
        "weight": to_float32(tail["3.weight"]),
        "last_bias": to_float32(tail["3.bias"]),
    }


def convolve_maps(tensors: Weights, layer: Convolution, columns: int, types: StoredTypes) -> Constants:
    """Pack a convolution to a map: a matrix for each pixel that a token becomes, of rows (tap, channel).

    Args:
        tensors: Its tensors.
        layer: The convolution.
        columns: Channels are padded to a multiple of this.
        types: StoredTypes.
    """
    weight, pixels = tensors["weight"], layer.step**2
    inputs = weight.shape[1]
    if layer.form == "nearest":
        squares = _after_repetition(weight, layer.step)
    else:  # channels (output, pixel)
        squares = weight.reshape(layer.outputs, pixels, inputs, -1).transpose(1, 3, 2, 0)
    missing = padded(layer.outputs, columns) - layer.outputs
    bias = tensors["bias"].reshape(layer.outputs, -1).T
    return {
        "weight": convert(_pad(squares, columns, columns), types.tail),
        "bias": to_float32(np.pad(np.broadcast_to(bias, (pixels, layer.outputs)), ((0, 0), (0, missing)))),
        "slopes": to_float32(np.full(layer.outputs + missing, layer.slope)),
    }


def convolve_planes(tensors: Weights) -> Constants:
    """Pack the last convolution of pixels."""
    return {"weight": to_float32(tensors["weight"]), "bias": to_float32(tensors["bias"])}


def move_queries(tensors: Weights) -> Constants:
    """Pack the depthwise convolution (9, part) of ``lda``, and the norm after it."""
    depthwise = tensors["conv_offset.0.weight"]
    return {
        "weight": to_float32(depthwise.reshape(len(depthwise), 9).T),
        "scale": to_float32(tensors["conv_offset.1.weight"]),
        "shift": to_float32(tensors["conv_offset.1.bias"]),
    }


def attend_positions(tensors: Weights) -> Constants:
    """Pack what is added to the keys of the nine positions of ``lda``, (9, hidden)."""
    table = tensors["relative_position_bias_table"]
    return {"table": to_float32(table.reshape(9, -1))}


PACKED: dict[str, Callable[[Weights], Constants]] = {
    function.__name__: function for function in (gather, convolve_planes, move_queries, attend_positions)
}
"""Functions that pack the constants of the kernel of the same name."""
KERNELS = frozenset([*PACKED, "spread", "convolve_maps", "convolve_pixels", "sample_pixels"])
"""Kernels whose constants `pack_tail` packs."""


def _pack_pixels(
    module: str, config: FdatRdConfig, tensors: Weights, kernels: Kernels, types: StoredTypes
) -> Constants:
    """Pack a convolution to planes: a matrix of rows (tap, channel), and columns (plane, pixel of a token)."""
    tail, tiles = describe(config), kernels["convolve_pixels"]
    inputs = kernels["convolve_maps"]["COLUMNS"]
    if tail.last and module == tail.last.module:
        taps = _transposed(tensors, tail.last.step) if tail.last.form == "transposed" else _taps(tensors["weight"])
        bias = tensors["bias"].repeat(taps.shape[-1] // len(tensors["bias"]))
    elif module == tail.sampling and tail.last:
        both = np.concatenate([tensors["proj_q.weight"], tensors["proj_k.weight"]])[:, :, 0, 0]
        taps, bias = (both * tensors["layer_norm.weight"]).T[None], both @ tensors["layer_norm.bias"]
    elif module == tail.sampling:
        taps, bias = _dysample(tensors)
    else:
        taps, bias = _offsets(tensors["3.weight"]), np.tile(tensors["3.bias"], LDA_GROUPS)
        inputs = tiles["DEPTH"]
    missing = -len(bias) % tiles["COLUMNS"]
    return {
        "weight": convert(_pad(taps[None], inputs, tiles["COLUMNS"]), types.tail),
        "bias": to_float32(np.pad(bias, (0, missing))),
    }


def _pad(squares: Array, inputs: int, outputs: int) -> Array:
    """Pad channels to multiples of `inputs` and `outputs`: (pixels, taps, K, M) -> (pixels, taps · K, M)."""
    pixels, _, k, m = squares.shape
    result = np.pad(squares, ((0, 0), (0, 0), (0, -k % inputs), (0, -m % outputs)))
    return result.reshape(pixels, -1, result.shape[-1])


def _taps(weight: Array) -> Array:
    """(M, K, 3, 3) -> (9, K, M)."""
    outputs, inputs, *_ = weight.shape
    return weight.transpose(2, 3, 1, 0).reshape(-1, inputs, outputs)


def _after_repetition(weight: Array, step: int) -> Array:
    """A 3×3 convolution (M, K, 3, 3) after each pixel was repeated `step` times: (step², 4, K, M).

    Pixel a of a token reads rows a - 1 to a + 1 of the repeated ones, which belong to two tokens at most.
    """
    outputs, inputs, *_ = weight.shape
    result = np.zeros((step, step, 2, 2, inputs, outputs))
    for a, b, i, j in np.ndindex(step, step, 3, 3):
        # number of the tap: the token's distance, minus that of the first one
        p = (a + i - 1) // step + 1 - 2 * a // step
        q = (b + j - 1) // step + 1 - 2 * b // step
        result[a, b, p, q] += weight[:, :, i, j].T
    return result.reshape(step**2, 4, inputs, outputs)


def _transposed(tensors: Weights, step: int) -> Array:
    """A transposed convolution (K, O, side, side) as a convolution of tokens: (taps, K, O · step²)."""
    weight = tensors["weight"]
    inputs, outputs, side, _ = weight.shape
    padding = (side - step) // 2
    reach = 1 if padding else 0
    taps = 2 * reach + 1
    result = np.zeros((taps, taps, inputs, outputs, step, step))
    for i, j, a, b in np.ndindex(taps, taps, step, step):
        # pixel step · y + a depends on token y + i - reach through this row of the kernel
        row, column = a + padding - step * (i - reach), b + padding - step * (j - reach)
        if 0 <= row < side and 0 <= column < side:
            result[i, j, :, :, a, b] = weight[:, :, row, column]
    return result.reshape(taps * taps, inputs, -1)


def _dysample(tensors: Weights) -> tuple[Array, Array]:
    """Offsets, their scopes, and the colors of each group, which are sampled instead of the channels."""
    offset, scope, last = (tensors[f"{name}.weight"][:, :, 0, 0] for name in ("offset", "scope", "end_conv"))
    colors, inputs = last.shape
    groups = np.zeros((GROUPS, colors, inputs))
    for group, channels in enumerate(np.split(np.arange(inputs), GROUPS)):
        groups[group][:, channels] = last[:, channels]
    taps = np.concatenate([offset * 0.5, scope, groups.reshape(-1, inputs)]).T[None]
    bias = np.concatenate([tensors["offset.bias"] * 0.5, np.zeros(len(scope) + GROUPS * colors)])
    return taps, bias


def _offsets(weight: Array) -> Array:
    """The last convolution (18, part, 3, 3) of ``lda``'s offsets, for both groups: (9, 2 · part, 36)."""
    taps = _taps(weight)
    result = np.zeros((9, LDA_GROUPS, taps.shape[1], LDA_GROUPS, taps.shape[2]))
    for group in range(LDA_GROUPS):
        result[:, group, :, group] = taps
    return result.reshape(9, LDA_GROUPS * taps.shape[1], -1)
