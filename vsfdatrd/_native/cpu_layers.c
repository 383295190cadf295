/* The layers of FDAT-RD other than attention: weight packing, the first convolution, depthwise convolutions fused with the
 * operations around them, 3x3 convolutions. See cpu.h.
 */
#if defined(__x86_64__)
#include <float.h>
#include <math.h>

#include "cpu_math.h"

#if !defined(FDATRD_VNNI) && !defined(FDATRD_AMX) /* these two serve all variants */
/* Returns the bytes of scratch per thread for maps `width` tokens wide with C channels, `hidden` channels in the
 * feed-forward network and `dict_tokens` dictionary tokens.
 */
EXPORT int64_t fdatrd_cpu_scratch(int64_t width, int64_t channels, int64_t hidden, int64_t dict_tokens) {
    int64_t wide = hidden > 3 * channels ? hidden : 3 * channels;
    int64_t rows = (width + 2) * (16 * hidden + 40 * channels + 64); /* upper bound for the map rows of all layers */
    int64_t windows = KEYS * (wide + 4 * channels) * 4 + 8 * KEYS * HEAD * 4;
    int64_t dictionary = (dict_tokens + ROWS) * (HEAD + 2 * channels) * 8;
    return rows + windows + dictionary + BLOCK * wide * 8 + (1 << 20);
}

/* Packs fp32 weights (columns, inner), both multiples of 16, into the panels and scales of a Matrix.
 *
 * No sum can overflow: a token's integers are at most LEVELS, and a column is scaled so that the sum of its magnitudes
 * times LEVELS stays below 2^31 (including rounding, which adds up to 1/2 per weight). A non-finite weight makes the scale
 * of its column NaN.
 */
EXPORT void fdatrd_cpu_pack(const float *weights, int64_t columns, int64_t inner, int16_t *panels, float *scale) {
    memset(panels, 0, (size_t)(columns * inner * 2));
    for (int64_t column = 0; column < columns; column++) {
        scale[column] = 0;
        const float *w = weights + column * inner;
        double sum = 0, most = 0;
        for (int64_t k = 0; k < inner; k++) {
            double x = fabs((double)w[k]);
            sum += x;
            if (!(x <= most)) most = x;
        }
        if (most == 0) continue;
        double room = (2147483647.0 / LEVELS - 0.5 * (double)inner) / sum, factor = 32767 / most;
        if (!(factor < room)) factor = room;
        scale[column] = (float)(1 / factor);
        int16_t *to = panels + column / COLUMNS * COLUMNS * inner + column % COLUMNS * 2;
        if (!(sum <= DBL_MAX)) scale[column] = NAN; /* isfinite would need mingw-w64 to be linked */
        else
            for (int64_t k = 0; k < inner; k++)
                to[k / 2 * COLUMNS * 2 + k % 2] = (int16_t)_mm_cvtsd_si32(_mm_set_sd(w[k] * factor));
    }
}
#endif

/* out = a · mᵀ: integers (rows, inner), with a step each, times a matrix; out: (rows, columns). `rows` is a multiple of 6.
 * For tests, and to measure how fast products can be.
 */
KERNEL(multiply)(const int16_t *a, const float *steps, int64_t rows, const Matrix *m, float *out) {
    begin_products();
    product(a, steps, rows, m, out, m->columns);
    end_products();
}

/* out = a · mᵀ modulo 2^32, of integers (rows, inner) and those of a matrix; out: (rows, columns). `rows` is a multiple of
 * 6. For comparing instructions to the last bit.
 */
KERNEL(sums)(const int16_t *a, int64_t rows, const Matrix *m, int32_t *out) {
    begin_products();
    for (int64_t which = 0; which < m->columns / COLUMNS; which++) {
        const int32_t *bounds = m->bounds + which;
        for (int64_t row = 0; row < rows; row += ROWS) {
            Integers sums[ROWS];
            UNROLL for (int i = 0; i < ROWS; i++) sums[i] = no_integers();
            if (bounds[0] < bounds[1])
                tile(a + row * m->inner, 2 * m->inner, m->panels + which * COLUMNS * m->inner, m->spans + 2 * bounds[0],
                     bounds[1] - bounds[0], sums);
            UNROLL for (int i = 0; i < ROWS; i++) store_integers(out + (row + i) * m->columns + which * COLUMNS, sums[i]);
        }
#ifdef FDATRD_AMX
        _Alignas(64) uint8_t bytes[AMX_ROWS * 2 * WIDEST];
        _Alignas(64) int32_t sums[4 * AMX_SUMS];
        for (int64_t row = 0; has_blocks(m, which) && row + AMX_ROWS <= rows; row += AMX_ROWS) {
            separate(a + row * m->inner, AMX_ROWS, m->inner, bytes);
            multiply_bytes(bytes, byte_stride(m->inner), m, which, sums);
            for (int64_t i = 0; i < AMX_ROWS; i++)
                store_integers(out + (row + i) * m->columns + which * COLUMNS, combined(sums + i * COLUMNS));
        }
#endif
    }
    end_products();
}

