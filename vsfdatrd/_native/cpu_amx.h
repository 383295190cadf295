/* Products of 16-bit integers with Intel AMX, which multiplies tiles of bytes: the same sums as in cpu_math.h, to the
 * last bit.
 *
 * A 16-bit integer is 256 times its high byte, with a sign, plus its low byte, without. Hence
 *
 *     a b = 2^16 (a_high b_high) + 2^8 (a_high b_low + a_low b_high) + a_low b_low,
 *
 * and for each of the four kinds of products there is an instruction: TDPBSSD, TDPBSUD, TDPBUSD and TDPBUUD (the
 * letters say whether bytes of the first and of the second tile have a sign). Each adds products to sums of 32 bits
 * without saturation (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2). A sum of 1024 products
 * of bytes has at most 26 bits, and what the four sums are combined to is the sum of 16-bit products modulo 2^32.
 *
 * A tile of tokens has 15 rows, since every range of tokens is a multiple of 30, and 64 integers: two tiles, of high
 * and of low bytes. A tile of weights has 64 rows of the matrix, four in one row of the tile, and 16 columns. Four
 * tiles of sums, two of tokens and two of weights are all there are; the four products of a step do not wait for each
 * other.
 *
 * Tests replace the instructions by a model in C, with -DFDATRD_AMX_MODEL='"file"'.
 */
#ifndef FDATRD_CPU_AMX_H
#define FDATRD_CPU_AMX_H

#ifdef FDATRD_AMX_MODEL
#include FDATRD_AMX_MODEL
#else
/* In assembly because GCC 12 does not know that its intrinsics for loading tiles read memory. `tile` is a number. */
#define AMX_CONFIGURE(from) __asm__ volatile("ldtilecfg %0" : : "m"(*(from)))
#define AMX_RELEASE() __asm__ volatile("tilerelease")
#define AMX_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define AMX_LOAD(tile, from, stride)                                                                                   \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory")
#define AMX_STORE(tile, to, stride)                                                                                    \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory")
/* sum += a · b; kind: ss, su, us or uu */
#define AMX_MULTIPLY(kind, sum, a, b) __asm__ volatile("tdpb" #kind "d %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)
#endif

enum {
    AMX_ROWS = 15,                         /* of a tile of tokens */
    AMX_TOKENS = 2 * AMX_ROWS,             /* whose bytes are separated together */
    AMX_INNER = 64,                        /* rows of the matrix in a tile of weights */
    AMX_WEIGHTS = 2 * AMX_INNER * COLUMNS, /* bytes of a block of weights: two tiles */
    AMX_SUMS = AMX_ROWS * COLUMNS,         /* of a tile */
};

/* The operand of LDTILECFG. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} AmxShapes;

/* Must be called before the first product of a kernel, and end_products after the last: an operating system saves the
 * tiles of a thread that has any.
 */
INLINE void begin_products(void) {
    static const AmxShapes shapes = {
        .palette = 1,
        .row_bytes = {64, 64, 64, 64, AMX_INNER, AMX_INNER, 64, 64},
        .rows = {AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_ROWS, AMX_INNER / 4, AMX_INNER / 4},
    };
    AMX_CONFIGURE(&shapes);
}

INLINE void end_products(void) { AMX_RELEASE(); }

/* Returns 1 if the matrix has blocks for AMX; 0 if it was packed without. */
INLINE int any_blocks(const Matrix *m) { return m->block_bounds && m->block_bounds[m->columns / COLUMNS] > 0; }

/* Returns 1 if a panel is multiplied with AMX: it has few zeros. */
INLINE int has_blocks(const Matrix *m, int64_t which) {
    return m->block_bounds && m->block_bounds[which] < m->block_bounds[which + 1];
}

/* Bytes of a token of `inner` integers after `separate`. */
INLINE int64_t byte_stride(int64_t inner) { return (inner + AMX_INNER - 1) / AMX_INNER * AMX_INNER * 2; }

/* Sixteen integers, or zeros from `inner` on. */
INLINE __m256i sixteen(const int16_t *row, int64_t k, int64_t inner) {
    return k < inner ? _mm256_loadu_si256((const __m256i *)(row + k)) : _mm256_setzero_si256();
}

/* Separates high and low bytes of a (rows, inner): bytes (rows, inner / 64 rounded up, 2, 64).
 *
 * The order of 64 integers is that of the instruction that packs them: byte 16 i + j is integer 8 i + j for j < 8, and
 * integer 32 + 8 i + j - 8 for the others. Weights have it too (ORDER in backends/native/amx.py).
 */
