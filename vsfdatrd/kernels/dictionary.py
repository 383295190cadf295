"""Attention to the dictionary: its words read the frame, and every token attends to the refined words."""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import add_product, load_block, load_normalized, load_stats, multiply, store_tokens, zeros


@triton.jit
def read_frame(
    tokens,
    stats,
    scale,
    shift,
    queries,
    keys,
    values,
    found,
    top,
    total,
    count,
    tiles,
    words,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Attention of the words to parts of `tiles` times ROWS tokens, for a part, a head and WORDS words a program.

    Tokens are normalized twice: with the block's norm, of weight `scale` (C) and bias `shift` (C), and with the
    dictionary's own, whose weight is in keys and values (C, C). queries (heads, words, 32) are scaled by log2(e) / √32.
    A part's results are the highest score (`top`), the sum of the exponentials relative to it (`total`), (parts, heads,
    words) each, and the sum of the values weighted by them (`found`), (parts, heads, words, 32).
    """
    part, head = tl.program_id(0), tl.program_id(1)
    word = tl.program_id(2) * WORDS + tl.arange(0, WORDS)
    known = word < words
    lanes = tl.arange(0, 32)
    at = queries + (head * words + word[:, None]) * 32 + lanes[None, :]
    asked = tl.load(at, mask=known[:, None], other=0.0)
    highest = tl.full((WORDS,), float("-inf"), tl.float32)
    shares_sum = tl.zeros((WORDS,), tl.float32)
    answer = tl.zeros((WORDS, 32), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = rows < count
        mean, rstd = load_stats(stats, rows, inside)
        normed = ()
        again = tl.zeros((ROWS,), tl.float32)
        for j in tl.static_range(C // BLOCK):
            channels = j * BLOCK + tl.arange(0, BLOCK)
            x = (load_block(tokens, rows, inside, j, C, BLOCK) - mean[:, None]) * rstd[:, None]
            x = x * tl.load(scale + channels)[None, :] + tl.load(shift + channels)[None, :]
            again += tl.sum(x, 1)
            normed = normed + (x,)
        again = again / C
        squares = tl.zeros((ROWS,), tl.float32)
        for j in tl.static_range(C // BLOCK):
            squares += tl.sum((normed[j] - again[:, None]) * (normed[j] - again[:, None]), 1)
        factor = tl.rsqrt(squares / C + 1e-5)
        blocks = ()
        for j in tl.static_range(C // BLOCK):
            blocks = blocks + (((normed[j] - again[:, None]) * factor[:, None]).to(tokens.dtype.element_ty),)
        own_keys = multiply(blocks, keys, head * 32 + lanes, C, C, BLOCK).to(asked.dtype)
        own_values = multiply(blocks, values, head * 32 + lanes, C, C, BLOCK).to(asked.dtype)
        scores = tl.where(inside[None, :], tl.dot(asked, tl.trans(own_keys)), float("-inf"))
        # Finite from the first tile on, as every part has tokens.
        higher = tl.maximum(highest, tl.max(scores, 1))
        shares = tl.exp2(scores - higher[:, None])
        factor = tl.exp2(highest - higher)
        shares_sum = shares_sum * factor + tl.sum(shares, 1)
        answer = tl.dot(shares.to(asked.dtype), own_values, answer * factor[:, None])
        highest = higher
    at = (part * (C // 32) + head) * words + word
    tl.store(found + at[:, None] * 32 + lanes[None, :], answer, mask=known[:, None])
    tl.store(top + at, highest, mask=known)
    tl.store(total + at, shares_sum, mask=known)


@triton.jit
def join_words(
    found,
    top,
    total,
    base,
    refined,
    parts,
    words,
    C: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Join the parts of `read_frame` for a word and a head: refined (words, C) = base + attention, in fp32."""
    word, head = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, 32)
    highest = tl.full((PARTS,), float("-inf"), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at = (part * (C // 32) + head) * words + word
        highest = tl.maximum(highest, tl.load(top + at, mask=part < parts, other=float("-inf")))
    best = tl.max(highest, 0)
    sums = tl.zeros((PARTS,), tl.float32)
    answer = tl.zeros((32,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        present = part < parts
        at = (part * (C // 32) + head) * words + word
        factor = tl.exp2(tl.load(top + at, mask=present, other=float("-inf")) - best)
        sums += tl.load(total + at, mask=present, other=0.0) * factor
        values = tl.load(found + at[:, None] * 32 + lanes[None, :], mask=present[:, None], other=0.0)
        answer += tl.sum(values * factor[:, None], 0)
    at = word * C + head * 32 + lanes
    tl.store(refined + at, tl.load(base + at) + answer / tl.sum(sums, 0))


@triton.jit
def refine_words(
    refined,
    weight,
    keys,
    values,
    words,
    C: tl.constexpr,
    WORDS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write the keys and the values, (words, C) each, of the dictionary's refined words.

    They are the two halves of refined @ weight, for a weight (C, 2C).
    """
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    known = (word < words)[:, None]
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    result = tl.zeros((WORDS, COLUMNS), tl.float32)
    for start in range(0, C, 32):
        channels = start + tl.arange(0, 32)
        x = tl.load(refined + word[:, None] * C + channels[None, :], mask=known, other=0.0)
        w = tl.load(weight + channels[:, None] * (2 * C) + columns[None, :])
        result = tl.dot(x, w, result, input_precision="tf32x3")
    is_key = (columns < C)[None, :]
    at = word[:, None] * C + columns[None, :]
    tl.store(keys + at, result.to(keys.dtype.element_ty), mask=known & is_key)
    tl.store(values + at - C, result.to(values.dtype.element_ty), mask=known & (columns >= C)[None, :])


@triton.jit
def consult_words(
    tokens,
    stats,
    query,
    query_bias,
    keys,
    values,
    projection,
    projection_bias,
    out,
    out_stats,
    count,
    words,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """tokens + attention of the normalized tokens to the words @ projection + projection_bias.

    query (C, C) and query_bias (C) contain the norm's weights, and are scaled by log2(e) / √32.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    lanes = tl.arange(0, 32)
    blocks = load_normalized(tokens, stats, rows, inside, C, BLOCK)
    sums = zeros(ROWS, C, BLOCK)
    for head in range(C // 32):
        channels = head * 32 + lanes
        queries = multiply(blocks, query, channels, C, C, BLOCK) + tl.load(query_bias + channels)[None, :]
        queries = queries.to(keys.dtype.element_ty)
        highest = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        found = tl.zeros((ROWS, 32), tl.float32)
        for start in range(0, words, WORDS):
            word = start + tl.arange(0, WORDS)
            known = word < words
            at = word[:, None] * C + channels[None, :]
            own_keys = tl.load(keys + at, mask=known[:, None], other=0.0)
            own_values = tl.load(values + at, mask=known[:, None], other=0.0)
            scores = tl.where(known[None, :], tl.dot(queries, tl.trans(own_keys)), float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1))
            shares = tl.exp2(scores - higher[:, None])
            factor = tl.exp2(highest - higher)
            total = total * factor + tl.sum(shares, 1)
            found = tl.dot(shares.to(own_values.dtype), own_values, found * factor[:, None])
            highest = higher
        attention = (found / total[:, None]).to(projection.dtype.element_ty)
        sums = add_product(sums, attention, projection, channels, C, BLOCK)
    results = ()
    for j in tl.static_range(C // BLOCK):
        columns = j * BLOCK + tl.arange(0, BLOCK)
        result = sums[j] + tl.load(projection_bias + columns)[None, :]
        results = results + (result + load_block(tokens, rows, inside, j, C, BLOCK),)
    store_tokens(results, out, out_stats, rows, inside, C, BLOCK)
