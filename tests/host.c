/* A program that is not Python and uses the plugin, for tests: host MODE vapoursynth-library vsscript-library [file count]
 *   no-python       a core of its own; no Python anywhere near
 *   no-environment  VSScript started, then a core that belongs to no script
 *   other-thread    a script's core, from a thread that the script does not run in
 *   reload          evaluates a script `count` times, gets a frame each time, and says what that costs in memory
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <VSScript4.h>

static const VSAPI *vsapi;
static const VSSCRIPTAPI *vssapi;

static void *need(void *pointer, const char *what) {
    if (!pointer) {
        const char *why = dlerror();
        fprintf(stderr, "host: no %s: %s\n", what, why ? why : "?");
        exit(2);
    }
    return pointer;
}

static void *function(const char *library, const char *name) {
    return need(dlsym(need(dlopen(library, RTLD_LAZY | RTLD_GLOBAL), library), name), name);
}

static void VS_CC log_message(int type, const char *message, void *user) {
    (void)user;
    if (type >= mtWarning)
        fprintf(stderr, "log: %s\n", message);
}

static void upscale_blank(VSCore *core) {
    VSMap *in = vsapi->createMap();
    VSMap *blank = vsapi->invoke(need(vsapi->getPluginByNamespace("std", core), "std"), "BlankClip", in);
    VSNode *node = need(vsapi->mapGetNode(blank, "clip", 0, NULL), "clip");
    vsapi->mapConsumeNode(in, "clip", node, maReplace);
    VSMap *out = vsapi->invoke(need(vsapi->getPluginByNamespace("fdatrd", core), "fdatrd"), "upscale", in);
    const char *error = vsapi->mapGetError(out);
    printf("%s\n", error ? error : "upscaled");
    vsapi->freeMap(in);
    vsapi->freeMap(blank);
    vsapi->freeMap(out);
}

static void *upscale_in_thread(void *core) {
    upscale_blank(core);
    return NULL;
}

static long resident_kib(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file && fscanf(file, "%*s %ld", &pages) != 1)
        pages = 0;
    if (file)
        fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static VSScript *evaluate(const char *file) {
    VSScript *script = need(vssapi->createScript(NULL), "script");
    vsapi->addLogHandler(log_message, NULL, NULL, vssapi->getCore(script));
    if (vssapi->evaluateFile(script, file)) {
        fprintf(stderr, "host: %s\n", vssapi->getError(script));
        exit(3);
    }
    return script;
}

static void reload(const char *file, int count) {
    long after_warm_up = 0;
    int width = 0;
    for (int i = 0; i < count; i++) {
        VSScript *script = evaluate(file);
        VSNode *node = need(vssapi->getOutputNode(script, 0), "output");
        char error[1024] = "";
        const VSFrame *frame = vsapi->getFrame(0, node, error, sizeof error);
        if (!frame) {
            fprintf(stderr, "host: %s\n", error);
            exit(4);
        }
        width = vsapi->getFrameWidth(frame, 0);
        vsapi->freeFrame(frame);
        vsapi->freeNode(node);
        vssapi->freeScript(script);
        if (i == count / 2)
            after_warm_up = resident_kib();
    }
    printf("%d %d %ld\n", count, width, resident_kib() - after_warm_up);
}

int main(int argc, char **argv) {
    if (argc < 4)
        return 2;
    const VSAPI *(*get_api)(int);
    void *address = function(argv[2], "getVapourSynthAPI");
    memcpy(&get_api, &address, sizeof get_api);
    vsapi = need((void *)get_api(VAPOURSYNTH_API_VERSION), "VapourSynth API");
    if (strcmp(argv[1], "no-python") != 0) {
        const VSSCRIPTAPI *(*get_script_api)(int);
        address = function(argv[3], "getVSScriptAPI");
        memcpy(&get_script_api, &address, sizeof get_script_api);
        vssapi = need((void *)get_script_api(VSSCRIPT_API_VERSION), "VSScript API");
    }
    if (strcmp(argv[1], "reload") == 0) {
        reload(argv[4], atoi(argv[5]));
    } else if (strcmp(argv[1], "other-thread") == 0) {
        VSScript *script = evaluate(argv[4]);
        pthread_t thread;
        pthread_create(&thread, NULL, upscale_in_thread, vssapi->getCore(script));
        pthread_join(thread, NULL);
        vssapi->freeScript(script);
    } else {
        VSCore *core = vsapi->createCore(0);
        upscale_blank(core);
        vsapi->freeCore(core);
    }
    return 0;
}
