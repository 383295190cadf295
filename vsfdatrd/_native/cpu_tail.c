/* The upsampler `transpose+conv`: tokens to pixels, 2x or 4x. See cpu.h.
 *
 * A 4x4 transposed convolution with stride 2 equals four 2x2 convolutions, one for each pixel of a 2x2 square: pixel
 * 2 i + a depends on source pixels i - 1 + a and i + a, through taps 3 and 1 (a = 0) or 2 and 0 (a = 1).
 */
#if defined(__x86_64__)
#include "cpu_math.h"

/* Three quantized rows of a map, with a border left and right; row y is in slot y mod 3. */
typedef struct {
    int16_t *rows[3];
    float *steps[3];
    int64_t channels;
} Rows;

static Rows rows_of(char **scratch, int64_t width, int64_t channels) {
    Rows found = {.channels = channels};
    for (int i = 0; i < 3; i++) {
        found.rows[i] = take(scratch, (width + 2) * channels * 2);
        found.steps[i] = take(scratch, (width + 2) * 4);
        memset(found.rows[i], 0, (size_t)((width + 2) * channels * 2));
        memset(found.steps[i], 0, (size_t)((width + 2) * 4));
    }
    return found;
}

static void fill(Rows *rows, const float *z, int64_t width, int64_t y) {
    int64_t channels = rows->channels;
    for (int64_t x = 0; x < width; x++)
        rows->steps[y % 3][x + 1] =
            quantize(z + (y * width + x) * channels, channels, rows->rows[y % 3] + (x + 1) * channels);
}

/* out (count, columns) += product of one tap with `count` pixels from x on in row y; nothing outside of the map. */
static inline void tap(const Rows *rows, int64_t y, int64_t height, int64_t x, int64_t count, const Matrix *m,
                       float *out) {
    if (y < 0 || y >= height) return;
    add_product(rows->rows[y % 3] + (x + 1) * rows->channels, rows->steps[y % 3] + x + 1, count, m, out, m->columns);
}

/* The last transposed convolution: computes rows 2 y and 2 y + 1 of three planes from row y of a map. taps: nine matrices
 * (16, C), column (2 a + b)·3 + plane for pixel (2 y + a, 2 x + b).
 */
static void to_planes(const Rows *rows, int64_t y, int64_t height, int64_t width, const Matrix *taps, const float *bias,
                      float *planes) {
    float found[BLOCK * COLUMNS];
    for (int64_t x = 0; x < width; x += BLOCK) {
        int64_t count = width - x < BLOCK ? width - x : BLOCK;
        memset(found, 0, sizeof found);
        for (int i = 0; i < 9; i++) tap(rows, y + i / 3 - 1, height, x + i % 3 - 1, count, taps + i, found);
        for (int plane = 0; plane < 3; plane++)
            for (int a = 0; a < 2; a++) {
                float *to = planes + ((plane * 2 * height + 2 * y + a) * width + x) * 2;
                for (int64_t i = 0; i < count; i++)
                    for (int b = 0; b < 2; b++)
                        to[2 * i + b] = found[i * COLUMNS + (2 * a + b) * 3 + plane] + bias[plane];
            }
    }
}

/* Upsamples rows [first, last) of z (H, W, C) to the corresponding rows of planes (3, 2H, 2W). */
KERNEL(twice)(const float *z, float *planes, int64_t height, int64_t width, int64_t first, int64_t last,
              const Matrix *taps, const float *bias, char *scratch) {
    begin_products();
    Rows rows = rows_of(&scratch, width, taps->inner);
    for (int64_t y = first ? first - 1 : 0; y <= last && y < height; y++) {
        fill(&rows, z, width, y);
        if (y > first) to_planes(&rows, y - 1, height, width, taps, bias, planes);
        if (y + 1 == height && y < last) to_planes(&rows, y, height, width, taps, bias, planes);
    }
    end_products();
}

