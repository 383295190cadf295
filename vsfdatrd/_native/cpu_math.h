/* Building blocks of the layers, included by cpu_*.c, which are compiled for AVX2 whatever the compiler's target, and by
 * vnni_*.c once more for AVX-512 with VNNI (FDATRD_VNNI), which multiplies and adds in one instruction. `tile`, `gelu` and
 * `power_of_two` differ. Sums of integers are exact and those of floats have one order, so everything without a GELU or a
 * power is the same to the last bit in both. amx_*.c compile it a third time (FDATRD_AMX, with FDATRD_VNNI): only products of
 * tokens and weights differ, and everything is the same as with VNNI to the last bit.
 * Row counts are multiples of 6 everywhere: a tile of a matrix product is 6 rows by 16 columns, which fills the sixteen
 * registers of AVX2.
 */
#ifndef FDATRD_CPU_MATH_H
#define FDATRD_CPU_MATH_H

#include <stdint.h>
#include <string.h>

#include "cpu.h"
#include "cpu_vector.h"

enum {
    ROWS = 6,      /* of a tile */
    COLUMNS = 16,  /* of a tile */
    BLOCK = 60,    /* rows processed together in a layer; every range of tokens is a multiple of 30 */
    LEVELS = 8191, /* largest integer of a quantized token */
    HEAD = 32,     /* channels of a head */
    WINDOW = 300,  /* tokens of a window */
    KEYS = 304,    /* WINDOW rounded up to a multiple of 16 */
    WIDEST = 1024, /* most channels of a token, MAX_CHANNELS in network.py */
};

/* Allocates `bytes` from a scratch buffer, 64-byte aligned. */
static inline void *take(char **scratch, int64_t bytes) {
    char *found = *scratch;
    *scratch += (bytes + 63) / 64 * 64;
    return found;
}

/* Quantizes `count` vectors to integers up to LEVELS. Returns the value of one step; NaN if a value is not finite, so that
 * the result is not finite either.
 */
INLINE float quantize_vectors(const Vector *x, int64_t count, int16_t *row) {
    Integers most = no_integers();
    UNROLL for (int64_t i = 0; i < count; i++) most = larger_integers(most, magnitude(x[i]));
    float peak = largest_magnitude(most);
    if (peak < 1e-30f) peak = 1e-30f;
    Vector scale = all(LEVELS / peak);
    UNROLL for (int64_t i = 0; i < count; i++) store_narrow(row + i * LANES, to_integers(multiply(x[i], scale)));
    return peak > 3.4e38f ? peak - peak : peak / LEVELS;
}

/* Quantizes a row of `length` floats, a multiple of 16, of which the largest magnitude is `peak`. See quantize_vectors. */
INLINE float quantize_to(float peak, const float *x, int64_t length, int16_t *row) {
    if (peak < 1e-30f) peak = 1e-30f;
    Vector scale = all(LEVELS / peak);
    for (int64_t i = 0; i < length; i += LANES)
        store_narrow(row + i, to_integers(multiply(load(x + i), scale)));
    return peak > 3.4e38f ? peak - peak : peak / LEVELS;
}

/* Quantizes a row of `length` floats, a multiple of 16. See quantize_vectors. */
static inline float quantize(const float *x, int64_t length, int16_t *row) {
    Integers most = no_integers();
    for (int64_t i = 0; i < length; i += LANES) most = larger_integers(most, magnitude(load(x + i)));
    return quantize_to(largest_magnitude(most), x, length, row);
}

/* LayerNorm of one token in `count` vectors, an even number, in place; eps 1e-5. */
INLINE void normalize_vectors(Vector *x, int64_t count, Norm norm) {
    Vector sum[2] = {all(0), all(0)}, squares[2] = {all(0), all(0)}; /* two each, since additions take several cycles */
    UNROLL for (int64_t i = 0; i < count; i += 2) {
        sum[0] = add(sum[0], x[i]);
        sum[1] = add(sum[1], x[i + 1]);
    }
    float channels = (float)(count * LANES);
    Vector mean = all(total(add(sum[0], sum[1])) / channels);
    UNROLL for (int64_t i = 0; i < count; i += 2) {
        x[i] = subtract(x[i], mean);
        x[i + 1] = subtract(x[i + 1], mean);
        squares[0] = multiply_add(x[i], x[i], squares[0]);
        squares[1] = multiply_add(x[i + 1], x[i + 1], squares[1]);
    }
    float variance = total(add(squares[0], squares[1])) / channels + 1e-5f;
    Vector scale = all(1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance))));
    UNROLL for (int64_t i = 0; i < count; i++)
        x[i] = multiply_add(multiply(x[i], scale), load(norm.scale + i * LANES), load(norm.shift + i * LANES));
}

