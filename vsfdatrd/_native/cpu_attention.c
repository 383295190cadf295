/* The three kinds of attention in FDAT-RD. See cpu.h.
 *
 * Softmax uses base 2: query weights and bias are multiplied by log2(e) beforehand, query weights also by 1/√32.
 */
#if defined(__x86_64__)
#include "cpu_math.h"

/* Half of the range of 32-bit sums, divided by LEVELS / 2: limit for the sum of a row's integer attention weights. */
#define SHARES 520000.0f
enum { VALUES = 4095 };

/* Quantizes queries (count, 32) with a token stride of `apart` floats; steps: (count) value of one step of each. */
static inline void queries(const float *x, int64_t apart, int64_t count, int16_t *q, float *steps) {
    for (int64_t i = 0; i < count; i++) steps[i] = quantize(x + i * apart, HEAD, q + i * HEAD);
}

/* Transposes 8x8 32-bit numbers. */
static inline void transpose(__m256i r[8]) {
    __m256i a[8], b[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
        r[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
    }
}

/* Packs keys and values (count, 32) with a token stride of `apart` floats for `attend`. `padded` is `count` rounded up to
 * a multiple of 16; key_scale is 0 for the padding.
 */
static inline void memorise(const float *keys, const float *values, int64_t apart, int64_t count, int64_t padded,
                            int16_t *key_panels, float *key_scale, int16_t *value_panels, float *value_scale) {
    for (int64_t first = 0; first < padded; first += COLUMNS) {
        int16_t rows[COLUMNS][HEAD];
        for (int i = 0; i < COLUMNS; i++) {
            key_scale[first + i] = 0;
            if (first + i < count) key_scale[first + i] = quantize(keys + (first + i) * apart, HEAD, rows[i]);
            else memset(rows[i], 0, sizeof rows[i]);
        }
        for (int half = 0; half < 2; half++)      /* keys 0 to 7, 8 to 15 */
            for (int pair = 0; pair < 2; pair++) { /* channels 0 to 15, 16 to 31: eight pairs each */
                __m256i r[8];
                UNROLL for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_si256((__m256i *)(rows[half * 8 + i] + pair * 16));
                transpose(r);
                UNROLL for (int i = 0; i < 8; i++)
                    _mm256_storeu_si256((__m256i *)(key_panels + first * HEAD + (pair * 8 + i) * 32 + half * 16), r[i]);
            }
    }
    Integers most[2] = {no_integers(), no_integers()};
    for (int64_t row = 0; row < count; row++)
        UNROLL for (int i = 0; i < 2; i++)
            most[i] = larger_integers(most[i], magnitude(load(values + row * apart + LANES * i)));
    Vector factor[2];
    UNROLL for (int i = 0; i < 2; i++) {
        /* For non-finite values the scale becomes infinite or NaN, so the integers do not matter. */
        Vector peak = larger(all(1e-30f), of_bits(most[i]));
        factor[i] = divide(all(VALUES), peak);
        store(value_scale + LANES * i, divide(peak, all(VALUES)));
    }
    for (int64_t row = 0; row < padded; row += 2)
        for (int half = 0; half < 2; half++) { /* channels 0 to 15, 16 to 31 */
            __m256i pair[2];
            for (int i = 0; i < 2; i++) {
                pair[i] = _mm256_setzero_si256();
                if (row + i >= count) continue;
                pair[i] = narrow(to_integers(multiply(load(values + (row + i) * apart + LANES * half), factor[half])));
            }
            __m256i low = _mm256_unpacklo_epi16(pair[0], pair[1]), high = _mm256_unpackhi_epi16(pair[0], pair[1]);
            int16_t *to = value_panels + half * padded * COLUMNS + row * COLUMNS;
            _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256((__m256i *)(to + 16), _mm256_permute2x128_si256(low, high, 0x31));
        }
}

/* Replaces a row of `padded` scores by their powers 2^(score - peak). Returns the sum of the powers. */
INLINE float powers(float *scores, int64_t padded, float peak) {
    Vector sum = all(0), highest = all(peak);
    for (int64_t key = 0; key < padded; key += LANES) {
        Vector power = power_of_two(subtract(load(scores + key), highest));
        store(scores + key, power);
        sum = add(sum, power);
    }
    return total(sum);
}

/* softmax2(q kᵀ + bias) v for `rows` queries (a multiple of 6), a head of 32 channels.
 *
 * q: (rows, 32) integers. bias: (padded) per row with a row stride of `bias_apart` floats (0: the same for all rows), very
 * negative where there is no key. out: row stride of `apart` floats. tops, sums: (rows) the largest score and the sum of
 * 2^(score - top), or NULL. scores: scratch of (6, padded) floats; shares: scratch of (6, padded) integers.
 */
static inline void attend(const int16_t *q, const float *steps, int64_t rows, const KeyValue *memory, const float *bias,
                          int64_t bias_apart, float *out, int64_t apart, float *tops, float *sums, float *scores,
                          int16_t *shares) {
    int64_t padded = memory->padded;
    const int32_t head[2] = {0, HEAD}, all_keys[2] = {0, (int32_t)padded};
    for (int64_t row = 0; row < rows; row += ROWS) {
        Vector top[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) top[i] = all(-3e38f);
        for (int64_t key = 0; key < padded; key += COLUMNS) {
            Integers found[ROWS];
            tile(q + row * HEAD, 2 * HEAD, memory->keys + key * HEAD, head, 1, found);
            Vector scale = load(memory->key_scale + key);
            UNROLL for (int i = 0; i < ROWS; i++) {
                Vector x = multiply(to_floats(found[i]), all(steps[row + i]));
                x = multiply_add(x, scale, load(bias + (row + i) * bias_apart + key));
                store(scores + i * padded + key, x);
                top[i] = larger(top[i], x);
                if (bias_apart) _mm_prefetch((const char *)(bias + (row + ROWS + i) * bias_apart + key), _MM_HINT_T0);
            }
        }
        float peaks[ROWS], wholes[ROWS], worth[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) peaks[i] = largest(top[i]);
        for (int i = 0; i < ROWS; i++) wholes[i] = powers(scores + i * padded, padded, peaks[i]);
        for (int i = 0; i < ROWS; i++) {
            float factor = SHARES / wholes[i];
            if (!(factor < 32767)) factor = 32767;
            for (int64_t key = 0; key < padded; key += LANES) {
                Vector share = multiply(load(scores + i * padded + key), all(factor));
                store_narrow(shares + i * padded + key, to_integers(share));
            }
            worth[i] = 1 / (wholes[i] * factor) + (peaks[i] - peaks[i]); /* NaN where a score is not finite */
            if (tops) {
                tops[row + i] = peaks[i];
                sums[row + i] = wholes[i];
            }
        }
        for (int half = 0; half < 2; half++) {
            Integers found[ROWS];
            tile(shares, 2 * padded, memory->values + half * padded * COLUMNS, all_keys, 1, found);
            Vector scale = load(memory->value_scale + COLUMNS * half);
            UNROLL for (int i = 0; i < ROWS; i++) {
                Vector x = multiply(to_floats(found[i]), all(worth[i]));
                store(out + (row + i) * apart + COLUMNS * half, multiply(x, scale));
            }
        }
    }
}

/* Allocates packed keys and values of one head for `count` tokens, at most WINDOW, from scratch. */
static KeyValue small_memory(char **scratch, int64_t count) {
    int64_t padded = (count + COLUMNS - 1) / COLUMNS * COLUMNS;
    KeyValue memory = {take(scratch, padded * HEAD * 2), take(scratch, padded * 4), take(scratch, padded * HEAD * 2),
                     take(scratch, HEAD * 4), count, padded};
    return memory;
}

static void fill(const KeyValue *memory, const float *keys, const float *values, int64_t apart) {
    memorise(keys, values, apart, memory->count, memory->padded, (int16_t *)memory->keys, (float *)memory->key_scale,
             (int16_t *)memory->values, (float *)memory->value_scale);
}

/* Packs the keys and values (count, heads·32) of all heads, `count` a multiple of 16: panels (heads, count·32), scales
 * (heads, count) and (heads, 32).
 */
KERNEL(memorise)(const float *keys, const float *values, int64_t heads, int64_t count, int16_t *key_panels,
                 float *key_scale, int16_t *value_panels, float *value_scale) {
    for (int64_t head = 0; head < heads; head++)
        memorise(keys + head * HEAD, values + head * HEAD, heads * HEAD, count, count, key_panels + head * count * HEAD,
                 key_scale + head * count, value_panels + head * count * HEAD, value_scale + head * HEAD);
}

/* Window attention with its gate, for windows [first, last) in row-major order: t = source + gate · (proj(attention(norm(
 * source))) + bias) + c.
 *
 * source, t, c: (H, W, C); t may be the source; tall, wide: height and width of a window in tokens, with tall · wide = 300. qkv: `heads` matrices
 * (96, C) for a head's queries, keys and values. places: (heads, 300, KEYS) position bias of each query and key. bias,
 * gate: (C).
 */
KERNEL(windows)(const float *source, float *t, const float *c, int64_t width, int64_t tall, int64_t wide, int64_t first,
                int64_t last, const Norm *norm, const Matrix *qkv, int64_t heads, const float *places,
                const Matrix *proj, const float *bias, const float *gate, char *scratch) {
    begin_products();
    int64_t channels = proj->inner, across = width / wide, places_of[WINDOW];
    float steps[WINDOW], query_steps[WINDOW];
    int16_t *a = take(&scratch, WINDOW * channels * 2), *q = take(&scratch, WINDOW * HEAD * 2);
    float *split = take(&scratch, WINDOW * 3 * HEAD * 4), *mixed = take(&scratch, WINDOW * channels * 4);
    float *scores = take(&scratch, ROWS * KEYS * 4);
    int16_t *shares = take(&scratch, ROWS * KEYS * 2);
    KeyValue memory = small_memory(&scratch, WINDOW);
#ifdef FDATRD_AMX
    float *projected = take(&scratch, AMX_TOKENS * channels * 4);
#endif
    for (int64_t window = first; window < last; window++) {
        int64_t corner = window / across * tall * width + window % across * wide; /* the window's top left token */
        for (int64_t i = 0; i < WINDOW; i++) places_of[i] = (corner + i / wide * width + i % wide) * channels;
        for (int64_t i = 0; i < WINDOW; i += wide)
            enter(source + places_of[i], wide, channels, width * channels, *norm, NULL, a + i * channels, steps + i);
        for (int64_t head = 0; head < heads; head++) {
            product(a, steps, WINDOW, qkv + head, split, 3 * HEAD);
            queries(split, 3 * HEAD, WINDOW, q, query_steps);
            fill(&memory, split + HEAD, split + 2 * HEAD, 3 * HEAD);
            attend(q, query_steps, WINDOW, &memory, places + head * WINDOW * KEYS, KEYS, mixed + head * HEAD, channels,
                   NULL, NULL, scores, shares);
        }
        for (int64_t i = 0; i < WINDOW; i++) steps[i] = quantize(mixed + i * channels, channels, a + i * channels);
        for (int64_t row = 0; row < WINDOW; row += ROWS) { /* all columns of a token together: it is far from the next */
#ifdef FDATRD_AMX
            if (row % AMX_TOKENS == 0)
                product(a + row * channels, steps + row, AMX_TOKENS, proj, projected, channels);
#endif
            for (int64_t column = 0; column < channels; column += COLUMNS) {
                for (int i = 0; i < ROWS && row + ROWS + i < WINDOW; i++) { /* these maps have left the cache */
                    _mm_prefetch((const char *)(source + places_of[row + ROWS + i] + column), _MM_HINT_T0);
                    _mm_prefetch((const char *)(c + places_of[row + ROWS + i] + column), _MM_HINT_T0);
                }
                Vector x[ROWS], shift = load(bias + column), open = load(gate + column);
#ifdef FDATRD_AMX
                UNROLL for (int i = 0; i < ROWS; i++)
                    x[i] = load(projected + (row % AMX_TOKENS + i) * channels + column);
#else
                tile_product(a + row * channels, steps + row, proj, column / COLUMNS, x);
#endif
                UNROLL for (int i = 0; i < ROWS; i++) {
                    int64_t at = places_of[row + i] + column;
                    x[i] = multiply_add(add(x[i], shift), open, load(c + at));
                    store(t + at, add(x[i], load(source + at)));
                }
            }
        }
    }
    end_products();
}

/* Channel attention, folded into one matrix, with its gate, for tokens [first, last): with a = m(norm(t)) + bias,
 * t += a + c · sigmoid(gate · a). bias, gate: (C).
 */
KERNEL(channels)(float *t, const float *c, int64_t first, int64_t last, const Norm *norm, const Matrix *m,
                 const float *bias, const float *gate, char *scratch) {
    begin_products();
    int64_t channels = m->inner;
    float *result = take(&scratch, BLOCK * channels * 4), steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * channels * 2);
    for (int64_t block = first; block < last; block += BLOCK) {
        int64_t count = last - block < BLOCK ? last - block : BLOCK;
        enter(t + block * channels, count, channels, BLOCK * channels, *norm, NULL, a, steps);
        product(a, steps, count, m, result, channels);
        for (int64_t i = 0; i < count; i++) {
            float *mixed = result + i * channels, *to = t + (block + i) * channels;
            const float *local = c + (block + i) * channels;
            Vector sum = all(0);
            for (int64_t j = 0; j < channels; j += LANES) {
                Vector x = add(load(mixed + j), load(bias + j));
                store(mixed + j, x);
                sum = multiply_add(x, load(gate + j), sum);
            }
            /* 1 / (1 + e^-s), using power_of_two of a value <= 0; NaN stays NaN */
            float s = total(sum), away = s < 0 ? s : -s;
            float power = first_of(power_of_two(all(away * 1.4426950409f)));
            float open = (s < 0 ? power : 1) / (1 + power) + (s - s);
            for (int64_t j = 0; j < channels; j += LANES) {
                Vector x = multiply_add(load(local + j), all(open), load(mixed + j));
                store(to + j, add(x, load(to + j)));
            }
        }
    }
    end_products();
}

