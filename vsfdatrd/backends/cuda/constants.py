"""The constants of a plan: every kernel's packed weights, and their offsets in one block of memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda import packing, tail_packing
from vsfdatrd.backends.cuda.arena import align_up
from vsfdatrd.backends.cuda.packing import StoredTypes
from vsfdatrd.backends.cuda.plan import FFN_EXPANSION, Constant, Launch, Plan, TileSizes
from vsfdatrd.graph.weights import Array, Weights


@dataclass(frozen=True, slots=True)
class ConstantBlock:
    """Constants and their offsets in a block of memory."""

    arrays: Mapping[Constant, Array]
    offsets: Mapping[Constant, int]
    """Offsets in bytes."""
    size: int
    """Size of the block in bytes."""


def pack_constants(
    plan: Plan, config: FdatRdConfig, weights: Weights, tile_sizes: TileSizes, types: StoredTypes
) -> ConstantBlock:
    """Pack the weights of a network for the launches of a plan.

    Args:
        plan: The plan.
        config: The network.
        weights: All its tensors.
        tile_sizes: Tile sizes of each kernel; see `plan.TileSizes`.
        types: Types of the buffers.

    Raises:
        OverflowError: A weight exceeds the range of its type.
    """
    arrays: dict[Constant, Array] = {}
    for launch in plan.launches:
        names = {argument.name for argument in launch.arguments if isinstance(argument, Constant)}
        if not names:
            continue
        packed = _pack_launch(launch, config, weights.below(launch.module), tile_sizes, types)
        if packed.keys() != names:
            raise ValueError(f"{launch.kernel} takes {sorted(names)}, not {sorted(packed)}")
        for name, array in packed.items():
            arrays[Constant(launch.module, launch.kernel, name, launch.part)] = array
    ends = list(accumulate((align_up(array.nbytes) for array in arrays.values()), initial=0))
    return ConstantBlock(arrays, dict(zip(arrays, ends, strict=False)), ends[-1])


def _pack_launch(
    launch: Launch, config: FdatRdConfig, tensors: Weights, tile_sizes: TileSizes, types: StoredTypes
) -> packing.Constants:
    """Pack the constants of one launch from the tensors of its module."""
    tiles, ffn_width = tile_sizes[launch.kernel], FFN_EXPANSION * config.embed_dim
    match launch.kernel:
        case "conv_first":
            return packing.conv_first(tensors, config.unshuffle, tiles["BLOCK_K"])
        case "conv_group" | "conv_after":
            return packing.conv3x3(tensors["weight"], types)
        case "window_attention":
            return packing.window_attention(tensors, tiles["PADDED_TOKENS"], types)
        case "ffn_fc1":
            return packing.ffn_fc1(tensors, launch.part, ffn_width, types)
        case "ffn_smix_fc2":
            return packing.ffn_smix_fc2(tensors, launch.part, ffn_width, types)
        case kernel if kernel in tail_packing.TAIL_KERNELS:
            return tail_packing.pack_tail(launch, config, tensors, tile_sizes, types)
        case kernel if kernel in _WITH_TYPES:
            return _WITH_TYPES[kernel](tensors, types)
        case kernel if kernel in _IN_FLOAT32:
            return _IN_FLOAT32[kernel](tensors)
    raise ValueError(f"{launch.kernel} has no constants")


_WITH_TYPES: dict[str, Callable[[Weights, StoredTypes], packing.Constants]] = {
    function.__name__: function
    for function in (packing.norm_qkv, packing.refine_dictionary_parts, packing.dictionary_attention)
}
_IN_FLOAT32: dict[str, Callable[[Weights], packing.Constants]] = {
    function.__name__: function
    for function in (
        *(packing.depthwise_gelu, packing.pooled_gate, packing.attend_value_weight),
        *(packing.channel_attention_matrix, packing.apply_channel_attention),
        *(packing.refine_dictionary, packing.dictionary_keys_values),
    )
}
"""Functions that pack the constants of the kernel of the same name."""
