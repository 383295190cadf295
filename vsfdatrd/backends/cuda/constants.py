"""The constants of a plan: every kernel's packed weights, and their places in one block of memory."""

from collections.abc import Mapping
from dataclasses import dataclass

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda import packing
from vsfdatrd.backends.cuda.arena import aligned
from vsfdatrd.backends.cuda.packing import Types
from vsfdatrd.backends.cuda.plan import Constant, Kernels, Launch, Plan
from vsfdatrd.graph.weights import Array, Weights


@dataclass(frozen=True, slots=True)
class ConstantBlock:
    """Constants and their places in a block of memory."""

    arrays: Mapping[Constant, Array]
    offsets: Mapping[Constant, int]
    """Bytes."""
    size: int
    """Bytes of the block."""


def pack_constants(plan: Plan, config: FdatRdConfig, weights: Weights, kernels: Kernels, types: Types) -> ConstantBlock:
    """Pack the weights for the launches of a plan.

    Args:
        plan: The plan.
        config: The network.
        weights: All its tensors.
        kernels: Compile-time constants of the kernels.
        types: Types of the buffers.

    Returns:
        The constants of the plan.

    Raises:
        OverflowError: A weight is beyond the range of its type.
    """
    arrays: dict[Constant, Array] = {}
    for launch in plan.launches:
        names = _names(launch)
        if not names:
            continue
        packed = _pack(launch, config, weights.below(launch.module), kernels, types)
        if packed.keys() != names:
            raise ValueError(f"{launch.kernel} takes {sorted(names)}, not {sorted(packed)}")
        arrays |= {Constant(launch.module, launch.kernel, name): array for name, array in packed.items()}
    offsets, end = {}, 0
    for constant, array in arrays.items():
        offsets[constant] = end
        end += aligned(array.nbytes)
    return ConstantBlock(arrays, offsets, end)


def _names(launch: Launch) -> set[str]:
    return {argument.name for argument in launch.arguments if isinstance(argument, Constant)}


def _pack(launch: Launch, config: FdatRdConfig, tensors: Weights, kernels: Kernels, types: Types) -> packing.Constants:
    """Pack the constants of one launch from the tensors of its module."""
    tiles = kernels[launch.kernel]
    match launch.kernel:
        case "first_convolution":
            return packing.first_convolution(tensors, config.unshuffle, tiles["DEPTH"])
        case "convolve_group" | "convolve_after":
            return packing.convolution(tensors["weight"], types)
        case "spread":
            return packing.spread(tensors, zero_branches.used_channels(tensors), tiles["COLUMNS"], types)
        case "gather":
            return packing.gather(tensors)
        case "norm_qkv":
            return packing.norm_qkv(tensors, types)
        case "mix_local":
            return packing.mix_local(tensors)
        case "gate_pool":
            return packing.gate_pool(tensors)
        case "attend_windows":
            return packing.attend_windows(tensors, tiles["PADDED"], types)
        case "feed_in":
            return packing.feed_in(tensors, types)
        case "feed_out":
            return packing.feed_out(tensors, types)
        case "mix_channels":
            return packing.mix_channels(tensors)
        case "channel_matrix":
            return packing.channel_matrix(tensors)
        case "apply_channel":
            return packing.apply_channel(tensors)
        case "read_frame":
            return packing.read_frame(tensors, types)
        case "join_words":
            return packing.join_words(tensors)
        case "refine_words":
            return packing.refine_words(tensors)
        case "consult_words":
            return packing.consult_words(tensors, types)
    raise ValueError(f"{launch.kernel} has no constants")
