/* FDAT-RD on processors with AVX2: products of 16-bit integers with 32-bit sums, everything else in fp32.
 *
 * On such a processor a multiply-add of 16-bit pairs (vpmaddwd) does twice the work of a fused multiply-add of floats;
 * with the addition it needs, products run at 1.5 times the rate of fp32. Tokens are quantised as they enter a product,
 * each to its own largest value; weights once, each output channel to its own. Both get 13 bits and a sign, so no sum
 * can pass 32 bits, whatever the picture (see `pack` in cpu_layers.c for the proof).
 *
 * Shapes in comments as in nn/fdat_rd.py: a map of H x W = N tokens of C channels, row-major, h heads of 32 channels.
 * Every function works on a stretch of rows, windows or tokens, so that threads can share a layer; none allocates.
 * `scratch` is a buffer of its thread's own, of `fdatrd_cpu_scratch` bytes, 64-byte aligned.
 */
#ifndef FDATRD_CPU_H
#define FDATRD_CPU_H

#include <stdint.h>

#include "export.h"

/* A matrix of weights (columns, inner) made ready by fdatrd_cpu_pack. */
typedef struct {
    const int16_t *panels; /* (columns / 16, inner / 2, 16, 2) */
    const float *scale;    /* (columns): what one step of a column's integers is worth */
    int64_t inner;         /* a multiple of 16 */
    int64_t columns;       /* a multiple of 16 */
    const int32_t *spans;  /* (spans, 2): first row and length, multiples of 8, of what is not zero in a panel */
    const int32_t *bounds; /* (columns / 16 + 1): panel i has spans bounds[i] to bounds[i + 1] */
} Matrix;

/* A LayerNorm's (C) scale and (C) shift. */
typedef struct {
    const float *scale, *shift;
} Norm;

/* Keys and values of one head, as `attend` reads them. */
typedef struct {
    const int16_t *keys;      /* (padded / 16, 16, 16, 2) */
    const float *key_scale;   /* (padded), 0 where there is no key */
    const int16_t *values;    /* (2, padded / 2, 16, 2) */
    const float *value_scale; /* (32) */
    int64_t count, padded;    /* keys, and the next multiple of 16 */
} Memory;

#endif
