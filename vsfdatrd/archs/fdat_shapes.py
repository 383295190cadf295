"""Tensor names and shapes of FDAT-RD and FDAT, and the configuration of an FDAT from them. Needs no torch.

A checkpoint is compared with these shapes before a network is built from it; tests/archs/test_fdat_shapes.py compares
them with the modules themselves.
"""

import math
from collections.abc import Collection, Mapping

from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatFamilyConfig, Kind, common_fields
from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights.files import Entry

type Shape = tuple[int, ...]


def tensor_shapes(config: FdatFamilyConfig) -> dict[str, Shape]:
    """Map the name of every tensor of the network, buffers included, to its shape.

    Args:
        config: The configuration.

    Raises:
        ValueError: The tail is not possible with the widths of the configuration.
    """
    c = config.embed_dim
    first = "conv_first" if config.unshuffle == 1 else "conv_first.1"
    shapes = _conv_shapes(first, config.in_channels * config.unshuffle**2, c)
    for g, kinds in enumerate(config.groups):
        for b, kind in enumerate(kinds):
            shapes |= {f"groups.{g}.blocks.{b}.{name}": shape for name, shape in _block_shapes(config, kind).items()}
        shapes[f"groups.{g}.conv.weight"] = (c, c, 3, 3)
    shapes["conv_after.weight"] = (c, c, 3, 3)
    shapes |= {f"upsampler.{name}": shape for name, (shape, _) in config.tail().items()}
    shapes[META_UPSAMPLE] = (7,)
    return shapes


def check_tensors(config: FdatFamilyConfig, entries: Mapping[str, Entry]) -> None:
    """Compare every tensor of a file with the network.

    Raises:
        ValueError: A tensor is missing, has another shape, holds no floats, or is not part of the network.
    """
    expected = tensor_shapes(config)
    if missing := expected.keys() - entries.keys():
        raise ValueError(f"it is an incomplete {config.name}: it lacks {_join_some(missing)}")
    if extra := entries.keys() - expected.keys():
        raise ValueError(f"it is not a known {config.name}: it also has {_join_some(extra)}")
    for name, shape in expected.items():
        entry = entries[name]
        if entry.shape != shape:
            actual = f"its tensor {name!r} has shape {entry.shape}"
            raise ValueError(f"it contradicts itself: {actual} where the others ask for {shape}")
        if not entry.is_float and name != META_UPSAMPLE:
            raise ValueError(f"it stores {name!r} as {entry.dtype}; convert it to fp16, bf16 or fp32")


def _join_some(names: Collection[str]) -> str:
    first = repr(min(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more tensors"


def _conv_shapes(name: str, inputs: int, outputs: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


def _norm_shapes(name: str, dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _block_shapes(config: FdatFamilyConfig, kind: Kind) -> dict[str, Shape]:
    c, f, gate = config.embed_dim, config.ffn_dim, config.gate_dim
    tokens = math.prod(config.windows[0])
    shapes = _norm_shapes("n1", c) | _norm_shapes("n2", c)
    match kind:
        case "spatial":
            bias = f"attn.{config.windows_bias}"
            shapes |= {bias: (config.heads, tokens, tokens), "attn.qkv.weight": (3 * c, c)}
        case "channel":
            shapes |= {"attn.temp": (config.heads, 1, 1), "attn.qkv.weight": (3 * c, c)}
        case "dictionary":
            shapes |= {"attn.dictionary": (config.dict_tokens, c)} | _norm_shapes("attn.r_norm", c)
            shapes |= {"attn.r_q.weight": (c, c), "attn.r_kv.weight": (2 * c, c)}
            shapes |= {"attn.e_q.weight": (c, c), "attn.e_kv.weight": (2 * c, c)}
    shapes |= {"attn.proj.weight": (c, c), "attn.proj.bias": (c,)}
    if kind != "dictionary":
        shapes |= {"conv.0.weight": (c, 1, 3, 3), "inter.sg.0.weight": (1, c, 1, 1)}
        shapes |= {"inter.cg.1.weight": (gate, c, 1, 1), "inter.cg.3.weight": (c, gate, 1, 1)}
    return shapes | {"ffn.fc1.weight": (f, c), "ffn.smix.weight": (f, 1, 3, 3), "ffn.fc2.weight": (c, f)}


def fdat_config_from_shapes(shapes: Mapping[str, tuple[int, ...]], meta: list[int]) -> FdatConfig | None:
    """Derive the configuration of an FDAT like `fdat_rd.config_from_shapes`.

    Args:
        shapes: Tensor shapes by name.
        meta: (version, upsampler index, tail scale, C, output channels, mid_dim, groups).

    Returns:
        The configuration; None if the tensors are not exactly those of spandrel's FDAT. spandrel may still recognize
        such a file.
    """
    try:
        fields, tokens, _ = common_fields(shapes, meta, FdatConfig.windows_bias)
        if fields["tail_scale"] == 1:
            fields["upsampler"] = "conv"
        config = FdatConfig(**fields, window=math.isqrt(tokens))
        complete = tensor_shapes(config) == dict(shapes)
    except (CheckpointError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return None
    # spandrel unshuffles by 2 or 4, before a tail of 4; all groups are alike
    supported = config.unshuffle == 1 or (config.unshuffle in (2, 4) and config.tail_scale == 4)
    uniform = set(config.groups) == {("spatial", "channel") * (len(config.groups[0]) // 2)}
    return config if complete and supported and uniform else None
