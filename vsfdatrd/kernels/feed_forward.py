"""The feed-forward network of a block: two linear layers with a depthwise convolution between them.

F is the number of hidden channels.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import (
    add_dot,
    add_tokens,
    dot_columns,
    gelu,
    load_normalized,
    neighbor_rows,
    store_tokens_and_stats,
    zero_blocks,
)


@triton.jit
def ffn_fc1(
    tokens,
    stats,
    weight,
    bias,
    hidden,
    num_tokens,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """First linear layer: hidden (N, F) = GELU(normalized tokens @ weight + bias), with weight (C, F) and bias (F)."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < num_tokens
    blocks = load_normalized(tokens, stats, rows, row_mask, C, BLOCK_C)
    for start in range(0, F, BLOCK_COLUMNS):
        columns = start + tl.arange(0, BLOCK_COLUMNS)
        result = gelu(dot_columns(blocks, weight, columns, F, C, BLOCK_C) + tl.load(bias + columns)[None, :])
        pointers = hidden + rows[:, None] * F + columns[None, :]
        tl.store(pointers, result.to(hidden.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def ffn_smix_fc2(
    hidden,
    smix_weight,
    fc2_weight,
    tokens,
    out,
    out_stats,
    height,
    width,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Depthwise 3×3 convolution and second linear layer: tokens + depthwise(hidden) @ fc2_weight.

    hidden (N, F). smix_weight (9, F) is the weight of the depthwise convolution. fc2_weight (F, C).
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < height * width
    acc = zero_blocks(BLOCK_ROWS, C, BLOCK_C)
    for start in range(0, F, BLOCK_K):
        hidden_channels = start + tl.arange(0, BLOCK_K)
        mixed = tl.zeros((BLOCK_ROWS, BLOCK_K), tl.float32)
        for tap in range(9):
            neighbors, mask = neighbor_rows(rows, tap, height, width)
            pointers = hidden + neighbors[:, None] * F + hidden_channels[None, :]
            x = tl.load(pointers, mask=mask[:, None], other=0.0).to(tl.float32)
            mixed += x * tl.load(smix_weight + tap * F + hidden_channels)[None, :]
        acc = add_dot(acc, mixed.to(fc2_weight.dtype.element_ty), fc2_weight, hidden_channels, C, BLOCK_C)
    results = add_tokens(acc, tokens, rows, row_mask, C, BLOCK_C)
    store_tokens_and_stats(results, out, out_stats, rows, row_mask, C, BLOCK_C)
