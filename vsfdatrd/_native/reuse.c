/* fdatrd.ReuseFrames: distributes frames in turn to several equivalent filters, and copies the result of a frame that
 * repeats an earlier picture from that picture's first frame, its anchor.
 *
 * With a threshold of 0, frames are identified by a hash of their values: a frame that equals a previously requested frame
 * less than REACH frames away is a copy of that frame's result. No frame is read for the sake of another, so an unreadable
 * frame fails alone; and since equal frames have equal results, the order of requests does not change the output.
 *
 * With a larger threshold, frames are grouped in blocks of REACH, whose first frame is always an anchor, and a frame
 * repeats the last anchor before it if no value differs by more than the threshold. It is compared with the anchor, not
 * with the previous frame, so that differences do not accumulate. This needs all frames from the start of the block, or
 * from the last frame whose anchor is remembered; if one of them cannot be read, the next request fails once, because the
 * core cannot resume it.
 */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "reuse.h"

enum { REACH = 12, REMEMBERED = 256, KEPT = 3 };

typedef struct {
    int n, anchor; /* frame n repeats frame `anchor`; n is -1 in an empty entry */
} Found;

typedef struct {
    uint64_t low, high;
} Hash;

typedef struct {
    int anchor, filter; /* index of the filter that computes it */
} Assignment;

typedef struct {
    int n; /* a frame with this hash; -1 in an empty entry */
    Hash hash;
} Seen;

typedef struct {
    VSNode *source, **filters;
    int count, turn;
    double threshold; /* largest difference at which a result is reused; below 0: every frame is an anchor */
    atomic_flag busy; /* spin lock, held for a few instructions at a time */
    Found found[REMEMBERED];
    Assignment assigned[REMEMBERED];
    Seen seen[4 * REACH];
    int next; /* index of the entry of `seen` to overwrite next */
} ReuseFrames;

/* State of one frame request. */
typedef struct {
    int reached; /* with a threshold, the last frame before n with a known anchor; else the frame with n's hash, or -1 */
    int start;   /* the anchor of that frame */
    int anchor;  /* -1 until known */
    int filter;  /* -1 until the result has been requested */
    const VSFrame *own;
} Job;

static void lock(ReuseFrames *d) {
    while (atomic_flag_test_and_set_explicit(&d->busy, memory_order_acquire)) {
    }
}

static void unlock(ReuseFrames *d) {
    atomic_flag_clear_explicit(&d->busy, memory_order_release);
}

/* Returns the anchor of a frame if it is remembered or the frame is the first of its block; else -1. */
static int recall(ReuseFrames *d, int n) {
    if (n % REACH == 0)
        return n;
    lock(d);
    Found found = d->found[n % REMEMBERED];
    unlock(d);
    return found.n == n ? found.anchor : -1;
}

static void remember(ReuseFrames *d, int n, int anchor) {
    lock(d);
    d->found[n % REMEMBERED] = (Found){n, anchor};
    unlock(d);
}

static int filter_of(ReuseFrames *d, int anchor) {
    lock(d);
    Assignment *place = &d->assigned[anchor % REMEMBERED];
    if (place->anchor != anchor) {
        *place = (Assignment){anchor, d->turn};
        d->turn = (d->turn + 1) % d->count;
    }
    int filter = place->filter;
    unlock(d);
    return filter;
}

static int same(const VSFrame *a, const VSFrame *b, double threshold, const VSAPI *vsapi) {
    int planes = vsapi->getVideoFrameFormat(a)->numPlanes;
    for (int plane = 0; plane < planes; plane++) {
        const uint8_t *left = vsapi->getReadPtr(a, plane), *right = vsapi->getReadPtr(b, plane);
        ptrdiff_t left_stride = vsapi->getStride(a, plane), right_stride = vsapi->getStride(b, plane);
        int width = vsapi->getFrameWidth(a, plane), height = vsapi->getFrameHeight(a, plane);
        if (left == right)
            continue; /* two references to the same plane */
        for (int y = 0; y < height; y++, left += left_stride, right += right_stride) {
            if (!memcmp(left, right, (size_t)width * sizeof(float)))
                continue;
            if (threshold == 0)
                return 0;
            const float *p = (const float *)left, *q = (const float *)right;
            int apart = 0;
            for (int x = 0; x < width; x++)
                apart |= !(fabsf(p[x] - q[x]) <= (float)threshold); /* NaN equals nothing */
            if (apart)
                return 0;
        }
    }
    return 1;
}

/* Returns whether two source frames, both requested before, differ by at most the threshold. */
static int equal(ReuseFrames *d, int left, int right, VSFrameContext *context, const VSAPI *vsapi) {
    const VSFrame *a = vsapi->getFrameFilter(left, d->source, context);
    const VSFrame *b = vsapi->getFrameFilter(right, d->source, context);
    int found = same(a, b, d->threshold, vsapi);
    vsapi->freeFrame(a);
    vsapi->freeFrame(b);
    return found;
}

