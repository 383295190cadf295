"""The spatial block: attention inside windows, a parallel depthwise convolution, and a gate computed from its mean.

Heights and widths of the map and of windows are in tokens. In window order, the tokens of a window are adjacent:
windows row by row, and the tokens of each window row by row.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import (
    HEAD_DIM,
    add_dot,
    depthwise_gelu_block,
    dot_columns,
    gelu,
    load_block,
    load_normalized,
    online_softmax_step,
    sigmoid,
    store_tokens_and_stats,
    zero_blocks,
)


@triton.jit
def norm_qkv(
    tokens,
    stats,
    weight,
    bias,
    qkv,
    height,
    width,
    window_height,
    window_width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """qkv (N, 3C) = normalized tokens @ weight + bias, stored in window order; weight (C, 3C), bias (3C)."""
    window_rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # indices of tokens in window order
    row_mask = window_rows < height * width
    window_tokens = window_height * window_width
    window, position = window_rows // window_tokens, window_rows % window_tokens
    windows_per_row = width // window_width
    y = window // windows_per_row * window_height + position // window_width
    x = window % windows_per_row * window_width + position % window_width
    blocks = load_normalized(tokens, stats, y * width + x, row_mask, C, BLOCK_C)
    for start in range(0, 3 * C, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        result = dot_columns(blocks, weight, columns, 3 * C, C, BLOCK_C) + tl.load(bias + columns)[None, :]
        pointers = qkv + window_rows[:, None] * (3 * C) + columns[None, :]
        tl.store(pointers, result.to(qkv.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def depthwise_gelu(
    tokens,
    stats,
    depthwise_weight,
    tap_bias,
    conv,
    part_sums,
    height,
    width,
    tiles_per_part,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
):
    """conv (N, C) = GELU(depthwise convolution of the normalized tokens), and its sums over parts, (parts, C).

    For the weights, see `primitives.depthwise_gelu_block`.
    """
    part, block = tl.program_id(0), tl.program_id(1)
    channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(tiles_per_part):
        rows = (part * tiles_per_part + tile) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        mask = (rows < height * width)[:, None]
        result = depthwise_gelu_block(tokens, stats, depthwise_weight, tap_bias, rows, block, height, width, C, BLOCK_C)
        tl.store(conv + rows[:, None] * C + channels[None, :], result.to(conv.dtype.element_ty), mask=mask)
        acc += tl.sum(tl.where(mask, result, 0.0), 0)
    tl.store(part_sums + part * C + channels, acc)


@triton.jit
def pooled_gate(
    part_sums,
    reduce_weight,
    expand_weight,
    gate,
    num_tokens,
    num_parts,
    gate_dim,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_GATE: tl.constexpr,
):
    """gate (C) = sigmoid(expand_weight @ GELU(reduce_weight @ mean)).

    mean (C) is the mean over all tokens of what `depthwise_gelu` computes. reduce_weight (gate_dim, C), expand_weight
    (C, gate_dim). gate_dim is at most BLOCK_GATE.
    """
    gate_channels = tl.arange(0, BLOCK_GATE)
    gate_mask = gate_channels < gate_dim
    hidden = tl.zeros((BLOCK_GATE,), tl.float32)
    for start in range(0, C, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        total = tl.zeros((BLOCK_C,), tl.float32)
        for first_part in range(0, num_parts, BLOCK_PARTS):
            parts = first_part + tl.arange(0, BLOCK_PARTS)
            sums = tl.load(
                part_sums + parts[:, None] * C + channels[None, :], mask=(parts < num_parts)[:, None], other=0.0
            )
            total += tl.sum(sums, 0)
        pointers = reduce_weight + gate_channels[:, None] * C + channels[None, :]
        w = tl.load(pointers, mask=gate_mask[:, None], other=0.0)
        hidden += tl.sum(w * (total / num_tokens)[None, :], 1)
    hidden = gelu(hidden)
    for start in range(0, C, BLOCK_C):
        channels = start + tl.arange(0, BLOCK_C)
        pointers = expand_weight + channels[:, None] * gate_dim + gate_channels[None, :]
        w = tl.load(pointers, mask=gate_mask[None, :], other=0.0)
        tl.store(gate + channels, sigmoid(tl.sum(w * hidden[None, :], 1)))


@triton.jit
def window_attention(
    qkv,
    position_bias,
    proj_weight,
    proj_bias,
    gate,
    conv,
    tokens,
    out,
    out_stats,
    height,
    width,
    window_height,
    window_width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    WINDOW_TOKENS: tl.constexpr,
    PADDED_TOKENS: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
):
    """out = tokens + (attention @ proj_weight + proj_bias) · gate + conv.

    A program computes BLOCK_QUERIES tokens of one window, for all heads. qkv (N, 3C) is in window order, and its
    queries are scaled by log2(e) / √32. position_bias (heads, PADDED_TOKENS, PADDED_TOKENS), fp16, is scaled by
    log2(e), and is -inf for the padding keys beyond WINDOW_TOKENS.
    """
    window = tl.program_id(1)
    positions = tl.program_id(0) * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)  # of the queries within the window
    query_mask = positions < WINDOW_TOKENS
    head_channels = tl.arange(0, HEAD_DIM)
    window_qkv = qkv + window * (WINDOW_TOKENS * 3 * C)
    acc = zero_blocks(BLOCK_QUERIES, C, BLOCK_C)
    for head in range(C // HEAD_DIM):
        channels = head * HEAD_DIM + head_channels
        query_pointers = window_qkv + positions[:, None] * (3 * C) + channels[None, :]
        queries = tl.load(query_pointers, mask=query_mask[:, None], other=0.0)
        row_max = tl.full((BLOCK_QUERIES,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BLOCK_QUERIES,), tl.float32)
        head_acc = tl.zeros((BLOCK_QUERIES, HEAD_DIM), tl.float32)
        for start in range(0, WINDOW_TOKENS, BLOCK_KEYS):
            key_positions = start + tl.arange(0, BLOCK_KEYS)
            key_mask = (key_positions < WINDOW_TOKENS)[:, None]
            pointers = window_qkv + key_positions[:, None] * (3 * C) + channels[None, :]
            keys = tl.load(pointers + C, mask=key_mask, other=0.0)
            values = tl.load(pointers + 2 * C, mask=key_mask, other=0.0)
            bias_rows = position_bias + (head * PADDED_TOKENS + positions[:, None]) * PADDED_TOKENS
            scores = tl.load(bias_rows + key_positions[None, :]).to(tl.float32)
            scores = tl.dot(queries, tl.trans(keys), scores)
            row_max, row_sum, head_acc = online_softmax_step(scores, values, row_max, row_sum, head_acc)
        attention = (head_acc / row_sum[:, None]).to(proj_weight.dtype.element_ty)
        acc = add_dot(acc, attention, proj_weight, channels, C, BLOCK_C)

    windows_per_row = width // window_width
    y = window // windows_per_row * window_height + positions // window_width
    x = window % windows_per_row * window_width + positions % window_width
    rows = y * width + x
    results = ()
    for j in tl.static_range(C // BLOCK_C):
        columns = j * BLOCK_C + tl.arange(0, BLOCK_C)
        gated = (acc[j] + tl.load(proj_bias + columns)[None, :]) * tl.load(gate + columns)[None, :]
        gated += load_block(conv, rows, query_mask, j, C, BLOCK_C)
        results = results + (gated + load_block(tokens, rows, query_mask, j, C, BLOCK_C),)
    store_tokens_and_stats(results, out, out_stats, rows, query_mask, C, BLOCK_C)
