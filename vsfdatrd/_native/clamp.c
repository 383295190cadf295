/* Copies float planes to and from an engine's buffers with strides, clamps them to [0, 1] and checks for NaN and infinity,
 * in one pass over memory.
 *
 * Floats are processed as integers. For IEEE 754 numbers of one sign, the order of the bit patterns is the order of the
 * values, so clamping is max(0, min(bits, bits of 1.0)), and the largest magnitude shows whether there was an infinity or
 * NaN. With integers, no compiler option (-ffast-math) can remove the check.
 *
 * Uses the compiler's vector extension with 16 bytes: SSE2 on every x86-64, NEON on ARM. Wider vectors gain little, since
 * memory bandwidth is the limit.
 */
#include <stdint.h>
#include <string.h>

#include "export.h"

enum { LANES = 4, SIGN_OFF = 0x7FFFFFFF, ONE = 0x3F800000, INF = 0x7F800000 };

typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Floats __attribute__((vector_size(4 * LANES)));

/* Rows may start at any multiple of 4 bytes. */
static inline Ints load(const char *p) {
    Ints v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline Ints larger(Ints a, Ints b) {
    Ints mask = a > b;
    return (a & mask) | (b & ~mask);
}

static inline Ints clamped(Ints bits) {
    Ints positive = bits & ~(bits < 0), above = positive > ONE;
    return (positive & ~above) | (above & ONE);
}

/* Loads the last pixels of a row, fewer than LANES, padded with zeros. */
static inline Ints load_part(const char *p, int64_t pixels) {
    Ints v = {0};
    memcpy(&v, p, (size_t)(4 * pixels));
    return v;
}

/* Returns 0 if all magnitudes are finite, 1 if the largest is infinity, 2 if there is a NaN. */
static int64_t worst_of(Ints magnitudes) {
    int32_t most = 0;
    for (int i = 0; i < LANES; i++)
        if (magnitudes[i] > most)
            most = magnitudes[i];
    return most > INF ? 2 : most == INF;
}

/* target = clamp(source, 0, 1), (height, width) floats; strides are bytes from row to row. The planes do not overlap.
 * Returns the worst value of the source: 0 finite, 1 infinite, 2 NaN. In target, NaN becomes 0 or 1.
 */
EXPORT int64_t fdatrd_clamp_copy(const char *source, int64_t source_stride, char *target, int64_t target_stride,
                                 int64_t height, int64_t width) {
    Ints most = {0};
    int64_t whole = width / LANES * LANES;
    for (int64_t y = 0; y < height; y++) {
        const char *from = source + y * source_stride;
        char *to = target + y * target_stride;
        for (int64_t x = 0; x < whole; x += LANES) {
            Ints bits = load(from + 4 * x);
            most = larger(bits & SIGN_OFF, most);
            bits = clamped(bits);
            memcpy(to + 4 * x, &bits, sizeof bits);
        }
        if (whole < width) {
            Ints bits = load_part(from + 4 * whole, width - whole);
            most = larger(bits & SIGN_OFF, most);
            bits = clamped(bits);
            memcpy(to + 4 * whole, &bits, (size_t)(4 * (width - whole)));
        }
    }
    return worst_of(most);
}

static inline Ints added(Ints target, Ints source, Floats weights) {
    return (Ints)((Floats)target + (Floats)clamped(source) * weights);
}

/* target += clamp(source, 0, 1) * rows * columns, with weights rows (height) and columns (width); otherwise like
 * fdatrd_clamp_copy.
 */
EXPORT int64_t fdatrd_clamp_add(const char *source, int64_t source_stride, char *target, int64_t target_stride,
                                int64_t height, int64_t width, const float *rows, const float *columns) {
    Ints most = {0};
    int64_t whole = width / LANES * LANES;
    for (int64_t y = 0; y < height; y++) {
        const char *from = source + y * source_stride;
        char *to = target + y * target_stride;
        for (int64_t x = 0; x < whole; x += LANES) {
            Ints bits = load(from + 4 * x);
            most = larger(bits & SIGN_OFF, most);
            bits = added(load(to + 4 * x), bits, (Floats)load((const char *)(columns + x)) * rows[y]);
            memcpy(to + 4 * x, &bits, sizeof bits);
        }
        if (whole < width) {
            int64_t rest = width - whole;
            Ints bits = load_part(from + 4 * whole, rest);
            most = larger(bits & SIGN_OFF, most);
            Floats weights = (Floats)load_part((const char *)(columns + whole), rest) * rows[y];
            bits = added(load_part(to + 4 * whole, rest), bits, weights);
            memcpy(to + 4 * whole, &bits, (size_t)(4 * rest));
        }
    }
    return worst_of(most);
}
