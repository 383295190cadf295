"""Attention between channels, folded into one C × C matrix of the frame.

With S the second moment of the normalized tokens, the products of queries and keys of a head are Wq S Wkᵀ, and the
branch is one product of the tokens with Wproj · blockdiag(A) · Wv. S is split into the tokens' mean and the moment
about it: in a frame of one color, the mean is everything, and would cancel in the products of S.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import (
    load_block,
    load_normalized,
    load_stats,
    mix_block,
    multiply,
    sigmoid,
    store_tokens,
    zeros,
)


@triton.jit
def second_moment(
    tokens,
    stats,
    moments,
    sums,
    references,
    count,
    tiles,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Second moments of the normalized tokens by parts of `tiles` times ROWS tokens, about the first token of the part.

    moments (parts, C, C), of which a program computes BLOCK rows; sums of the differences to the reference, and the
    reference, (parts, C) each.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    first = part * tiles * ROWS + tl.arange(0, 1)
    first_mean, first_rstd = load_stats(stats, first, first < count)
    start = ()
    for j in tl.static_range(C // BLOCK):
        reference = load_block(tokens, first, first < count, j, C, BLOCK) - first_mean[:, None]
        start = start + (reference * first_rstd[:, None],)
    own = load_block(tokens, first, first < count, block, C, BLOCK) - first_mean[:, None]
    own = own * first_rstd[:, None]
    total = zeros(BLOCK, C, BLOCK)
    difference = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = rows < count
        mean, rstd = load_stats(stats, rows, inside)
        x = (load_block(tokens, rows, inside, block, C, BLOCK) - mean[:, None]) * rstd[:, None]
        x = tl.where(inside[:, None], x - own, 0.0).to(tokens.dtype.element_ty)
        difference += tl.sum(x.to(tl.float32), 0)
        turned = tl.trans(x)
        added = ()
        for j in tl.static_range(C // BLOCK):
            other = (load_block(tokens, rows, inside, j, C, BLOCK) - mean[:, None]) * rstd[:, None]
            other = tl.where(inside[:, None], other - start[j], 0.0).to(tokens.dtype.element_ty)
            added = added + (tl.dot(turned, other, total[j]),)
        total = added
    channels = block * BLOCK + tl.arange(0, BLOCK)
    for j in tl.static_range(C // BLOCK):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        tl.store(moments + (part * C + channels[:, None]) * C + columns[None, :], total[j])
    tl.store(sums + part * C + channels, difference)
    tl.store(references + part * C + channels, tl.sum(own, 0))


@triton.jit
def merge_moments(
    moments,
    sums,
    references,
    covariance,
    mean,
    count,
    parts,
    part_tokens,
    C: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Join the parts of `second_moment`: the mean (C) of all tokens, and the second moment about it over N (C, C)."""
    channels = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    mean_rows = tl.zeros((SIDE,), tl.float32)
    mean_columns = tl.zeros((SIDE,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        present = (part < parts)[:, None]
        share = tl.minimum(part_tokens, count - part * part_tokens).to(tl.float32)[:, None] / count
        at = part[:, None] * C + channels[None, :]
        reference = tl.load(references + at, mask=present, other=0.0)
        mean_rows += tl.sum(reference * share + tl.load(sums + at, mask=present, other=0.0) / count, 0)
        at = part[:, None] * C + columns[None, :]
        reference = tl.load(references + at, mask=present, other=0.0)
        mean_columns += tl.sum(reference * share + tl.load(sums + at, mask=present, other=0.0) / count, 0)
    total = tl.zeros((SIDE, SIDE), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        present = (part < parts)[:, None]
        share = tl.minimum(part_tokens, count - part * part_tokens).to(tl.float32)[:, None] / count
        at = part[:, None] * C + channels[None, :]
        sum_rows = tl.load(sums + at, mask=present, other=0.0) / count
        row = tl.where(present, tl.load(references + at, mask=present, other=0.0) - mean_rows[None, :], 0.0)
        at = part[:, None] * C + columns[None, :]
        sum_columns = tl.load(sums + at, mask=present, other=0.0) / count
        column = tl.where(present, tl.load(references + at, mask=present, other=0.0) - mean_columns[None, :], 0.0)
        at = (part[:, None, None] * C + channels[None, :, None]) * C + columns[None, None, :]
        moment = tl.load(moments + at, mask=present[:, :, None], other=0.0) / count
        # About the mean instead of the reference, at a distance d: moment + s dᵀ + d sᵀ + n d dᵀ, for n tokens of sum s
        moment += sum_rows[:, :, None] * column[:, None, :]
        moment += row[:, :, None] * (sum_columns + share * column)[:, None, :]
        total += tl.sum(moment, 0)
    tl.store(covariance + channels[:, None] * C + columns[None, :], total)
    if tl.program_id(1) == 0:
        tl.store(mean + channels, mean_rows)


@triton.jit
def mix_channels(
    covariance,
    mean,
    weight,
    shift,
    temperature,
    mixed,
    mixed_shift,
    count,
    C: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Softmax of a head's products, times its value weights: 32 rows of `mixed` (C, C) and `mixed_shift` (C), in fp32.

    weight (3C, C) of queries, keys and values contains the norm's weight, shift (3C) is what its bias adds.
    """
    head = tl.program_id(0)
    lanes = head * 32 + tl.arange(0, 32)
    side = tl.arange(0, SIDE)
    products = tl.zeros((32, 32), tl.float32)
    query_squares = tl.zeros((32,), tl.float32)
    key_squares = tl.zeros((32,), tl.float32)
    query_mean = tl.load(shift + lanes)
    key_mean = tl.load(shift + C + lanes)
    for start in range(0, C, SIDE):
        columns = start + side
        query_moment = tl.zeros((32, SIDE), tl.float32)
        key_moment = tl.zeros((32, SIDE), tl.float32)
        for inner in range(0, C, SIDE):
            rows = inner + side
            moment = tl.load(covariance + rows[:, None] * C + columns[None, :])
            queries = tl.load(weight + lanes[:, None] * C + rows[None, :])
            query_moment = tl.dot(queries, moment, query_moment, input_precision="tf32x3")
            keys = tl.load(weight + (C + lanes)[:, None] * C + rows[None, :])
            key_moment = tl.dot(keys, moment, key_moment, input_precision="tf32x3")
        queries = tl.load(weight + lanes[:, None] * C + columns[None, :])
        keys = tl.load(weight + (C + lanes)[:, None] * C + columns[None, :])
        average = tl.load(mean + columns)
        query_squares += tl.sum(query_moment * queries, 1)
        key_squares += tl.sum(key_moment * keys, 1)
        query_mean += tl.sum(queries * average[None, :], 1)
        key_mean += tl.sum(keys * average[None, :], 1)
        products = tl.dot(query_moment, tl.trans(keys), products, input_precision="tf32x3")
    # As eps=1e-12 of `F.normalize`, for means over N instead of sums. Rounding may make a sum of squares negative.
    floor = 1e-24 / count
    query_squares = tl.maximum(query_squares + query_mean * query_mean, floor)
    key_squares = tl.maximum(key_squares + key_mean * key_mean, floor)
    products += query_mean[:, None] * key_mean[None, :]
    # Divided twice: the product of two floors is 0 in fp32.
    logits = products / tl.sqrt(query_squares)[:, None] / tl.sqrt(key_squares)[None, :] * tl.load(temperature + head)
    shares = tl.exp(logits - tl.max(logits, 1)[:, None])
    shares = shares / tl.sum(shares, 1)[:, None]
    for start in range(0, C, SIDE):
        columns = start + side
        values = tl.load(weight + (2 * C + lanes)[:, None] * C + columns[None, :])
        result = tl.dot(shares, values, input_precision="tf32x3")
        tl.store(mixed + lanes[:, None] * C + columns[None, :], result)
    tl.store(mixed_shift + lanes, tl.sum(shares * tl.load(shift + 2 * C + lanes)[None, :], 1))


@triton.jit
def channel_matrix(
    mixed,
    mixed_shift,
    projection,
    projection_bias,
    matrix,
    bias,
    C: tl.constexpr,
    SIDE: tl.constexpr,
):
    """The matrix of the branch, (projection · mixed)ᵀ (C, C), and its bias (C), from the results of `mix_channels`."""
    rows = tl.program_id(0) * SIDE + tl.arange(0, SIDE)
    columns = tl.program_id(1) * SIDE + tl.arange(0, SIDE)
    total = tl.zeros((SIDE, SIDE), tl.float32)
    shift = tl.load(projection_bias + columns)
    for inner in range(0, C, SIDE):
        terms = inner + tl.arange(0, SIDE)
        left = tl.load(mixed + terms[:, None] * C + rows[None, :])
        right = tl.load(projection + columns[:, None] * C + terms[None, :])
        total = tl.dot(tl.trans(left), tl.trans(right), total, input_precision="tf32x3")
        shift += tl.sum(right * tl.load(mixed_shift + terms)[None, :], 1)
    tl.store(matrix + rows[:, None] * C + columns[None, :], total.to(matrix.dtype.element_ty))
    if tl.program_id(0) == 0:
        tl.store(bias + columns, shift)


@triton.jit
def apply_channel(
    tokens,
    stats,
    matrix,
    bias,
    weight,
    shift,
    gate,
    out,
    out_stats,
    height,
    width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """tokens + a + local · sigmoid(gate · a), with a the normalized tokens @ matrix + bias, and local `mix_block`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < height * width
    blocks = load_normalized(tokens, stats, rows, inside, C, BLOCK)
    attention = ()
    opening = tl.zeros((ROWS,), tl.float32)
    for j in tl.static_range(C // BLOCK):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        mixed = multiply(blocks, matrix, columns, C, C, BLOCK) + tl.load(bias + columns)[None, :]
        opening += tl.sum(mixed * tl.load(gate + columns)[None, :], 1)
        attention = attention + (mixed,)
    opening = sigmoid(opening)
    results = ()
    for j in tl.static_range(C // BLOCK):
        local = mix_block(tokens, stats, weight, shift, rows, j, height, width, C, BLOCK)
        result = attention[j] + local * opening[:, None]
        results = results + (result + load_block(tokens, rows, inside, j, C, BLOCK),)
    store_tokens(results, out, out_stats, rows, inside, C, BLOCK)