/* Normalizes `count` tokens of C channels. With `again`, normalizes them once more. With `a`, quantizes them for a product:
 * a: (count, C); steps: (count). Else stores them to out: (count, C). Fetches the same number of tokens, `ahead` floats from
 * these, into the cache, for the next call: a map does not fit in it.
 */
INLINE void enter_some(const float *t, int64_t count, int64_t channels, int64_t ahead, Norm norm, const Norm *again,
                       int16_t *a, float *steps, float *out) {
    for (int64_t i = 0; i < count; i++, t += channels) {
        Vector x[WIDEST / LANES];
        UNROLL for (int64_t j = 0; j < channels / LANES; j++) {
            x[j] = load(t + j * LANES);
            _mm_prefetch((const char *)(t + ahead + j * LANES), _MM_HINT_T1);
        }
        normalize_vectors(x, channels / LANES, norm);
        if (again) normalize_vectors(x, channels / LANES, *again);
        if (a) steps[i] = quantize_vectors(x, channels / LANES, a + i * channels);
        else
            for (int64_t j = 0; j < channels / LANES; j++) store(out + i * channels + j * LANES, x[j]);
    }
}

/* Normalizes and quantizes tokens; see enter_some. The usual numbers of channels are constants, so that a token stays in
 * registers.
 */
static inline void enter(const float *t, int64_t count, int64_t channels, int64_t ahead, Norm norm, const Norm *again,
                         int16_t *a, float *steps) {
    if (channels == 96) enter_some(t, count, 96, ahead, norm, again, a, steps, NULL);
    else if (channels == 128) enter_some(t, count, 128, ahead, norm, again, a, steps, NULL);
    else if (channels == 192) enter_some(t, count, 192, ahead, norm, again, a, steps, NULL);
    else enter_some(t, count, channels, ahead, norm, again, a, steps, NULL);
}

/* Normalizes tokens; see enter_some. */
static inline void normalize(const float *t, int64_t count, int64_t channels, Norm norm, float *out) {
    int64_t ahead = count * channels;
    if (channels == 96) enter_some(t, count, 96, ahead, norm, NULL, NULL, NULL, out);
    else if (channels == 128) enter_some(t, count, 128, ahead, norm, NULL, NULL, NULL, out);
    else if (channels == 192) enter_some(t, count, 192, ahead, norm, NULL, NULL, NULL, out);
    else enter_some(t, count, channels, ahead, norm, NULL, NULL, NULL, out);
}

#ifdef FDATRD_VNNI
/* Entries of a table of 32. */
INLINE Vector piece(const float *table, Integers which) {
    return _mm512_permutex2var_ps(load(table), which, load(table + LANES));
}

/* x · Φ(x), exact to 1e-5, as x/2 + |x| · h(|x|) with h = Φ - 1/2 in 32 pieces up to |x| = 4.75, each a polynomial of
 * degree two in the distance from its middle: registers serve as tables.
 */
INLINE Vector gelu(Vector x) {
    static const float table[3][32] = {
        {0, 0.060889896f, 0.120369591f, 0.17712611f, 0.230029836f, 0.278200239f,
         0.321045011f, 0.358270347f, 0.389864236f, 0.416057587f, 0.437270612f, 0.454052359f,
         0.467021048f, 0.476810932f, 0.484030038f, 0.489230126f, 0.492889136f, 0.495404124f,
         0.497092754f, 0.498200297f, 0.498909891f, 0.499353975f, 0.499625474f, 0.499787599f,
         0.499882191f, 0.499936104f, 0.499966085f, 0.499982417f, 0.499991089f, 0.499995589f,
         0.499997854f, 0.5f},
        {0.0610834323f, 0.0603716001f, 0.0582854934f, 0.0549676009f, 0.050637424f, 0.0455674753f,
         0.0400550067f, 0.0343935639f, 0.0288480241f, 0.0236359723f, 0.0189168733f, 0.0147891669f,
         0.011294229f, 0.00842534937f, 0.00613956666f, 0.00437024701f, 0.00303873443f, 0.002063944f,
         0.00136937224f, 0.000887490169f, 0.000561854686f, 0.000347458408f, 0.000209894017f, 0.0001238556f,
         7.13920163e-05f, 4.01977704e-05f, 2.21091777e-05f, 1.18784992e-05f, 6.23402912e-06f, 3.1959089e-06f,
         1.60043555e-06f, 0},
        {-8.95374871e-18f, -0.000708440668f, -0.00136788643f, -0.00193494628f, -0.00237654662f, -0.00267304364f,
         -0.00281934394f, -0.00282401289f, -0.00270670839f, -0.00249452516f, -0.00221794285f, -0.00190703652f,
         -0.00158845389f, -0.00128343771f, -0.00100695156f, -0.000767771504f, -0.000569287804f, -0.000410717388f,
         -0.000288442941f, -0.000197262867f, -0.000131412628f, -8.53007296e-05f, -5.39626853e-05f, -3.32772288e-05f,
         -2.00073719e-05f, -1.17297641e-05f, -6.70662666e-06f, -3.74013348e-06f, -2.03462764e-06f, -1.07979042e-06f,
         -5.5909851e-07f, 0},
    };
    const Vector rounding = all(12582912.0f); /* 1.5 · 2^23: an addition leaves the nearest integer in the lowest bits */
    Vector size = of_bits(magnitude(x));
    Vector at = multiply(_mm512_min_ps(all(4.75f), size), all(31 / 4.75f)), whole = add(at, rounding);
    Integers which = bits_of(whole);
    Vector from = subtract(at, subtract(whole, rounding));
    Vector h = multiply_add(multiply_add(piece(table[2], which), from, piece(table[1], which)), from, piece(table[0], which));
    return multiply_add(size, h, multiply(x, all(0.5f)));
}

