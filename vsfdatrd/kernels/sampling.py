"""The tails that sample at computed positions: dysample, and lda, whose pixels attend to nine positions each."""

import triton
import triton.language as tl

from vsfdatrd.kernels.blocks import sigmoid


@triton.jit
def move(planes, start, place, token, count, size, inside):
    """Return how far a pixel's position is from its token along one axis: see `sample_pixels`."""
    offset = tl.load(planes + place * count + token, mask=inside, other=0.0)
    scope = tl.load(planes + (8 * size + place) * count + token, mask=inside, other=0.0)
    return offset * sigmoid(scope) + tl.load(start + place, mask=inside, other=0.0)


@triton.jit
def between(position, length):
    """Return the two places on either side of a position, inside, and the share of the second one."""
    position = tl.minimum(tl.maximum(position, 0.0), length - 1.0)
    # Once more as integers: NaN may have become any.
    first = tl.minimum(tl.maximum(position.to(tl.int32), 0), length - 1)
    return first, tl.minimum(first + 1, length - 1), position - first.to(tl.float32)


@triton.jit
def sample_pixels(planes, start, bias, image, height, width, step, PIXELS: tl.constexpr):
    """Sample three planes of four groups at learned positions, bilinearly, and add the groups and `bias` (3).

    planes (16 · step² + 12, height, width): offsets (axis, group, row, column), x first, their scopes, and the values
    (group, plane). start (8 · step²) is added to offset · sigmoid(scope). The image is (3, step · height, step ·
    width).
    """
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    count, size = height * width, step * step
    wide = width * step
    row, column = pixels // wide, pixels % wide
    inside = row < height * step
    y, x = row // step, column // step
    token, phase = y * width + x, row % step * step + column % step
    red = tl.zeros((PIXELS,), tl.float32) + tl.load(bias)
    green = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 1)
    blue = tl.zeros((PIXELS,), tl.float32) + tl.load(bias + 2)
    for group in range(4):
        place = group * size + phase
        left, right, across = between(x + move(planes, start, place, token, count, size, inside), width)
        top, bottom, down = between(y + move(planes, start, place + 4 * size, token, count, size, inside), height)
        values = planes + (16 * size + 3 * group) * count
        for p in tl.static_range(2):
            for q in tl.static_range(2):
                at = values + (bottom if p else top) * width + (right if q else left)
                share = (down if p else 1.0 - down) * (across if q else 1.0 - across)
                red += share * tl.load(at, mask=inside, other=0.0)
                green += share * tl.load(at + count, mask=inside, other=0.0)
                blue += share * tl.load(at + 2 * count, mask=inside, other=0.0)
    total = height * step * wide
    tl.store(image + pixels, red, mask=inside)
    tl.store(image + total + pixels, green, mask=inside)
    tl.store(image + 2 * total + pixels, blue, mask=inside)


