/* 3x3 convolutions of the token map, by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray 2015): sixteen products
 * give four tokens, instead of nine each. See cpu.h.
 *
 * A tile is 2x2 tokens of the output, for which 4x4 of the input are read. Along one side, with inputs d0 to d3 and taps g0
 * to g2, the four products m are (d0 - d2) g0, (d1 + d2) (g0 + g1 + g2)/2, (d2 - d1) (g0 - g1 + g2)/2 and (d1 - d3) g2; the
 * outputs are m0 + m1 + m2 and m1 - m2 - m3.
 */
#if defined(__x86_64__)
#include "cpu_math.h"

enum { TILES = 30, PRODUCTS = 16 }; /* TILES: processed together */

/* Replaces d0 to d3, `apart` vectors from each other, by what is multiplied. */
INLINE void differences(Vector *d, int apart) {
    Vector first = subtract(d[0], d[2 * apart]), last = subtract(d[apart], d[3 * apart]);
    Vector sum = add(d[apart], d[2 * apart]);
    d[2 * apart] = subtract(d[2 * apart], d[apart]);
    d[0] = first;
    d[apart] = sum;
    d[3 * apart] = last;
}

/* Prepares and quantizes one tile. pixels: the 4x4 tokens in row-major order. a: (16, TILES, C), steps: (16, TILES), both
 * from the tile on. parts: scratch of (16, C).
 */
static void enter_tile(const float *const pixels[PRODUCTS], int64_t channels, int16_t *a, float *steps, float *parts) {
    for (int64_t channel = 0; channel < channels; channel += LANES) {
        Vector d[PRODUCTS];
        UNROLL for (int i = 0; i < PRODUCTS; i++) d[i] = load(pixels[i] + channel);
        UNROLL for (int i = 0; i < 4; i++) differences(d + i, 4);
        UNROLL for (int i = 0; i < 4; i++) differences(d + 4 * i, 1);
        UNROLL for (int i = 0; i < PRODUCTS; i++) store(parts + i * channels + channel, d[i]);
    }
    for (int i = 0; i < PRODUCTS; i++)
        steps[i * TILES] = quantize(parts + i * channels, channels, a + i * TILES * channels);
}

/* out = conv(t) + more for rows [2 first, 2 last) of a map; no bias. t, out, more: (H, W, C); out is not t. H and W are even.
 *
 * m: sixteen matrices (C, C) in row-major order, of the taps as above along both sides.
 */
KERNEL(winograd)(const float *t, const float *more, float *out, int64_t height, int64_t width, int64_t first,
                 int64_t last, const Matrix *m, char *scratch) {
    begin_products();
    int64_t channels = m->inner;
    int16_t *a = take(&scratch, PRODUCTS * TILES * channels * 2);
    float *steps = take(&scratch, PRODUCTS * TILES * 4), *found = take(&scratch, PRODUCTS * TILES * LANES * 4);
    float *parts = take(&scratch, PRODUCTS * channels * 4), *outside = take(&scratch, channels * 4);
#ifdef FDATRD_AMX
    int64_t stride = byte_stride(channels);
    uint8_t *bytes = take(&scratch, PRODUCTS * TILES * stride);
#endif
    memset(outside, 0, (size_t)(channels * 4));
    for (int64_t y = 2 * first; y < 2 * last; y += 2)
        for (int64_t x = 0; x < width; x += 2 * TILES) {
            int64_t count = width - x < 2 * TILES ? (width - x) / 2 : TILES;
            int64_t rows = (count + ROWS - 1) / ROWS * ROWS; /* those beyond `count` are computed from an earlier tile's rest */
            for (int64_t tile = 0; tile < count; tile++) {
                const float *pixels[PRODUCTS];
                for (int i = 0; i < PRODUCTS; i++) {
                    int64_t row = y - 1 + i / 4, column = x + 2 * tile - 1 + i % 4;
                    int there = row >= 0 && row < height && column >= 0 && column < width;
                    pixels[i] = there ? t + (row * width + column) * channels : outside;
                }
                enter_tile(pixels, channels, a + tile * channels, steps + tile, parts);
            }
#ifdef FDATRD_AMX
            for (int i = 0; i < PRODUCTS; i++)
                if (any_blocks(m + i)) separate(a + i * TILES * channels, count, channels, bytes + i * TILES * stride);
#endif
            for (int64_t column = 0; column < channels; column += COLUMNS) {
                for (int i = 0; i < PRODUCTS; i++) {
                    for (int tile = 2 * i; tile < 2 * i + 2 && tile < count; tile++)
                        for (int k = 0; k < 4; k++) {
                            int64_t at = ((y + k / 2) * width + x + 2 * tile + k % 2) * channels + column;
                            _mm_prefetch((const char *)(more + at), _MM_HINT_T0);
                            _mm_prefetch((const char *)(out + at), _MM_HINT_T0);
                        }
                    int64_t row = 0;
#ifdef FDATRD_AMX
                    if (has_blocks(m + i, column / COLUMNS)) { /* `count` is a multiple of 15, as widths are of 30 */
                        panel_of_bytes(STORED, bytes + i * TILES * stride, steps + i * TILES, count, m + i,
                                       column / COLUMNS, found + i * TILES * LANES, LANES, NULL);
                        row = rows;
                    }
#endif
                    for (; row < rows; row += ROWS) {
                        Vector z[ROWS];
                        tile_product(a + (i * TILES + row) * channels, steps + i * TILES + row, m + i, column / COLUMNS, z);
                        UNROLL for (int k = 0; k < ROWS; k++) store(found + (i * TILES + row + k) * LANES, z[k]);
                    }
                }
                for (int64_t tile = 0; tile < count; tile++) {
                    Vector z[2][4];
                    UNROLL for (int i = 0; i < 4; i++) {
                        const float *from = found + (i * TILES + tile) * LANES;
                        Vector second = load(from + 4 * TILES * LANES), third = load(from + 8 * TILES * LANES);
                        z[0][i] = add(load(from), add(second, third));
                        z[1][i] = subtract(subtract(second, third), load(from + 12 * TILES * LANES));
                    }
                    UNROLL for (int i = 0; i < 2; i++) {
                        int64_t at = ((y + i) * width + x + 2 * tile) * channels + column;
                        Vector left = add(z[i][0], add(z[i][1], z[i][2]));
                        Vector right = subtract(subtract(z[i][1], z[i][2]), z[i][3]);
                        store(out + at, add(left, load(more + at)));
                        store(out + at + channels, add(right, load(more + at + channels)));
                    }
                }
            }
        }
    end_products();
}

FEATURES_END
#endif