/* Upsamples rows [first, last) of z (H, W, C) to the corresponding rows of planes (3, 4H, 4W), through the GELU of a map
 * of twice the size, of which only three rows are stored at a time.
 *
 * squares: 16 matrices (C, C); the one for pixel (a, b) of a square, source row i and source column j has the index
 * ((2 a + b)·2 + i)·2 + j. square_bias: (C). taps, bias: as for fdatrd_cpu_twice.
 */
KERNEL(four_times)(const float *z, float *planes, int64_t height, int64_t width, int64_t first, int64_t last,
                   const Matrix *squares, const float *square_bias, const Matrix *taps, const float *bias,
                   char *scratch) {
    begin_products();
    int64_t channels = squares->inner, ready = first ? first - 2 : -1;
    Rows source = rows_of(&scratch, width, channels), rows = rows_of(&scratch, 2 * width, channels);
    float *found = take(&scratch, BLOCK * channels * 4);
    for (int64_t tall = first ? 2 * first - 1 : 0; tall <= 2 * last && tall < 2 * height; tall++) {
        int64_t y = tall / 2, a = tall % 2;
        while (ready < y + a && ready + 1 < height) fill(&source, z, width, ++ready);
        for (int b = 0; b < 2; b++)
            for (int64_t x = 0; x < width; x += BLOCK) {
                int64_t count = width - x < BLOCK ? width - x : BLOCK;
                memset(found, 0, (size_t)(BLOCK * channels * 4));
                for (int i = 0; i < 4; i++)
                    tap(&source, y - 1 + a + i / 2, height, x - 1 + b + i % 2, count, squares + (2 * a + b) * 4 + i,
                        found);
                for (int64_t i = 0; i < count; i++) {
                    float *pixel = found + i * channels;
                    for (int64_t j = 0; j < channels; j += LANES)
                        store(pixel + j, gelu(add(load(pixel + j), load(square_bias + j))));
                    int64_t at = 2 * (x + i) + b + 1;
                    rows.steps[tall % 3][at] = quantize(pixel, channels, rows.rows[tall % 3] + at * channels);
                }
            }
        if (tall > 2 * first) to_planes(&rows, tall - 1, 2 * height, 2 * width, taps, bias, planes);
        if (tall + 1 == 2 * height && tall < 2 * last)
            to_planes(&rows, tall, 2 * height, 2 * width, taps, bias, planes);
    }
    end_products();
}

/* Computes rows [first, last) of a 3x3 convolution of three planes: planes, out: (3, H, W). weights: (3, 3, 3, 3) in
 * PyTorch's layout; bias: (3).
 */
KERNEL(last)(const float *planes, float *out, int64_t height, int64_t width, int64_t first, int64_t last,
             const float *weights, const float *bias) {
    for (int plane = 0; plane < 3; plane++)
        for (int64_t y = first; y < last; y++) {
            float *to = out + (plane * height + y) * width;
            for (int64_t x = 0; x < width; x++) to[x] = bias[plane];
            for (int source = 0; source < 3; source++)
                for (int i = 0; i < 3; i++) {
                    if (y + i < 1 || y + i > height) continue;
                    const float *from = planes + (source * height + y + i - 1) * width;
                    const float *w = weights + ((plane * 3 + source) * 3 + i) * 3;
                    __m256 left = _mm256_set1_ps(w[0]), middle = _mm256_set1_ps(w[1]), right = _mm256_set1_ps(w[2]);
                    int64_t x = 1;
                    for (; x + 8 < width; x += 8) {
                        __m256 sum = _mm256_fmadd_ps(left, _mm256_loadu_ps(from + x - 1), _mm256_loadu_ps(to + x));
                        sum = _mm256_fmadd_ps(middle, _mm256_loadu_ps(from + x), sum);
                        _mm256_storeu_ps(to + x, _mm256_fmadd_ps(right, _mm256_loadu_ps(from + x + 1), sum));
                    }
                    for (; x + 1 < width; x++) to[x] += w[0] * from[x - 1] + w[1] * from[x] + w[2] * from[x + 1];
                    to[0] += w[1] * from[0] + w[2] * from[1];
                    to[width - 1] += w[0] * from[width - 2] + w[1] * from[width - 1];
                }
        }
}

FEATURES_END
#endif
