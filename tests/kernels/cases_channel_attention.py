"""The kernels of `channel_attention` compared with NumPy in float64, for frames of one color, too."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, gelu, normalized, softmax, stats
from tests.kernels.random_tokens import parts_of, tokens_of


def cases() -> Iterator[Case]:
    for kind, channels, precision in (
        ("ordinary", 128, "fp16"),
        ("one color", 96, "fp16"),
        ("odd token", 192, "bf16"),
        ("extreme", 96, "bf16"),
    ):
        yield from channel_matrix(Runner(channels, precision, 1), kind)
    for channels, precision, kind in ((96, "fp16", "extreme"), (128, "fp16", "ordinary"), (192, "bf16", "ordinary")):
        yield from apply_channel_attention(Runner(channels, precision, 2), kind)


def tokens_of_frame(run: Runner, count: int, kind: str) -> Array:
    """Tokens of a frame."""
    if kind in ("ordinary", "extreme"):
        return tokens_of(run, count, kind)
    tokens = np.repeat(run.random(1, run.channels), count, 0)
    if kind == "odd token":
        tokens[0] = run.random(run.channels)
        tokens[1:] = run.rounded(tokens[1:] + run.random(count - 1, run.channels) * 2**-5)
    return tokens


def channel_matrix(run: Runner, kind: str) -> Iterator[Case]:
    c, count, tiles = run.channels, 139, 2
    heads = c // 32
    t = tokens_of_frame(run, count, kind)
    tokens_per_part = run.constant("partial_moments", "BLOCK_ROWS") * tiles
    parts = cdiv(count, tokens_per_part)
    partial = run.run(
        "partial_moments",
        (parts, c // run.constant("partial_moments", "BLOCK_C")),
        {"part_moments": (parts, c, c), "part_sums": (parts, c), "part_references": (parts, c)},
        tokens=t,
        stats=stats(t),
        num_tokens=count,
        tiles_per_part=tiles,
    )
    blocks = c // run.constant("merge_moments", "BLOCK_C")
    merged = run.run(
        "merge_moments",
        (blocks, blocks),
        {"covariance": (c, c), "mean": (c,)},
        **partial,
        num_tokens=count,
        num_parts=parts,
        tokens_per_part=tokens_per_part,
    )
    x = normalized(t)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / count
    name = f"{c} {run.precision} {kind}"
    limit = run.limit
    yield Case(f"mean {name}", merged["mean"], mean, limit)
    if kind == "one color":
        assert np.abs(merged["covariance"]).max() < 1e-10
    else:
        yield Case(f"covariance {name}", merged["covariance"], covariance, limit)

    # The matrix of attention that the float64 network would have, from all tokens
    draw = run.generator.standard_normal
    scale, shift = 1 + draw(c) * 0.2, draw(c) * 0.3
    weight, proj_weight, proj_bias = draw((3 * c, c)) * c**-0.5, draw((c, c)) * c**-0.5, draw(c)
    temperature = 1 + 4 * run.generator.random(heads)
    attended = run.run(
        "attend_value_weight",
        (heads,),
        {"attended_weight": (c, c), "attended_bias": (c,)},
        **merged,
        qkv_weight=weight * scale,
        qkv_bias=weight @ shift,
        temperature=temperature,
        num_tokens=count,
    )
    blocks = c // run.constant("channel_attention_matrix", "BLOCK_C")
    got = run.run(
        "channel_attention_matrix",
        (blocks, blocks),
        {"matrix": (c, c), "bias": (c,)},
        **attended,
        proj_weight=proj_weight,
        proj_bias=proj_bias,
    )
    q, k, _ = ((x * scale + shift) @ weight.T).reshape(count, 3, heads, 32).transpose(1, 2, 3, 0)
    q, k = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    probs = softmax(temperature[:, None, None] * (q @ k.transpose(0, 2, 1)))
    whole = proj_weight @ (probs @ weight[2 * c :].reshape(heads, 32, c)).reshape(c, c)
    yield Case(f"channel_attention_matrix {name}", got["matrix"], (whole * scale).T, 2 * limit)
    yield Case(f"channel_attention_matrix bias {name}", got["bias"], whole @ shift + proj_bias, limit)


def apply_channel_attention(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count = height * width
    t = tokens_of(run, count, kind)
    matrix, bias, gate_weight = run.random(c, c, scale=0.1), run.random(c), run.random(c, scale=0.3)
    weight, scale, shift = run.random(9, c, scale=0.5), 1 + run.random(c, scale=0.3), run.random(c)
    got = run.run(
        "apply_channel_attention",
        (cdiv(count, run.constant("apply_channel_attention", "BLOCK_ROWS")),),
        {"out": (count, c), "out_stats": (count, 2)},
        tokens=t,
        stats=stats(t),
        matrix=matrix,
        bias=bias,
        depthwise_weight=weight * scale,
        tap_bias=weight * shift,
        gate_weight=gate_weight,
        height=height,
        width=width,
    )
    x = normalized(t)
    attention = x @ matrix + bias
    conv = gelu(depthwise((x * scale + shift).reshape(height, width, c), weight)).reshape(count, c)
    expected = t + attention + conv / (1 + np.exp(-attention @ gate_weight))[:, None]
    name = f"apply_channel_attention {c} {run.precision} {kind}"
    for part, rows in parts_of(kind).items():
        yield Case(f"{name} {part}", got["out"][rows], expected[rows], run.limit)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)
