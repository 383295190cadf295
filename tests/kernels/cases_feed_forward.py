"""The kernels of `feed_forward` compared with NumPy in float64, on maps whose sides are not multiples of a tile."""

from collections.abc import Iterator

from tests.kernels.interpreter import Case, Runner, cdiv, depthwise, gelu, normalized, stats
from tests.kernels.random_tokens import tokens_of


def cases() -> Iterator[Case]:
    for channels, precision in ((96, "fp16"), (128, "fp16"), (192, "bf16")):
        yield from ffn_fc1(Runner(channels, precision, 4), "extreme" if channels == 192 else "ordinary")
        yield from ffn_smix_fc2(Runner(channels, precision, 5))


def ffn_fc1(run: Runner, kind: str) -> Iterator[Case]:
    c, count = run.channels, 75
    t = tokens_of(run, count, kind)
    weight, bias = run.random(c, 2 * c, scale=0.2), run.random(2 * c)
    got = run.run(
        "ffn_fc1",
        (cdiv(count, run.constant("ffn_fc1", "BLOCK_ROWS")),),
        {"hidden": (count, 2 * c)},
        tokens=t,
        stats=stats(t),
        weight=weight,
        bias=bias,
        num_tokens=count,
    )
    yield Case(f"ffn_fc1 {c} {run.precision} {kind}", got["hidden"], gelu(normalized(t) @ weight + bias), run.limit)


def ffn_smix_fc2(run: Runner) -> Iterator[Case]:
    c, height, width = run.channels, 5, 9
    count = height * width
    hidden, t = run.random(count, 2 * c), run.random(count, c)
    hidden[3::7] *= 2**11  # as large as fp16 can be, in some places
    smix_weight, fc2_weight = run.random(9, 2 * c, scale=0.3), run.random(2 * c, c, scale=0.05)
    got = run.run(
        "ffn_smix_fc2",
        (cdiv(count, run.constant("ffn_smix_fc2", "BLOCK_ROWS")),),
        {"out": (count, c), "out_stats": (count, 2)},
        hidden=hidden,
        smix_weight=smix_weight,
        fc2_weight=fc2_weight,
        tokens=t,
        height=height,
        width=width,
    )
    expected = t + depthwise(hidden.reshape(height, width, -1), smix_weight).reshape(count, -1) @ fc2_weight
    yield Case(f"ffn_smix_fc2 {c} {run.precision}", got["out"], expected, run.limit)
    yield Case(f"ffn_smix_fc2 stats {c} {run.precision}", got["out_stats"], stats(got["out"]), 1e-5)