/* 2^x for x <= 0, relative error 2e-6; results below 2^-126 become 2^-126. The fraction's sixteenths are looked up, the
 * rest is a polynomial.
 */
INLINE Vector power_of_two(Vector x) {
    static const uint32_t table[16] = {
        0x3F800000, 0x3F7DAAC3, 0x3F7B95C2, 0x3F79C3D3, 0x3F7837F0, 0x3F76F532, 0x3F75FED7, 0x3F75583F,
        0x3F7504F3, 0x3F7508A4, 0x3F75672A, 0x3F76248C, 0x3F7744FD, 0x3F78CCDF, 0x3F7AC0C7, 0x3F7D257D
    }; /* the bits of 2^(i/16), less i · 2^19 */
    const Vector rounding = all(786432.0f); /* 1.5 · 2^19: an addition leaves whole sixteenths in the lowest bits */
    x = larger(x, all(-126));
    Vector whole = add(x, rounding), from = subtract(x, subtract(whole, rounding));
    Integers sixteenth = _mm512_permutexvar_epi32(bits_of(whole), _mm512_loadu_si512(table));
    Vector power = of_bits(_mm512_add_epi32(_mm512_slli_epi32(bits_of(whole), 19), sixteenth));
    return multiply(multiply_add(multiply_add(all(0.2402265070f), from, all(0.6931471806f)), from, all(1)), power);
}
#else
/* x · Φ(x), exact to 1e-5: Φ(x) - 1/2 = x · q(x²) with q a polynomial fitted (Lawson) for |x| < 4.75, in 2x²/4.75² - 1. */
INLINE __m256 gelu_of_eight(__m256 x) {
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

INLINE Vector gelu(Vector x) { return (Vector){gelu_of_eight(x.low), gelu_of_eight(x.high)}; }

/* 2^x for x <= 0, relative error 4e-6; results below 2^-126 become 2^-126. Taylor series of 2^f, |f| <= 1/2. */
INLINE __m256 power_of_eight(__m256 x) {
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

INLINE Vector power_of_two(Vector x) { return (Vector){power_of_eight(x.low), power_of_eight(x.high)}; }
#endif

/* Multiplies six rows of `a` (`stride` bytes apart) by a panel of 16 columns: sums[2 i], sums[2 i + 1] belong to row i.
 * Only the `count` nonzero spans (at least one) of the panel's rows are used: see Matrix.
 */
#ifdef FDATRD_VNNI
/* Two neighboring integers of a row. */
typedef int32_t __attribute__((may_alias, aligned(2))) Pair;

/* sum + b · x for sixteen columns. In assembly because LLVM prefers two instructions, which have a lower latency. */
INLINE __m512i dot_add(__m512i sum, __m512i b, const Pair *x) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(b), "m"(*x));
    return sum;
}

/* Two sums for each row, of every other pair of inner rows: the instruction has a latency of four or five cycles, and some
 * CPUs start two of them per cycle.
 */
