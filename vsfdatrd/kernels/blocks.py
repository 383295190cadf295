"""What the kernels share: functions of numbers, and tokens in blocks of channels, their norms and statistics."""

import triton
import triton.language as tl


@triton.jit
def gelu(x):
    """Return GELU of x in its exact form."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def operand(x):
    """Return x as an operand of a product. Those of fp32 are rounded to tf32: the products would cut off its bits."""
    if x.dtype == tl.float32:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        result = tl.where(x == x, rounded, x)  # NaN would become 0
    else:
        result = x
    return result


@triton.jit
def zeros(ROWS: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return a sum of 0 for each block of channels."""
    sums = ()
    for _ in tl.static_range(C // BLOCK):
        sums = sums + (tl.zeros((ROWS, BLOCK), tl.float32),)
    return sums


@triton.jit
def load_stats(stats, rows, inside):
    """Return mean and rstd of tokens; 0 and 0 outside the map, where a normalized token is then 0."""
    mean = tl.load(stats + 2 * rows, mask=inside, other=0.0)
    return mean, tl.load(stats + 2 * rows + 1, mask=inside, other=0.0)


@triton.jit
def load_block(tokens, rows, inside, block, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return a block of channels (ROWS, BLOCK) in fp32; 0 outside the map."""
    channels = block * BLOCK + tl.arange(0, BLOCK)
    return tl.load(tokens + rows[:, None] * C + channels[None, :], mask=inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def load_normalized(tokens, stats, rows, inside, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return normalized tokens, blocks (ROWS, BLOCK) in the type of the tokens; 0 outside the map."""
    mean, rstd = load_stats(stats, rows, inside)
    blocks = ()
    for j in tl.static_range(C // BLOCK):
        x = (load_block(tokens, rows, inside, j, C, BLOCK) - mean[:, None]) * rstd[:, None]
        blocks = blocks + (x.to(tokens.dtype.element_ty),)
    return blocks


@triton.jit
def multiply(blocks, weight, columns, width, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return blocks @ weight[:, columns] in fp32, for a weight (C, width)."""
    channels = tl.arange(0, BLOCK)
    result = tl.dot(blocks[0], tl.load(weight + channels[:, None] * width + columns[None, :]))
    for j in tl.static_range(1, C // BLOCK):
        rows = j * BLOCK + channels
        result = tl.dot(blocks[j], tl.load(weight + rows[:, None] * width + columns[None, :]), result)
    return result


@triton.jit
def add_product(sums, x, weight, rows, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return sums + x @ weight[rows], for a weight (any, C)."""
    channels = tl.arange(0, BLOCK)
    result = ()
    for j in tl.static_range(C // BLOCK):
        w = tl.load(weight + rows[:, None] * C + (j * BLOCK + channels)[None, :])
        result = result + (tl.dot(x, w, sums[j]),)
    return result


@triton.jit
def add_tokens(sums, tokens, rows, inside, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return sums + tokens."""
    result = ()
    for j in tl.static_range(C // BLOCK):
        result = result + (sums[j] + load_block(tokens, rows, inside, j, C, BLOCK),)
    return result


@triton.jit
def store_blocks(sums, out, rows, inside, C: tl.constexpr, BLOCK: tl.constexpr):
    """Store tokens, rounded to the type of `out`."""
    for j in tl.static_range(C // BLOCK):
        channels = j * BLOCK + tl.arange(0, BLOCK)
        at = out + rows[:, None] * C + channels[None, :]
        tl.store(at, sums[j].to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def store_tokens(sums, out, stats, rows, inside, C: tl.constexpr, BLOCK: tl.constexpr):
    """Store tokens and their statistics, which are those of the rounded values, as these are what will be read."""
    rounded = ()
    for j in tl.static_range(C // BLOCK):
        rounded = rounded + (sums[j].to(out.dtype.element_ty).to(tl.float32),)
    store_blocks(rounded, out, rows, inside, C, BLOCK)
    mean = tl.sum(rounded[0], 1)
    for j in tl.static_range(1, C // BLOCK):
        mean += tl.sum(rounded[j], 1)
    mean = mean / C
    centered = rounded[0] - mean[:, None]
    squares = tl.sum(centered * centered, 1)
    for j in tl.static_range(1, C // BLOCK):
        centered = rounded[j] - mean[:, None]
        squares += tl.sum(centered * centered, 1)
    tl.store(stats + 2 * rows, mean, mask=inside)
    tl.store(stats + 2 * rows + 1, tl.rsqrt(squares / C + 1e-5), mask=inside)


@triton.jit
def neighbors(rows, tap, height, width):
    """Return a tap's tokens of a 3×3 kernel, numbered row by row, and whether they lie in the map."""
    y = rows // width + tap // 3 - 1
    x = rows % width + tap % 3 - 1
    inside = (rows < height * width) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y * width + x, inside


@triton.jit
def mix_block(tokens, stats, weight, shift, rows, block, height, width, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return GELU of a depthwise 3×3 convolution of the normalized tokens, for one block of channels.

    `weight` (9, C) contains the norm's weight; `shift` (9, C) what its bias adds where a tap lies in the map.
    """
    channels = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((rows.shape[0], BLOCK), tl.float32)
    for tap in range(9):
        places, inside = neighbors(rows, tap, height, width)
        mean, rstd = load_stats(stats, places, inside)
        x = (load_block(tokens, places, inside, block, C, BLOCK) - mean[:, None]) * rstd[:, None]
        total += x * tl.load(weight + tap * C + channels)[None, :]
        total += tl.where(inside[:, None], tl.load(shift + tap * C + channels)[None, :], 0.0)
    return gelu(total)
