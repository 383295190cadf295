"""Tensor names and shapes of FDAT-RD and FDAT, and the configuration of an FDAT from them. Needs no torch.

A checkpoint is compared with these shapes before a network is built from it; tests/archs/test_fdat_shapes.py compares
them with the modules themselves.
"""

import math
from collections.abc import Collection, Mapping

from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import GROUPS, META, FdatFamilyConfig, Kind, read_family, steps
from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights.files import Entry

type Shape = tuple[int, ...]

_LDA_REDUCTION, _LDA_GROUPS = 4, 2


def tensor_shapes(config: FdatFamilyConfig) -> dict[str, Shape]:
    """Map the name of every tensor of the network, buffers included, to its shape.

    Args:
        config: The configuration.

    Returns:
        Shapes by name.

    Raises:
        ValueError: The tail is not possible with the widths of the configuration.
    """
    c = config.embed_dim
    first = "conv_first" if config.unshuffle == 1 else "conv_first.1"
    shapes = _conv(first, config.in_channels * config.unshuffle**2, c)
    for g, kinds in enumerate(config.groups):
        for b, kind in enumerate(kinds):
            shapes |= {f"groups.{g}.blocks.{b}.{name}": shape for name, shape in _block(config, kind).items()}
        shapes[f"groups.{g}.conv.weight"] = (c, c, 3, 3)
    shapes["conv_after.weight"] = (c, c, 3, 3)
    shapes |= {f"upsampler.{name}": shape for name, shape in _tail(config).items()}
    shapes[META] = (7,)
    return shapes


def check(config: FdatFamilyConfig, entries: Mapping[str, Entry]) -> None:
    """Compare every tensor of a file with the network.

    Raises:
        ValueError: A tensor is missing, has another shape, holds no floats, or is not part of the network.
    """
    expected = tensor_shapes(config)
    if missing := expected.keys() - entries.keys():
        raise ValueError(f"it is an incomplete {config.name}: it lacks {_some(missing)}")
    if extra := entries.keys() - expected.keys():
        raise ValueError(f"it is no {config.name} that is known here: it also has {_some(extra)}")
    for name, shape in expected.items():
        entry = entries[name]
        if entry.shape != shape:
            found = f"its tensor {name!r} has shape {entry.shape}"
            raise ValueError(f"it contradicts itself: {found} where the others ask for {shape}")
        if not entry.is_float and name != META:
            raise ValueError(f"it stores {name!r} as {entry.dtype}; convert it to fp16, bf16 or fp32")


def _some(names: Collection[str]) -> str:
    first = repr(min(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more tensors"


def _conv(name: str, inputs: int, outputs: int, side: int = 3) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, side, side), f"{name}.bias": (outputs,)}


def _norm(name: str, dim: int) -> dict[str, Shape]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _block(config: FdatFamilyConfig, kind: Kind) -> dict[str, Shape]:
    c, f, gate = config.embed_dim, config.ffn_dim, config.gate_dim
    tokens = math.prod(config.windows[0])
    shapes = _norm("n1", c) | _norm("n2", c)
    match kind:
        case "spatial":
            bias = f"attn.{config.windows_bias}"
            shapes |= {bias: (config.heads, tokens, tokens), "attn.qkv.weight": (3 * c, c)}
        case "channel":
            shapes |= {"attn.temp": (config.heads, 1, 1), "attn.qkv.weight": (3 * c, c)}
        case "dictionary":
            shapes |= {"attn.dictionary": (config.dict_tokens, c)} | _norm("attn.r_norm", c)
            shapes |= {"attn.r_q.weight": (c, c), "attn.r_kv.weight": (2 * c, c)}
            shapes |= {"attn.e_q.weight": (c, c), "attn.e_kv.weight": (2 * c, c)}
    shapes |= {"attn.proj.weight": (c, c), "attn.proj.bias": (c,)}
    if kind != "dictionary":
        shapes |= {"conv.0.weight": (c, 1, 3, 3), "inter.sg.0.weight": (1, c, 1, 1)}
        shapes |= {"inter.cg.1.weight": (gate, c, 1, 1), "inter.cg.3.weight": (c, gate, 1, 1)}
    return shapes | {"ffn.fc1.weight": (f, c), "ffn.smix.weight": (f, 1, 3, 3), "ffn.fc2.weight": (c, f)}