INLINE void tile(const int16_t *a, int64_t stride, const int16_t *panel, const int32_t *spans, int64_t count,
                 Integers sums[ROWS]) {
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
                even[i] = dot_add(even[i], p[0], x);
                odd[i] = dot_add(odd[i], p[1], x + 1);
                even[i] = dot_add(even[i], p[2], x + 2);
                odd[i] = dot_add(odd[i], p[3], x + 3);
            }
        }
    }
    UNROLL for (int i = 0; i < ROWS; i++) sums[i] = _mm512_add_epi32(even[i], odd[i]);
}
#else
/* Written in assembly because compilers spill the accumulators to memory at every step, which halves the speed. */
INLINE void tile(const int16_t *a, int64_t stride, const int16_t *panel, const int32_t *spans, int64_t count,
                 Integers sums[ROWS]) {
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
            : [c0] "=&x"(sums[0].low), [c1] "=&x"(sums[0].high), [c2] "=&x"(sums[1].low), [c3] "=&x"(sums[1].high), [c4] "=&x"(sums[2].low),
              [c5] "=&x"(sums[2].high), [c6] "=&x"(sums[3].low), [c7] "=&x"(sums[3].high), [c8] "=&x"(sums[4].low), [c9] "=&x"(sums[4].high),
              [ca] "=&x"(sums[5].low), [cb] "=&x"(sums[5].high), [b] "=&r"(b), [low] "=&r"(low), [high] "=&r"(high),
              [n] "=&r"(steps), [spans] "+r"(spans), [count] "+r"(count)
            : [a] "r"(a), [panel] "r"(panel), [s] "r"(stride)
            : "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
#undef FDATRD_ROW
#undef FDATRD_STEP
#undef FDATRD_ZERO
}
#endif

/* The product of six rows of integers, with step `steps[row]`, and panel `which` of a matrix, as floats. */
INLINE void tile_product(const int16_t *a, const float *steps, const Matrix *m, int64_t which, Vector x[ROWS]) {
    const int32_t *bounds = m->bounds + which;
    int64_t count = bounds[1] - bounds[0];
    UNROLL for (int i = 0; i < ROWS; i++) x[i] = all(0);
    if (!count) return;
    Integers sums[ROWS];
    tile(a, 2 * m->inner, m->panels + which * COLUMNS * m->inner, m->spans + 2 * bounds[0], count, sums);
    Vector scale = load(m->scale + which * COLUMNS);
    UNROLL for (int i = 0; i < ROWS; i++) x[i] = multiply(to_floats(sums[i]), multiply(scale, all(steps[i])));
}

/* What becomes of a product x. */
enum Then {
    STORED, /* out = x */
    ADDED,  /* out += x */
    BIASED, /* out += x + bias */
    CURVED, /* out = GELU(x) */
};

INLINE void finish(enum Then then, Vector x, float *to, const float *bias) {
    if (then == ADDED) x = add(x, load(to));
    if (then == BIASED) x = add(load(to), add(x, load(bias)));
    if (then == CURVED) x = gelu(x);
    store(to, x);
}

#ifdef FDATRD_AMX
#include "cpu_amx.h"
#else
/* See cpu_amx.h. */
INLINE void begin_products(void) {}
INLINE void end_products(void) {}
#endif

/* Multiplies integers (rows, inner), with step `steps[row]`, by a matrix: out (rows, columns) with a row stride of `apart`
 * floats; `rows` is a multiple of 6. bias: (columns), read for BIASED only. Zero panels are skipped.
 */
INLINE void product_then(enum Then then, const int16_t *a, const float *steps, int64_t rows, const Matrix *m, float *out,
                         int64_t apart, const float *bias) {
#ifdef FDATRD_AMX
    int64_t done = product_of_bytes(then, a, steps, rows, m, out, apart, bias);
#endif
    for (int64_t which = 0; which < m->columns / COLUMNS; which++) {
        int64_t row = 0;
        if (then == ADDED && m->bounds[which] == m->bounds[which + 1]) continue;
#ifdef FDATRD_AMX
        if (has_blocks(m, which)) row = done;
#endif
        for (; row < rows; row += ROWS) {
            Vector x[ROWS];
            tile_product(a + row * m->inner, steps + row, m, which, x);
            UNROLL for (int i = 0; i < ROWS; i++)
                finish(then, x[i], out + (row + i) * apart + which * COLUMNS,
                       then == BIASED ? bias + which * COLUMNS : NULL);
        }
    }
}

/* out = x; see product_then. */
static inline void product(const int16_t *a, const float *steps, int64_t rows, const Matrix *m, float *out,
                           int64_t apart) {
    product_then(STORED, a, steps, rows, m, out, apart, NULL);
}

/* out += x; see product_then. */
static inline void add_product(const int16_t *a, const float *steps, int64_t rows, const Matrix *m, float *out,
                               int64_t apart) {
    product_then(ADDED, a, steps, rows, m, out, apart, NULL);
}

#endif