@triton.jit
def normalize_maps(maps, out, count, channels, inputs, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    """Normalize the `channels` of each token of a map (count, inputs), without weights; the others become 0."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (rows < count)[:, None]
    mean = tl.zeros((ROWS,), tl.float32)
    for start in range(0, inputs, DEPTH):
        lanes = start + tl.arange(0, DEPTH)
        at = maps + rows[:, None] * inputs + lanes[None, :]
        x = tl.load(at, mask=inside & (lanes < channels)[None, :], other=0.0).to(tl.float32)
        mean += tl.sum(x, 1)
    mean = mean / channels
    squares = tl.zeros((ROWS,), tl.float32)
    for start in range(0, inputs, DEPTH):
        lanes = start + tl.arange(0, DEPTH)
        at = maps + rows[:, None] * inputs + lanes[None, :]
        x = tl.load(at, mask=inside & (lanes < channels)[None, :], other=0.0).to(tl.float32)
        x = tl.where((lanes < channels)[None, :], x - mean[:, None], 0.0)
        squares += tl.sum(x * x, 1)
    factor = tl.rsqrt(squares / channels + 1e-6)
    for start in range(0, inputs, DEPTH):
        lanes = start + tl.arange(0, DEPTH)
        at = rows[:, None] * inputs + lanes[None, :]
        x = tl.load(maps + at, mask=inside & (lanes < channels)[None, :], other=0.0).to(tl.float32)
        x = tl.where((lanes < channels)[None, :], (x - mean[:, None]) * factor[:, None], 0.0)
        tl.store(out + at, x.to(out.dtype.element_ty), mask=inside)


@triton.jit
def enlarge(pixel, length, last):
    """Return the token before a pixel along an axis, and the share of the next one.

    The first pixel lies on the first of `length` tokens, and the pixel number `last` on the last one.
    """
    place = pixel * (length - 1) // last
    return place, (pixel * (length - 1) - place * last).to(tl.float32) / last


@triton.jit
def move_queries(
    planes,
    weight,
    scale,
    shift,
    out,
    height,
    width,
    step,
    part,
    outputs,
    PIXELS: tl.constexpr,
    LANES: tl.constexpr,
):
    """What offsets are computed from: enlarged queries after a depthwise 3×3 convolution, a norm and SiLU.

    The first of the planes (any, height, width) are the queries of two groups of `part` channels, at most LANES: an
    eighth of the tail's, whose number has 8 bits. weight (9, part), scale (part) and shift (part) are those of both.
    out (step² · height · width, outputs); what is beyond the two groups becomes 0, which is the third group's work.
    """
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    group = tl.program_id(1)
    lanes = tl.arange(0, LANES)
    known = lanes < tl.where(group < 2, part, 0)
    tall, wide = height * step, width * step
    y, x = pixels // wide, pixels % wide
    inside = y < tall
    channels = planes + (group * part + lanes)[None, :] * (height * width)
    total = tl.zeros((PIXELS, LANES), tl.float32)
    for tap in range(9):
        row, column = y + tap // 3 - 1, x + tap % 3 - 1
        present = inside & (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
        top, down = enlarge(row, height, tall - 1)
        left, across = enlarge(column, width, wide - 1)
        value = tl.zeros((PIXELS, LANES), tl.float32)
        for p in tl.static_range(2):
            for q in tl.static_range(2):
                share = (down if p else 1.0 - down) * (across if q else 1.0 - across)
                at = tl.minimum(top + p, height - 1) * width + tl.minimum(left + q, width - 1)
                corner = tl.load(channels + at[:, None], mask=present[:, None] & known[None, :], other=0.0)
                value += share[:, None] * corner
        total += value * tl.load(weight + tap * part + lanes, mask=known, other=0.0)[None, :]
    mean = tl.sum(total, 1) / part
    total = tl.where(known[None, :], total - mean[:, None], 0.0)
    factor = tl.rsqrt(tl.sum(total * total, 1) / part + 1e-6)
    total = total * factor[:, None] * tl.load(scale + lanes, mask=known, other=0.0)[None, :]
    total += tl.load(shift + lanes, mask=known, other=0.0)[None, :]
    total = total * sigmoid(total)
    written = lanes < tl.where(group < 2, part, outputs - 2 * part)
    at = out + pixels[:, None] * outputs + (group * part + lanes)[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside[:, None] & written[None, :])


@triton.jit
def find_places(offsets, own, inside, length, last):
    """Return the tokens before positions along an axis of `length` tokens, and the shares of the ones after them."""
    offset = tl.load(offsets, mask=inside, other=0.0)
    position = (own + 11.0 * (2.0 * sigmoid(2.0 * offset) - 1.0)) * ((length - 1.0) / last)
    place = tl.floor(position)
    return place.to(tl.int32), position - place


@triton.jit
def find_positions(offsets, pixels, places, inside, group, height, width, step):
    """Return row, share of the next row, column, and share of the next column of a group's nine positions."""
    tall, wide = height * step, width * step
    count = tall * wide
    at = offsets + (18 * group + 2 * places)[None, :] * count + pixels[:, None]
    y, x = (pixels // wide)[:, None] + (places // 3 - 1)[None, :], (pixels % wide)[:, None] + (places % 3 - 1)[None, :]
    top, down = find_places(at, y, inside, height, tall - 1)
    left, across = find_places(at + count, x, inside, width, wide - 1)
    return top, down, left, across


@triton.jit
def attend_positions(
    maps,
    planes,
    offsets,
    table,
    out,
    height,
    width,
    step,
    channels,
    inputs,
    PIXELS: tl.constexpr,
    PLACES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Attention of each pixel of the enlarged map to nine positions among the tokens, for two groups of channels.

    planes (2 · hidden, height, width) are queries and keys, with hidden = channels / 4, half of it for each group.
    offsets (36, step · height, step · width) are (group, position, axis), y first; table (9, hidden) is added to keys.
    maps (height · width, inputs) are the values; out (step² · height · width, inputs) has zeros beyond `channels`.
    """
    pixels = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    places = tl.arange(0, PLACES)
    tall, wide, count = height * step, width * step, height * width
    y, x = pixels // wide, pixels % wide
    inside = y < tall
    sampled = inside[:, None] & (places < 9)[None, :]
    hidden = channels // 4
    part, half = hidden // 2, channels // 2

    above, below = enlarge(y, height, tall - 1)
    before, after = enlarge(x, width, wide - 1)
    scores = tl.zeros((PIXELS, PLACES), tl.float32)
    for group in range(2):
        top, down, left, across = find_positions(offsets, pixels, places, sampled, group, height, width, step)
        for channel in range(group * part, group * part + part):
            query = tl.zeros((PIXELS,), tl.float32)
            key = tl.load(table + places * hidden + channel, mask=places < 9, other=0.0)[None, :]
            key = key + tl.zeros((PIXELS, PLACES), tl.float32)
            for p in tl.static_range(2):
                for q in tl.static_range(2):
                    at = tl.minimum(above + p, height - 1) * width + tl.minimum(before + q, width - 1)
                    share = (below if p else 1.0 - below) * (after if q else 1.0 - after)
                    query += share * tl.load(planes + channel * count + at, mask=inside, other=0.0)
                    row, column = top + p, left + q
                    present = sampled & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    at = planes + (hidden + channel) * count + row * width + column
                    nearness = (down if p else 1.0 - down) * (across if q else 1.0 - across)
                    key += nearness * tl.load(at, mask=present, other=0.0)
            scores += query[:, None] * key
    scores = tl.where((places < 9)[None, :], scores * tl.rsqrt(hidden.to(tl.float32)), float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    shares = shares / tl.sum(shares, 1)[:, None]

    for group in range(2):
        top, down, left, across = find_positions(offsets, pixels, places, sampled, group, height, width, step)
        end = half + group * (inputs - 2 * half)
        for start in range(0, end, CHANNELS):
            lanes = start + tl.arange(0, CHANNELS)
            total = tl.zeros((PIXELS, CHANNELS), tl.float32)
            for p in tl.static_range(2):
                for q in tl.static_range(2):
                    row, column = top + p, left + q
                    present = sampled & (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    share = shares * (down if p else 1.0 - down) * (across if q else 1.0 - across)
                    at = (row * width + column)[:, :, None] * inputs + (group * half + lanes)[None, None, :]
                    mask = present[:, :, None] & (lanes < half)[None, None, :]
                    values = tl.load(maps + at, mask=mask, other=0.0).to(tl.float32)
                    total += tl.sum(share[:, :, None] * values, 1)
            at = out + pixels[:, None] * inputs + (group * half + lanes)[None, :]
            tl.store(at, total.to(out.dtype.element_ty), mask=inside[:, None] & (lanes < end)[None, :])
