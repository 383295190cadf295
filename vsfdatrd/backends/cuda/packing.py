"""Pack the weights of FDAT-RD for the CUDA kernels: layouts, types, and everything that can be computed beforehand.

`tail_packing` packs the weights of the tail.

Kernels compute normalized tokens as (t - mean) / deviation. The norm's weight and bias are folded into the layer after
it. Softmax is computed with powers of two, so log2(e) is folded into queries and window biases. Matrices are stored as
(inputs, outputs). Each function takes the tensors of its module and returns a kernel's constants by the names of its
parameters; the kernels' docstrings define the layouts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from vsfdatrd.graph.weights import Array, Weights
from vsfdatrd.options import Precision

HEAD_DIM = 32
"""Channels of a head; the kernels support no other number."""
LOG2E = math.log2(math.e)
QUERY_FACTOR = LOG2E / math.sqrt(HEAD_DIM)
"""Factor by which queries are scaled."""
type Constants = dict[str, Array]
"""A kernel's constants by the names of its parameters."""


@dataclass(frozen=True, slots=True)
class StoredTypes:
    """Types of the values that a network stores. Sums, statistics and small constants are float32."""

    tokens: np.dtype[Any]
    """Type of tokens and of matrices that are multiplied with tokens."""
    tail: np.dtype[Any]
    """Type of maps and matrices of the tail."""
    position_bias: np.dtype[Any]
    """Type of the position biases in a window."""

    def token_matrix(self, values: Array) -> Array:
        """Convert a matrix that is multiplied with tokens."""
        return convert(values, self.tokens)


_FP16, _FP32 = np.dtype(np.float16), np.dtype(np.float32)
TYPES: Mapping[Precision, StoredTypes] = {
    "fp16": StoredTypes(_FP16, _FP16, _FP16),
    # bf16 has only 8 bits, which would cause banding in the tail. Position biases fit the range of fp16.
    "bf16": StoredTypes(np.dtype(ml_dtypes.bfloat16), _FP32, _FP16),
}
ALL_FLOAT32 = StoredTypes(_FP32, _FP32, _FP32)
"""Everything in float32, for comparing a plan with the network in tests; no kernel is compiled for it."""


def convert(values: Array, dtype: np.dtype[Any]) -> Array:
    """Convert values to a type, as a contiguous array.

    Args:
        values: The values, finite or -inf.
        dtype: A floating point type.

    Raises:
        OverflowError: A finite value becomes infinite.
    """
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(values, dtype)
    lost = np.isinf(result.astype(np.float32)) & np.isfinite(values)
    if lost.any():
        raise OverflowError(f"a weight of {np.abs(values[lost]).max():.3g} is beyond the range of {dtype.name}")
    return result


def to_float32(values: Array) -> Array:
    """Convert values to contiguous float32."""
    return convert(values, _FP32)


# Convolutions


def conv_first(first: Weights, unshuffle: int, multiple: int) -> Constants:
    """Pack the first convolution, with rows padded with zeros to a multiple of `multiple`.

    A pixel unshuffle and a 3×3 kernel are one 3u × 3u kernel with stride u: channel (c, y, x) of the unshuffled image
    at tap (i, j) is pixel (u·i + y, u·j + x) in the large kernel.
    """
    u, weight = unshuffle, first["weight"]
    channels = len(weight)
    rows = weight.reshape(channels, -1, u, u, 3, 3).transpose(0, 1, 4, 2, 5, 3).reshape(channels, -1).T
    return {"weight": to_float32(np.pad(rows, ((0, -len(rows) % multiple), (0, 0)))), "bias": to_float32(first["bias"])}


def conv3x3(weight: Array, types: StoredTypes) -> Constants:
    """Pack a 3×3 convolution: row (3i + j) · C + c belongs to channel c at tap (i, j)."""
    outputs = len(weight)
    return {"weight": types.token_matrix(weight.transpose(2, 3, 1, 0).reshape(-1, outputs))}


# Layers of blocks. `block` are the tensors of a block.


def norm_qkv(block: Weights, types: StoredTypes) -> Constants:
    """Pack the projection of window attention, (C, 3C)."""
    weight = block["attn.qkv.weight"].copy()
    channels = weight.shape[1]
    weight[:channels] *= QUERY_FACTOR
    return _fold_norm(weight, block, "n1", types)


def depthwise_gelu(block: Weights) -> Constants:
    """Pack the depthwise convolution of normalized tokens, (9, C).

    The contribution of the norm's bias is separate, because it is not added for taps outside the map.
    """
    weight = _flatten_depthwise(block["conv.0.weight"])
    return {
        "depthwise_weight": to_float32(weight * block["n1.weight"]),
        "tap_bias": to_float32(weight * block["n1.bias"]),
    }


def pooled_gate(block: Weights) -> Constants:
    """Pack the two layers of the pooled gate, (gate_dim, C) and (C, gate_dim)."""
    reduce, expand = (block[f"inter.cg.{i}.weight"][:, :, 0, 0] for i in (1, 3))
    return {"reduce_weight": to_float32(reduce), "expand_weight": to_float32(expand)}