/* Returns a 128-bit hash of all values. CHAINS independent chains of products, so that processors compute them in parallel:
 * a product takes several cycles, but another one can start every cycle.
 */
static Hash hash_of(const VSFrame *frame, const VSAPI *vsapi) {
    enum { CHAINS = 8, BLOCK = 2 * CHAINS }; /* floats of a block: two for each chain */
    const uint64_t factor = 0x9E3779B97F4A7C15u;
    uint64_t part[CHAINS] = {1, 2, 3, 4, 5, 6, 7, 8};
    int planes = vsapi->getVideoFrameFormat(frame)->numPlanes;
    for (int plane = 0; plane < planes; plane++) {
        const uint8_t *row = vsapi->getReadPtr(frame, plane);
        ptrdiff_t stride = vsapi->getStride(frame, plane);
        int floats = vsapi->getFrameWidth(frame, plane), height = vsapi->getFrameHeight(frame, plane);
        for (int y = 0; y < height; y++, row += stride) {
            for (int x = 0; x < floats; x += BLOCK) {
                uint64_t value[CHAINS] = {0};
                int left = floats - x;
                if (left >= BLOCK)
                    memcpy(value, row + 4 * (size_t)x, sizeof value);
                else
                    memcpy(value, row + 4 * (size_t)x, 4 * (size_t)left);
                for (int i = 0; i < CHAINS; i++) {
                    part[i] = (part[i] ^ value[i]) * factor;
                    part[i] ^= part[i] >> 29;
                }
            }
        }
    }
    Hash hash = {0, 0};
    for (int i = 0; i < CHAINS / 2; i++) {
        hash.low = hash.low * factor + part[i];
        hash.high = hash.high * factor + part[CHAINS / 2 + i];
    }
    return hash;
}

/* Returns the first nearby frame with this hash; n itself if there is none, which is then recorded. */
static int meet(ReuseFrames *d, int n, Hash hash) {
    int found = n, known = 0;
    lock(d);
    for (int i = 0; i < 4 * REACH; i++) {
        Seen *seen = &d->seen[i];
        if (seen->n < 0 || seen->hash.low != hash.low || seen->hash.high != hash.high)
            continue;
        known |= seen->n == n;
        if (abs(seen->n - n) < REACH && (found == n || seen->n < found))
            found = seen->n;
    }
    if (found == n && !known) {
        d->seen[d->next] = (Seen){n, hash};
        d->next = (d->next + 1) % (4 * REACH);
    }
    unlock(d);
    return found;
}

/* Requests the frames that are compared with a threshold, in addition to n itself. */
static void begin(ReuseFrames *d, int n, Job *job, VSFrameContext *context, const VSAPI *vsapi) {
    job->reached = n - 1;
    while ((job->start = recall(d, job->reached)) < 0)
        job->reached--;
    vsapi->requestFrameFilter(job->start, d->source, context);
    for (int m = job->reached + 1; m < n; m++)
        vsapi->requestFrameFilter(m, d->source, context);
}

/* Compares the frames that have arrived. Leaves the anchor at -1 if it requests another frame. */
static void look(ReuseFrames *d, int n, Job *job, VSFrameContext *context, const VSAPI *vsapi) {
    if (d->threshold > 0) {
        int anchor = job->start;
        for (int m = job->reached + 1; m <= n; m++) {
            if (!equal(d, m, anchor, context, vsapi))
                anchor = m;
            remember(d, m, anchor);
        }
        job->anchor = anchor;
    } else if (job->reached >= 0) {
        job->anchor = equal(d, n, job->reached, context, vsapi) ? job->reached : n;
    } else {
        int twin = meet(d, n, hash_of(job->own, vsapi));
        if (twin == n) {
            job->anchor = n;
        } else { /* compare the frames too, since hashes may collide; `twin` was readable before */
            job->reached = twin;
            vsapi->requestFrameFilter(twin, d->source, context);
        }
    }
}

/* Requests the anchor's result. */
static void finish(ReuseFrames *d, Job *job, VSFrameContext *context, const VSAPI *vsapi) {
    job->filter = filter_of(d, job->anchor);
    vsapi->requestFrameFilter(job->anchor, d->filters[job->filter], context);
}

