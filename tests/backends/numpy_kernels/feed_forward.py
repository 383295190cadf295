"""The kernels of `vsfdatrd.kernels.feed_forward` in NumPy."""

from tests.backends.numpy_kernels.common import (
    Constants,
    Flat,
    Grid,
    assert_grid,
    depthwise,
    gelu,
    normalized,
    read,
    view,
    write_tokens,
)


def ffn_fc1(
    constants: Constants, grid: Grid, tokens: Flat, stats: Flat, weight: Flat, bias: Flat, hidden: Flat, num_tokens: int
) -> None:
    c, f = constants["C"], 2 * constants["C"]
    assert_grid(grid, -(-num_tokens // constants["BLOCK_ROWS"]))
    values = normalized(tokens, stats, num_tokens, c) @ read(weight, c, f) + view(bias, f)
    view(hidden, num_tokens, f)[:] = gelu(values)


def ffn_smix_fc2(
    constants: Constants,
    grid: Grid,
    hidden: Flat,
    smix_weight: Flat,
    fc2_weight: Flat,
    tokens: Flat,
    out: Flat,
    out_stats: Flat,
    height: int,
    width: int,
) -> None:
    c, f, n = constants["C"], 2 * constants["C"], height * width
    assert_grid(grid, -(-n // constants["BLOCK_ROWS"]))
    mixed = depthwise(read(hidden, n, f), view(smix_weight, 9, f), None, height, width)
    write_tokens(mixed @ read(fc2_weight, f, c) + read(tokens, n, c), out, out_stats)
