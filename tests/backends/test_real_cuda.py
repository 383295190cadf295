"""Our code and the fake GPU against the real cuda-bindings, on a machine without a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cuda.bindings import driver, runtime
from cuda.bindings import nvml as management

from vsfdatrd.backends.gpu import cuda, nvml
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.errors import EngineError, EngineUnavailable
from vsfdatrd.workers.client import Worker

from .apis import SURFACE, Use, counts, differences, find, script, takes, uses

without_gpu = pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU, which tests/gpu is for")

MANAGED = [*uses("gpu/nvml.py", {"nvml": ""})]
OURS = [*uses("gpu/cuda.py", {"rt": ""})]
DRIVERS = [
    *uses("gpu/devices.py", {"driver": "", "kinds": "CUdevice_attribute"}),
    *uses("cuda/driver.py", {"driver": ""}),
]


def unfit(use: Use, library: ModuleType) -> str | None:
    """Describe what is wrong with our use of a name; None if nothing is."""
    try:
        result = find(library, use.name)
    except AttributeError:
        return f"{use.where}: {use.name} is not there"
    # Functions that are only named are handed to an owner, which calls them with its handle.
    arguments = 1 if use.arguments is None and counts(result) else use.arguments
    if arguments is None or takes(result, arguments):
        return None
    return f"{use.where}: {use.name} takes {counts(result)}, not {arguments}"


def test_what_we_call_is_there_and_takes_what_we_give() -> None:
    assert len(OURS) > 40
    assert len(DRIVERS) > 16
    assert len(MANAGED) == 5
    wrong = [unfit(use, management) for use in MANAGED]
    wrong += [unfit(use, runtime) for use in OURS] + [unfit(use, driver) for use in DRIVERS]
    assert not list(filter(None, wrong))


def test_a_name_or_an_argument_that_is_not_there_is_noticed() -> None:
    assert "is not there" in (unfit(Use("cudaMallocAndHope", 1, "here"), runtime) or "")
    assert "takes [(2, 2)], not 3" in (unfit(Use("cudaGraphLaunch", 3, "here"), runtime) or "")
    assert "takes [(0, 0)], not 1" in (unfit(Use("cudaGetDeviceCount", None, "here"), runtime) or "")


@pytest.mark.parametrize("name", ["runtime", "driver", "nvml"])
def test_the_fake_is_like_it(name: str) -> None:
    fake = script(SURFACE % f"cuda.bindings.{name}", fake=True)
    assert len(fake) >= 5
    assert not differences(fake, {"runtime": runtime, "driver": driver, "nvml": management}[name])
    assert differences({"cudaFree": [2, 2], "cudaStreamNonBlocking": 7, "cuFly": [0, 0]}, runtime) == [
        "cudaFree takes [(1, 1)], not [2, 2]",
        "cudaStreamNonBlocking is 1, not 7",
        "cuFly is not there",
    ]


# Every function of the runtime that `cuda.py` has, in an order that makes sense; how many things each returns, itself
# included. Without a driver all of them fail, and return as much; what they would have made is None, and so a handle.
RESULTS = """
import ctypes, json
from cuda.bindings import runtime as rt
lengths = {}
def do(name, *arguments):
    result = getattr(rt, name)(*arguments)
    lengths[name] = len(result)
    assert isinstance(result[0], rt.cudaError_t), result
    return result[-1]
for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion", "cudaGetDeviceCount", "cudaMemGetInfo"):
    do(name)
for name in ("cudaGetErrorName", "cudaGetErrorString"):
    assert isinstance(do(name, rt.cudaError_t.cudaErrorMemoryAllocation), bytes)