/* Cross-attention of the dictionary's queries to blocks [first, last) of 300 tokens of t.
 *
 * asking: (heads, rows, 32) integer queries, `rows` a multiple of 6; asking_steps: (heads, rows). kv: `heads` matrices
 * (64, C) for a head's keys and values from inner_norm(norm(t)). Writes found (heads, rows, 32), the weighted mean of the
 * values, and tops and sums (heads, rows) of the softmax, with which the results of several ranges are combined.
 */
KERNEL(read)(const float *t, int64_t first, int64_t last, const Norm *norm, const Norm *inner_norm, const Matrix *kv,
             int64_t heads, int64_t rows, const int16_t *asking, const float *asking_steps, float *found, float *tops,
             float *sums, char *scratch) {
    begin_products();
    int64_t channels = kv->inner;
    float steps[WINDOW];
    int16_t *a = take(&scratch, WINDOW * channels * 2);
    float *split = take(&scratch, WINDOW * 2 * HEAD * 4), *part = take(&scratch, rows * HEAD * 4);
    float *part_tops = take(&scratch, rows * 4), *part_sums = take(&scratch, rows * 4);
    float *scores = take(&scratch, ROWS * KEYS * 4), *mask = take(&scratch, KEYS * 4);
    int16_t *shares = take(&scratch, ROWS * KEYS * 2);
    KeyValue memory = small_memory(&scratch, WINDOW);
    for (int64_t i = 0; i < KEYS; i++) mask[i] = i < WINDOW ? 0 : -1e30f;
    for (int64_t stretch = first; stretch < last; stretch++) {
        enter(t + stretch * WINDOW * channels, WINDOW, channels, WINDOW * channels, *norm, inner_norm, a, steps);
        for (int64_t head = 0; head < heads; head++) {
            product(a, steps, WINDOW, kv + head, split, 2 * HEAD);
            fill(&memory, split, split + HEAD, 2 * HEAD);
            attend(asking + head * rows * HEAD, asking_steps + head * rows, rows, &memory, mask, 0, part, HEAD, part_tops,
                   part_sums, scores, shares);
            for (int64_t row = 0; row < rows; row++) {
                int64_t at = head * rows + row;
                float before = 0, now = part_sums[row], top = part_tops[row];
                if (stretch > first) {
                    if (tops[at] > top) top = tops[at];
                    before = sums[at] * first_of(power_of_two(all(tops[at] - top)));
                    now *= first_of(power_of_two(all(part_tops[row] - top)));
                }
                tops[at] = top;
                sums[at] = before + now;
                Vector keep = all(before / (before + now)), new = all(now / (before + now));
                for (int64_t i = 0; i < HEAD; i += LANES) {
                    Vector x = multiply(load(part + row * HEAD + i), new);
                    if (stretch > first) x = multiply_add(load(found + at * HEAD + i), keep, x);
                    store(found + at * HEAD + i, x);
                }
            }
        }
    }
    end_products();
}