/* ---- depthwise 3x3 convolution of rows of a map -------------------------------------------------------------------- */

enum { PIXELS = 6 }; /* computed together; widths are multiples of 30 */
#ifdef FDATRD_VNNI
enum { TALL = 8 }; /* rows of a tile of the moments: as many as there are registers for */
#else
enum { TALL = 4 };
#endif

/* Sixteen channels, from `channel` on, of pixels x to x + 5 of a row, from three rows of (W + 2, channels) with zero borders
 * left and right. weights: (9, channels).
 */
INLINE void depthwise(const float *const rows[3], const float *weights, int64_t channels, int64_t x, int64_t channel,
                      Vector sum[PIXELS]) {
    UNROLL for (int i = 0; i < PIXELS; i++) sum[i] = all(0);
    UNROLL for (int y = 0; y < 3; y++) {
        const float *from = rows[y] + x * channels + channel;
        Vector weight[3];
        UNROLL for (int tap = 0; tap < 3; tap++) weight[tap] = load(weights + (3 * y + tap) * channels + channel);
        UNROLL for (int i = 0; i < PIXELS + 2; i++, from += channels) {
            __asm__("" : "+r"(from)); /* else compilers keep a pointer to every pixel, more than there are registers */
            Vector pixel = load(from);
            UNROLL for (int tap = 0; tap < 3; tap++)
                if (i >= tap && i - tap < PIXELS) sum[i - tap] = multiply_add(weight[tap], pixel, sum[i - tap]);
        }
    }
}

/* Four rows of a map with a border: row y is in slot y mod 3, and the fourth slot is always zero. */
typedef struct {
    float *slots[4];
} Ring;

static Ring ring_of(char **scratch, int64_t width, int64_t channels) {
    Ring ring;
    for (int i = 0; i < 4; i++) {
        ring.slots[i] = take(scratch, (width + 2) * channels * 4);
        memset(ring.slots[i], 0, (size_t)((width + 2) * channels * 4));
    }
    return ring;
}

/* Returns the rows above, at and below y; zeros outside of the map. */
static inline void neighbors(const Ring *ring, int64_t y, int64_t height, const float *rows[3]) {
    rows[0] = y ? ring->slots[(y - 1) % 3] : ring->slots[3];
    rows[1] = ring->slots[y % 3];
    rows[2] = y + 1 < height ? ring->slots[(y + 1) % 3] : ring->slots[3];
}

/* sums (C, C) += mᵀ m over `count` tokens, with m = n - around, which is stored in `less`. Only the diagonal and above is
 * valid.
 */
static void moment(const float *n, int64_t count, int64_t channels, const float *around, float *less, double *sums) {
    for (int64_t token = 0; token < count; token++)
        for (int64_t i = 0; i < channels; i += LANES) {
            Vector away = subtract(load(n + token * channels + i), load(around + i));
            store(less + token * channels + i, away);
        }
    for (int64_t j = 0; j < channels; j += LANES)
        for (int64_t i = 0; i < j + LANES; i += TALL) {
            Vector s[TALL];
            UNROLL for (int k = 0; k < TALL; k++) s[k] = all(0);
            const float *row = less;
            for (int64_t token = 0; token < count; token++, row += channels) {
                Vector x = load(row + j);
                UNROLL for (int k = 0; k < TALL; k++) s[k] = multiply_add(all(row[i + k]), x, s[k]);
            }
            UNROLL for (int k = 0; k < TALL; k++) {
                double *to = sums + (i + k) * channels + j;
                for (int half = 0; half < 2; half++, to += 8) {
                    __m256 part = half ? high_half(s[k]) : low_half(s[k]);
                    __m256d low = _mm256_cvtps_pd(_mm256_castps256_ps128(part));
                    __m256d high = _mm256_cvtps_pd(_mm256_extractf128_ps(part, 1));
                    _mm256_storeu_pd(to, _mm256_add_pd(low, _mm256_loadu_pd(to)));
                    _mm256_storeu_pd(to + 4, _mm256_add_pd(high, _mm256_loadu_pd(to + 4)));
                }
            }
        }
}

