"""FDAT-RD configuration. Needs neither torch nor the weights.

A configuration comes from a variant's name (`variant_config`) or from the tensor shapes of a checkpoint
(`config_from_shapes`). Both the PyTorch module (`nn.fdat_rd`) and the ONNX graph (`vsfdatrd.graph`) are built from it.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.archs.upsamplers import UPSAMPLERS, TailTensors, Upsampler, tail_tensors
from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights.state_dicts import META_UPSAMPLE as META_UPSAMPLE

type Kind = Literal["spatial", "channel", "dictionary"]
WINDOW = (10, 30)
"""Attention window, height × width in tokens; every second spatial block uses it transposed (30, 10)."""

_VARIANTS = {
    # name: (embed_dim, heads, groups, dictionary tokens)
    "small": (96, 3, 4, 64),
    "medium": (128, 4, 4, 128),
    "large": (192, 6, 6, 256),
}
VARIANTS = (*_VARIANTS, "aligned")
"""Names that `variant_config` accepts; ``aligned`` is an alias of ``medium``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FdatFamilyConfig(NetworkConfig):
    """Hyper-parameters that FDAT-RD shares with its predecessor FDAT."""

    embed_dim: int
    """Embedding dimension C (channels of a token)."""
    heads: int
    """Number of attention heads; each has C / heads channels."""
    groups: tuple[tuple[Kind, ...], ...]
    """Block kinds of every residual group, in order."""
    ffn_dim: int
    """Hidden width of the feed-forward networks."""
    gate_dim: int
    """Hidden width of the pooled gate in spatial blocks."""
    upsampler: Upsampler
    """The tail, which turns tokens into pixels."""
    tail_scale: int
    """Upscaling factor of the tail, from the token map to the output."""
    unshuffle: int
    """Factor u of the pixel unshuffle before the first convolution; 1 for none."""
    mid_dim: int = 64
    """Inner channels of the tails that have an inner width."""
    in_channels: int = 3
    out_channels: int = 3

    graph_name: ClassVar[str]
    """Name of the ONNX graph."""
    windows_bias: ClassVar[str]
    """Tensor name of the relative position bias in spatial attention."""

    if TYPE_CHECKING:  # see `NetworkConfig`

        @property
        def dict_tokens(self) -> int:
            """Number of dictionary tokens M; 0 without dictionary blocks."""

        @property
        def multiple(self) -> int:
            """Height and width of the input are padded to a multiple of this, in pixels."""

        @property
        def windows(self) -> tuple[tuple[int, int], ...]:
            """Attention windows (height, width) in tokens; spatial blocks cycle through them."""

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each side."""
        return self.tail_scale // self.unshuffle

    @property
    def size(self) -> SizeRequirements:
        """Size requirements of the input."""
        return SizeRequirements(self.multiple)

    @property
    def cell(self) -> int:
        """Side in pixels of a token."""
        return self.unshuffle

    @property
    def blocks(self) -> int:
        """Total number of blocks in all groups."""
        return sum(map(len, self.groups))

    @property
    def largest_in_tail(self) -> int:
        """Elements of the largest tensor of the tail, per token."""
        sampled = 9 * self.mid_dim * self.tail_scale**2 if self.upsampler == "lda" else 0  # nine positions per pixel
        return max(self.embed_dim, sampled, *(max(shape[:2]) * pixels for shape, pixels in self.tail().values()))

    def tail(self) -> TailTensors:
        """List the tensors of the tail; see `upsamplers.tail_tensors`."""
        return tail_tensors(self.upsampler, self.embed_dim, self.mid_dim, self.out_channels, self.tail_scale)

    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        """See `NetworkConfig.peak_values_per_pixel`. The tail runs after everything else has ended."""
        per_token = (self._body_activations(), {f"tail.{self.upsampler}": self.largest_in_tail})
        return tuple({kind: n / self.unshuffle**2 for kind, n in moment.items()} for moment in per_token)

    def _body_activations(self) -> Mapping[str, int]:
        """Values before the tail, by kind, per token."""
        raise NotImplementedError

    def info(self) -> dict[str, Any]:
        """See `NetworkConfig.info`."""
        first = self.groups[0]
        uniform = all(group == first for group in self.groups)
        return {
            "embed_dim": self.embed_dim,
            "heads": self.heads,
            "groups": len(self.groups),
            "blocks of a group": " ".join(first) if uniform else "; ".join(" ".join(group) for group in self.groups),
            "window": ", ".join(f"{height}×{width}" for height, width in self.windows),
            "dictionary tokens": self.dict_tokens,
            "ffn width": self.ffn_dim,
            "upsampler": self.upsampler,
            "unshuffle": self.unshuffle,
            "mid_dim": self.mid_dim,
        }

    def constant_bytes(self, height: int, width: int) -> int:
        """Count the bytes of the table of sampling positions of DySample and LDA tails; 0 for other tails."""
        offsets_per_pixel = {"dysample": 8, "lda": 18} if self.tail_scale > 1 else {}
        output_height, output_width = (side * self.scale for side in self.size.padded(height, width))
        return 4 * offsets_per_pixel.get(self.upsampler, 0) * output_height * output_width


@dataclass(frozen=True, slots=True, kw_only=True)
class FdatRdConfig(FdatFamilyConfig):
    """Hyper-parameters that determine the tensors of an FDAT-RD."""

    dict_tokens: int
    """Number of dictionary tokens M; 0 without dictionary blocks."""

    name: ClassVar[str] = "FDAT-RD"
    graph_name: ClassVar[str] = "fdat_rd"
    windows_bias: ClassVar[str] = "rel_pos_bias"

    @property
    def multiple(self) -> int:
        """Height and width of the input are padded to a multiple of this, in pixels."""
        return self.unshuffle * math.lcm(*WINDOW)

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Attention windows (height, width) in tokens; spatial blocks cycle through them."""
        return (WINDOW, WINDOW[::-1])

    @property
    def period(self) -> int:
        """See `NetworkConfig.period`: frames are padded to whole windows."""
        return self.multiple

    def _body_activations(self) -> Mapping[str, int]:
        """See `FdatFamilyConfig`: channels of the feed-forward network, and scores of the dictionary's attention."""
        return {"fdat_rd.ffn": self.ffn_dim, "fdat_rd.scores": self.heads * self.dict_tokens}

    def flops(self, height: int, width: int) -> float:
        """Estimate the cost of one frame, padding included.

        Counts matrix products, convolutions and attention; element-wise operations, under 2 %, are ignored.

        Args:
            height: Height of the input in pixels.
            width: Width of the input in pixels.
        """
        p, c, f = self.multiple, self.embed_dim, self.ffn_dim
        n = math.ceil(height / p) * math.ceil(width / p) * p * p / self.unshuffle**2
        head, window = c // self.heads, math.prod(WINDOW)
        conv = 9 * c * c
        ffn = 2 * c * f + 9 * f
        per_token = {
            "spatial": 4 * c * c + 2 * window * c + 9 * c + ffn,
            "channel": 4 * c * c + 2 * head * c + 9 * c + ffn,
            # in order: x -> k, v of the refinement; x -> q; both attentions over M tokens; proj
            "dictionary": 2 * c * c + c * c + 4 * self.dict_tokens * c + c * c + ffn,
        }
        macs = 9 * self.in_channels * self.unshuffle**2 * c + conv
        macs += sum(sum(per_token[kind] for kind in group) + conv for group in self.groups)
        macs += sum(math.prod(shape) * pixels for shape, pixels in self.tail().values())
        macs += {"dysample": 4, "lda": 45}.get(self.upsampler, 0) * self.mid_dim * self.tail_scale**2  # sampling
        return 2 * n * macs


