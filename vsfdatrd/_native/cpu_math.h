/* Building blocks of the layers, included by cpu_*.c, which are compiled for AVX2 whatever the compiler's target, and by
 * vnni_*.c once more for AVX-512 with VNNI (FDATRD_VNNI), which multiplies and adds in one instruction. Only `tile` differs;
 * sums of integers are exact, so both variants compute the same picture to the last bit.
 * Row counts are multiples of 6 everywhere: a tile of a matrix product is 6 rows by 16 columns, which fills the sixteen
 * registers.
 */
#ifndef FDATRD_CPU_MATH_H
#define FDATRD_CPU_MATH_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "cpu.h"

#ifdef FDATRD_VNNI
#define FEATURES "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#define KERNEL(name) EXPORT void fdatrd_vnni_##name
#else
#define FEATURES "avx2,fma"
#define KERNEL(name) EXPORT void fdatrd_cpu_##name
#endif

/* Code between here and FEATURES_END may use these features, and must not run on CPUs without them. */
#define FDATRD_PRAGMA(text) _Pragma(#text)
#define FDATRD_TARGET(...) FDATRD_PRAGMA(__VA_ARGS__)
#ifdef __clang__
FDATRD_TARGET(clang attribute push(__attribute__((target(FEATURES))), apply_to = function))
#define FEATURES_END _Pragma("clang attribute pop")
#else
#pragma GCC push_options
FDATRD_TARGET(GCC target(FEATURES))
#define FEATURES_END _Pragma("GCC pop_options")
#endif

enum {
    ROWS = 6,      /* of a tile */
    COLUMNS = 16,  /* of a tile */
    BLOCK = 60,    /* rows processed together in a layer; every range of tokens is a multiple of 30 */
    LEVELS = 8191, /* largest integer of a quantized token */
    HEAD = 32,     /* channels of a head */
    WINDOW = 300,  /* tokens of a window */
    KEYS = 304,    /* WINDOW rounded up to a multiple of 16 */
};

/* For loops over registers: they must be unrolled completely, or the registers are spilled to memory. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Allocates `bytes` from a scratch buffer, 64-byte aligned. */
static inline void *take(char **scratch, int64_t bytes) {
    char *found = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return found;
}

/* The largest of eight magnitudes, compared as integers: infinity is larger than any number, and NaN than infinity. */
static inline float largest(__m256i x) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

static inline __m256i magnitude(__m256 x) {
    return _mm256_castps_si256(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x));
}

static inline float total(__m256 x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* Scales sixteen floats and rounds them to 16-bit integers. */
static inline __m256i integers(__m256 low, __m256 high, __m256 scale) {
    __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(low, scale)), b = _mm256_cvtps_epi32(_mm256_mul_ps(high, scale));
    return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
}

/* Quantizes a row of `length` floats (a multiple of 16) to integers up to LEVELS. Returns the value of one step; NaN if a
 * value is not finite, so that the result is not finite either.
 */
static inline float quantize(const float *x, int64_t length, int16_t *row) {
    __m256i most = _mm256_setzero_si256(), more = most;
    for (int64_t i = 0; i < length; i += 16) {
        most = _mm256_max_epi32(most, magnitude(_mm256_loadu_ps(x + i)));
        more = _mm256_max_epi32(more, magnitude(_mm256_loadu_ps(x + i + 8)));
    }
    float peak = largest(_mm256_max_epi32(most, more));
    if (peak < 1e-30f) peak = 1e-30f;
    __m256 scale = _mm256_set1_ps(LEVELS / peak);
    for (int64_t i = 0; i < length; i += 16) {
        __m256i pair = integers(_mm256_loadu_ps(x + i), _mm256_loadu_ps(x + i + 8), scale);
        _mm256_storeu_si256((__m256i *)(row + i), pair);
    }
    return peak > 3.4e38f ? peak - peak : peak / LEVELS;
}

