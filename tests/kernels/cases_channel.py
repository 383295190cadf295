"""The kernels of `channel` against NumPy in float64: ordinary frames, frames of one color, and with one odd token."""

from collections.abc import Iterator

import numpy as np

from tests.kernels.cases_tokens import parts_of, tokens_of
from tests.kernels.interpreter import Array, Case, Runner, cdiv, depthwise, gelu, normalized, softmax, stats


def cases() -> Iterator[Case]:
    for kind, channels, precision in (
        ("ordinary", 128, "fp16"),
        ("one color", 96, "fp16"),
        ("odd token", 192, "bf16"),
        ("extreme", 96, "bf16"),
    ):
        yield from matrix(Runner(channels, precision, 1), kind)
    for channels, precision, kind in ((96, "fp16", "extreme"), (128, "fp16", "ordinary"), (192, "bf16", "ordinary")):
        yield from apply_channel(Runner(channels, precision, 2), kind)


def frame(run: Runner, count: int, kind: str) -> Array:
    """Tokens of a frame."""
    if kind in ("ordinary", "extreme"):
        return tokens_of(run, count, kind)
    tokens = np.repeat(run.random(1, run.channels), count, 0)
    if kind == "odd token":
        tokens[0] = run.random(run.channels)
        tokens[1:] = run.rounded(tokens[1:] + run.random(count - 1, run.channels) * 2**-5)
    return tokens


def matrix(run: Runner, kind: str) -> Iterator[Case]:
    c, count, tiles = run.channels, 139, 2
    heads = c // 32
    t = frame(run, count, kind)
    part_tokens = run.constant("second_moment", "ROWS") * tiles
    parts = cdiv(count, part_tokens)
    partial = run.run(
        "second_moment",
        (parts, c // run.constant("second_moment", "BLOCK")),
        {"moments": (parts, c, c), "sums": (parts, c), "references": (parts, c)},
        tokens=t,
        stats=stats(t),
        count=count,
        tiles=tiles,
    )
    side = c // run.constant("merge_moments", "SIDE")
    merged = run.run(
        "merge_moments",
        (side, side),
        {"covariance": (c, c), "mean": (c,)},
        **partial,
        count=count,
        parts=parts,
        part_tokens=part_tokens,
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
    weight, projection, projection_bias = draw((3 * c, c)) * c**-0.5, draw((c, c)) * c**-0.5, draw(c)
    temperature = 1 + 4 * run.generator.random(heads)
    given = {"weight": weight * scale, "shift": weight @ shift, "temperature": temperature, "count": count}
    mixed = run.run("mix_channels", (heads,), {"mixed": (c, c), "mixed_shift": (c,)}, **merged, **given)
    side = c // run.constant("channel_matrix", "SIDE")
    got = run.run(
        "channel_matrix",
        (side, side),
        {"matrix": (c, c), "bias": (c,)},
        **mixed,
        projection=projection,
        projection_bias=projection_bias,
    )
    q, k, _ = ((x * scale + shift) @ weight.T).reshape(count, 3, heads, 32).transpose(1, 2, 3, 0)
    q, k = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    shares = softmax(temperature[:, None, None] * (q @ k.transpose(0, 2, 1)))
    whole = projection @ (shares @ weight[2 * c :].reshape(heads, 32, c)).reshape(c, c)
    yield Case(f"channel_matrix {name}", got["matrix"], (whole * scale).T, 2 * limit)
    yield Case(f"channel_matrix bias {name}", got["bias"], whole @ shift + projection_bias, limit)


def apply_channel(run: Runner, kind: str) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count = height * width
    t = tokens_of(run, count, kind)
    product, bias, gate = run.random(c, c, scale=0.1), run.random(c), run.random(c, scale=0.3)
    weight, scale, shift = run.random(9, c, scale=0.5), 1 + run.random(c, scale=0.3), run.random(c)
    got = run.run(
        "apply_channel",
        (cdiv(count, run.constant("apply_channel", "ROWS")),),
        {"out": (count, c), "out_stats": (count, 2)},
        tokens=t,
        stats=stats(t),
        matrix=product,
        bias=bias,
        weight=weight * scale,
        shift=weight * shift,
        gate=gate,
        height=height,
        width=width,
    )
    x = normalized(t)
    attention = x @ product + bias
    local = gelu(depthwise((x * scale + shift).reshape(height, width, c), weight)).reshape(count, c)
    expected = t + attention + local / (1 + np.exp(-attention @ gate))[:, None]
    name = f"apply_channel {c} {run.precision} {kind}"
    for part, rows in parts_of(kind).items():
        yield Case(f"{name} {part}", got["out"][rows], expected[rows], run.limit)
    yield Case(f"{name} stats", got["out_stats"], stats(got["out"]), 1e-5)