static const VSFrame *VS_CC get_frame(int n, int reason, void *instance, void **frame_data, VSFrameContext *context,
                                      VSCore *core, const VSAPI *vsapi) {
    ReuseFrames *d = instance;
    Job *job = *frame_data;
    if (reason == arError) {
        if (job) {
            if (job->anchor < 0 && d->threshold > 0)
                remember(d, n, n);
            vsapi->freeFrame(job->own);
        }
        free(job);
        *frame_data = NULL;
        return NULL;
    }
    if (reason == arInitial) {
        if (!(job = calloc(1, sizeof *job))) {
            vsapi->setFilterError("fdatrd: out of memory", context);
            return NULL;
        }
        *frame_data = job;
        job->filter = job->reached = -1;
        job->anchor = d->threshold < 0 ? n : d->threshold > 0 ? recall(d, n) : -1;
        if (job->anchor == n) {
            finish(d, job, context, vsapi);
            return NULL;
        }
        vsapi->requestFrameFilter(n, d->source, context);
        if (d->threshold > 0 && job->anchor < 0)
            begin(d, n, job, context, vsapi);
        return NULL;
    }
    if (reason != arAllFramesReady)
        return NULL;

    if (job->filter < 0) {
        if (!job->own)
            job->own = vsapi->getFrameFilter(n, d->source, context);
        if (job->anchor < 0)
            look(d, n, job, context, vsapi);
        if (job->anchor >= 0)
            finish(d, job, context, vsapi);
        return NULL;
    }
    const VSFrame *result = vsapi->getFrameFilter(job->anchor, d->filters[job->filter], context);
    if (job->anchor != n) { /* the anchor's picture with the properties of frame n */
        VSFrame *copy = vsapi->copyFrame(result, core);
        VSMap *properties = vsapi->getFramePropertiesRW(copy);
        vsapi->clearMap(properties);
        vsapi->copyMap(vsapi->getFramePropertiesRO(job->own), properties);
        vsapi->freeFrame(result);
        result = copy;
    }
    vsapi->freeFrame(job->own);
    free(job);
    *frame_data = NULL;
    return result;
}

static void VS_CC free_filter(void *instance, VSCore *core, const VSAPI *vsapi) {
    ReuseFrames *d = instance;
    (void)core;
    vsapi->freeNode(d->source);
    for (int i = 0; i < d->count; i++)
        vsapi->freeNode(d->filters[i]);
    free(d->filters);
    free(d);
}

static void VS_CC create(const VSMap *in, VSMap *out, void *user, VSCore *core, const VSAPI *vsapi) {
    (void)user;
    int absent;
    ReuseFrames *d = calloc(1, sizeof *d);
    VSFilterDependency *dependencies = NULL;
    if (d) {
        d->count = vsapi->mapNumElements(in, "filters");
        d->filters = calloc((size_t)d->count, sizeof *d->filters);
        dependencies = calloc((size_t)d->count + 1, sizeof *dependencies);
    }
    if (!d || !d->filters || !dependencies) {
        if (d)
            free(d->filters);
        free(d);
        free(dependencies);
        vsapi->mapSetError(out, "fdatrd: out of memory");
        return;
    }
    d->threshold = vsapi->mapGetFloat(in, "threshold", 0, &absent);
    if (absent)
        d->threshold = -1;
    atomic_flag_clear(&d->busy);
    for (int i = 0; i < REMEMBERED; i++)
        d->found[i].n = d->assigned[i].anchor = -1;
    for (int i = 0; i < 4 * REACH; i++)
        d->seen[i].n = -1;
    d->source = vsapi->mapGetNode(in, "source", 0, NULL);
    int pattern = d->threshold < 0 ? rpNoFrameReuse : rpGeneral; /* without reuse, each frame is requested once: no cache */
    dependencies[0] = (VSFilterDependency){d->source, pattern};
    for (int i = 0; i < d->count; i++) {
        d->filters[i] = vsapi->mapGetNode(in, "filters", i, NULL);
        dependencies[i + 1] = (VSFilterDependency){d->filters[i], pattern};
    }
    const VSVideoInfo *source = vsapi->getVideoInfo(d->source), *result = vsapi->getVideoInfo(d->filters[0]);
    int family = source->format.colorFamily;
    if ((family != cfRGB && family != cfGray) || source->format.sampleType != stFloat ||
        source->format.bitsPerSample != 32 || source->width <= 0 || source->height <= 0) {
        vsapi->mapSetError(out, "fdatrd: ReuseFrames takes RGBS or GRAYS clips of one size");
        free(dependencies);
        free_filter(d, core, vsapi);
        return;
    }
    if (d->threshold >= 0) {
        /* Cache results that later frames may repeat, and source frames, which are read both here and by a filter. */
        vsapi->setCacheMode(d->source, cmForceEnable);
        vsapi->setCacheOptions(d->source, 1, REACH + d->count, 0);
        for (int i = 0; i < d->count; i++) {
            vsapi->setCacheMode(d->filters[i], cmForceEnable);
            vsapi->setCacheOptions(d->filters[i], 1, KEPT, 0);
        }
    }
    vsapi->createVideoFilter(out, "ReuseFrames", result, get_frame, free_filter, fmParallel, dependencies, d->count + 1, d,
                             core);
    free(dependencies);
}

void deal_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi) {
    vspapi->registerFunction("ReuseFrames", "source:vnode;filters:vnode[];threshold:float:opt;", "clip:vnode;", create,
                             NULL, plugin);
}