/* c = GELU(depthwise(norm(t))) for rows [first, last) of a map.
 *
 * t, c: (H, W, C). weights: (9, C). sums: (C) doubles, accumulates c. For channel attention also moments (C, C) and means
 * (C), doubles that accumulate nᵀn and n with n = norm(t) - around (C); in moments only the diagonal and above is valid.
 * Otherwise NULL.
 */
KERNEL(local)(const float *t, float *c, int64_t height, int64_t width, int64_t channels, int64_t first, int64_t last,
              const Norm *norm, const float *weights, double *sums, const float *around, double *moments, double *means,
              char *scratch) {
    Ring ring = ring_of(&scratch, width, channels);
    float *less = take(&scratch, BLOCK * channels * 4), *added = take(&scratch, channels * 4);
    for (int64_t y = first ? first - 1 : 0; y <= last && y < height; y++) {
        const float *row = ring.slots[y % 3] + channels;
        normalize(t + y * width * channels, width, channels, *norm, ring.slots[y % 3] + channels);
        for (int64_t x = 0; moments && y >= first && y < last && x < width; x += BLOCK) {
            int64_t count = width - x < BLOCK ? width - x : BLOCK;
            moment(row + x * channels, count, channels, around, less, moments);
            memset(added, 0, (size_t)(channels * 4));
            for (int64_t i = 0; i < count; i++)
                for (int64_t j = 0; j < channels; j += LANES)
                    store(added + j, add(load(added + j), load(less + i * channels + j)));
            for (int64_t i = 0; i < channels; i++) means[i] += added[i];
        }
        for (int64_t done = y - 1; done <= y; done++) { /* a row can be computed once the row below it is available, or it is the last */
            if (done < first || done >= last || (done == y && y + 1 < height)) continue;
            const float *rows[3];
            neighbors(&ring, done, height, rows);
            memset(added, 0, (size_t)(channels * 4));
            for (int64_t x = 0; x < width; x += PIXELS)
                for (int64_t i = 0; i < channels; i += LANES) {
                    Vector found[PIXELS], sum = load(added + i);
                    depthwise(rows, weights, channels, x, i, found);
                    UNROLL for (int k = 0; k < PIXELS; k++) {
                        found[k] = gelu(found[k]);
                        store(c + (done * width + x + k) * channels + i, found[k]);
                        sum = add(sum, found[k]);
                    }
                    store(added + i, sum);
                }
            for (int64_t i = 0; i < channels; i++) sums[i] += added[i];
        }
    }
}

/* t += fc2(depthwise(GELU(fc1(norm(t))))) for rows [first, last) of a map, (H, W, C).
 *
 * above, below: copies of rows first - 1 and last before this layer, (W, C), since another thread may be changing them;
 * NULL at the edges of the map. weights: (9, hidden).
 */
KERNEL(feed_forward)(float *t, const float *above, const float *below, int64_t height, int64_t width, int64_t first,
                     int64_t last, const Norm *norm, const Matrix *fc1, const float *weights, const Matrix *fc2,
                     char *scratch) {
    begin_products();
    int64_t channels = fc1->inner, hidden = fc1->columns;
    Ring ring = ring_of(&scratch, width, hidden);
    float *mixed = take(&scratch, PIXELS * hidden * 4), steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * hidden * 2);
    for (int64_t y = first ? first - 1 : 0; y <= last && y < height; y++) {
        const float *source = y < first ? above : y == last ? below : t + y * width * channels;
        float *row = ring.slots[y % 3] + hidden;
        for (int64_t x = 0; x < width; x += BLOCK) {
            int64_t count = width - x < BLOCK ? width - x : BLOCK;
            enter(source + x * channels, count, channels, BLOCK * channels, *norm, NULL, a, steps);
            product_then(CURVED, a, steps, count, fc1, row + x * hidden, hidden, NULL);
        }
        for (int64_t done = y - 1; done <= y; done++) {
            if (done < first || done >= last || (done == y && y + 1 < height)) continue;
            const float *rows[3];
            neighbors(&ring, done, height, rows);
            for (int64_t x = 0; x < width; x += BLOCK) {
                int64_t count = width - x < BLOCK ? width - x : BLOCK;
                for (int64_t i = 0; i < count; i += PIXELS) {
                    Integers most[PIXELS];
                    UNROLL for (int k = 0; k < PIXELS; k++) most[k] = no_integers();
                    for (int64_t j = 0; j < hidden; j += LANES) {
                        Vector found[PIXELS];
                        depthwise(rows, weights, hidden, x + i, j, found);
                        UNROLL for (int k = 0; k < PIXELS; k++) {
                            store(mixed + k * hidden + j, found[k]);
                            most[k] = larger_integers(most[k], magnitude(found[k]));
                        }
                    }
                    UNROLL for (int k = 0; k < PIXELS; k++)
                        steps[i + k] = quantize_to(largest_magnitude(most[k]), mixed + k * hidden, hidden,
                                                   a + (i + k) * hidden);
                }
                add_product(a, steps, count, fc2, t + (done * width + x) * channels, channels);
            }
        }
    }
    end_products();
}

