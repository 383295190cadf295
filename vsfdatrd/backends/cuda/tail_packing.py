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
from vsfdatrd.backends.cuda.plan import Launch, TileSizes
from vsfdatrd.backends.cuda.tails import LDA_GROUPS, Convolution, describe, padded
from vsfdatrd.graph.weights import Array, Weights

PRODUCT_COLUMNS = 64
"""Columns of the product of the second transposed convolution: 16 for each color, the rest zero."""


def pack_tail(
    launch: Launch, config: FdatRdConfig, tensors: Weights, tile_sizes: TileSizes, types: StoredTypes
) -> Constants:
    """Pack the constants of a launch of the tail.

    Args:
        launch: The launch.
        config: The network.
        tensors: The tensors of its module.
        tile_sizes: Tile sizes of each kernel; see `plan.TileSizes`.
        types: Types of the buffers.
    """
    match launch.kernel:
        case "conv_transpose_products":
            columns = tile_sizes["conv_transpose_products"]["BLOCK_COLUMNS"]
            return conv_transpose_products(tensors, zero_branches.used_channels(tensors), columns, types)
        case "conv_maps":
            (layer,) = (each for each in describe(config).maps if each.module == launch.module)
            return conv_maps(tensors, layer, tile_sizes["conv_maps"]["BLOCK_COLUMNS"], types)
        case "conv_pixel_shuffle":
            return _pack_conv_pixel_shuffle(launch.module, config, tensors, tile_sizes, types)
        case "dysample":
            init_positions = tensors["init_pos"].reshape(-1)
            return {"init_positions": to_float32(init_positions), "bias": to_float32(tensors["end_conv.bias"])}
    return PACKED[launch.kernel](tensors)


def conv_transpose_products(tail: Weights, used: NDArray[np.bool_], columns: int, types: StoredTypes) -> Constants:
    """Pack the first transposed convolution, and the second one as a product.

    Args:
        tail: Tensors of the tail.
        used: Mask of the channels between the two convolutions that the second one uses; the others are left out.
        columns: The number of used channels is padded with zeros to a multiple of this number.
        types: Types of the buffers.

    Returns:
        ``weight`` (4, 4·C, mid_channels): for subpixel (a, b), input token (p, q) of the four it depends on, and
        channel c, row ((2p + q) · C + c) of matrix 2a + b; ``bias`` (mid_channels); ``second_weight`` (mid_channels,
        `PRODUCT_COLUMNS`).
    """
    missing = -int(used.sum()) % columns
    first, second = tail["0.weight"][:, used], tail["2.weight"][used]
    taps = ((3, 1), (2, 0))  # rows of the kernel by a, then p; columns by b, then q
    matrices = [
        np.concatenate([first[:, :, taps[a][p], taps[b][q]] for p in (0, 1) for q in (0, 1)])
        for a in (0, 1)
        for b in (0, 1)
    ]
    second_weight = second.reshape(len(second), -1)
    unused = PRODUCT_COLUMNS - second_weight.shape[1]
    return {
        "weight": convert(np.pad(np.stack(matrices), ((0, 0), (0, 0), (0, missing))), types.tail),
        "bias": to_float32(np.pad(tail["0.bias"][used], (0, missing))),
        "second_weight": convert(np.pad(second_weight, ((0, missing), (0, unused))), types.tail),
    }


def sum_products_conv_last(tail: Weights) -> Constants:
    """Pack the bias of the second transposed convolution and the last convolution."""
    return {
        "transpose_bias": to_float32(tail["2.bias"]),
        "conv_weight": to_float32(tail["3.weight"]),
        "conv_bias": to_float32(tail["3.bias"]),
    }


