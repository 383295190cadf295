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
    __m256i most[4];
    UNROLL for (int i = 0; i < 4; i++) most[i] = _mm256_setzero_si256();
    for (int64_t row = 0; row < count; row++)
        UNROLL for (int i = 0; i < 4; i++)
            most[i] = _mm256_max_epi32(most[i], magnitude(_mm256_loadu_ps(values + row * apart + 8 * i)));
    __m256 factor[4];
    UNROLL for (int i = 0; i < 4; i++) {
        /* For non-finite values the scale becomes infinite or NaN, so the integers do not matter. */
        __m256 peak = _mm256_max_ps(_mm256_set1_ps(1e-30f), _mm256_castsi256_ps(most[i]));
        factor[i] = _mm256_div_ps(_mm256_set1_ps(VALUES), peak);
        _mm256_storeu_ps(value_scale + 8 * i, _mm256_div_ps(peak, _mm256_set1_ps(VALUES)));
    }
    for (int64_t row = 0; row < padded; row += 2)
        for (int half = 0; half < 2; half++) { /* channels 0 to 15, 16 to 31 */
            __m256i pair[2];
            for (int i = 0; i < 2; i++) {
                pair[i] = _mm256_setzero_si256();
                if (row + i >= count) continue;
                const float *from = values + (row + i) * apart + 16 * half;
                __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from), factor[2 * half]));
                __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(from + 8), factor[2 * half + 1]));
                pair[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
            }
            __m256i low = _mm256_unpacklo_epi16(pair[0], pair[1]), high = _mm256_unpackhi_epi16(pair[0], pair[1]);
            int16_t *to = value_panels + half * padded * COLUMNS + row * COLUMNS;
            _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256((__m256i *)(to + 16), _mm256_permute2x128_si256(low, high, 0x31));
        }
}

/* softmax2(q kᵀ + bias) v for `rows` queries (a multiple of 6), a head of 32 channels.
 *
 * q: (rows, 32) integers. bias: (padded) per row with a row stride of `bias_apart` floats (0: the same for all rows), very
 * negative where there is no key. out: row stride of `apart` floats. tops, sums: (rows) the largest score and the sum of
 * 2^(score - top), or NULL. scores: scratch of (6, padded) floats; shares: scratch of (6, padded) integers.
 */
