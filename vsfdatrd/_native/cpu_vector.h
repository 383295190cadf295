/* Sixteen numbers at a time: one register of AVX-512, or two of AVX2. All channel counts are multiples of sixteen, so that
 * no loop has a tail. The layers are written with these functions alone; both variants add in the same order.
 */
#ifndef FDATRD_CPU_VECTOR_H
#define FDATRD_CPU_VECTOR_H

#include <immintrin.h>
#include <stdint.h>

#if defined(FDATRD_AMX) && !defined(FDATRD_AMX_MODEL) /* tests run the model with AVX2 as well */
#define FDATRD_VNNI
#endif

#ifdef FDATRD_VNNI
#define FEATURES_OF_VECTORS "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"
#else
#define FEATURES_OF_VECTORS "avx2,fma"
#endif
#if defined(FDATRD_AMX) && !defined(FDATRD_AMX_MODEL)
#define FEATURES FEATURES_OF_VECTORS ",amx-tile,amx-int8"
#else
#define FEATURES FEATURES_OF_VECTORS
#endif

#ifdef FDATRD_AMX
#define KERNEL(name) EXPORT void fdatrd_amx_##name
#elif defined(FDATRD_VNNI)
#define KERNEL(name) EXPORT void fdatrd_vnni_##name
#else
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

#define INLINE static inline __attribute__((always_inline))

/* For loops over registers: they must be unrolled completely, or the registers are spilled to memory. */
#ifdef __clang__
#define UNROLL _Pragma("unroll")
/* Loops whose length is not constant everywhere stay loops where it is not, as they should. */
#pragma clang diagnostic ignored "-Wpass-failed"
#else
#define UNROLL _Pragma("GCC unroll 20")
#endif

enum { LANES = 16 };

#ifdef FDATRD_VNNI
typedef __m512 Vector;    /* floats */
typedef __m512i Integers; /* of 32 bits */

INLINE Vector load(const float *x) { return _mm512_loadu_ps(x); }
INLINE void store(float *to, Vector x) { _mm512_storeu_ps(to, x); }
INLINE Vector all(float x) { return _mm512_set1_ps(x); }
INLINE Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
INLINE Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
INLINE Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
INLINE Vector divide(Vector a, Vector b) { return _mm512_div_ps(a, b); }
/* a · b + c */
INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
/* The larger of each pair; b if one is NaN. */
INLINE Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
INLINE Vector to_floats(Integers x) { return _mm512_cvtepi32_ps(x); }
/* Rounds to the nearest. */
INLINE Integers to_integers(Vector x) { return _mm512_cvtps_epi32(x); }
INLINE Integers larger_integers(Integers a, Integers b) { return _mm512_max_epi32(a, b); }
INLINE Integers no_integers(void) { return _mm512_setzero_si512(); }
INLINE Integers load_integers(const int32_t *x) { return _mm512_loadu_si512(x); }
INLINE void store_integers(int32_t *to, Integers x) { _mm512_storeu_si512(to, x); }
INLINE Integers add_integers(Integers a, Integers b) { return _mm512_add_epi32(a, b); }
INLINE Integers times_256(Integers x) { return _mm512_slli_epi32(x, 8); }
INLINE Integers bits_of(Vector x) { return _mm512_castps_si512(x); }
INLINE Vector of_bits(Integers x) { return _mm512_castsi512_ps(x); }
/* The bits of |x|. */
INLINE Integers magnitude(Vector x) { return _mm512_and_si512(bits_of(x), _mm512_set1_epi32(0x7FFFFFFF)); }
/* As 16-bit integers, saturated. */
INLINE __m256i narrow(Integers x) { return _mm512_cvtsepi32_epi16(x); }
INLINE __m256 low_half(Vector x) { return _mm512_castps512_ps256(x); }
INLINE __m256 high_half(Vector x) { return _mm512_extractf32x8_ps(x, 1); }
#else
typedef struct {
    __m256 low, high;
} Vector;
typedef struct {
    __m256i low, high;
} Integers;

INLINE Vector load(const float *x) { return (Vector){_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
INLINE void store(float *to, Vector x) {
    _mm256_storeu_ps(to, x.low);
    _mm256_storeu_ps(to + 8, x.high);
}
INLINE Vector all(float x) { return (Vector){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Vector add(Vector a, Vector b) {
    return (Vector){_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
INLINE Vector subtract(Vector a, Vector b) {
    return (Vector){_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
INLINE Vector multiply(Vector a, Vector b) {
    return (Vector){_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
INLINE Vector divide(Vector a, Vector b) {
    return (Vector){_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
/* a · b + c */
INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
    return (Vector){_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
/* The larger of each pair; b if one is NaN. */
INLINE Vector larger(Vector a, Vector b) {
    return (Vector){_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
INLINE Vector to_floats(Integers x) { return (Vector){_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
/* Rounds to the nearest. */
INLINE Integers to_integers(Vector x) { return (Integers){_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
INLINE Integers larger_integers(Integers a, Integers b) {
    return (Integers){_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)};
}
INLINE Integers no_integers(void) { return (Integers){_mm256_setzero_si256(), _mm256_setzero_si256()}; }
INLINE Integers load_integers(const int32_t *x) {
    return (Integers){_mm256_loadu_si256((const __m256i *)x), _mm256_loadu_si256((const __m256i *)(x + 8))};
}
INLINE void store_integers(int32_t *to, Integers x) {
    _mm256_storeu_si256((__m256i *)to, x.low);
    _mm256_storeu_si256((__m256i *)(to + 8), x.high);
}
INLINE Integers add_integers(Integers a, Integers b) {
    return (Integers){_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}
INLINE Integers times_256(Integers x) {
    return (Integers){_mm256_slli_epi32(x.low, 8), _mm256_slli_epi32(x.high, 8)};
}
INLINE Vector of_bits(Integers x) { return (Vector){_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }
/* The bits of |x|. */
INLINE Integers magnitude(Vector x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return (Integers){_mm256_castps_si256(_mm256_andnot_ps(sign, x.low)),
                      _mm256_castps_si256(_mm256_andnot_ps(sign, x.high))};
}
/* As 16-bit integers, saturated. */
INLINE __m256i narrow(Integers x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xD8); }
INLINE __m256 low_half(Vector x) { return x.low; }
INLINE __m256 high_half(Vector x) { return x.high; }
#endif

INLINE void store_narrow(int16_t *to, Integers x) { _mm256_storeu_si256((__m256i *)to, narrow(x)); }

INLINE float first_of(Vector x) { return _mm256_cvtss_f32(low_half(x)); }

/* The sum of the sixteen. */
INLINE float total(Vector x) {
    __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* The largest of the sixteen. */
INLINE float largest(Vector x) {
    __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

/* The largest of sixteen magnitudes, compared as integers: infinity is larger than any number, and NaN than infinity. */
INLINE float largest_magnitude(Integers bits) {
    Vector x = of_bits(bits);
    __m256i eight = _mm256_max_epi32(_mm256_castps_si256(low_half(x)), _mm256_castps_si256(high_half(x)));
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xB1));
    return _mm_cvtss_f32(_mm_castsi128_ps(half));
}

#endif