def _tail(config: FdatFamilyConfig) -> dict[str, Shape]:
    """Tensors of the upsampler, named by their index in its `nn.Sequential`."""
    c, m, o, s = config.embed_dim, config.mid_dim, config.out_channels, config.tail_scale
    shapes: dict[str, Shape] = {}
    match "conv" if s == 1 else config.upsampler:
        case "conv":
            if s != 1:
                raise ValueError(f"its tail is a plain convolution, which cannot enlarge {s} times")
            shapes = _conv("0", c, o)
        case "pixelshuffledirect":
            shapes = _conv("0", c, o * s * s)
        case "pixelshuffle":
            factors = steps(s, config.upsampler)
            shapes = _conv("0", c, m)
            for i, factor in enumerate(factors):
                shapes |= _conv(f"{2 + 2 * i}", m, factor * factor * m)
            shapes |= _conv(f"{2 + 2 * len(factors)}", m, o)
        case "nearest+conv":
            count = len(steps(s, config.upsampler))
            for i in range(count):
                shapes |= _conv(f"{3 * i}", c, c)
            shapes |= _conv(f"{3 * count}", c, c) | _conv(f"{3 * count + 2}", c, o)
        case "transpose+conv":
            # ConvTranspose2d weights are (in, out, k, k). Scale 2: 4×4 with stride 2; scale 3: 3×3 with stride 3.
            if s == 4:
                shapes = {"0.weight": (c, c, 4, 4), "0.bias": (c,), "2.weight": (c, o, 4, 4), "2.bias": (o,)}
                shapes |= _conv("3", o, o)
            elif s > 4:
                raise ValueError(f"its tail is a transposed convolution, which cannot enlarge {s} times")
            else:
                side = 4 if s == 2 else 3
                shapes = {"0.weight": (c, o, side, side), "0.bias": (o,)} | _conv("1", o, o)
        case "dysample":
            if m <= GROUPS or m % GROUPS:
                raise ValueError(f"its dysample tail needs a multiple of {GROUPS} channels above {GROUPS}, not {m}")
            i, places = (0 if m == c else 2), 2 * GROUPS * s * s
            shapes = {} if m == c else _conv("0", c, m)
            shapes |= _conv(f"{i}.end_conv", m, o, 1) | _conv(f"{i}.offset", m, places, 1)
            shapes |= {f"{i}.scope.weight": (places, m, 1, 1), f"{i}.init_pos": (1, places, 1, 1)}
        case "lda":
            hidden, part = m // _LDA_REDUCTION, m // (_LDA_REDUCTION * _LDA_GROUPS)
            if not part or m % (_LDA_REDUCTION * _LDA_GROUPS):
                raise ValueError(f"its lda tail needs a multiple of {_LDA_REDUCTION * _LDA_GROUPS} channels, not {m}")
            i = 0 if m == c else 2
            shapes = {} if m == c else _conv("0", c, m)
            shapes |= {f"{i}.proj_q.weight": (hidden, m, 1, 1), f"{i}.proj_k.weight": (hidden, m, 1, 1)}
            shapes |= {f"{i}.conv_offset.0.weight": (part, 1, 3, 3)} | _norm(f"{i}.conv_offset.1", part)
            shapes |= _conv(f"{i}.conv_offset.3", part, 18) | _norm(f"{i}.layer_norm", m)
            shapes |= {f"{i}.relative_position_bias_table": (1, 1, 1, 9, hidden)} | _conv(f"{i + 1}", m, o)
        case "pa_up":
            width, count = c, len(steps(s, config.upsampler))
            for i in range(count):
                shapes |= _conv(f"{6 * i + 1}", width, m) | _conv(f"{6 * i + 2}.conv.0", m, m, 1)
                shapes |= _conv(f"{6 * i + 4}", m, m)
                width = m
            shapes |= _conv(f"{6 * count}", m, o)
    return shapes


def fdat_from_shapes(shapes: Mapping[str, tuple[int, ...]], meta: list[int]) -> FdatConfig | None:
    """Derive the configuration of an FDAT from the tensor shapes and the `MetaUpsample` buffer of a checkpoint.

    Args:
        shapes: Tensor shapes by name.
        meta: (version, upsampler index, tail scale, C, output channels, mid_dim, groups).

    Returns:
        The configuration; None if the tensors are not exactly those of spandrel's FDAT. spandrel may still recognize
        such a file.
    """
    try:
        fields, tokens, _ = read_family(shapes, meta, FdatConfig.windows_bias)
        if fields["tail_scale"] == 1:
            fields["upsampler"] = "conv"
        config = FdatConfig(**fields, window=math.isqrt(tokens))
        same = tensor_shapes(config) == dict(shapes)
    except (CheckpointError, KeyError, ValueError, IndexError, ZeroDivisionError):
        return None
    # spandrel unshuffles by 2 or 4, before a tail of 4; all groups are alike
    known = config.unshuffle == 1 or (config.unshuffle in (2, 4) and config.tail_scale == 4)
    alike = set(config.groups) == {("spatial", "channel") * (len(config.groups[0]) // 2)}
    return config if same and known and alike else None
