"""The dictionary block: the learned dictionary attends to the frame, then every token to the refined dictionary.

The dictionary is (M, C); M = `dict_tokens` is the number of dictionary tokens, and `dict_rows` are their indices.
"""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import (
    HEAD_DIM,
    add_dot,
    dot_columns,
    load_block,
    load_normalized,
    load_normalized_block,
    load_stats,
    online_softmax_step,
    store_tokens_and_stats,
    zero_blocks,
)


@triton.jit
def refine_dictionary_parts(
    tokens,
    stats,
    norm_weight,
    norm_bias,
    queries,
    key_weight,
    value_weight,
    part_values,
    part_max,
    part_sum,
    num_tokens,
    tiles_per_part,
    dict_tokens,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DICT: tl.constexpr,
):
    """Attention of the dictionary to each part of the tokens, before the parts are merged.

    A program computes BLOCK_DICT queries of one part and one head. Tokens are normalized twice: with the block's norm
    (norm_weight (C), norm_bias (C)), then with the dictionary's, whose weight is folded into key_weight and
    value_weight (C, C). queries (heads, M, 32) are scaled by log2(e) / √32. The results of a part are its highest score
    `part_max` and the sum `part_sum` of 2 ^ (score - part_max), (parts, heads, M) each, and the sum `part_values` of 2
    ^ (score - part_max) · value, (parts, heads, M, 32).
    """
    part, head = tl.program_id(0), tl.program_id(1)
    dict_rows = tl.program_id(2) * BLOCK_DICT + tl.arange(0, BLOCK_DICT)
    dict_mask = dict_rows < dict_tokens
    head_channels = tl.arange(0, HEAD_DIM)
    pointers = queries + (head * dict_tokens + dict_rows[:, None]) * HEAD_DIM + head_channels[None, :]
    head_queries = tl.load(pointers, mask=dict_mask[:, None], other=0.0)
    row_max = tl.full((BLOCK_DICT,), float("-inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_DICT,), tl.float32)
    acc = tl.zeros((BLOCK_DICT, HEAD_DIM), tl.float32)
    for tile in range(tiles_per_part):
        rows = (part * tiles_per_part + tile) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        row_mask = rows < num_tokens
        mean, rstd = load_stats(stats, rows, row_mask)
        normalized = ()
        second_mean = tl.zeros((BLOCK_ROWS,), tl.float32)
        for j in tl.static_range(C // BLOCK_C):
            channels = j * BLOCK_C + tl.arange(0, BLOCK_C)
            x = load_normalized_block(tokens, rows, row_mask, mean, rstd, j, C, BLOCK_C)
            x = x * tl.load(norm_weight + channels)[None, :] + tl.load(norm_bias + channels)[None, :]
            second_mean += tl.sum(x, 1)
            normalized = normalized + (x,)
        second_mean = second_mean / C
        squares = tl.zeros((BLOCK_ROWS,), tl.float32)
        for j in tl.static_range(C // BLOCK_C):
            squares += tl.sum((normalized[j] - second_mean[:, None]) * (normalized[j] - second_mean[:, None]), 1)
        second_rstd = tl.rsqrt(squares / C + 1e-5)
        blocks = ()
        for j in tl.static_range(C // BLOCK_C):
            x = (normalized[j] - second_mean[:, None]) * second_rstd[:, None]
            blocks = blocks + (x.to(tokens.dtype.element_ty),)
        columns = head * HEAD_DIM + head_channels
        keys = dot_columns(blocks, key_weight, columns, C, C, BLOCK_C).to(head_queries.dtype)
        values = dot_columns(blocks, value_weight, columns, C, C, BLOCK_C).to(head_queries.dtype)
        scores = tl.where(row_mask[None, :], tl.dot(head_queries, tl.trans(keys)), float("-inf"))
        # row_max is finite from the first tile on, because every part has at least one token.
        row_max, row_sum, acc = online_softmax_step(scores, values, row_max, row_sum, acc)
    offsets = (part * (C // HEAD_DIM) + head) * dict_tokens + dict_rows
    pointers = part_values + offsets[:, None] * HEAD_DIM + head_channels[None, :]
    tl.store(pointers, acc, mask=dict_mask[:, None])
    tl.store(part_max + offsets, row_max, mask=dict_mask)
    tl.store(part_sum + offsets, row_sum, mask=dict_mask)


@triton.jit
def refine_dictionary(
    part_values,
    part_max,
    part_sum,
    dictionary,
    refined,
    num_parts,
    dict_tokens,
    C: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """Merge the parts of `refine_dictionary_parts`: refined (M, C) = dictionary + attention, in fp32.

    A program computes one head of one dictionary token.
    """
    dict_row, head = tl.program_id(0), tl.program_id(1)
    head_channels = tl.arange(0, HEAD_DIM)
    block_max = tl.full((BLOCK_PARTS,), float("-inf"), tl.float32)
    for first_part in range(0, num_parts, BLOCK_PARTS):
        parts = first_part + tl.arange(0, BLOCK_PARTS)
        offsets = (parts * (C // HEAD_DIM) + head) * dict_tokens + dict_row
        block_max = tl.maximum(block_max, tl.load(part_max + offsets, mask=parts < num_parts, other=float("-inf")))
    total_max = tl.max(block_max, 0)
    block_sum = tl.zeros((BLOCK_PARTS,), tl.float32)
    acc = tl.zeros((HEAD_DIM,), tl.float32)
    for first_part in range(0, num_parts, BLOCK_PARTS):
        parts = first_part + tl.arange(0, BLOCK_PARTS)
        mask = parts < num_parts
        offsets = (parts * (C // HEAD_DIM) + head) * dict_tokens + dict_row
        alpha = tl.exp2(tl.load(part_max + offsets, mask=mask, other=float("-inf")) - total_max)
        block_sum += tl.load(part_sum + offsets, mask=mask, other=0.0) * alpha
        pointers = part_values + offsets[:, None] * HEAD_DIM + head_channels[None, :]
        values = tl.load(pointers, mask=mask[:, None], other=0.0)
        acc += tl.sum(values * alpha[:, None], 0)
    offsets = dict_row * C + head * HEAD_DIM + head_channels
    tl.store(refined + offsets, tl.load(dictionary + offsets) + acc / tl.sum(block_sum, 0))


@triton.jit
def dictionary_keys_values(
    refined,
    weight,
    keys,
    values,
    dict_tokens,
    C: tl.constexpr,
    BLOCK_DICT: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Keys and values of the refined dictionary, (M, C) each: the halves of refined @ weight, with weight (C, 2C)."""
    dict_rows = tl.program_id(0) * BLOCK_DICT + tl.arange(0, BLOCK_DICT)
    dict_mask = (dict_rows < dict_tokens)[:, None]
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    acc = tl.zeros((BLOCK_DICT, BLOCK_COLUMNS), tl.float32)
    for start in range(0, C, 32):
        channels = start + tl.arange(0, 32)
        x = tl.load(refined + dict_rows[:, None] * C + channels[None, :], mask=dict_mask, other=0.0)
        w = tl.load(weight + channels[:, None] * (2 * C) + columns[None, :])
        acc = tl.dot(x, w, acc, input_precision="tf32x3")
    is_key = (columns < C)[None, :]
    offsets = dict_rows[:, None] * C + columns[None, :]
    tl.store(keys + offsets, acc.to(keys.dtype.element_ty), mask=dict_mask & is_key)
    tl.store(values + offsets - C, acc.to(values.dtype.element_ty), mask=dict_mask & (columns >= C)[None, :])


@triton.jit
def dictionary_attention(
    tokens,
    stats,
    query_weight,
    query_bias,
    keys,
    values,
    proj_weight,
    proj_bias,
    out,
    out_stats,
    num_tokens,
    dict_tokens,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DICT: tl.constexpr,
):
    """out = tokens + attention @ proj_weight + proj_bias, where normalized tokens attend to the refined dictionary.

    The norm's weight and bias are folded into query_weight (C, C) and query_bias (C), which are scaled by log2(e) /
    √32. keys and values are (M, C).
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < num_tokens
    head_channels = tl.arange(0, HEAD_DIM)
    blocks = load_normalized(tokens, stats, rows, row_mask, C, BLOCK_C)
    acc = zero_blocks(BLOCK_ROWS, C, BLOCK_C)
    for head in range(C // HEAD_DIM):
        channels = head * HEAD_DIM + head_channels
        queries = dot_columns(blocks, query_weight, channels, C, C, BLOCK_C) + tl.load(query_bias + channels)[None, :]
        queries = queries.to(keys.dtype.element_ty)
        row_max = tl.full((BLOCK_ROWS,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BLOCK_ROWS,), tl.float32)
        head_acc = tl.zeros((BLOCK_ROWS, HEAD_DIM), tl.float32)
        for start in range(0, dict_tokens, BLOCK_DICT):
            dict_rows = start + tl.arange(0, BLOCK_DICT)
            dict_mask = dict_rows < dict_tokens
            offsets = dict_rows[:, None] * C + channels[None, :]
            head_keys = tl.load(keys + offsets, mask=dict_mask[:, None], other=0.0)
            head_values = tl.load(values + offsets, mask=dict_mask[:, None], other=0.0)
            scores = tl.where(dict_mask[None, :], tl.dot(queries, tl.trans(head_keys)), float("-inf"))
            row_max, row_sum, head_acc = online_softmax_step(scores, head_values, row_max, row_sum, head_acc)
        attention = (head_acc / row_sum[:, None]).to(proj_weight.dtype.element_ty)
        acc = add_dot(acc, attention, proj_weight, channels, C, BLOCK_C)
    results = ()
    for j in tl.static_range(C // BLOCK_C):
        columns = j * BLOCK_C + tl.arange(0, BLOCK_C)
        result = acc[j] + tl.load(proj_bias + columns)[None, :]
        results = results + (result + load_block(tokens, rows, row_mask, j, C, BLOCK_C),)
    store_tokens_and_stats(results, out, out_stats, rows, row_mask, C, BLOCK_C)
