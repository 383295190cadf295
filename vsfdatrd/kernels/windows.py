"""Attention inside windows, with its projection, the gate, the local branch and the residual."""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import add_product, load_block, store_tokens, zeros


@triton.jit
def attend_windows(
    qkv,
    bias,
    projection,
    projection_bias,
    gate,
    local,
    tokens,
    out,
    stats,
    height,
    width,
    window_height,
    window_width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    PLACES: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    """tokens + (attention @ projection + projection_bias) · gate + local, for ROWS queries of a window and all heads.

    qkv (N, 3C) is in the order of windows, with queries scaled by log2(e) / √32. bias (heads, PADDED, PADDED), fp16, is
    scaled by log2(e), and -inf for keys that a window of PLACES tokens does not have.
    """
    window = tl.program_id(1)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < PLACES
    lanes = tl.arange(0, 32)
    base = qkv + window * (PLACES * 3 * C)
    sums = zeros(ROWS, C, BLOCK)
    for head in range(C // 32):
        channels = head * 32 + lanes
        queries = tl.load(base + rows[:, None] * (3 * C) + channels[None, :], mask=inside[:, None], other=0.0)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        found = tl.zeros((ROWS, 32), tl.float32)
        for start in range(0, PLACES, KEYS):
            places = start + tl.arange(0, KEYS)
            present = (places < PLACES)[:, None]
            at = base + places[:, None] * (3 * C) + channels[None, :]
            keys = tl.load(at + C, mask=present, other=0.0)
            values = tl.load(at + 2 * C, mask=present, other=0.0)
            scores = tl.load(bias + (head * PADDED + rows[:, None]) * PADDED + places[None, :]).to(tl.float32)
            scores = tl.dot(queries, tl.trans(keys), scores)
            highest = tl.maximum(top, tl.max(scores, 1))
            shares = tl.exp2(scores - highest[:, None])
            factor = tl.exp2(top - highest)
            total = total * factor + tl.sum(shares, 1)
            found = tl.dot(shares.to(values.dtype), values, found * factor[:, None])
            top = highest
        attention = (found / total[:, None]).to(projection.dtype.element_ty)
        sums = add_product(sums, attention, projection, channels, C, BLOCK)

    across = width // window_width
    y = window // across * window_height + rows // window_width
    x = window % across * window_width + rows % window_width
    places = y * width + x
    results = ()
    for j in tl.static_range(C // BLOCK):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        gated = (sums[j] + tl.load(projection_bias + columns)[None, :]) * tl.load(gate + columns)[None, :]
        gated += load_block(local, places, inside, j, C, BLOCK)
        results = results + (gated + load_block(tokens, places, inside, j, C, BLOCK),)
    store_tokens(results, out, stats, places, inside, C, BLOCK)
