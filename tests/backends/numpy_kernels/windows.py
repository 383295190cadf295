"""The kernel of `vsfdatrd.kernels.windows` in NumPy."""

import numpy as np

from tests.backends.numpy_kernels.common import (
    HEAD,
    PLACES,
    Constants,
    Flat,
    Grid,
    covers,
    read,
    softmax2,
    view,
    windows,
    write_tokens,
)


def attend_windows(
    constants: Constants,
    grid: Grid,
    qkv: Flat,
    bias: Flat,
    projection: Flat,
    projection_bias: Flat,
    gate: Flat,
    local: Flat,
    tokens: Flat,
    out: Flat,
    stats: Flat,
    height: int,
    width: int,
    window_height: int,
    window_width: int,
) -> None:
    c, n, h, padded = constants["C"], height * width, constants["C"] // HEAD, constants["PADDED"]
    covers(grid, -(-PLACES // constants["ROWS"]), n // PLACES)
    q, k, v = read(qkv, n // PLACES, PLACES, 3, h, HEAD).transpose(2, 0, 3, 1, 4)
    places = read(bias, h, padded, padded)
    assert (places[:, :PLACES, PLACES:] == -np.inf).all(), "keys that are not there are attended to"
    shares = softmax2(q @ k.transpose(0, 1, 3, 2) + places[:, :PLACES, :PLACES])
    attention = (shares @ v).transpose(0, 2, 1, 3).reshape(n, c)
    values = attention @ read(projection, c, c) + view(projection_bias, c)
    values = windows(values, height, width, window_height, window_width, back=True) * view(gate, c)
    write_tokens(read(tokens, n, c) + values + read(local, n, c), out, stats)