do("cudaSetDevice", 0)
do("cudaDeviceGetPCIBusId", 16, 0)
pinned = do("cudaHostAlloc", 64, rt.cudaHostAllocPortable)
here = ctypes.create_string_buffer(64)
address = ctypes.addressof(here)
do("cudaHostRegister", address, 64, rt.cudaHostRegisterPortable)
place = do("cudaMalloc", 64) or address
stream = do("cudaStreamCreateWithFlags", rt.cudaStreamNonBlocking)
event = do("cudaEventCreateWithFlags", rt.cudaEventBlockingSync | rt.cudaEventDisableTiming)
do("cudaMemcpyAsync", place, address, 64, rt.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)
do("cudaMemcpyAsync", place, place, 64, rt.cudaMemcpyKind.cudaMemcpyDeviceToDevice, stream)
do("cudaEventRecord", event, stream)
do("cudaStreamWaitEvent", stream, event, 0)
do("cudaEventSynchronize", event)
do("cudaStreamSynchronize", stream)
do("cudaStreamBeginCapture", stream, rt.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
graph = do("cudaStreamEndCapture", stream)
ready = do("cudaGraphInstantiate", graph, 0)
do("cudaGraphLaunch", ready, stream)
for name, handle in (
    ("cudaGraphDestroy", graph), ("cudaGraphExecDestroy", ready), ("cudaEventDestroy", event),
    ("cudaStreamDestroy", stream), ("cudaFree", place), ("cudaHostUnregister", address),
    ("cudaFreeHost", pinned or 0),
):
    do(name, handle)
print(json.dumps(lengths))
"""


@without_gpu
def test_the_fake_returns_as_many_things() -> None:
    real, fake = script(RESULTS, fake=False), script(RESULTS, fake=True)
    assert real == fake
    functions = {use.name for use in OURS if use.arguments is not None or counts(find(runtime, use.name))}
    assert real.keys() == functions, "a function that is called is not tried here"


@without_gpu
def test_without_a_driver_everything_is_a_sentence() -> None:
    with pytest.raises(EngineUnavailable, match=r"driver is missing or too old \(it supports CUDA 0\.0, and 1\d is"):
        cuda.require_driver()
    assert cuda.driver_version() == "0.0"
    assert cuda.describe_driver() == "CUDA 0.0"
    assert nvml.free_memory("0000:01:00.0") is None
    makers: list[Any] = [
        cuda.Stream,
        cuda.Event,
        lambda: cuda.DeviceMemory(1 << 20),
        lambda: cuda.PinnedMemory(4096, 4096),
        lambda: cuda.HostMemory(1 << 20),
        lambda: cuda.free_memory_without_context(0),
        lambda: cuda.set_device(0),
        lambda: cuda.free_memory(0),
    ]
    for make in makers:
        with pytest.raises(EngineError, match=r" failed: .* \(cudaErrorInsufficientDriver\)$"):
            make()


@without_gpu
def test_the_engines_process_says_so_too() -> None:
    worker = Worker("vsfdatrd.backends.tensorrt.worker")
    try:
        with pytest.raises(EngineUnavailable, match="the NVIDIA driver is missing or too old"):
            worker.ask("describe")
    finally:
        worker.close()


# A driver that knows of one GPU, for the real cuda-bindings to load. It takes its time: until there is a file
# $BEATEN, or for a minute.
DRIVER = """
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int cuInit(unsigned flags) {
    for (int i = 0; i < 6000 && getenv("BEATEN") && access(getenv("BEATEN"), F_OK); i++) usleep(10000);
    if (getenv("BEATEN") && access(getenv("BEATEN"), F_OK)) return 999;
    return getenv("REFUSES") ? atoi(getenv("REFUSES")) : 0;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strcpy(name, "Paper RTX"); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 9; return 0; }
int cuGetExportTable(const void **table, const void *id) { return 1; }
int cuLibraryLoadData(void **library, const char *code, void *a, void *b, unsigned c, void *d, void *e, unsigned f) {
    *library = strdup(code);
    return getenv("OLD") ? 222 : 0;
}
int cuLibraryGetKernel(void **kernel, void *library, const char *name) {
    printf("[\\"%s\\", \\"%s\\", ", (char *)library, name);
    *kernel = library;
    return 0;
}
int cuKernelSetAttribute(int what, int value, void *kernel, int device) {
    printf("[%d, %d, %d, %d], ", what, value, !strcmp(kernel, "code"), device);
    return 0;
}
int cuLaunchKernel(void *f, unsigned x, unsigned y, unsigned z, unsigned width, unsigned height, unsigned depth,
                   unsigned shared, void *stream, void **parameters, void **extra) {
    printf("[%d, %u, %u, %u, %u, %u, %u, %u], ", !strcmp(f, "code"), x, y, z, width, height, depth, shared);
    printf("%llu, [%llu, %d, %llu]]\\n", (unsigned long long)stream, *(unsigned long long *)parameters[0],
           *(int *)parameters[1], *(unsigned long long *)parameters[2]);
    fflush(stdout);
    return extra ? 1 : 0;
}
static int missing(void) { return 801; }
int cuGetProcAddress_v2(const char *name, void **address, int version, unsigned long long flags, int *status) {
    Dl_info self;
    dladdr((void *)cuInit, &self);
    *address = dlsym(dlopen(self.dli_fname, RTLD_NOW), strcmp(name, "cuGetProcAddress") ? name : "cuGetProcAddress_v2");
    if (!*address) *address = (void *)missing;
    if (status) *status = 0;
    return 0;
}
int cuGetProcAddress(const char *name, void **address, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, address, version, flags, 0);
}
"""
ASKING = """
import json, os, threading, time
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.errors import EngineUnavailable
def beat():
    for _ in range(20):
        time.sleep(0.01)
    with open(os.environ["BEATEN"], "w"): pass
