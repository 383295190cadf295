"""3×3 convolutions of the network's body: the first one, one at the end of each group, and one after all groups."""

import triton
import triton.language as tl

from vsfdatrd.kernels.primitives import (
    add_dot,
    add_tokens,
    neighbor_rows,
    store_blocks,
    store_tokens_and_stats,
    zero_blocks,
)


@triton.jit
def conv_first(
    image,
    weight,
    bias,
    shallow,
    out,
    out_stats,
    height,
    width,
    unshuffle,
    in_features,
    padded_in_features,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Pixel unshuffle and 3×3 convolution, computed as one convolution with kernel size 3 · `unshuffle`, in fp32.

    image (planes, height · unshuffle, width · unshuffle). weight (padded_in_features, C): the first `in_features` rows
    are (plane, y, x) of the kernel, the others are 0. The result is stored in fp32 (`shallow`) and as tokens (`out`).
    """
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < height * width
    kernel_size = 3 * unshuffle
    image_height, image_width = height * unshuffle, width * unshuffle
    first_y, first_x = rows // width * unshuffle - unshuffle, rows % width * unshuffle - unshuffle
    acc = zero_blocks(BLOCK_ROWS, C, BLOCK_C)
    for start in range(0, padded_in_features, BLOCK_K):
        features = start + tl.arange(0, BLOCK_K)
        y = first_y[:, None] + (features // kernel_size % kernel_size)[None, :]
        x = first_x[:, None] + (features % kernel_size)[None, :]
        mask = row_mask[:, None] & (features < in_features)[None, :]
        mask = mask & (y >= 0) & (y < image_height) & (x >= 0) & (x < image_width)
        planes = features // (kernel_size * kernel_size)
        pointers = image + (planes[None, :] * image_height + y) * image_width + x
        pixels = tl.load(pointers, mask=mask, other=0.0)
        new_acc = ()
        for j in tl.static_range(C // BLOCK_C):
            w = tl.load(weight + features[:, None] * C + (j * BLOCK_C + tl.arange(0, BLOCK_C))[None, :])
            # Three tf32 products are as exact as fp32, which `shallow` needs: it is added again after the last group.
            new_acc = new_acc + (tl.dot(pixels, w, acc[j], input_precision="tf32x3"),)
        acc = new_acc
    results = ()
    for j in tl.static_range(C // BLOCK_C):
        results = results + (acc[j] + tl.load(bias + j * BLOCK_C + tl.arange(0, BLOCK_C))[None, :],)
    store_blocks(results, shallow, rows, row_mask, C, BLOCK_C)
    store_tokens_and_stats(results, out, out_stats, rows, row_mask, C, BLOCK_C)


@triton.jit
def conv3x3_add(
    tokens,
    weight,
    skip,
    rows,
    row_mask,
    height,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return skip + conv3x3(tokens) as blocks; weight (9 · C, C) has rows (tap, channel)."""
    acc = zero_blocks(rows.shape[0], C, BLOCK_C)
    for step in range(9 * C // BLOCK_K):
        neighbors, mask = neighbor_rows(rows, step // (C // BLOCK_K), height, width)
        channels = step % (C // BLOCK_K) * BLOCK_K + tl.arange(0, BLOCK_K)
        x = tl.load(tokens + neighbors[:, None] * C + channels[None, :], mask=mask[:, None], other=0.0)
        acc = add_dot(acc, x, weight, step * BLOCK_K + tl.arange(0, BLOCK_K), C, BLOCK_C)
    return add_tokens(acc, skip, rows, row_mask, C, BLOCK_C)


@triton.jit
def conv_group(
    tokens,
    weight,
    skip,
    out,
    out_stats,
    height,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """skip + conv3x3(tokens), at the end of a group; see `conv3x3_add`."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < height * width
    results = conv3x3_add(tokens, weight, skip, rows, row_mask, height, width, C, BLOCK_C, BLOCK_K)
    store_tokens_and_stats(results, out, out_stats, rows, row_mask, C, BLOCK_C)


@triton.jit
def conv_after(
    tokens,
    weight,
    skip,
    out,
    height,
    width,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """skip + conv3x3(tokens), after all groups. `skip` is fp32, and `out` has the type of the tail's maps."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    row_mask = rows < height * width
    results = conv3x3_add(tokens, weight, skip, rows, row_mask, height, width, C, BLOCK_C, BLOCK_K)
    store_blocks(results, out, rows, row_mask, C, BLOCK_C)
