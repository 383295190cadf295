/* A model of the instructions of Intel AMX that the native kernels use (vsfdatrd/_native/cpu_amx.h), after the
 * pseudocode in the Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: their results, and their
 * conditions. Where a processor would raise an exception, the program ends.
 */
#ifndef FDATRD_TEST_AMX_MODEL_H
#define FDATRD_TEST_AMX_MODEL_H

#include <stdint.h>
#include <string.h>

typedef struct {
    uint16_t row_bytes;
    uint8_t rows;
    uint8_t data[16][64];
} ModelTile;

/* Of the calling thread. */
static _Thread_local struct {
    int configured;
    ModelTile tiles[8];
} model;

/* Counts TDPB*, on all threads, so that tests know whether there were any. */
EXPORT __attribute__((weak)) int64_t fdatrd_model_products = 0;

static inline void model_require(int condition) {
    if (!condition) __builtin_trap();
}

/* LDTILECFG: palette 1 has eight tiles of up to 16 rows of 64 bytes. It may only follow a TILERELEASE here, though not
 * on a processor: kernels release what they configured.
 */
static inline void model_configure(const void *from) {
    uint8_t bytes[64];
    memcpy(bytes, from, sizeof bytes);
    model_require(!model.configured && bytes[0] == 1 && bytes[1] == 0);
    for (int i = 2; i < 16; i++) model_require(bytes[i] == 0);
    for (int i = 0; i < 16; i++) {
        int row_bytes = bytes[16 + 2 * i] + 256 * bytes[17 + 2 * i], rows = bytes[48 + i];
        model_require(row_bytes <= 64 && rows <= 16 && !row_bytes == !rows && (i < 8 || !rows));
        if (i >= 8) continue;
        memset(&model.tiles[i], 0, sizeof model.tiles[i]);
        model.tiles[i].row_bytes = (uint16_t)row_bytes;
        model.tiles[i].rows = (uint8_t)rows;
    }
    model.configured = 1;
}

static inline void model_release(void) {
    model_require(model.configured);
    memset(&model, 0, sizeof model);
}

/* Returns a tile that may be used: its shape is configured. */
static inline ModelTile *model_tile(int number) {
    model_require(model.configured && number >= 0 && number < 8 && model.tiles[number].rows > 0);
    return &model.tiles[number];
}

static inline void model_zero(int number) {
    ModelTile *tile = model_tile(number);
    memset(tile->data, 0, sizeof tile->data);
}

static inline void model_load(int number, const void *from, int64_t stride) {
    ModelTile *tile = model_tile(number);
    memset(tile->data, 0, sizeof tile->data);
    for (int row = 0; row < tile->rows; row++)
        memcpy(tile->data[row], (const uint8_t *)from + row * stride, tile->row_bytes);
}

static inline void model_store(int number, void *to, int64_t stride) {
    const ModelTile *tile = model_tile(number);
    for (int row = 0; row < tile->rows; row++)
        memcpy((uint8_t *)to + row * stride, tile->data[row], tile->row_bytes);
}

static inline int32_t model_value(uint8_t byte, int has_sign) { return has_sign ? (int8_t)byte : byte; }

/* TDPB*D sum, a, b: bytes of `a` have a sign if a_sign, those of `b` if b_sign. */
static inline void model_multiply(int sum, int a, int b, int a_sign, int b_sign) {
    ModelTile *to = model_tile(sum);
    const ModelTile *left = model_tile(a), *right = model_tile(b);
    model_require(sum != a && sum != b && a != b);
    model_require(to->row_bytes % 4 == 0 && left->row_bytes % 4 == 0 && right->row_bytes % 4 == 0);
    model_require(to->row_bytes == right->row_bytes && to->rows == left->rows && left->row_bytes == right->rows * 4);
    int32_t columns[64][16]; /* the weights of all columns for each byte of a row of `a` */
    for (int k = 0; k < 64; k++)
        for (int n = 0; n < 16; n++) columns[k][n] = model_value(right->data[k / 4][4 * n + k % 4], b_sign);
    for (int m = 0; m < to->rows; m++) {
        uint32_t sums[16];
        memcpy(sums, to->data[m], sizeof sums);
        for (int k = 0; k < left->row_bytes; k++) {
            int32_t value = model_value(left->data[m][k], a_sign);
            for (int n = 0; n < 16; n++) sums[n] += (uint32_t)(value * columns[k][n]);
        }
        memcpy(to->data[m], sums, to->row_bytes);
    }
    __atomic_fetch_add(&fdatrd_model_products, 1, __ATOMIC_RELAXED);
}

/* Whether bytes have a sign, in the letters of the instructions' names. */
enum { model_ss = 3, model_su = 2, model_us = 1, model_uu = 0 };

#define AMX_CONFIGURE(from) model_configure(from)
#define AMX_RELEASE() model_release()
#define AMX_ZERO(tile) model_zero(tile)
#define AMX_LOAD(tile, from, stride) model_load(tile, from, stride)
#define AMX_STORE(tile, to, stride) model_store(tile, to, stride)
#define AMX_MULTIPLY(kind, sum, a, b) model_multiply(sum, a, b, model_##kind >> 1, model_##kind & 1)

#endif
