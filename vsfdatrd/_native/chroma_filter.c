/* fdatrd.ChromaFilter: replaces chroma by a weighted mean of the surrounding chroma; the luma plane is shared.
 *
 * A joint (cross) bilateral filter (Petschnigg et al.; Eisemann and Durand, 2004): the weight of a neighbor decreases with
 * its distance and its luma difference, so color that has bled over a line moves back behind it. Color next to a line may
 * itself have bled, so it is also weighted by `confidence`, which decreases with the luma gradient around it. LaserDisc
 * chroma has a tenth of luma's bandwidth horizontally and nearly all of it vertically, hence a wide, low window.
 *
 * Multiplications and additions are never fused, so every CPU computes the same picture.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "chroma_filter.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* GCC does this with -std=c11 */
#endif

enum {
    LANES = 8,
    REACH_X = 9, /* radius of the window in source pixels, one tap each */
    REACH_Y = 2,
    TAPS = (2 * REACH_X + 1) * (2 * REACH_Y + 1),
    SLOPE_X = 3,   /* radius of the mean used for confidence, in source pixels */
    MAX_SCALE = 8, /* largest scale of the network */
};

#define SIGMA_X 5.0f     /* spatial sigma, in source pixels */
#define SIGMA_Y 2.0f
#define RANGE 0.04f      /* luma difference (white is 1) from which on a neighbor has no weight */
#define DOUBT 200.0f     /* how fast confidence decreases with the luma gradient */
#define SLOPE_DOWN 0.3f  /* weight of vertical gradients: chroma bleeds horizontally */

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));

/* Float planes with borders. All have the same stride, a multiple of LANES. */
typedef struct {
    int width, height;      /* of the picture */
    int border_x, border_y; /* left and right, above and below */
    int rows;               /* including borders */
    ptrdiff_t stride, first; /* confidence is valid in columns [first, stride - first) */
    float *luma, *u, *v, *confidence;
    float *sums; /* buffer of one row */
} Planes;

typedef struct {
    ptrdiff_t offset;
    float root; /* square root of the spatial weight; it is squared together with the luma kernel (1 - d²/r²) */
} Tap;

/* Statement expressions, since functions that take vectors would have another ABI with AVX2 than without. */
#define load(from)                                                                                                     \
    __extension__({                                                                                                    \
        Floats loaded_;                                                                                                \
        memcpy(&loaded_, from, sizeof loaded_);                                                                        \
        loaded_;                                                                                                       \
    })
#define store(to, values)                                                                                              \
    do {                                                                                                               \
        const Floats stored_ = values;                                                                                 \
        memcpy(to, &stored_, sizeof stored_);                                                                          \
    } while (0)
#define positive(values)                                                                                               \
    __extension__({                                                                                                    \
        const Floats signed_ = values;                                                                                 \
        (Floats)((Ints)signed_ & (signed_ > 0.0f));                                                                    \
    })
#define magnitude(values) ((Floats)((Ints)(values)&0x7FFFFFFF))

#define NAMED(name) name
#include "chroma_filter_row.h"
#undef NAMED

#if defined(__x86_64__)
int64_t fdatrd_cpu_supported(void); /* from cpu_check.c: AVX2 */
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define NAMED(name) name##_avx2
#include "chroma_filter_row.h"
#undef NAMED
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

typedef struct {
    void (*find_slopes)(const Planes *, float *, float *);
    void (*find_confidence)(const Planes *, const float *, const float *, int);
    void (*filter_row)(const Planes *, const Tap *, int, float *, float *);
} Functions;

typedef struct {
    VSNode *node;
    VSVideoInfo info;
    int scale;
    Functions run;
} ChromaFilter;

static ptrdiff_t whole_vectors(ptrdiff_t columns) { return (columns + LANES - 1) / LANES * LANES; }

static int clamp(int value, int most) { return value < 0 ? 0 : value > most ? most : value; }

/* Copies a plane and replicates its edge pixels into the borders. */
static void extend(const Planes *p, float *to, const uint8_t *from, ptrdiff_t bytes) {
    for (int y = 0; y < p->rows; y++) {
        const float *source = (const float *)(from + clamp(y - p->border_y, p->height - 1) * bytes);
        float *row = to + y * p->stride;
        for (int x = 0; x < p->border_x; x++) row[x] = source[0];
        memcpy(row + p->border_x, source, (size_t)p->width * sizeof *row);
        for (ptrdiff_t x = p->border_x + p->width; x < p->stride; x++) row[x] = source[p->width - 1];
    }
}

/* The spatial weight (1 - d²/(8 σ²))⁴ approximates a Gaussian except for its tails; taps store its square root. */
static void make_taps(Tap *taps, int scale, ptrdiff_t stride) {
    for (int y = -REACH_Y; y <= REACH_Y; y++)
        for (int x = -REACH_X; x <= REACH_X; x++, taps++) {
            const float distance = (float)(x * x) / (SIGMA_X * SIGMA_X) + (float)(y * y) / (SIGMA_Y * SIGMA_Y);
            const float inner = 1 - distance / 8;
            taps->offset = (y * stride + x) * scale;
            taps->root = inner > 0 ? inner * inner : 0;
        }
}