/* ---- 3x3 convolutions ---------------------------------------------------------------------------------------------- */

/* The first convolution including pixel unshuffle: rows [first, last) of the token map from a picture of 3 planes.
 *
 * picture: (3, H·u, W·u). m: inner is 3·(3u)² rounded up to a multiple of 16, in the order plane, row, column of the
 * patch of 3u x 3u pixels around a token; the weights of the padding are zero. out: (H, W, C).
 */
KERNEL(first)(const float *picture, float *out, int64_t height, int64_t width, int64_t unshuffle, int64_t first,
              int64_t last, const Matrix *m, const float *bias, char *scratch) {
    begin_products();
    int64_t side = 3 * unshuffle, tall = height * unshuffle, wide = width * unshuffle, channels = m->columns;
    float *patch = take(&scratch, m->inner * 4), steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * m->inner * 2);
    memset(patch, 0, (size_t)(m->inner * 4));
    for (int64_t y = first; y < last; y++)
        for (int64_t x = 0; x < width; x += BLOCK) {
            int64_t count = width - x < BLOCK ? width - x : BLOCK;
            for (int64_t i = 0; i < count; i++) {
                float *to = patch;
                for (int plane = 0; plane < 3; plane++)
                    for (int64_t row = (y - 1) * unshuffle; row < (y - 1) * unshuffle + side; row++)
                        for (int64_t column = (x + i - 1) * unshuffle, end = column + side; column < end; column++)
                            *to++ = row < 0 || row >= tall || column < 0 || column >= wide
                                        ? 0
                                        : picture[(plane * tall + row) * wide + column];
                steps[i] = quantize(patch, m->inner, a + i * m->inner);
            }
            float *to = out + (y * width + x) * channels;
            for (int64_t i = 0; i < count; i++) memcpy(to + i * channels, bias, (size_t)(channels * 4));
            add_product(a, steps, count, m, to, channels);
        }
    end_products();
}

/* out = conv(t) + more for rows [first, last) of a map; 3x3, no bias. t, out, more: (H, W, C); out is not t. taps: nine
 * matrices in row-major order.
 */
KERNEL(conv)(const float *t, const float *more, float *out, int64_t height, int64_t width, int64_t first, int64_t last,
             const Matrix *taps, char *scratch) {
    begin_products();
    int64_t channels = taps->inner;
    int16_t *rows[3];
    float *steps[3];
    for (int i = 0; i < 3; i++) {
        rows[i] = take(&scratch, (width + 2) * channels * 2);
        steps[i] = take(&scratch, (width + 2) * 4);
        memset(rows[i], 0, (size_t)((width + 2) * channels * 2));
        memset(steps[i], 0, (size_t)((width + 2) * 4));
    }
    for (int64_t y = first ? first - 1 : 0; y <= last && y < height; y++) {
        for (int64_t x = 0; x < width; x++)
            steps[y % 3][x + 1] = quantize(t + (y * width + x) * channels, channels, rows[y % 3] + (x + 1) * channels);
        for (int64_t done = y - 1; done <= y; done++) {
            if (done < first || done >= last || (done == y && y + 1 < height)) continue;
            float *to = out + done * width * channels;
            memcpy(to, more + done * width * channels, (size_t)(width * channels * 4));
            for (int64_t x = 0; x < width; x += BLOCK) {
                int64_t count = width - x < BLOCK ? width - x : BLOCK;
                for (int tap = 0; tap < 9; tap++) {
                    int64_t from = done + tap / 3 - 1;
                    if (from < 0 || from >= height) continue;
                    int64_t at = x + tap % 3; /* index in the row including its border */
                    add_product(rows[from % 3] + at * channels, steps[from % 3] + at, count, taps + tap,
                                to + x * channels, channels);
                }
            }
        }
    }
    end_products();
}

FEATURES_END
#endif