static inline void attend(const int16_t *q, const float *steps, int64_t rows, const Memory *memory, const float *bias,
                          int64_t bias_apart, float *out, int64_t apart, float *tops, float *sums, float *scores,
                          int16_t *shares) {
    int64_t padded = memory->padded;
    const int32_t head[2] = {0, HEAD}, all_keys[2] = {0, (int32_t)padded};
    for (int64_t row = 0; row < rows; row += ROWS) {
        __m256 top[ROWS];
        UNROLL for (int i = 0; i < ROWS; i++) top[i] = _mm256_set1_ps(-3e38f);
        for (int64_t key = 0; key < padded; key += COLUMNS) {
            __m256i found[12];
            tile(q + row * HEAD, 2 * HEAD, memory->keys + key * HEAD, head, 1, found);
            __m256 left = _mm256_loadu_ps(memory->key_scale + key), right = _mm256_loadu_ps(memory->key_scale + key + 8);
            UNROLL for (int i = 0; i < ROWS; i++) {
                __m256 step = _mm256_set1_ps(steps[row + i]);
                const float *add = bias + (row + i) * bias_apart + key;
                __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(found[2 * i]), step);
                __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(found[2 * i + 1]), step);
                x = _mm256_fmadd_ps(x, left, _mm256_loadu_ps(add));
                y = _mm256_fmadd_ps(y, right, _mm256_loadu_ps(add + 8));
                _mm256_storeu_ps(scores + i * padded + key, x);
                _mm256_storeu_ps(scores + i * padded + key + 8, y);
                top[i] = _mm256_max_ps(top[i], _mm256_max_ps(x, y));
            }
        }
        float worth[ROWS];
        for (int i = 0; i < ROWS; i++) {
            float *score = scores + i * padded;
            __m128 half = _mm_max_ps(_mm256_castps256_ps128(top[i]), _mm256_extractf128_ps(top[i], 1));
            half = _mm_max_ps(half, _mm_movehl_ps(half, half));
            float peak = _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
            __m256 all = _mm256_set1_ps(peak), sum = _mm256_setzero_ps();
            for (int64_t key = 0; key < padded; key += 8) {
                __m256 power = power_of_two(_mm256_sub_ps(_mm256_loadu_ps(score + key), all));
                _mm256_storeu_ps(score + key, power);
                sum = _mm256_add_ps(sum, power);
            }
            float whole = total(sum), factor = SHARES / whole;
            if (!(factor < 32767)) factor = 32767;
            __m256 scale = _mm256_set1_ps(factor);
            for (int64_t key = 0; key < padded; key += 16) {
                __m256i pair = integers(_mm256_loadu_ps(score + key), _mm256_loadu_ps(score + key + 8), scale);
                _mm256_storeu_si256((__m256i *)(shares + i * padded + key), pair);
            }
            worth[i] = 1 / (whole * factor) + (peak - peak); /* NaN where a score is not finite */
            if (tops) {
                tops[row + i] = peak;
                sums[row + i] = whole;
            }
        }
        for (int half = 0; half < 2; half++) {
            __m256i found[12];
            tile(shares, 2 * padded, memory->values + half * padded * COLUMNS, all_keys, 1, found);
            __m256 left = _mm256_loadu_ps(memory->value_scale + 16 * half);
            __m256 right = _mm256_loadu_ps(memory->value_scale + 16 * half + 8);
            UNROLL for (int i = 0; i < ROWS; i++) {
                __m256 step = _mm256_set1_ps(worth[i]);
                float *to = out + (row + i) * apart + 16 * half;
                __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(found[2 * i]), step);
                __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(found[2 * i + 1]), step);
                _mm256_storeu_ps(to, _mm256_mul_ps(x, left));
                _mm256_storeu_ps(to + 8, _mm256_mul_ps(y, right));
            }
        }
    }
}

/* Allocates packed keys and values of one head for `count` tokens, at most WINDOW, from scratch. */
static Memory small_memory(char **scratch, int64_t count) {
    int64_t padded = (count + COLUMNS - 1) / COLUMNS * COLUMNS;
    Memory memory = {take(scratch, padded * HEAD * 2), take(scratch, padded * 4), take(scratch, padded * HEAD * 2),
                     take(scratch, HEAD * 4), count, padded};
    return memory;
}

