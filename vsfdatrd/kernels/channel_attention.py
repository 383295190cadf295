"""The channel block: attention between channels, computed as one C × C matrix for the whole frame, and its gate.

Let S be the second moment of the normalized tokens. The products of queries and keys of a head are Wq S Wkᵀ, and the
branch is one product of the tokens with Wproj · blockdiag(A) · Wv, where A is the attention of each head. S is split
into the mean of the tokens and their covariance, because in a frame of one color all tokens equal the mean, whose large
terms would cancel in the products of S and leave rounding errors.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import (
    HEAD_DIM,
    depthwise_gelu_block,
    dot_columns,
    load_block,
    load_normalized,
    load_normalized_block,
    load_stats,
    sigmoid,
    store_tokens_and_stats,
    zero_blocks,
)


@triton.jit
def partial_moments(
    tokens,
    stats,
    part_moments,
    part_sums,
    part_references,
    num_tokens,
    tiles_per_part,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """Second moments and sums of the normalized tokens of each part, minus a reference: the part's first token.

    part_moments (parts, C, C), of which a program computes BLOCK_C rows. part_sums and part_references (the first
    tokens), (parts, C) each.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    first_row = part * tiles_per_part * BLOCK_ROWS + tl.arange(0, 1)
    first_mask = first_row < num_tokens
    first_mean, first_rstd = load_stats(stats, first_row, first_mask)
    references = ()
    for j in tl.static_range(C // BLOCK_C):
        block_reference = load_normalized_block(tokens, first_row, first_mask, first_mean, first_rstd, j, C, BLOCK_C)
        references = references + (block_reference,)
    reference = load_normalized_block(tokens, first_row, first_mask, first_mean, first_rstd, block, C, BLOCK_C)
    moments = zero_blocks(BLOCK_C, C, BLOCK_C)
    sums = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(tiles_per_part):
        rows = (part * tiles_per_part + tile) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_mask = rows < num_tokens
        mean, rstd = load_stats(stats, rows, row_mask)
        x = load_normalized_block(tokens, rows, row_mask, mean, rstd, block, C, BLOCK_C)
        x = tl.where(row_mask[:, None], x - reference, 0.0).to(tokens.dtype.element_ty)
        sums += tl.sum(x.to(tl.float32), 0)
        x_transposed = tl.trans(x)
        new_moments = ()
        for j in tl.static_range(C // BLOCK_C):
            other = load_normalized_block(tokens, rows, row_mask, mean, rstd, j, C, BLOCK_C)
            other = tl.where(row_mask[:, None], other - references[j], 0.0).to(tokens.dtype.element_ty)
            new_moments = new_moments + (tl.dot(x_transposed, other, moments[j]),)
        moments = new_moments
    channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
    for j in tl.static_range(C // BLOCK_C):
        columns = j * BLOCK_C + tl.arange(0, BLOCK_C)
        tl.store(part_moments + (part * C + channels[:, None]) * C + columns[None, :], moments[j])
    tl.store(part_sums + part * C + channels, sums)
    tl.store(part_references + part * C + channels, tl.sum(reference, 0))


@triton.jit
def part_fractions(parts, tokens_per_part, num_tokens):
    """Return each part's fraction of all tokens, (parts, 1); the last part may have fewer tokens than the others."""
    return tl.minimum(tokens_per_part, num_tokens - parts * tokens_per_part).to(tl.float32)[:, None] / num_tokens


@triton.jit
def merge_moments(
    part_moments,
    part_sums,
    part_references,
    covariance,
    mean,
    num_tokens,
    num_parts,
    tokens_per_part,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Merge the parts of `partial_moments` into the mean (C) and the covariance (C, C) of all tokens."""
    rows = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row_mean = tl.zeros((BLOCK_C,), tl.float32)
    column_mean = tl.zeros((BLOCK_C,), tl.float32)
    for first_part in range(0, num_parts, BLOCK_PARTS):
        parts = first_part + tl.arange(0, BLOCK_PARTS)
        mask = (parts < num_parts)[:, None]
        fraction = part_fractions(parts, tokens_per_part, num_tokens)
        offsets = parts[:, None] * C + rows[None, :]
        reference = tl.load(part_references + offsets, mask=mask, other=0.0)
        row_mean += tl.sum(reference * fraction + tl.load(part_sums + offsets, mask=mask, other=0.0) / num_tokens, 0)
        offsets = parts[:, None] * C + columns[None, :]
        reference = tl.load(part_references + offsets, mask=mask, other=0.0)
        column_mean += tl.sum(reference * fraction + tl.load(part_sums + offsets, mask=mask, other=0.0) / num_tokens, 0)
    acc = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    for first_part in range(0, num_parts, BLOCK_PARTS):
        parts = first_part + tl.arange(0, BLOCK_PARTS)
        mask = (parts < num_parts)[:, None]
        fraction = part_fractions(parts, tokens_per_part, num_tokens)
        offsets = parts[:, None] * C + rows[None, :]
        row_sum = tl.load(part_sums + offsets, mask=mask, other=0.0) / num_tokens
        reference = tl.load(part_references + offsets, mask=mask, other=0.0)
        row_distance = tl.where(mask, reference - row_mean[None, :], 0.0)
        offsets = parts[:, None] * C + columns[None, :]
        column_sum = tl.load(part_sums + offsets, mask=mask, other=0.0) / num_tokens
        reference = tl.load(part_references + offsets, mask=mask, other=0.0)
        column_distance = tl.where(mask, reference - column_mean[None, :], 0.0)
        offsets = (parts[:, None, None] * C + rows[None, :, None]) * C + columns[None, None, :]
        moment = tl.load(part_moments + offsets, mask=mask[:, :, None], other=0.0) / num_tokens
        # Move the moment of n tokens with sum s to the mean, at distance d from the reference:
        # moment + s dᵀ + d sᵀ + n d dᵀ.
        moment += row_sum[:, :, None] * column_distance[:, None, :]
        moment += row_distance[:, :, None] * (column_sum + fraction * column_distance)[:, None, :]
        acc += tl.sum(moment, 0)
    tl.store(covariance + rows[:, None] * C + columns[None, :], acc)
    if tl.program_id(1) == 0:
        tl.store(mean + rows, row_mean)


@triton.jit
def attend_value_weight(
    covariance,
    mean,
    qkv_weight,
    qkv_bias,
    temperature,
    attended_weight,
    attended_bias,
    num_tokens,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Attention A of one head times its value weights, in fp32: HEAD_DIM rows of A · Wv (C, C) and of A · bv (C).

    The results are attended_weight and attended_bias. The norm's weight is folded into qkv_weight (3C, C), and its bias
    into qkv_bias (3C).
    """
    head = tl.program_id(0)
    rows = head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    logits = tl.zeros((HEAD_DIM, HEAD_DIM), tl.float32)
    query_squares = tl.zeros((HEAD_DIM,), tl.float32)
    key_squares = tl.zeros((HEAD_DIM,), tl.float32)
    query_mean = tl.load(qkv_bias + rows)
    key_mean = tl.load(qkv_bias + C + rows)
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        query_moment = tl.zeros((HEAD_DIM, BLOCK_C), tl.float32)
        key_moment = tl.zeros((HEAD_DIM, BLOCK_C), tl.float32)
        for inner_start in range(0, C, BLOCK_C):
            inner = inner_start + tl.arange(0, BLOCK_C)
            moment = tl.load(covariance + inner[:, None] * C + columns[None, :])
            query_weight = tl.load(qkv_weight + rows[:, None] * C + inner[None, :])
            query_moment = tl.dot(query_weight, moment, query_moment, input_precision="tf32x3")
            key_weight = tl.load(qkv_weight + (C + rows)[:, None] * C + inner[None, :])
            key_moment = tl.dot(key_weight, moment, key_moment, input_precision="tf32x3")
        query_weight = tl.load(qkv_weight + rows[:, None] * C + columns[None, :])
        key_weight = tl.load(qkv_weight + (C + rows)[:, None] * C + columns[None, :])
        column_mean = tl.load(mean + columns)
        query_squares += tl.sum(query_moment * query_weight, 1)
        key_squares += tl.sum(key_moment * key_weight, 1)
        query_mean += tl.sum(query_weight * column_mean[None, :], 1)
        key_mean += tl.sum(key_weight * column_mean[None, :], 1)
        logits = tl.dot(query_moment, tl.trans(key_weight), logits, input_precision="tf32x3")
    # This is eps=1e-12 of `F.normalize`, for means over N instead of sums. Rounding may make a sum of squares negative.
    floor = 1e-24 / num_tokens
    query_squares = tl.maximum(query_squares + query_mean * query_mean, floor)
    key_squares = tl.maximum(key_squares + key_mean * key_mean, floor)
    logits += query_mean[:, None] * key_mean[None, :]
    # Divide twice, because the product of two floors underflows to 0 in fp32.
    logits = logits / tl.sqrt(query_squares)[:, None] / tl.sqrt(key_squares)[None, :] * tl.load(temperature + head)
    probs = tl.exp(logits - tl.max(logits, 1)[:, None])
    probs = probs / tl.sum(probs, 1)[:, None]
    for start in range(0, C, BLOCK_C):
        columns = start + tl.arange(0, BLOCK_C)
        value_weight = tl.load(qkv_weight + (2 * C + rows)[:, None] * C + columns[None, :])
        result = tl.dot(probs, value_weight, input_precision="tf32x3")
        tl.store(attended_weight + rows[:, None] * C + columns[None, :], result)
    tl.store(attended_bias + rows, tl.sum(probs * tl.load(qkv_bias + 2 * C + rows)[None, :], 1))


@triton.jit
def channel_attention_matrix(
    attended_weight,
    attended_bias,
    proj_weight,
    proj_bias,
    matrix,
    bias,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """matrix (C, C) = (proj_weight @ attended_weight)ᵀ and bias (C) = proj_weight @ attended_bias + proj_bias."""
    rows = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    columns = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_C, BLOCK_C), tl.float32)
    bias_acc = tl.load(proj_bias + columns)
    for start in range(0, C, BLOCK_C):
        inner = start + tl.arange(0, BLOCK_C)
        attended = tl.load(attended_weight + inner[:, None] * C + rows[None, :])
        proj = tl.load(proj_weight + columns[:, None] * C + inner[None, :])
        acc = tl.dot(tl.trans(attended), tl.trans(proj), acc, input_precision="tf32x3")
        bias_acc += tl.sum(proj * tl.load(attended_bias + inner)[None, :], 1)
    tl.store(matrix + rows[:, None] * C + columns[None, :], acc.to(matrix.dtype.element_ty))
    if tl.program_id(0) == 0:
        tl.store(bias + columns, bias_acc)


@triton.jit
def apply_channel_attention(
    tokens,
    stats,
    matrix,
    bias,
    depthwise_weight,
    tap_bias,
    gate_weight,
    out,
    out_stats,
    height,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """out = tokens + attention + conv · sigmoid(gate_weight · attention).

    attention = normalized tokens @ matrix + bias. conv is the result of `primitives.depthwise_gelu_block` with
    depthwise_weight and tap_bias. gate_weight (C).
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < height * width
    blocks = load_normalized(tokens, stats, rows, row_mask, C, BLOCK_C)
    attention = ()
    gate = tl.zeros((BLOCK_ROWS,), tl.float32)
    for j in tl.static_range(C // BLOCK_C):
        columns = j * BLOCK_C + tl.arange(0, BLOCK_C)
        x = dot_columns(blocks, matrix, columns, C, C, BLOCK_C) + tl.load(bias + columns)[None, :]
        gate += tl.sum(x * tl.load(gate_weight + columns)[None, :], 1)
        attention = attention + (x,)
    gate = sigmoid(gate)
    results = ()
    for j in tl.static_range(C // BLOCK_C):
        conv = depthwise_gelu_block(tokens, stats, depthwise_weight, tap_bias, rows, j, height, width, C, BLOCK_C)
        result = attention[j] + conv * gate[:, None]
        results = results + (result + load_block(tokens, rows, row_mask, j, C, BLOCK_C),)
    store_tokens_and_stats(results, out, out_stats, rows, row_mask, C, BLOCK_C)
