"""The kernels of `window_attention` compared with NumPy in float64, with windows both ways round."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, gelu, normalized, softmax, stats
from tests.kernels.random_tokens import tokens_of

WINDOW_TOKENS = 300


def cases() -> Iterator[Case]:
    for channels, precision in ((96, "fp16"), (128, "fp16"), (192, "bf16")):
        yield from norm_qkv(Runner(channels, precision, 1), "extreme" if channels == 96 else "ordinary")
        yield from depthwise_gelu(Runner(channels, precision, 2), "extreme" if channels == 96 else "ordinary")
        yield from pooled_gate(Runner(channels, precision, 3))
    yield from window_attention(Runner(96, "fp16", 1), (10, 30), (20, 30), 30)
    yield from window_attention(Runner(128, "fp16", 2), (30, 10), (30, 20), 1)
    yield from window_attention(Runner(192, "bf16", 3), (10, 30), (10, 30), 1)


def window_order(height: int, width: int, window: tuple[int, int]) -> Array:
    """Tokens' numbers in the order of windows."""
    numbers = np.arange(height * width).reshape(height // window[0], window[0], width // window[1], window[1])
    return numbers.transpose(0, 2, 1, 3).ravel()


def norm_qkv(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width = run.channels, 10, 10
    for window in ((2, 5), (5, 2)):
        t = tokens_of(run, height * width, kind)
        weight, bias = run.random(c, 3 * c, scale=0.1), run.random(3 * c)
        got = run.run(
            "norm_qkv",
            (cdiv(height * width, run.constant("norm_qkv", "BLOCK_ROWS")),),
            {"qkv": (height * width, 3 * c)},
            tokens=t,
            stats=stats(t),
            weight=weight,
            bias=bias,
            height=height,
            width=width,
            window_height=window[0],
            window_width=window[1],
        )
        expected = (normalized(t) @ weight + bias)[window_order(height, width, window)]
        yield Case(f"norm_qkv {c} {run.precision} {window} {kind}", got["qkv"], expected, run.limit)


def depthwise_gelu(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width, tiles = run.channels, 5, 15, 2
    t = tokens_of(run, height * width, kind)
    weight, scale, shift = run.random(9, c, scale=0.5), 1 + run.random(c, scale=0.3), run.random(c)
    parts = cdiv(height * width, run.constant("depthwise_gelu", "BLOCK_ROWS") * tiles)
    got = run.run(
        "depthwise_gelu",
        (parts, c // run.constant("depthwise_gelu", "BLOCK_C")),
        {"conv": (height * width, c), "part_sums": (parts, c)},
        tokens=t,
        stats=stats(t),
        depthwise_weight=weight * scale,
        tap_bias=weight * shift,
        height=height,
        width=width,
        tiles_per_part=tiles,
    )
    maps = (normalized(t) * scale + shift).reshape(height, width, c)
    expected = gelu(depthwise(maps, weight)).reshape(-1, c)
    yield Case(f"depthwise_gelu {c} {run.precision} {kind}", got["conv"], expected, run.limit)
    yield Case(f"depthwise_gelu sums {c} {run.precision} {kind}", got["part_sums"].sum(0), expected.sum(0), 2e-5)


def pooled_gate(run: Runner) -> Iterator[Case]:
    c, parts, count, gate_dim = run.channels, 77, 4321, run.channels // 8
    part_sums = run.generator.standard_normal((parts, c)) * 1000
    reduce_weight, expand_weight = (run.generator.standard_normal(shape) for shape in ((gate_dim, c), (c, gate_dim)))
    got = run.run(
        "pooled_gate",
        (1,),
        {"gate": (c,)},
        part_sums=part_sums,
        reduce_weight=reduce_weight,
        expand_weight=expand_weight,
        num_tokens=count,
        num_parts=parts,
        gate_dim=gate_dim,
    )
    expected = 1 / (1 + np.exp(-expand_weight @ gelu(reduce_weight @ (part_sums.sum(0) / count))))
    yield Case(f"pooled_gate {c}", got["gate"], expected, 1e-5)


def window_attention(run: Runner, window: tuple[int, int], size: tuple[int, int], sharp: float) -> Iterator[Case]:
    """`sharp` multiplies queries: with 30, nearly all of a row's weight is on one key."""
    c, (height, width) = run.channels, size
    count, heads, padded = height * width, c // 32, run.constant("window_attention", "PADDED_TOKENS")
    qkv = run.random(count, 3 * c)
    qkv[:, :c] = run.rounded(qkv[:, :c] * 32**-0.5 * np.log2(np.e) * sharp)
    table = run.generator.standard_normal((heads, WINDOW_TOKENS, WINDOW_TOKENS)) * np.log2(np.e) * sharp
    table = np.asarray(table.astype(np.float16), np.float64)
    position_bias = np.zeros((heads, padded, padded))
    position_bias[:, :WINDOW_TOKENS, :WINDOW_TOKENS] = table
    position_bias[:, :, WINDOW_TOKENS:] = -np.inf
    proj_weight, proj_bias = run.random(c, c, scale=0.1), run.random(c)
    gate, conv, t = run.generator.random(c), run.random(count, c), run.random(count, c)
    got = run.run(
        "window_attention",
        (cdiv(WINDOW_TOKENS, run.constant("window_attention", "BLOCK_QUERIES")), count // WINDOW_TOKENS),
        {"out": (count, c), "out_stats": (count, 2)},
        qkv=qkv,
        position_bias=position_bias,
        proj_weight=proj_weight,
        proj_bias=proj_bias,
        gate=gate,
        conv=conv,
        tokens=t,
        height=height,
        width=width,
        window_height=window[0],
        window_width=window[1],
    )
    # (windows, T, 3, h, d) -> (3, windows, h, T, d)
    q, k, v = qkv.reshape(-1, WINDOW_TOKENS, 3, heads, 32).transpose(2, 0, 3, 1, 4)
    probs = softmax((q @ k.transpose(0, 1, 3, 2) + table) * np.log(2))
    attention = np.empty((count, c))
    attention[window_order(height, width, window)] = (probs @ v).transpose(0, 2, 1, 3).reshape(count, c)
    expected = t + (attention @ proj_weight + proj_bias) * gate + conv
    name = f"window_attention {c} {run.precision} {window} {sharp}"
    yield Case(name, got["out"], expected, run.limit)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)
    # What attention alone added, whose errors the residual hides
    added = got["out"] - t - conv
    yield Case(f"{name} added", added, expected - t - conv, 3 * run.limit)