static void fill(const Memory *memory, const float *keys, const float *values, int64_t apart) {
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

/* Window attention with its gate, for windows [first, last) in row-major order: t += gate · (proj(attention(norm(t))) +
 * bias) + c.
 *
 * t, c: (H, W, C); tall, wide: height and width of a window in tokens, with tall · wide = 300. qkv: `heads` matrices
 * (96, C) for a head's queries, keys and values. places: (heads, 300, KEYS) position bias of each query and key. bias,
 * gate: (C).
 */
KERNEL(windows)(float *t, const float *c, int64_t width, int64_t tall, int64_t wide, int64_t first, int64_t last,
                const Norm *norm, const Matrix *qkv, int64_t heads, const float *places, const Matrix *proj,
                const float *bias, const float *gate, char *scratch) {
    int64_t channels = proj->inner, across = width / wide;
    float *token = take(&scratch, channels * 4), steps[WINDOW], query_steps[WINDOW];
    int16_t *a = take(&scratch, WINDOW * channels * 2), *q = take(&scratch, WINDOW * HEAD * 2);
    float *split = take(&scratch, WINDOW * 3 * HEAD * 4), *mixed = take(&scratch, WINDOW * channels * 4);
    float *scores = take(&scratch, ROWS * KEYS * 4);
    int16_t *shares = take(&scratch, ROWS * KEYS * 2);
    Memory memory = small_memory(&scratch, WINDOW);
    for (int64_t window = first; window < last; window++) {
        int64_t corner = window / across * tall * width + window % across * wide; /* the window's top left token */
        for (int64_t i = 0; i < WINDOW; i++) {
            normalize(t + (corner + i / wide * width + i % wide) * channels, channels, *norm, token);
            steps[i] = quantize(token, channels, a + i * channels);
        }
        for (int64_t head = 0; head < heads; head++) {
            product(a, steps, WINDOW, qkv + head, split, 3 * HEAD, 0);
            queries(split, 3 * HEAD, WINDOW, q, query_steps);
            fill(&memory, split + HEAD, split + 2 * HEAD, 3 * HEAD);
            attend(q, query_steps, WINDOW, &memory, places + head * WINDOW * KEYS, KEYS, mixed + head * HEAD, channels,
                   NULL, NULL, scores, shares);
        }
        for (int64_t i = 0; i < WINDOW; i++) steps[i] = quantize(mixed + i * channels, channels, a + i * channels);
        product(a, steps, WINDOW, proj, mixed, channels, 0);
        for (int64_t i = 0; i < WINDOW; i++) {
            int64_t at = (corner + i / wide * width + i % wide) * channels;
            for (int64_t j = 0; j < channels; j += 8) {
                __m256 x = _mm256_add_ps(_mm256_loadu_ps(mixed + i * channels + j), _mm256_loadu_ps(bias + j));
                x = _mm256_fmadd_ps(x, _mm256_loadu_ps(gate + j), _mm256_loadu_ps(c + at + j));
                _mm256_storeu_ps(t + at + j, _mm256_add_ps(x, _mm256_loadu_ps(t + at + j)));
            }
        }
    }
}

/* Channel attention, folded into one matrix, with its gate, for tokens [first, last): with a = m(norm(t)) + bias,
 * t += a + c · sigmoid(gate · a). bias, gate: (C).
 */
KERNEL(channels)(float *t, const float *c, int64_t first, int64_t last, const Norm *norm, const Matrix *m,
                 const float *bias, const float *gate, char *scratch) {
    int64_t channels = m->inner;
    float *token = take(&scratch, channels * 4), *result = take(&scratch, BLOCK * channels * 4), steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * channels * 2);
    for (int64_t block = first; block < last; block += BLOCK) {
        int64_t count = last - block < BLOCK ? last - block : BLOCK;
        enter(t + block * channels, count, channels, *norm, token, a, steps);
        product(a, steps, count, m, result, channels, 0);
        for (int64_t i = 0; i < count; i++) {
            float *mixed = result + i * channels, *to = t + (block + i) * channels;
            const float *local = c + (block + i) * channels;
            __m256 sum = _mm256_setzero_ps();
            for (int64_t j = 0; j < channels; j += 8) {
                __m256 x = _mm256_add_ps(_mm256_loadu_ps(mixed + j), _mm256_loadu_ps(bias + j));
                _mm256_storeu_ps(mixed + j, x);
                sum = _mm256_fmadd_ps(x, _mm256_loadu_ps(gate + j), sum);
            }
            /* 1 / (1 + e^-s), using power_of_two of a value <= 0; NaN stays NaN */
            float s = total(sum), away = s < 0 ? s : -s;
            float power = _mm256_cvtss_f32(power_of_two(_mm256_set1_ps(away * 1.4426950409f)));
            float open = (s < 0 ? power : 1) / (1 + power) + (s - s);
            for (int64_t j = 0; j < channels; j += 8) {
                __m256 x = _mm256_fmadd_ps(_mm256_loadu_ps(local + j), _mm256_set1_ps(open), _mm256_loadu_ps(mixed + j));
                _mm256_storeu_ps(to + j, _mm256_add_ps(x, _mm256_loadu_ps(to + j)));
            }
        }
    }
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
    int64_t channels = kv->inner;
    float *token = take(&scratch, channels * 4), steps[WINDOW];
    int16_t *a = take(&scratch, WINDOW * channels * 2);
    float *split = take(&scratch, WINDOW * 2 * HEAD * 4), *part = take(&scratch, rows * HEAD * 4);
    float *part_tops = take(&scratch, rows * 4), *part_sums = take(&scratch, rows * 4);
    float *scores = take(&scratch, ROWS * KEYS * 4), *mask = take(&scratch, KEYS * 4);
    int16_t *shares = take(&scratch, ROWS * KEYS * 2);
    Memory memory = small_memory(&scratch, WINDOW);
    for (int64_t i = 0; i < KEYS; i++) mask[i] = i < WINDOW ? 0 : -1e30f;
    for (int64_t stretch = first; stretch < last; stretch++) {
        for (int64_t i = 0; i < WINDOW; i++) {
            normalize(t + (stretch * WINDOW + i) * channels, channels, *norm, token);
            normalize(token, channels, *inner_norm, token);
            steps[i] = quantize(token, channels, a + i * channels);
        }
        for (int64_t head = 0; head < heads; head++) {
            product(a, steps, WINDOW, kv + head, split, 2 * HEAD, 0);
            fill(&memory, split, split + HEAD, 2 * HEAD);
            attend(asking + head * rows * HEAD, asking_steps + head * rows, rows, &memory, mask, 0, part, HEAD, part_tops,
                   part_sums, scores, shares);
            for (int64_t row = 0; row < rows; row++) {
                int64_t at = head * rows + row;
                float before = 0, now = part_sums[row], top = part_tops[row];
                if (stretch > first) {
                    if (tops[at] > top) top = tops[at];
                    __m256 away = _mm256_setr_ps(tops[at] - top, part_tops[row] - top, 0, 0, 0, 0, 0, 0);
                    away = power_of_two(away);
                    before = sums[at] * _mm256_cvtss_f32(away);
                    now *= _mm_cvtss_f32(_mm_movehdup_ps(_mm256_castps256_ps128(away)));
                }
                tops[at] = top;
                sums[at] = before + now;
                __m256 keep = _mm256_set1_ps(before / (before + now)), new = _mm256_set1_ps(now / (before + now));
                for (int64_t i = 0; i < HEAD; i += 8) {
                    __m256 x = _mm256_mul_ps(_mm256_loadu_ps(part + row * HEAD + i), new);
                    if (stretch > first) x = _mm256_fmadd_ps(_mm256_loadu_ps(found + at * HEAD + i), keep, x);
                    _mm256_storeu_ps(found + at * HEAD + i, x);
                }
            }
        }
    }
}