static inline void separate(const int16_t *a, int64_t rows, int64_t inner, uint8_t *bytes) {
    const __m256i low = _mm256_set1_epi16(255);
    for (int64_t row = 0; row < rows; row++, a += inner)
        for (int64_t k = 0; k < inner; k += AMX_INNER, bytes += 2 * AMX_INNER)
            for (int half = 0; half < 2; half++) {
                __m256i x = sixteen(a, k + 16 * half, inner), y = sixteen(a, k + 32 + 16 * half, inner);
                __m256i *to = (__m256i *)(bytes + 32 * half);
                _mm256_storeu_si256(to, _mm256_packs_epi16(_mm256_srai_epi16(x, 8), _mm256_srai_epi16(y, 8)));
                _mm256_storeu_si256(to + 2, _mm256_packus_epi16(_mm256_and_si256(x, low), _mm256_and_si256(y, low)));
            }
}

/* Multiplies 15 tokens, `stride` bytes apart, by a panel that has blocks. sums: (4, 15, 16), of high · high, high ·
 * low, low · high and low · low bytes.
 */
INLINE void multiply_bytes(const uint8_t *a, int64_t stride, const Matrix *m, int64_t which, int32_t *sums) {
    AMX_ZERO(0);
    AMX_ZERO(1);
    AMX_ZERO(2);
    AMX_ZERO(3);
    for (int64_t block = m->block_bounds[which]; block < m->block_bounds[which + 1]; block++) {
        const uint8_t *high = a + m->blocks[block] * (int64_t)(2 * AMX_INNER), *b = m->bytes + block * AMX_WEIGHTS;
        AMX_LOAD(4, high, stride);
        AMX_LOAD(6, b, 64);
        AMX_MULTIPLY(ss, 0, 4, 6);
        AMX_LOAD(7, b + AMX_WEIGHTS / 2, 64);
        AMX_MULTIPLY(su, 1, 4, 7);
        AMX_LOAD(5, high + AMX_INNER, stride);
        AMX_MULTIPLY(us, 2, 5, 6);
        AMX_MULTIPLY(uu, 3, 5, 7);
    }
    AMX_STORE(0, sums, 64);
    AMX_STORE(1, sums + AMX_SUMS, 64);
    AMX_STORE(2, sums + 2 * AMX_SUMS, 64);
    AMX_STORE(3, sums + 3 * AMX_SUMS, 64);
}

/* The sums of 16-bit products of a token, from the four of bytes. */
INLINE Integers combined(const int32_t *sums) {
    Integers mixed = add_integers(load_integers(sums + AMX_SUMS), load_integers(sums + 2 * AMX_SUMS));
    Integers high = add_integers(times_256(load_integers(sums)), mixed);
    return add_integers(times_256(high), load_integers(sums + 3 * AMX_SUMS));
}

/* Multiplies `rows` tokens, a multiple of 15, separated into bytes, by a panel that has blocks. out: (rows, 16) with a
 * row stride of `apart` floats; bias: (16), as in product_then.
 */
static __attribute__((noinline, unused)) void panel_of_bytes(enum Then then, const uint8_t *bytes, const float *steps,
                                                             int64_t rows, const Matrix *m, int64_t which, float *out,
                                                             int64_t apart, const float *bias) {
    _Alignas(64) int32_t sums[4 * AMX_SUMS];
    const int64_t stride = byte_stride(m->inner);
    Vector scale = load(m->scale + which * COLUMNS);
    for (int64_t row = 0; row < rows; row += AMX_ROWS) {
        multiply_bytes(bytes + row * stride, stride, m, which, sums);
        for (int64_t i = 0; i < AMX_ROWS; i++) {
            Vector x = multiply(to_floats(combined(sums + i * COLUMNS)), multiply(scale, all(steps[row + i])));
            finish(then, x, out + (row + i) * apart, bias);
        }
    }
}

/* The part of product_then that AMX does: panels that have blocks. Returns the number of rows for which it has done
 * them, a multiple of 30.
 */
static __attribute__((noinline, unused)) int64_t product_of_bytes(enum Then then, const int16_t *a, const float *steps,
                                                                  int64_t rows, const Matrix *m, float *out,
                                                                  int64_t apart, const float *bias) {
    _Alignas(64) uint8_t bytes[AMX_TOKENS * 2 * WIDEST];
    if (!any_blocks(m) || byte_stride(m->inner) > 2 * WIDEST) return 0;
    int64_t done = rows / AMX_TOKENS * AMX_TOKENS;
    for (int64_t row = 0; row < done; row += AMX_TOKENS) {
        separate(a + row * m->inner, AMX_TOKENS, m->inner, bytes);
        for (int64_t which = 0; which < m->columns / COLUMNS; which++)
            if (has_blocks(m, which))
                panel_of_bytes(then, bytes, steps + row, AMX_TOKENS, m, which, out + row * apart + which * COLUMNS,
                               apart, then == BIASED ? bias + which * COLUMNS : NULL);
    }
    return done;
}

#endif