def window_attention(block: Weights, padded: int, types: StoredTypes) -> Constants:
    """Pack the position biases, padded to (h, padded, padded), and the output projection."""
    bias = block["attn.rel_pos_bias"] * LOG2E
    heads, tokens, _ = bias.shape
    padded_bias = np.zeros((heads, padded, padded))
    padded_bias[:, :, tokens:] = -np.inf  # padding keys
    padded_bias[:, :tokens, :tokens] = bias
    return {"position_bias": convert(padded_bias, types.position_bias)} | _pack_projection(block, types)


def ffn_fc1(block: Weights, part: int, width: int, types: StoredTypes) -> Constants:
    """Pack the first layer of a part of a feed-forward network, (C, F).

    Args:
        block: Tensors of the block.
        part: Number of the part. The last part is padded with hidden channels whose weights are zero.
        width: F, the number of hidden channels in a part.
        types: Types of the buffers.
    """
    return _fold_norm(_pad_hidden_channels(block["ffn.fc1.weight"], part, width), block, "n2", types)


def ffn_smix_fc2(block: Weights, part: int, width: int, types: StoredTypes) -> Constants:
    """Pack the depthwise convolution (9, F) and the second layer (F, C) of a part; see `ffn_fc1`."""
    smix = _flatten_depthwise(_pad_hidden_channels(block["ffn.smix.weight"], part, width))
    return {
        "smix_weight": to_float32(smix),
        "fc2_weight": types.token_matrix(_pad_hidden_channels(block["ffn.fc2.weight"].T, part, width)),
    }


def attend_value_weight(block: Weights) -> Constants:
    """Pack the projection of channel attention, (3C, C), and the temperatures of the heads."""
    weight = block["attn.qkv.weight"]
    return {
        "qkv_weight": to_float32(weight * block["n1.weight"]),
        "qkv_bias": to_float32(weight @ block["n1.bias"]),
        "temperature": to_float32(block["attn.temp"].reshape(-1)),
    }


def channel_attention_matrix(block: Weights) -> Constants:
    """Pack the output projection of channel attention, (outputs, inputs)."""
    return {"proj_weight": to_float32(block["attn.proj.weight"]), "proj_bias": to_float32(block["attn.proj.bias"])}


def apply_channel_attention(block: Weights) -> Constants:
    """Pack the depthwise convolution, as in `depthwise_gelu`, and the gate."""
    return depthwise_gelu(block) | {"gate_weight": to_float32(block["inter.sg.0.weight"].reshape(-1))}


def refine_dictionary_parts(block: Weights, types: StoredTypes) -> Constants:
    """Pack the projections with which the dictionary attends to the frame.

    The queries (h, M, d) depend on weights alone. The bias of the second norm adds a constant to all scores of a query,
    which the softmax cancels. `refine_dictionary` contains its contribution to the values.
    """
    attn = block.below("attn")
    dictionary = attn["dictionary"]
    queries = dictionary @ attn["r_q.weight"].T * QUERY_FACTOR
    queries = queries.reshape(len(dictionary), -1, HEAD_DIM).transpose(1, 0, 2)
    keys, values = np.split(attn["r_kv.weight"] * attn["r_norm.weight"], 2)
    return {
        "norm_weight": to_float32(block["n1.weight"]),
        "norm_bias": to_float32(block["n1.bias"]),
        "queries": types.token_matrix(queries),
        "key_weight": types.token_matrix(keys.T),
        "value_weight": types.token_matrix(values.T),
    }


def refine_dictionary(block: Weights) -> Constants:
    """Pack the learned dictionary (M, C), plus the contribution of the second norm's bias to the values."""
    attn = block.below("attn")
    values = np.split(attn["r_kv.weight"], 2)[1]
    return {"dictionary": to_float32(attn["dictionary"] + values @ attn["r_norm.bias"])}


def dictionary_keys_values(block: Weights) -> Constants:
    """Pack the projection of the refined dictionary to keys and values, (C, 2C)."""
    return {"weight": to_float32(block["attn.e_kv.weight"].T)}


def dictionary_attention(block: Weights, types: StoredTypes) -> Constants:
    """Pack the projections with which tokens attend to the refined dictionary, (C, C)."""
    query = _fold_norm(block["attn.e_q.weight"] * QUERY_FACTOR, block, "n1", types)
    return {"query_weight": query["weight"], "query_bias": query["bias"]} | _pack_projection(block, types)


def _fold_norm(weight: Array, block: Weights, norm: str, types: StoredTypes) -> Constants:
    """Fold weight and bias of a norm into the layer after it, (outputs, inputs)."""
    norm_weight, norm_bias = block[f"{norm}.weight"], block[f"{norm}.bias"]
    return {"weight": types.token_matrix((weight * norm_weight).T), "bias": to_float32(weight @ norm_bias)}


def _pad_hidden_channels(values: Array, part: int, width: int) -> Array:
    """Return a part of the hidden channels (first axis), padded with zeros to `width`."""
    part_values = values[part * width : (part + 1) * width]
    return np.pad(part_values, ((0, width - len(part_values)), *((0, 0),) * (values.ndim - 1)))


def _pack_projection(block: Weights, types: StoredTypes) -> Constants:
    weight, bias = block["attn.proj.weight"], block["attn.proj.bias"]
    return {"proj_weight": types.token_matrix(weight.T), "proj_bias": to_float32(bias)}


def _flatten_depthwise(weight: Array) -> Array:
    """Rearrange the weight of a depthwise convolution: (C, 1, 3, 3) -> (9, C)."""
    return weight.reshape(len(weight), 9).T