/* LayerNorm of one token over C channels (a multiple of 32), eps 1e-5. */
static inline void normalize(const float *x, int64_t channels, Norm norm, float *out) {
    __m256 sum[4], squares[4]; /* four accumulators each, since additions have a latency of four issue slots */
    UNROLL for (int k = 0; k < 4; k++) sum[k] = squares[k] = _mm256_setzero_ps();
    for (int64_t i = 0; i < channels; i += 32)
        UNROLL for (int k = 0; k < 4; k++) sum[k] = _mm256_add_ps(sum[k], _mm256_loadu_ps(x + i + 8 * k));
    float whole = total(_mm256_add_ps(_mm256_add_ps(sum[0], sum[1]), _mm256_add_ps(sum[2], sum[3])));
    __m256 mean = _mm256_set1_ps(whole / (float)channels);
    for (int64_t i = 0; i < channels; i += 32)
        UNROLL for (int k = 0; k < 4; k++) {
            __m256 away = _mm256_sub_ps(_mm256_loadu_ps(x + i + 8 * k), mean);
            squares[k] = _mm256_fmadd_ps(away, away, squares[k]);
        }
    whole = total(_mm256_add_ps(_mm256_add_ps(squares[0], squares[1]), _mm256_add_ps(squares[2], squares[3])));
    float variance = whole / (float)channels + 1e-5f;
    __m256 scale = _mm256_set1_ps(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance))));
    for (int64_t i = 0; i < channels; i += 8) {
        __m256 away = _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(x + i), mean), scale);
        away = _mm256_fmadd_ps(away, _mm256_loadu_ps(norm.scale + i), _mm256_loadu_ps(norm.shift + i));
        _mm256_storeu_ps(out + i, away);
    }
}

/* Normalizes and quantizes `count` tokens for a product. token: (C) scratch; a: (count, C); steps: (count). */
static inline void enter(const float *t, int64_t count, int64_t channels, Norm norm, float *token, int16_t *a,
                         float *steps) {
    for (int64_t i = 0; i < count; i++) {
        normalize(t + i * channels, channels, norm, token);
        steps[i] = quantize(token, channels, a + i * channels);
    }
}

/* x · Φ(x), exact to 1e-5: Φ(x) - 1/2 = x · q(x²) with q a polynomial fitted (Lawson) for |x| < 4.75, in 2x²/4.75² - 1. */
static inline __m256 gelu(__m256 x) {
    static const float q[] = {0.1487480103969574f,    -0.07366643846035004f, 0.05325455218553543f,
                              -0.04060446470975876f,  0.030202463269233704f, -0.021351948380470276f,
                              0.014111567288637161f,  -0.008102227933704853f, 0.004025655798614025f,
                              -0.002548062242567539f, 0.0017569364281371236f, -0.0005631314124912024f};
    const __m256 limit = _mm256_set1_ps(4.75f);
    __m256 near = _mm256_max_ps(_mm256_min_ps(limit, x), _mm256_sub_ps(_mm256_setzero_ps(), limit));
    __m256 s = _mm256_fmsub_ps(_mm256_mul_ps(near, near), _mm256_set1_ps(2 / (4.75f * 4.75f)), _mm256_set1_ps(1));
    __m256 sum = _mm256_set1_ps(q[11]);
    for (int i = 10; i >= 0; i--) sum = _mm256_fmadd_ps(sum, s, _mm256_set1_ps(q[i]));
    return _mm256_mul_ps(x, _mm256_fmadd_ps(near, sum, _mm256_set1_ps(0.5f)));
}

/* 2^x for x <= 0, relative error 4e-6; results below 2^-126 become 2^-126. Taylor series of 2^f, |f| <= 1/2. */
static inline __m256 power_of_two(__m256 x) {
    x = _mm256_max_ps(x, _mm256_set1_ps(-126));
    __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 f = _mm256_sub_ps(x, whole);
    __m256 sum = _mm256_set1_ps(0.0013333558f);
    sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(0.0096181291f));
    sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(0.0555041087f));
    sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(0.2402265070f));
    sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(0.6931471806f));
    sum = _mm256_fmadd_ps(sum, f, _mm256_set1_ps(1));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), exponent));
}

