"""Functions that the kernels share: activations, blocks of channels, attention, convolution taps and RGB pixels."""

import triton
import triton.language as tl

HEAD_DIM = tl.constexpr(32)
"""Channels of an attention head."""


@triton.jit
def gelu(x):
    """Return the exact GELU of x (not an approximation with tanh)."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def round_to_tf32(x):
    """Round an fp32 operand of `tl.dot` to tf32, because the hardware would truncate it; return other types as is."""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        result = tl.where(x == x, rounded, x)  # rounding could turn NaN into 0
    else:
        result = x
    return result


# Tokens in blocks of channels


@triton.jit
def zero_blocks(NUM_ROWS: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return accumulators for all blocks of channels: C / BLOCK_C tensors (NUM_ROWS, BLOCK_C) of fp32 zeros."""
    acc = ()
    for _ in tl.static_range(C // BLOCK_C):
        acc = acc + (tl.zeros((NUM_ROWS, BLOCK_C), tl.float32),)
    return acc


@triton.jit
def load_stats(stats, rows, row_mask):
    """Return mean and rstd of tokens, (rows,) each. Both are 0 for masked tokens, which makes these normalize to 0."""
    mean = tl.load(stats + 2 * rows, mask=row_mask, other=0.0)
    return mean, tl.load(stats + 2 * rows + 1, mask=row_mask, other=0.0)


@triton.jit
def load_block(tokens, rows, row_mask, block, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return one block of channels (rows, BLOCK_C) of tokens in fp32; masked tokens are 0."""
    channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.load(tokens + rows[:, None] * C + channels[None, :], mask=row_mask[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_normalized_block(tokens, rows, row_mask, mean, rstd, block, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return one block of channels (rows, BLOCK_C) of tokens in fp32, normalized with their mean and rstd (rows,)."""
    return (load_block(tokens, rows, row_mask, block, C, BLOCK_C) - mean[:, None]) * rstd[:, None]


@triton.jit
def load_normalized(tokens, stats, rows, row_mask, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return normalized tokens as blocks (rows, BLOCK_C) of the type of the tokens; masked tokens are 0."""
    mean, rstd = load_stats(stats, rows, row_mask)
    blocks = ()
    for j in tl.static_range(C // BLOCK_C):
        x = load_normalized_block(tokens, rows, row_mask, mean, rstd, j, C, BLOCK_C)
        blocks = blocks + (x.to(tokens.dtype.element_ty),)
    return blocks


@triton.jit
def dot_columns(blocks, weight, columns, num_columns, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return blocks @ weight[:, columns] in fp32; weight is (C, num_columns)."""
    channels = tl.arange(0, BLOCK_C)
    acc = tl.dot(blocks[0], tl.load(weight + channels[:, None] * num_columns + columns[None, :]))
    for j in tl.static_range(1, C // BLOCK_C):
        weight_rows = j * BLOCK_C + channels
        acc = tl.dot(blocks[j], tl.load(weight + weight_rows[:, None] * num_columns + columns[None, :]), acc)
    return acc


@triton.jit
def add_dot(acc, x, weight, weight_rows, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return acc + x @ weight[weight_rows] as blocks; weight has C columns."""
    channels = tl.arange(0, BLOCK_C)
    result = ()
    for j in tl.static_range(C // BLOCK_C):
        w = tl.load(weight + weight_rows[:, None] * C + (j * BLOCK_C + channels)[None, :])
        result = result + (tl.dot(x, w, acc[j]),)
    return result


@triton.jit
def add_tokens(blocks, tokens, rows, row_mask, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Return blocks + tokens[rows] as blocks."""
    result = ()
    for j in tl.static_range(C // BLOCK_C):
        result = result + (blocks[j] + load_block(tokens, rows, row_mask, j, C, BLOCK_C),)
    return result


@triton.jit
def store_blocks(blocks, out, rows, row_mask, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Store blocks as tokens of the type of `out`."""
    for j in tl.static_range(C // BLOCK_C):
        channels = j * BLOCK_C + tl.arange(0, BLOCK_C)
        pointers = out + rows[:, None] * C + channels[None, :]
        tl.store(pointers, blocks[j].to(out.dtype.element_ty), mask=row_mask[:, None])


@triton.jit
def store_tokens_and_stats(blocks, out, out_stats, rows, row_mask, C: tl.constexpr, BLOCK_C: tl.constexpr):
    """Store blocks as tokens, and the statistics of the rounded values, because the next kernel reads those."""
    rounded = ()
    for j in tl.static_range(C // BLOCK_C):
        rounded = rounded + (blocks[j].to(out.dtype.element_ty).to(tl.float32),)
    store_blocks(rounded, out, rows, row_mask, C, BLOCK_C)
    mean = tl.sum(rounded[0], 1)
    for j in tl.static_range(1, C // BLOCK_C):
        mean += tl.sum(rounded[j], 1)
    mean = mean / C
    centered = rounded[0] - mean[:, None]
    squares = tl.sum(centered * centered, 1)
    for j in tl.static_range(1, C // BLOCK_C):
        centered = rounded[j] - mean[:, None]
        squares += tl.sum(centered * centered, 1)
    tl.store(out_stats + 2 * rows, mean, mask=row_mask)
    tl.store(out_stats + 2 * rows + 1, tl.rsqrt(squares / C + 1e-5), mask=row_mask)


# Attention


@triton.jit
def online_softmax_step(scores, values, row_max, row_sum, acc):
    """Add a block of keys to an attention whose softmax is computed block by block, as in FlashAttention.

    Args:
        scores: Products of queries and keys, times log2(e), (queries, keys).
        values: Values of these keys, (keys, HEAD_DIM).
        row_max: Highest score of each query in the previous blocks, (queries,).
        row_sum: Sum of 2 ^ (score - row_max) over the previous keys, (queries,).
        acc: Sum of 2 ^ (score - row_max) · value over the previous keys, (queries, HEAD_DIM).

    Returns:
        row_max, row_sum and acc with these keys included. After the last block, the attention is acc / row_sum.
    """
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    probs = tl.exp2(scores - new_max[:, None])
    alpha = tl.exp2(row_max - new_max)
    row_sum = row_sum * alpha + tl.sum(probs, 1)
    acc = tl.dot(probs.to(values.dtype), values, acc * alpha[:, None])
    return new_max, row_sum, acc


# Convolutions


@triton.jit
def neighbor_rows(rows, tap, height, width):
    """Return the indices of the tokens that a tap of a 3×3 kernel reads for `rows`, and a mask of those in the map."""
    y = rows // width + tap // 3 - 1
    x = rows % width + tap % 3 - 1
    mask = (rows < height * width) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y * width + x, mask


@triton.jit
def depthwise_gelu_block(
    tokens, stats, weight, tap_bias, rows, block, height, width, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Return GELU of a depthwise 3×3 convolution of the normalized tokens, for one block of channels (rows, BLOCK_C).

    The norm's weight is folded into weight (9, C), and its bias into tap_bias (9, C), which is added for every tap that
    lies in the map.
    """
    channels = block * BLOCK_C + tl.arange(0, BLOCK_C)
    acc = tl.zeros((rows.shape[0], BLOCK_C), tl.float32)
    for tap in range(9):
        neighbors, mask = neighbor_rows(rows, tap, height, width)
        mean, rstd = load_stats(stats, neighbors, mask)
        x = load_normalized_block(tokens, neighbors, mask, mean, rstd, block, C, BLOCK_C)
        acc += x * tl.load(weight + tap * C + channels)[None, :]
        acc += tl.where(mask[:, None], tl.load(tap_bias + tap * C + channels)[None, :], 0.0)
    return gelu(acc)


# Pixels of three planes


@triton.jit
def load_rgb_bias(bias, BLOCK_PIXELS: tl.constexpr):
    """Return accumulators of red, green and blue, (BLOCK_PIXELS,) each, initialized with bias (3)."""
    red = tl.zeros((BLOCK_PIXELS,), tl.float32) + tl.load(bias)
    green = tl.zeros((BLOCK_PIXELS,), tl.float32) + tl.load(bias + 1)
    blue = tl.zeros((BLOCK_PIXELS,), tl.float32) + tl.load(bias + 2)
    return red, green, blue


@triton.jit
def add_rgb_tap(red, green, blue, weight, plane, tap, value):
    """Add the contribution of one plane and tap of a 3×3 convolution, weight (3, 3, 3, 3), to the accumulators."""
    red += tl.load(weight + plane * 9 + tap) * value
    green += tl.load(weight + 27 + plane * 9 + tap) * value
    blue += tl.load(weight + 54 + plane * 9 + tap) * value
    return red, green, blue


@triton.jit
def store_rgb(image, pixels, num_pixels, red, green, blue, mask):
    """Store red, green and blue of pixels in an image (3, num_pixels)."""
    tl.store(image + pixels, red, mask=mask)
    tl.store(image + num_pixels + pixels, green, mask=mask)
    tl.store(image + 2 * num_pixels + pixels, blue, mask=mask)