def variant_config(
    name: str,
    *,
    scale: int = 2,
    unshuffle_mod: bool = True,
    upsampler: Upsampler = "transpose+conv",
) -> FdatRdConfig:
    """Build the configuration of a published variant.

    Args:
        name: One of `VARIANTS`.
        scale: Output pixels per input pixel along each side, 1 to 4.
        unshuffle_mod: Apply a pixel unshuffle first if `scale` is 1 or 2, so that the network processes a sixteenth or
            a quarter of the tokens.
        upsampler: The tail.

    Raises:
        ValueError: Unknown name, or a scale outside 1 to 4.
    """
    key = "medium" if name == "aligned" else name
    if key not in _VARIANTS:
        raise ValueError(f"{name!r} is not an FDAT-RD variant; choose one of {', '.join(VARIANTS)}")
    if scale not in (1, 2, 3, 4):
        raise ValueError(f"scale {scale} is not possible: FDAT-RD enlarges 1, 2, 3 or 4 times")
    c, heads, groups, tokens = _VARIANTS[key]
    unshuffle = 4 // scale if unshuffle_mod and scale < 3 else 1
    tail_scale = scale * unshuffle
    return FdatRdConfig(
        embed_dim=c,
        heads=heads,
        groups=(("spatial", "channel", "dictionary") * 2,) * groups,
        dict_tokens=tokens,
        ffn_dim=2 * c,
        gate_dim=c // 8,
        upsampler="conv" if tail_scale == 1 else upsampler,
        tail_scale=tail_scale,
        unshuffle=unshuffle,
    )


def blocks_with_windows(
    groups: Iterable[tuple[Kind, ...]], windows: Iterable[tuple[int, int]]
) -> list[list[tuple[Kind, tuple[int, int]]]]:
    """Assign an attention window to every block.

    The windows (height, width), in tokens, advance after every spatial block, across group boundaries.

    Args:
        groups: Block kinds of every group.
        windows: Windows (height, width) in tokens to cycle through.

    Returns:
        Kind and window of every block, by group.
    """
    turn = cycle(windows)
    window = next(turn)
    result: list[list[tuple[Kind, tuple[int, int]]]] = []
    for kinds in groups:
        result.append([])
        for kind in kinds:
            result[-1].append((kind, window))
            window = next(turn) if kind == "spatial" else window
    return result


def default_drop_path(name: str) -> float:
    """Return the stochastic depth (drop path) rate that a variant, one of `VARIANTS`, is trained with.

    Args:
        name: One of `VARIANTS`.
    """
    return 0.15 if name == "large" else 0.1