/* Dictionary attention: t += proj(attention of e_q(norm(t)) to the refined dictionary) + bias, for tokens [first, last).
 *
 * words: the packed keys and values of the dictionary, one Memory per head. bias: (C).
 */
KERNEL(look_up)(float *t, int64_t first, int64_t last, const Norm *norm, const Matrix *e_q, const Memory *words,
                int64_t heads, const Matrix *proj, const float *bias, char *scratch) {
    int64_t channels = proj->inner, padded = words->padded;
    float *token = take(&scratch, channels * 4), *split = take(&scratch, BLOCK * channels * 4);
    float *mixed = take(&scratch, BLOCK * channels * 4), steps[BLOCK], query_steps[BLOCK];
    int16_t *a = take(&scratch, BLOCK * channels * 2), *q = take(&scratch, BLOCK * HEAD * 2);
    float *scores = take(&scratch, ROWS * padded * 4), *mask = take(&scratch, padded * 4);
    int16_t *shares = take(&scratch, ROWS * padded * 2);
    memset(mask, 0, (size_t)(padded * 4));
    for (int64_t block = first; block < last; block += BLOCK) {
        int64_t count = last - block < BLOCK ? last - block : BLOCK;
        enter(t + block * channels, count, channels, *norm, token, a, steps);
        product(a, steps, count, e_q, split, channels, 0);
        for (int64_t head = 0; head < heads; head++) {
            queries(split + head * HEAD, channels, count, q, query_steps);
            attend(q, query_steps, count, words + head, mask, 0, mixed + head * HEAD, channels, NULL, NULL, scores,
                   shares);
        }
        for (int64_t i = 0; i < count; i++) steps[i] = quantize(mixed + i * channels, channels, a + i * channels);
        product(a, steps, count, proj, mixed, channels, 0);
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j < channels; j += 8) {
                float *to = t + (block + i) * channels + j;
                __m256 x = _mm256_add_ps(_mm256_loadu_ps(mixed + i * channels + j), _mm256_loadu_ps(bias + j));
                _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), x));
            }
    }
}

FEATURES_END
#endif
