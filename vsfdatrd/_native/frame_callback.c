/* fdatrd.PerFrame: a filter that passes every frame to a callback, like std.ModifyFrame, except that
 *  - the callback returns errors as text, so that users see a sentence and not a traceback,
 *  - the result may have another size and format, without a blank clip that defines them.
 * One frame at a time per instance; instances run in parallel.
 */
#include <stdio.h>
#include <stdlib.h>

#include "frame_callback.h"

typedef struct {
    VSNode *node;
    VSFunction *function;
    VSVideoInfo info;
} PerFrame;

static int same_format(const VSVideoFormat *a, const VSVideoFormat *b) {
    return a->colorFamily == b->colorFamily && a->sampleType == b->sampleType && a->bitsPerSample == b->bitsPerSample &&
           a->subSamplingW == b->subSamplingW && a->subSamplingH == b->subSamplingH;
}

static const VSFrame *VS_CC get_frame(int n, int reason, void *instance, void **frame_data, VSFrameContext *context,
                                      VSCore *core, const VSAPI *vsapi) {
    PerFrame *d = instance;
    (void)frame_data;
    (void)core;
    if (reason == arInitial) {
        vsapi->requestFrameFilter(n, d->node, context);
        return NULL;
    }
    if (reason != arAllFramesReady)
        return NULL;

    VSMap *in = vsapi->createMap(), *out = vsapi->createMap();
    vsapi->mapSetInt(in, "n", n, maReplace);
    vsapi->mapConsumeFrame(in, "f", vsapi->getFrameFilter(n, d->node, context), maReplace);
    vsapi->callFunction(d->function, in, out);

    const VSFrame *result = NULL;
    const char *error = vsapi->mapGetError(out);
    if (!error && vsapi->mapGetType(out, "val") == ptData)
        error = vsapi->mapGetData(out, "val", 0, NULL);
    if (!error && vsapi->mapGetType(out, "val") != ptVideoFrame)
        error = "fdatrd: the frame function returned neither a frame nor an error";
    if (!error) {
        result = vsapi->mapGetFrame(out, "val", 0, NULL);
        if (!same_format(vsapi->getVideoFrameFormat(result), &d->info.format) ||
            vsapi->getFrameWidth(result, 0) != d->info.width || vsapi->getFrameHeight(result, 0) != d->info.height) {
            vsapi->freeFrame(result);
            result = NULL;
            error = "fdatrd: the frame function returned a frame of another size or format than it promised";
        }
    }
    if (error)
        vsapi->setFilterError(error, context);
    vsapi->freeMap(in);
    vsapi->freeMap(out);
    return result;
}

static void VS_CC free_filter(void *instance, VSCore *core, const VSAPI *vsapi) {
    PerFrame *d = instance;
    (void)core;
    vsapi->freeNode(d->node);
    vsapi->freeFunction(d->function);
    free(d);
}

static void VS_CC create(const VSMap *in, VSMap *out, void *user, VSCore *core, const VSAPI *vsapi) {
    (void)user;
    PerFrame *d = calloc(1, sizeof *d);
    if (!d) {
        vsapi->mapSetError(out, "fdatrd: out of memory");
        return;
    }
    int absent;
    d->node = vsapi->mapGetNode(in, "clip", 0, NULL);
    d->info = *vsapi->getVideoInfo(d->node);
    int64_t format = vsapi->mapGetInt(in, "format", 0, &absent);
    if (!absent && !vsapi->getVideoFormatByID(&d->info.format, (uint32_t)format, core)) {
        vsapi->mapSetError(out, "fdatrd: no such format");
        vsapi->freeNode(d->node);
        free(d);
        return;
    }
    int width = vsapi->mapGetIntSaturated(in, "width", 0, &absent);
    if (!absent)
        d->info.width = width;
    int height = vsapi->mapGetIntSaturated(in, "height", 0, &absent);
    if (!absent)
        d->info.height = height;
    d->function = vsapi->mapGetFunction(in, "func", 0, NULL);
    VSFilterDependency dependency = {d->node, rpStrictSpatial};
    vsapi->createVideoFilter(out, "PerFrame", &d->info, get_frame, free_filter, fmParallelRequests, &dependency, 1, d, core);
}

void per_frame_register(VSPlugin *plugin, const VSPLUGINAPI *vspapi) {
    vspapi->registerFunction("PerFrame", "clip:vnode;func:func;format:int:opt;width:int:opt;height:int:opt;", "clip:vnode;",
                             create, NULL, plugin);
}