def is_fdat_rd(names: Collection[str]) -> bool:
    """Return whether tensors with these names belong to an FDAT-RD.

    FDAT, its predecessor, has the same layout, but calls the window bias ``attn.bias`` and has no dictionary.
    """
    attention_tensors = {name.rpartition(".attn.")[2] for name in names if ".attn." in name}
    return (
        META_UPSAMPLE in names
        and "bias" not in attention_tensors
        and not attention_tensors.isdisjoint({"dictionary", "rel_pos_bias", "temp"})
    )


def config_from_shapes(shapes: Mapping[str, tuple[int, ...]], meta: list[int]) -> FdatRdConfig:
    """Derive the configuration from the tensor shapes and the ``MetaUpsample`` buffer of a checkpoint.

    Args:
        shapes: Tensor shapes by name.
        meta: (version, upsampler index, tail scale, C, output channels, mid_dim, groups).

    Raises:
        CheckpointError: A tensor is missing, or the shapes contradict each other. The message does not contain the file
            name.
    """
    if len(meta) != 7 or meta[0] != 3 or meta[1] >= len(UPSAMPLERS) or not 1 <= meta[2] <= 4:
        raise CheckpointError(f"its {META_UPSAMPLE} is {meta}, which no known FDAT-RD writes")
    common, tokens, dict_tokens = common_fields(shapes, meta, FdatRdConfig.windows_bias)
    if tokens not in (0, math.prod(WINDOW)):
        raise CheckpointError(f"its attention windows hold {tokens} tokens, FDAT-RD's hold 300")
    return FdatRdConfig(**common, dict_tokens=dict_tokens)


def common_fields(shapes: Mapping[str, tuple[int, ...]], meta: list[int], bias: str) -> tuple[dict[str, Any], int, int]:
    """Derive what FDAT and FDAT-RD have in common, like `config_from_shapes`.

    Returns:
        Fields of `FdatFamilyConfig`, tokens of an attention window (0 without windows), and dictionary tokens.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        dims = shapes.get(name)
        if dims is None:
            raise CheckpointError(f"it looks like FDAT-RD but has no tensor {name!r}; the file is incomplete")
        if len(dims) != rank:
            raise CheckpointError(f"tensor {name!r} has shape {dims} where FDAT-RD has {rank} dimensions")
        return dims

    _, index, tail_scale, _, out_channels, mid_dim, _ = meta
    unshuffled = "conv_first.1.weight" in shapes
    embed_dim, first_in, *_ = shape("conv_first.1.weight" if unshuffled else "conv_first.weight", 4)
    unshuffle = math.isqrt(first_in // out_channels) if unshuffled else 1
    in_channels = first_in // unshuffle**2 if unshuffle else 0
    if not unshuffle or in_channels * unshuffle**2 != first_in or tail_scale % unshuffle:
        raise CheckpointError(f"its first convolution takes {first_in} channels, which fits no unshuffle factor")

    numbers = {name.split(".")[1] for name in shapes if name.startswith("groups.")}
    groups: list[tuple[Kind, ...]] = []
    heads = tokens = dict_tokens = ffn_dim = gate_dim = 0
    while str(len(groups)) in numbers:
        kinds: list[Kind] = []
        while f"{(prefix := f'groups.{len(groups)}.blocks.{len(kinds)}')}.n1.weight" in shapes:
            ffn_dim = shape(f"{prefix}.ffn.fc1.weight", 2)[0]
            if f"{prefix}.attn.{bias}" in shapes:
                kinds.append("spatial")
                heads, tokens, _ = shape(f"{prefix}.attn.{bias}", 3)
            elif f"{prefix}.attn.temp" in shapes:
                kinds.append("channel")
                heads = shape(f"{prefix}.attn.temp", 3)[0]
            elif f"{prefix}.attn.dictionary" in shapes:
                kinds.append("dictionary")
                dict_tokens = shape(f"{prefix}.attn.dictionary", 2)[0]
            else:
                raise CheckpointError(f"block {prefix!r} is of an unknown kind; the file is incomplete")
            if kinds[-1] != "dictionary":
                gate_dim = shape(f"{prefix}.inter.cg.1.weight", 4)[0]
        if not kinds:
            raise CheckpointError(f"group {len(groups)} has no blocks; the file is incomplete")
        groups.append(tuple(kinds))
    if not groups:
        raise CheckpointError("it has no residual groups; the file is incomplete")
    heads = heads or max(1, embed_dim // 32)  # with dictionary blocks only, no tensor reveals the number of heads
    if embed_dim % heads:
        raise CheckpointError(f"{embed_dim} channels cannot be split over {heads} heads")
    fields = {
        "embed_dim": embed_dim,
        "heads": heads,
        "groups": tuple(groups),
        "ffn_dim": ffn_dim,
        "gate_dim": gate_dim,
        "upsampler": UPSAMPLERS[index],
        "tail_scale": tail_scale,
        "unshuffle": unshuffle,
        "mid_dim": mid_dim,
        "in_channels": in_channels,
        "out_channels": out_channels,
    }
    return fields, tokens, dict_tokens