def conv_maps(tensors: Weights, layer: Convolution, columns: int, types: StoredTypes) -> Constants:
    """Pack a convolution whose output is a map: for each output subpixel of a token, a matrix with rows (tap, channel).

    Args:
        tensors: Its tensors.
        layer: The convolution.
        columns: Channels are padded to a multiple of this.
        types: Types of the buffers.
    """
    weight, subpixels, out_channels = tensors["weight"], layer.upscale**2, layer.out_channels
    in_channels = weight.shape[1]
    if layer.form == "nearest":
        taps = _after_repetition(weight, layer.upscale)
    else:  # rows of the weight are (output channel, subpixel)
        taps = weight.reshape(out_channels, subpixels, in_channels, -1).transpose(1, 3, 2, 0)
    missing = padded(out_channels, columns) - out_channels
    bias = tensors["bias"].reshape(out_channels, -1).T
    return {
        "weight": convert(_pad(taps, columns, columns), types.tail),
        "bias": to_float32(np.pad(np.broadcast_to(bias, (subpixels, out_channels)), ((0, 0), (0, missing)))),
        "negative_slopes": to_float32(np.full(out_channels + missing, layer.negative_slope)),
    }


def conv_rgb(tensors: Weights) -> Constants:
    """Pack the last convolution, which reads and writes RGB planes."""
    return {"weight": to_float32(tensors["weight"]), "bias": to_float32(tensors["bias"])}


def lda_offset_features(tensors: Weights) -> Constants:
    """Pack the depthwise convolution (9, group_channels) of ``lda``, and the norm after it."""
    depthwise = tensors["conv_offset.0.weight"]
    return {
        "weight": to_float32(depthwise.reshape(len(depthwise), 9).T),
        "norm_weight": to_float32(tensors["conv_offset.1.weight"]),
        "norm_bias": to_float32(tensors["conv_offset.1.bias"]),
    }


def lda_attention(tensors: Weights) -> Constants:
    """Pack the position biases (9, hidden) that ``lda`` adds to the keys."""
    table = tensors["relative_position_bias_table"]
    return {"position_bias": to_float32(table.reshape(9, -1))}


PACKED: dict[str, Callable[[Weights], Constants]] = {
    function.__name__: function for function in (sum_products_conv_last, conv_rgb, lda_offset_features, lda_attention)
}
"""Functions that pack the constants of the kernel of the same name."""
TAIL_KERNELS = frozenset([*PACKED, "conv_transpose_products", "conv_maps", "conv_pixel_shuffle", "dysample"])
"""Kernels whose constants `pack_tail` packs."""


