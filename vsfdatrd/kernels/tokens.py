"""Kernels on tokens and their neighbors: norm with a product, depthwise convolutions, the feed-forward network."""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import (
    add_product,
    add_tokens,
    gelu,
    load_normalized,
    mix_block,
    multiply,
    neighbors,
    sigmoid,
    store_tokens,
    zeros,
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
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Queries, keys and values (N, 3C) of the normalized tokens, in the order of windows: weight (C, 3C), bias (3C)."""
    ordered = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = ordered < height * width
    places = window_height * window_width
    window, place = ordered // places, ordered % places
    across = width // window_width
    y = window // across * window_height + place // window_width
    x = window % across * window_width + place % window_width
    blocks = load_normalized(tokens, stats, y * width + x, inside, C, BLOCK)
    for start in range(0, 3 * C, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        result = multiply(blocks, weight, columns, 3 * C, C, BLOCK) + tl.load(bias + columns)[None, :]
        at = qkv + ordered[:, None] * (3 * C) + columns[None, :]
        tl.store(at, result.to(qkv.dtype.element_ty), mask=inside[:, None])


@triton.jit
def mix_local(
    tokens,
    stats,
    weight,
    shift,
    local,
    sums,
    height,
    width,
    tiles,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """GELU of a depthwise convolution of the normalized tokens: see `blocks.mix_block`. Also its sums by parts.

    A part is `tiles` times ROWS tokens; `sums` is (parts, C).
    """
    part, block = tl.program_id(0), tl.program_id(1)
    channels = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tiles):
        rows = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (rows < height * width)[:, None]
        mixed = mix_block(tokens, stats, weight, shift, rows, block, height, width, C, BLOCK)
        tl.store(local + rows[:, None] * C + channels[None, :], mixed.to(local.dtype.element_ty), mask=inside)
        total += tl.sum(tl.where(inside, mixed, 0.0), 0)
    tl.store(sums + part * C + channels, total)


@triton.jit
def gate_pool(
    sums,
    narrow,
    wide,
    gate,
    count,
    parts,
    hidden_width,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    """Gate (C): sigmoid(wide GELU(narrow mean)), for the sums of `mix_local`. narrow (width, C), wide (C, width)."""
    lanes = tl.arange(0, HIDDEN)
    used = lanes < hidden_width
    hidden = tl.zeros((HIDDEN,), tl.float32)
    for start in range(0, C, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, parts, ROWS):
            rows = first + tl.arange(0, ROWS)
            part = tl.load(sums + rows[:, None] * C + channels[None, :], mask=(rows < parts)[:, None], other=0.0)
            total += tl.sum(part, 0)
        w = tl.load(narrow + lanes[:, None] * C + channels[None, :], mask=used[:, None], other=0.0)
        hidden += tl.sum(w * (total / count)[None, :], 1)
    hidden = gelu(hidden)
    for start in range(0, C, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        w = tl.load(wide + channels[:, None] * hidden_width + lanes[None, :], mask=used[None, :], other=0.0)
        tl.store(gate + channels, sigmoid(tl.sum(w * hidden[None, :], 1)))


@triton.jit
def feed_in(
    tokens,
    stats,
    weight,
    bias,
    hidden,
    count,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """First half of the feed-forward network: GELU(normalized @ weight + bias) (N, F)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < count
    blocks = load_normalized(tokens, stats, rows, inside, C, BLOCK)
    for start in range(0, F, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        result = gelu(multiply(blocks, weight, columns, F, C, BLOCK) + tl.load(bias + columns)[None, :])
        at = hidden + rows[:, None] * F + columns[None, :]
        tl.store(at, result.to(hidden.dtype.element_ty), mask=inside[:, None])


@triton.jit
def feed_out(
    hidden,
    mix,
    weight,
    tokens,
    out,
    stats,
    height,
    width,
    C: tl.constexpr,
    F: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Second half: tokens + depthwise(hidden) @ weight, for a depthwise 3×3 kernel `mix` (9, F) and weight (F, C)."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = rows < height * width
    sums = zeros(ROWS, C, BLOCK)
    for start in range(0, F, DEPTH):
        columns = start + tl.arange(0, DEPTH)
        mixed = tl.zeros((ROWS, DEPTH), tl.float32)
        for tap in range(9):
            places, present = neighbors(rows, tap, height, width)
            at = hidden + places[:, None] * F + columns[None, :]
            x = tl.load(at, mask=present[:, None], other=0.0).to(tl.float32)
            mixed += x * tl.load(mix + tap * F + columns)[None, :]
        sums = add_product(sums, mixed.to(weight.dtype.element_ty), weight, columns, C, BLOCK)
    sums = add_tokens(sums, tokens, rows, inside, C, BLOCK)
    store_tokens(sums, out, stats, rows, inside, C, BLOCK)
