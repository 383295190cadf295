"""Random tokens for tests of the kernels."""

from tests.kernels.interpreter import Array, Runner


def tokens_of(run: Runner, count: int, kind: str) -> Array:
    """Random tokens: ordinary ones, or some of every extreme."""
    tokens = run.random(count, run.channels)
    if kind == "extreme":
        tokens[::5] = run.rounded(tokens[::5] * 1e-4)  # below the norm's eps
        tokens[1::5] = run.rounded(tokens[1::5] * 9000)
        tokens[2::5] = run.rounded(20000 + tokens[2::5] * 100)
        tokens[3::5] = 7  # no variance at all
    return tokens


def parts_of(kind: str) -> dict[str, slice]:
    """Parts of the tokens of `tokens_of` that are compared alone, as large tokens would hide the errors of others."""
    return {str(first): slice(first, None, 5) for first in range(5)} if kind == "extreme" else {"": slice(None)}