def _pack_conv_pixel_shuffle(
    module: str, config: FdatRdConfig, tensors: Weights, tile_sizes: TileSizes, types: StoredTypes
) -> Constants:
    """Pack a convolution whose output is planes: a matrix with rows (tap, channel) and columns (plane, subpixel)."""
    tail, tiles = describe(config), tile_sizes["conv_pixel_shuffle"]
    in_channels = tile_sizes["conv_maps"]["BLOCK_COLUMNS"]  # a multiple of it
    layer = tail.to_planes
    if layer and module == layer.module:
        taps = _transposed(tensors, layer.upscale) if layer.form == "transposed" else _taps(tensors["weight"])
        bias = tensors["bias"].repeat(taps.shape[-1] // len(tensors["bias"]))
    elif module == tail.sampling and layer:
        both = np.concatenate([tensors["proj_q.weight"], tensors["proj_k.weight"]])[:, :, 0, 0]
        taps, bias = (both * tensors["layer_norm.weight"]).T[None], both @ tensors["layer_norm.bias"]
    elif module == tail.sampling:
        taps, bias = _dysample(tensors)
    else:
        taps, bias = _offsets(tensors["3.weight"]), np.tile(tensors["3.bias"], LDA_GROUPS)
        in_channels = tiles["BLOCK_K"]
    missing = -len(bias) % tiles["BLOCK_COLUMNS"]
    return {
        "weight": convert(_pad(taps[None], in_channels, tiles["BLOCK_COLUMNS"]), types.tail),
        "bias": to_float32(np.pad(bias, (0, missing))),
    }


def _pad(taps: Array, in_multiple: int, out_multiple: int) -> Array:
    """Pad input (K) and output (M) channels to multiples: (subpixels, taps, K, M) -> (subpixels, taps · K, M)."""
    subpixels, _, k, m = taps.shape
    result = np.pad(taps, ((0, 0), (0, 0), (0, -k % in_multiple), (0, -m % out_multiple)))
    return result.reshape(subpixels, -1, result.shape[-1])


def _taps(weight: Array) -> Array:
    """Rearrange the weight of a 3×3 convolution: (M, K, 3, 3) -> (9, K, M)."""
    out_channels, in_channels, *_ = weight.shape
    return weight.transpose(2, 3, 1, 0).reshape(-1, in_channels, out_channels)


def _after_repetition(weight: Array, upscale: int) -> Array:
    """Combine a 3×3 convolution with nearest-neighbor upsampling before it: (M, K, 3, 3) -> (upscale², 4, K, M).

    Row a of a token's pixels depends on rows a - 1 to a + 1 of the upsampled map, which belong to at most two tokens.
    """
    out_channels, in_channels, *_ = weight.shape
    result = np.zeros((upscale, upscale, 2, 2, in_channels, out_channels))
    for a, b, i, j in np.ndindex(upscale, upscale, 3, 3):
        # number of the tap: the token's distance, minus that of the first one
        p = (a + i - 1) // upscale + 1 - 2 * a // upscale
        q = (b + j - 1) // upscale + 1 - 2 * b // upscale
        result[a, b, p, q] += weight[:, :, i, j].T
    return result.reshape(upscale**2, 4, in_channels, out_channels)


def _transposed(tensors: Weights, stride: int) -> Array:
    """Express a transposed convolution as a convolution of tokens whose outputs are subpixels.

    (K, O, kernel_size, kernel_size) -> (taps, K, O · stride²).
    """
    weight = tensors["weight"]
    in_channels, out_channels, kernel_size, _ = weight.shape
    padding = (kernel_size - stride) // 2
    reach = 1 if padding else 0
    taps = 2 * reach + 1
    result = np.zeros((taps, taps, in_channels, out_channels, stride, stride))
    for i, j, a, b in np.ndindex(taps, taps, stride, stride):
        # pixel stride · y + a depends on token y + i - reach through this row of the kernel
        row, column = a + padding - stride * (i - reach), b + padding - stride * (j - reach)
        if 0 <= row < kernel_size and 0 <= column < kernel_size:
            result[i, j, :, :, a, b] = weight[:, :, row, column]
    return result.reshape(taps * taps, in_channels, -1)


def _dysample(tensors: Weights) -> tuple[Array, Array]:
    """Combine the 1×1 convolutions to offsets, their scopes, and the colors of each group into one.

    Colors are sampled instead of channels: ``end_conv`` is linear and comes before the sampling here.
    """
    offset, scope, last = (tensors[f"{name}.weight"][:, :, 0, 0] for name in ("offset", "scope", "end_conv"))
    colors, in_channels = last.shape
    groups = np.zeros((GROUPS, colors, in_channels))
    for group, channels in enumerate(np.split(np.arange(in_channels), GROUPS)):
        groups[group][:, channels] = last[:, channels]
    taps = np.concatenate([offset * 0.5, scope, groups.reshape(-1, in_channels)]).T[None]
    bias = np.concatenate([tensors["offset.bias"] * 0.5, np.zeros(len(scope) + GROUPS * colors)])
    return taps, bias


def _offsets(weight: Array) -> Array:
    """Repeat the offset convolution of ``lda`` for both groups: (18, channels, 3, 3) -> (9, 2 · channels, 36)."""
    taps = _taps(weight)
    result = np.zeros((9, LDA_GROUPS, taps.shape[1], LDA_GROUPS, taps.shape[2]))
    for group in range(LDA_GROUPS):
        result[:, group, :, group] = taps
    return result.reshape(9, LDA_GROUPS * taps.shape[1], -1)