/* Dictionary attention: t += proj(attention of e_q(norm(t)) to the refined dictionary) + bias, for tokens [first, last).
 *
 * dictionary: the packed keys and values of the dictionary, one KeyValue per head. bias: (C).
 */
KERNEL(look_up)(float *t, int64_t first, int64_t last, const Norm *norm, const Matrix *e_q, const KeyValue *dictionary,
                int64_t heads, const Matrix *proj, const float *bias, char *scratch) {
    begin_products();
    int64_t channels = proj->inner, padded = dictionary->padded;
    float *split = take(&scratch, BLOCK * channels * 4);
    float *mixed = take(&scratch, BLOCK * channels * 4), steps[BLOCK], query_steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * channels * 2), *q = take(&scratch, BLOCK * HEAD * 2);
    float *scores = take(&scratch, ROWS * padded * 4), *mask = take(&scratch, padded * 4);
    int16_t *shares = take(&scratch, ROWS * padded * 2);
    memset(mask, 0, (size_t)(padded * 4));
    for (int64_t block = first; block < last; block += BLOCK) {
        int64_t count = last - block < BLOCK ? last - block : BLOCK;
        enter(t + block * channels, count, channels, BLOCK * channels, *norm, NULL, a, steps);
        product(a, steps, count, e_q, split, channels);
        for (int64_t head = 0; head < heads; head++) {
            queries(split + head * HEAD, channels, count, q, query_steps);
            attend(q, query_steps, count, dictionary + head, mask, 0, mixed + head * HEAD, channels, NULL, NULL, scores,
                   shares);
        }
        for (int64_t i = 0; i < count; i++) steps[i] = quantize(mixed + i * channels, channels, a + i * channels);
        product_then(BIASED, a, steps, count, proj, t + block * channels, channels, bias);
    }
    end_products();
}

FEATURES_END
#endif
