/* The VapourSynth plugin with the namespace `fdatrd`. The implementation is in Python (vsfdatrd/_plugin.py); this file
 * only calls it, for any core, from any thread, in any program that has Python loaded:
 *
 *     core.fdatrd.upscale(clip, ...) ─► upscale() ─► import vsfdatrd._plugin, call its bind()
 *                                                        └─► core.fdatrd.InternalBind(func) ─► internal_bind()
 *                                     ◄─ func, called with upscale's own arguments, returns the clip or an error
 *
 * VapourSynth converts the arguments and the result. Only VapourSynth4.h is needed to compile it: Python's functions are
 * looked up in the running process, so one library works with every Python version.
 */
#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include <stdint.h>
#include <string.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#define PSAPI_VERSION 2 /* EnumProcessModules from kernel32 */
#include <windows.h>
#include <psapi.h>
#else
#include <dlfcn.h>
#endif

#include "chroma_filter.h"
#include "reuse.h"
#include "frame_callback.h"

#define PREFIX "fdatrd.upscale: "
#define MODULE "vsfdatrd._plugin"
#define UPSCALE_ARGS                                                                                                   \
    "clip:vnode;model:data:opt;backend:data:opt;device:int[]:opt;precision:data:opt;format:data:opt;matrix:data:opt;"  \
    "streams:int:opt;tile:int[]:opt;cache:data:opt;reuse:data:opt;multiple:int:opt;input_range:data:opt;fit:data:opt;"  \
    "chroma_filter:data:opt;"                                                                                          \
    "any" /* style is a clip or a path, which only "any" allows; _plugin.py rejects unknown arguments */

/* ---- the Python of this process: a few functions of the stable ABI ---------------------------------------------- */

typedef struct PyObject PyObject;
typedef void (*Symbol)(void);

typedef struct {
    int (*Py_IsInitialized)(void);
    int (*PyGILState_Ensure)(void);
    void (*PyGILState_Release)(int);
    PyObject *(*PyImport_ImportModule)(const char *);
    PyObject *(*PyObject_CallMethod)(PyObject *, const char *, const char *, ...);
    void (*Py_DecRef)(PyObject *);
    PyObject *(*PyErr_GetRaisedException)(void);
    void (*PyErr_Clear)(void);
    PyObject *(*PyObject_Type)(PyObject *);
    PyObject *(*PyType_GetName)(PyObject *);
    PyObject *(*PyObject_Str)(PyObject *);
    const char *(*PyUnicode_AsUTF8AndSize)(PyObject *, intptr_t *);
} Python;

#ifdef _WIN32
/* VapourSynth's own module is linked with python3.dll; otherwise use any module that exports Python's functions. */
static HMODULE python_module(void) {
    HMODULE module = GetModuleHandleW(L"python3.dll");
    if (module)
        return module;
    HMODULE modules[1024];
    DWORD size = 0;
    if (!EnumProcessModules(GetCurrentProcess(), modules, sizeof modules, &size))
        return NULL;
    if (size > sizeof modules)
        size = sizeof modules;
    for (DWORD i = 0; i < size / sizeof *modules; i++)
        if (GetProcAddress(modules[i], "PyErr_GetRaisedException"))
            return modules[i];
    return NULL;
}
#endif

static Symbol symbol(const char *name) {
#ifdef _WIN32
    HMODULE module = python_module();
    return module ? (Symbol)(void *)GetProcAddress(module, name) : NULL;
#else
    void *address = dlsym(RTLD_DEFAULT, name);
    Symbol function = NULL;
    memcpy(&function, &address, sizeof function); /* ISO C has no cast from void * to a function pointer */
    return function;
#endif
}