/* Multiplies six rows of `a` (`stride` bytes apart) by a panel of 16 columns: sums[2 i], sums[2 i + 1] belong to row i.
 * Only the `count` nonzero spans (at least one) of the panel's rows are used: see Matrix.
 */
#ifdef FDATRD_VNNI
/* Two neighboring integers of a row. */
typedef int32_t __attribute__((may_alias, aligned(2))) Pair;

/* sum + b · x for sixteen columns. In assembly because LLVM prefers two instructions, which have a lower latency. */
static inline __attribute__((always_inline)) __m512i multiply_add(__m512i sum, __m512i b, const Pair *x) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*x));
    return sum;
}

/* Two sums for each row, of every other pair of inner rows: the instruction has a latency of four or five cycles, and some
 * CPUs start two of them per cycle.
 */
static inline __attribute__((always_inline)) void tile(const int16_t *a, int64_t stride, const int16_t *panel,
                                                       const int32_t *spans, int64_t count, __m256i sums[12]) {
    __m512i even[ROWS], odd[ROWS];
    UNROLL for (int i = 0; i < ROWS; i++) even[i] = odd[i] = _mm512_setzero_si512();
    for (; count; count--, spans += 2) {
        const char *row = (const char *)(a + spans[0]);
        const int16_t *b = panel + spans[0] * COLUMNS;
        for (int32_t n = spans[1]; n; n -= 8, row += 16, b += 8 * COLUMNS) {
            __m512i p[4];
            UNROLL for (int k = 0; k < 4; k++) p[k] = _mm512_loadu_si512(b + 32 * k);
            UNROLL for (int i = 0; i < ROWS; i++) {
                const Pair *x = (const Pair *)(row + i * stride);
                even[i] = multiply_add(even[i], p[0], x);
                odd[i] = multiply_add(odd[i], p[1], x + 1);
                even[i] = multiply_add(even[i], p[2], x + 2);
                odd[i] = multiply_add(odd[i], p[3], x + 3);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) {
        __m512i sum = _mm512_add_epi32(even[i], odd[i]);
        sums[2 * i] = _mm512_castsi512_si256(sum);
        sums[2 * i + 1] = _mm512_extracti64x4_epi64(sum, 1);
    }
}
#else
/* Written in assembly because compilers spill the accumulators to memory at every step, which halves the speed. */
static inline __attribute__((always_inline)) void tile(const int16_t *a, int64_t stride, const int16_t *panel,
                                                       const int32_t *spans, int64_t count, __m256i sums[12]) {
    const char *low, *high, *b;
    int64_t steps;
#define FDATRD_ROW(at, first, second)                                                                                  \
    "vpbroadcastd " at ", %%ymm14\n\t"                                                                                 \
    "vpmaddwd %%ymm12, %%ymm14, %%ymm15\n\t"                                                                           \
    "vpmaddwd %%ymm13, %%ymm14, %%ymm14\n\t"                                                                           \
    "vpaddd %%ymm15, %[" first "], %[" first "]\n\t"                                                                   \
    "vpaddd %%ymm14, %[" second "], %[" second "]\n\t"
#define FDATRD_STEP(at, left, right)                                                                                   \
    "vmovdqu " left "(%[b]), %%ymm12\n\t"                                                                              \
    "vmovdqu " right "(%[b]), %%ymm13\n\t"                                                                             \
    FDATRD_ROW(at "(%[low])", "c0", "c1") FDATRD_ROW(at "(%[low],%[s])", "c2", "c3")                                   \
    FDATRD_ROW(at "(%[low],%[s],2)", "c4", "c5") FDATRD_ROW(at "(%[high])", "c6", "c7")                                \
    FDATRD_ROW(at "(%[high],%[s])", "c8", "c9") FDATRD_ROW(at "(%[high],%[s],2)", "ca", "cb")
#define FDATRD_ZERO(which) "vpxor %[" which "], %[" which "], %[" which "]\n\t"
    __asm__(FDATRD_ZERO("c0") FDATRD_ZERO("c1") FDATRD_ZERO("c2") FDATRD_ZERO("c3") FDATRD_ZERO("c4") FDATRD_ZERO("c5")
            FDATRD_ZERO("c6") FDATRD_ZERO("c7") FDATRD_ZERO("c8") FDATRD_ZERO("c9") FDATRD_ZERO("ca") FDATRD_ZERO("cb")
            "2:\n\t"
            "movslq (%[spans]), %[n]\n\t" /* the span's first row: 2 bytes each in `a`, 32 in the panel */
            "lea (%[a],%[n],2), %[low]\n\t"
            "lea (%[s],%[s],2), %[high]\n\t"
            "add %[low], %[high]\n\t"
            "shl $5, %[n]\n\t"
            "lea (%[panel],%[n]), %[b]\n\t"
            "movslq 4(%[spans]), %[n]\n\t"
            "shr $3, %[n]\n\t"
            "add $8, %[spans]\n\t"
            ".p2align 5\n"
            "1:\n\t" FDATRD_STEP("0", "0", "32") FDATRD_STEP("4", "64", "96") FDATRD_STEP("8", "128", "160")
            FDATRD_STEP("12", "192", "224")
            "add $256, %[b]\n\t"
            "add $16, %[low]\n\t"
            "add $16, %[high]\n\t"
            "dec %[n]\n\t"
            "jnz 1b\n\t"
            "dec %[count]\n\t"
            "jnz 2b"
            : [c0] "=&x"(sums[0]), [c1] "=&x"(sums[1]), [c2] "=&x"(sums[2]), [c3] "=&x"(sums[3]), [c4] "=&x"(sums[4]),
              [c5] "=&x"(sums[5]), [c6] "=&x"(sums[6]), [c7] "=&x"(sums[7]), [c8] "=&x"(sums[8]), [c9] "=&x"(sums[9]),
              [ca] "=&x"(sums[10]), [cb] "=&x"(sums[11]), [b] "=&r"(b), [low] "=&r"(low), [high] "=&r"(high),
              [n] "=&r"(steps), [spans] "+r"(spans), [count] "+r"(count)
            : [a] "r"(a), [panel] "r"(panel), [s] "r"(stride)
            : "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
#undef FDATRD_ROW
#undef FDATRD_STEP
#undef FDATRD_ZERO
}
#endif

/* Multiplies integers (rows, inner), with step `steps[row]`, by a matrix: out (rows, columns) with a row stride of `apart`
 * floats; `rows` is a multiple of 6. With `more`, adds to `out` instead of overwriting it. Zero panels are skipped.
 */
static inline void product(const int16_t *a, const float *steps, int64_t rows, const Matrix *m, float *out,
                           int64_t apart, int more) {
    for (int64_t column = 0; column < m->columns; column += COLUMNS) {
        const int16_t *panel = m->panels + column * m->inner;
        const int32_t *bounds = m->bounds + column / COLUMNS, *spans = m->spans + 2 * bounds[0];
        int64_t count = bounds[1] - bounds[0];
        if (!count) {
            for (int64_t row = 0; row < rows && !more; row++) memset(out + row * apart + column, 0, COLUMNS * 4);
            continue;
        }
        __m256 left = _mm256_loadu_ps(m->scale + column), right = _mm256_loadu_ps(m->scale + column + 8);
        for (int64_t row = 0; row < rows; row += ROWS) {
            __m256i sums[12];
            tile(a + row * m->inner, 2 * m->inner, panel, spans, count, sums);
            UNROLL for (int i = 0; i < ROWS; i++) {
                float *to = out + (row + i) * apart + column;
                __m256 step = _mm256_set1_ps(steps[row + i]);
                __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[2 * i]), _mm256_mul_ps(left, step));
                __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[2 * i + 1]), _mm256_mul_ps(right, step));
                if (more) {
                    x = _mm256_add_ps(x, _mm256_loadu_ps(to));
                    y = _mm256_add_ps(y, _mm256_loadu_ps(to + 8));
                }
                _mm256_storeu_ps(to, x);
                _mm256_storeu_ps(to + 8, y);
            }
        }
    }
}

#endif