/* Filters a frame's chroma into `out`; returns 0 if out of memory. */
static int filter(const ChromaFilter *d, const VSFrame *source, VSFrame *out, const VSAPI *vsapi) {
    const int s = d->scale;
    Planes p = {.width = d->info.width, .height = d->info.height};
    p.first = whole_vectors(SLOPE_X * s + 1);
    p.border_x = (int)(p.first + whole_vectors(REACH_X * s));
    p.border_y = REACH_Y * s + 2; /* gradients are undefined in the outermost row, confidence in the next one as well */
    p.rows = p.height + 2 * p.border_y;
    p.stride = whole_vectors(p.width) + 2 * p.border_x;
    const size_t plane = (size_t)p.rows * (size_t)p.stride;
    float *memory = calloc(4 * plane + (size_t)p.stride, sizeof *memory);
    if (!memory) return 0;
    p.luma = memory, p.u = memory + plane, p.v = memory + 2 * plane, p.confidence = memory + 3 * plane;
    p.sums = memory + 4 * plane;

    extend(&p, p.luma, vsapi->getReadPtr(source, 0), vsapi->getStride(source, 0));
    d->run.find_slopes(&p, p.u, p.v);
    d->run.find_confidence(&p, p.u, p.v, SLOPE_X * s);
    extend(&p, p.u, vsapi->getReadPtr(source, 1), vsapi->getStride(source, 1));
    extend(&p, p.v, vsapi->getReadPtr(source, 2), vsapi->getStride(source, 2));
    for (size_t i = 0; i < plane; i++) p.u[i] *= p.confidence[i], p.v[i] *= p.confidence[i];

    Tap taps[TAPS];
    make_taps(taps, s, p.stride);
    const ptrdiff_t to = vsapi->getStride(out, 1); /* of both planes; VapourSynth's rows have room for complete vectors */
    uint8_t *u = vsapi->getWritePtr(out, 1), *v = vsapi->getWritePtr(out, 2);
    for (int y = 0; y < p.height; y++) d->run.filter_row(&p, taps, y, (float *)(u + y * to), (float *)(v + y * to));
    free(memory);
    return 1;
}

static const VSFrame *VS_CC get_frame(int n, int reason, void *instance, void **frame_data, VSFrameContext *context,
                                      VSCore *core, const VSAPI *vsapi) {
    ChromaFilter *d = instance;
    (void)frame_data;
    if (reason == arInitial) {
        vsapi->requestFrameFilter(n, d->node, context);
        return NULL;
    }
    if (reason != arAllFramesReady)
        return NULL;

    const VSFrame *source = vsapi->getFrameFilter(n, d->node, context);
    const VSFrame *planes[3] = {source, NULL, NULL}; /* luma's plane is shared */
    VSFrame *out = vsapi->newVideoFrame2(&d->info.format, d->info.width, d->info.height, planes, (int[3]){0}, source, core);
    const int done = filter(d, source, out, vsapi);
    vsapi->freeFrame(source);
    if (done)
        return out;
    vsapi->freeFrame(out);
    vsapi->setFilterError("fdatrd: out of memory in the filter of chroma", context);
    return NULL;
}

static void VS_CC free_filter(void *instance, VSCore *core, const VSAPI *vsapi) {
    ChromaFilter *d = instance;
    (void)core;
    vsapi->freeNode(d->node);
    free(d);
}

static void VS_CC create(const VSMap *in, VSMap *out, void *user, VSCore *core, const VSAPI *vsapi) {
    (void)user;
    ChromaFilter *d = calloc(1, sizeof *d);
    if (!d) {
        vsapi->mapSetError(out, "fdatrd: out of memory");
        return;
    }
    d->node = vsapi->mapGetNode(in, "clip", 0, NULL);
    d->info = *vsapi->getVideoInfo(d->node);
    d->scale = vsapi->mapGetIntSaturated(in, "scale", 0, NULL);
    const VSVideoFormat *format = &d->info.format;
    if (format->colorFamily != cfYUV || format->sampleType != stFloat || format->bitsPerSample != 32 ||
        format->subSamplingW || format->subSamplingH || !d->info.width || d->scale < 1 || d->scale > MAX_SCALE) {
        vsapi->mapSetError(out, "fdatrd.ChromaFilter: internal to fdatrd.upscale; takes YUV444PS and a scale of 1 to 8");
        vsapi->freeNode(d->node);
        free(d);
        return;
    }
    d->run = (Functions){find_slopes, find_confidence, filter_row};
#if defined(__x86_64__)
    if (fdatrd_cpu_supported())
        d->run = (Functions){find_slopes_avx2, find_confidence_avx2, filter_row_avx2};
#endif
    VSFilterDependency dependency = {d->node, rpStrictSpatial};
    vsapi->createVideoFilter(out, "ChromaFilter", &d->info, get_frame, free_filter, fmParallel, &dependency, 1, d, core);
}

void chroma_filter_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi) {
    vspapi->registerFunction("ChromaFilter", "clip:vnode;scale:int;", "clip:vnode;", create, NULL, plugin);
}