/* Looked up at each call: takes microseconds, and needs no state shared between threads. */
static int find_python(Python *py) {
    int all = 1;
#define FIND(name)                                                                                                     \
    do {                                                                                                               \
        Symbol found = symbol(#name);                                                                                  \
        memcpy(&py->name, &found, sizeof found);                                                                       \
        all = all && found;                                                                                            \
    } while (0)
    FIND(Py_IsInitialized);
    FIND(PyGILState_Ensure);
    FIND(PyGILState_Release);
    FIND(PyImport_ImportModule);
    FIND(PyObject_CallMethod);
    FIND(Py_DecRef);
    FIND(PyErr_GetRaisedException);
    FIND(PyErr_Clear);
    FIND(PyObject_Type);
    FIND(PyType_GetName);
    FIND(PyObject_Str);
    FIND(PyUnicode_AsUTF8AndSize);
#undef FIND
    return all && py->Py_IsInitialized();
}

#define ERROR_SIZE 2048
#define ADVICE_SIZE 512 /* part of ERROR_SIZE reserved for the advice after an exception's message of any length */

/* Appends as much as fits, in complete UTF-8 characters: a truncated character could not be decoded. */
static void append(char *text, size_t size, const char *more) {
    size_t used = strlen(text), room = size - used - 1, length = strlen(more);
    if (length > room)
        for (length = room; length > 0 && ((unsigned char)more[length] & 0xC0) == 0x80;)
            length--;
    memcpy(text + used, more, length);
    text[used + length] = '\0';
}

/* Appends a str; steals the reference. NULL or a str without UTF-8 form appends nothing and sets no exception. */
static size_t append_str(const Python *py, PyObject *str, char *text, size_t size) {
    size_t before = strlen(text);
    const char *utf8 = str ? py->PyUnicode_AsUTF8AndSize(str, NULL) : NULL;
    if (utf8)
        append(text, size, utf8);
    else
        py->PyErr_Clear();
    if (str)
        py->Py_DecRef(str);
    return strlen(text) - before;
}

/* Appends "Type: message" of the current exception and clears it. */
static void append_exception(const Python *py, char *text, size_t size) {
    PyObject *exception = py->PyErr_GetRaisedException();
    if (!exception) {
        append(text, size, "unknown error");
        return;
    }
    PyObject *type = py->PyObject_Type(exception);
    append_str(py, type ? py->PyType_GetName(type) : NULL, text, size);
    if (type)
        py->Py_DecRef(type);
    size_t mark = strlen(text);
    append(text, size, ": ");
    if (!append_str(py, py->PyObject_Str(exception), text, size))
        text[mark] = '\0';
    py->Py_DecRef(exception);
}

/* ---- passing the Python function to the plugin -------------------------------------------------------------------- */

/* One per running call, on its stack; `waiting` is the innermost of this thread. So calls on other threads, for other
 * cores, or nested calls (an import that runs a script) never see each other's function. */
typedef struct HandOver {
    VSCore *core;
    VSFunction *function;
    struct HandOver *outer;
} HandOver;

static _Thread_local HandOver *waiting;

static void VS_CC internal_bind(const VSMap *in, VSMap *out, void *user, VSCore *core, const VSAPI *vsapi) {
    (void)user;
    if (!waiting) {
        vsapi->mapSetError(out, "fdatrd.InternalBind: internal to fdatrd.upscale; there is nothing to call it for");
        return;
    }
    if (waiting->core != core) {
        vsapi->mapSetError(out, "The VapourSynth environment of this thread belongs to another core.");
        return;
    }
    vsapi->freeFunction(waiting->function);
    waiting->function = vsapi->mapGetFunction(in, "func", 0, NULL);
}

/* Sets call->function, or writes an error message to `error`. */
static void fetch_function(HandOver *call, char *error, size_t size) {
    Python py;
    if (!find_python(&py)) {
        append(error, size,
               PREFIX "there is no running Python (3.12 or later) in this program. Use VapourSynth from Python, vspipe "
                      "or another program that runs VapourSynth scripts.");
        return;
    }
    int gil = py.PyGILState_Ensure();
    PyObject *module = py.PyImport_ImportModule(MODULE);
    if (!module) {
        append(error, size, PREFIX "cannot import vsfdatrd: ");
        append_exception(&py, error, size - ADVICE_SIZE);
        append(error, size, ". Install vsfdatrd with its dependencies into the Python that VapourSynth runs in "
                            "(pip install vsfdatrd).");
    } else {
        call->outer = waiting;
        waiting = call;
        PyObject *done = py.PyObject_CallMethod(module, "bind", NULL);
        waiting = call->outer;
        if (done) {
            py.Py_DecRef(done);
            if (!call->function)
                append(error, size, PREFIX MODULE " handed over no function. Reinstall vsfdatrd.");
        } else {
            append(error, size, PREFIX "cannot hand the call over to Python: ");
            append_exception(&py, error, size - ADVICE_SIZE);
            append(error, size, " Call it from a VapourSynth script, on the script's own core and thread.");
        }
        py.Py_DecRef(module);
    }
    py.PyGILState_Release(gil);
}

static void VS_CC upscale(const VSMap *in, VSMap *out, void *user, VSCore *core, const VSAPI *vsapi) {
    (void)user;
    HandOver call = {core, NULL, NULL};
    char error[ERROR_SIZE] = "";
    fetch_function(&call, error, sizeof error);
    if (*error) {
        vsapi->mapSetError(out, error);
    } else {
        /* Errors are returned as text under "error", since an exception would arrive as a complete traceback. Those that
         * do arrive as exceptions (Ctrl-C) are passed on unchanged for VapourSynth to raise again. */
        VSMap *result = vsapi->createMap();
        vsapi->callFunction(call.function, in, result);
        const char *raised = vsapi->mapGetError(result);
        const char *text = raised ? raised : vsapi->mapGetData(result, "error", 0, &(int){0});
        if (text)
            vsapi->mapSetError(out, text);
        else
            vsapi->copyMap(result, out);
        vsapi->freeMap(result);
    }
    vsapi->freeFunction(call.function);
}

VS_EXTERNAL_API(void) VapourSynthPluginInit2(VSPlugin *plugin, const VSPLUGINAPI *vspapi) {
    vspapi->configPlugin("io.github.vsfdatrd", "fdatrd", "FDAT-RD super-resolution", VS_MAKE_VERSION(0, 1),
                         VAPOURSYNTH_API_VERSION, 0, plugin);
    vspapi->registerFunction("upscale", UPSCALE_ARGS, "clip:vnode;", upscale, NULL, plugin);
    vspapi->registerFunction("InternalBind", "func:func;", "", internal_bind, NULL, plugin);
    chroma_filter_register(plugin, vspapi);
    per_frame_register(plugin, vspapi);
    deal_register(plugin, vspapi);
}
