/* FDAT-RD on CPUs with AVX2 (and, from one source, AVX-512 with VNNI in vnni_*.c, and with AMX in amx_*.c): matrix products
 * of 16-bit integers with 32-bit sums, everything else in fp32.
 *
 * A multiply-add of 16-bit pairs (vpmaddwd) does twice the work of a float FMA; with the extra addition it needs, products
 * run at 1.5 times the rate of fp32. Tokens are quantized at the input of a product, each to its own maximum; weights are
 * quantized once, each output channel to its own maximum. Both get 13 bits and a sign, so that no sum can overflow 32
 * bits, whatever the picture (see fdatrd_cpu_pack in cpu_layers.c for the proof).
 *
 * Shapes in comments are as in nn/fdat_rd.py: a map of H x W = N tokens of C channels, row-major, h heads of 32 channels.
 * Every function processes a range of rows, windows or tokens, so that threads can share a layer; none allocates memory.
 * `scratch` is a per-thread buffer of `fdatrd_cpu_scratch` bytes, 64-byte aligned.
 */
#ifndef FDATRD_CPU_H
#define FDATRD_CPU_H

#include <stdint.h>

#include "export.h"

/* Whether products with AMX are compiled: Linux grants it on request, and older assemblers do not know it. */
#if defined(__x86_64__) && defined(__linux__) && (__GNUC__ >= 11 || __clang_major__ >= 12 || defined(FDATRD_AMX_MODEL))
#define FDATRD_HAS_AMX
#endif

/* A weight matrix (columns, inner), packed by fdatrd_cpu_pack. */
typedef struct {
    const int16_t *panels; /* (columns / 16, inner / 2, 16, 2) */
    const float *scale;    /* (columns): value of one quantization step of a column */
    int64_t inner;         /* a multiple of 16 */
    int64_t columns;       /* a multiple of 16 */
    const int32_t *spans;  /* (spans, 2): first row and length, multiples of 8, of the nonzero rows of a panel */
    const int32_t *bounds; /* (columns / 16 + 1): panel i has spans bounds[i] to bounds[i + 1] */
    /* For AMX only, else NULL; see cpu_amx.h. A panel without blocks is multiplied by its spans. */
    const uint8_t *bytes;        /* (blocks, 2, 16, 64): high and low bytes of 64 rows of a panel */
    const int32_t *blocks;       /* (blocks): first row of a block, divided by 64 */
    const int32_t *block_bounds; /* (columns / 16 + 1): panel i has blocks block_bounds[i] to block_bounds[i + 1] */
} Matrix;

/* A LayerNorm's (C) scale and (C) shift. */
typedef struct {
    const float *scale, *shift;
} Norm;

/* Keys and values of one head in the layout of `attend`. */
typedef struct {
    const int16_t *keys;      /* (padded / 16, 16, 16, 2) */
    const float *key_scale;   /* (padded), 0 where there is no key */
    const int16_t *values;    /* (2, padded / 2, 16, 2) */
    const float *value_scale; /* (32) */
    int64_t count, padded;    /* number of keys, and the next multiple of 16 */
} KeyValue;

#endif