threading.Thread(target=beat, daemon=True).start()
found = [(gpu.name, gpu.capability) for gpu in list_gpus()]
try:
    cuda.require_driver()
    why = None
except EngineUnavailable as error:
    why = str(error)
print(json.dumps({"gpus": found, "why": why}))
"""


@pytest.fixture
def paper_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the driver's library, first in the search path of processes."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    command = [compiler] if compiler else [sys.executable, "-m", "ziglang", "cc"]
    (tmp_path / "driver.c").write_text("#define _GNU_SOURCE\n" + DRIVER)
    library = str(tmp_path / "libcuda.so.1")
    subprocess.run(
        [*command, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, str(tmp_path / "driver.c"), "-ldl"],
        check=True,
        timeout=250,
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have other names there")
@pytest.mark.usefixtures("paper_driver")
def test_a_driver_is_asked_as_it_answers_and_others_run_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEATEN", str(tmp_path / "beaten"))
    output = script(ASKING, fake=False)
    assert "cudaErrorUnknown" not in str(output["why"]), "Python stood still while the driver was asked"
    assert output["gpus"] == [["Paper RTX", [8, 9]]], "a name ends where C says so"
    monkeypatch.setenv("REFUSES", "803")
    output = script(ASKING, fake=False)
    assert output["gpus"] == []
    assert "asking for the GPUs failed: " in output["why"]
    assert output["why"].endswith(
        "(cudaErrorSystemDriverMismatch); install the NVIDIA driver again, and restart the machine"
    )
    monkeypatch.setenv("REFUSES", "100")
    assert script(ASKING, fake=False)["why"] == "the NVIDIA driver shows no GPU"


LAUNCHING = """
import json
from types import SimpleNamespace
from cuda.bindings import runtime
from vsfdatrd.backends.cuda.driver import Arguments, Kernel
from vsfdatrd.errors import EngineUnavailable
try:
    kernel = Kernel(b"code", "depthwise_gelu", 128, 60000)
    kernel.allow_shared(0)
    arguments = Arguments([(1 << 40, True), (-5, False), (0, True)])
    kernel.launch(SimpleNamespace(handle=runtime.cudaStream_t(4660)), (7, 3, 2), arguments)
except EngineUnavailable as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="libraries have other names there")
@pytest.mark.usefixtures("paper_driver")
def test_a_kernel_arrives_at_the_driver_with_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    code, name, attribute, launch, stream, values = script(LAUNCHING, fake=False)
    assert (code, name) == ("code", "depthwise_gelu")
    assert attribute == [8, 60000, 1, 0]
    assert launch == [1, 7, 3, 2, 128, 1, 1, 60000]
    assert stream == 4660
    assert values == [1 << 40, -5, 0]
    monkeypatch.setenv("OLD", "1")
    assert "is too old for the CUDA kernels; install a current driver" in script(LAUNCHING, fake=False)
