"""What the fake GPU is like, from the environment."""

import os

FAULTS = frozenset(os.environ.get("FAKE_GPU", "").split())
"""register: memory cannot be pinned. capture: no graphs. launch: the ninth kernel fails. crash: the process dies there.
allocate: there is no memory. invalid: engines are for another GPU. load: engines do not load. build: builds fail.
parse: graphs are not read. wrong-<precision>: an engine of that precision computes something else. nan: engines give
NaN. rejected: what was compiled before is not taken. uncached: what was compiled is not given. silent: no profiler is
told anything. unreadable: the library does not say what is wrong with an engine, but to its log. dynamic: engines fetch
memory while they run. replay: what is captured computes something else. hostalloc: there is no pinned memory at all.
own-replay: what the library captures by itself computes something else. address: memory for frames is not taken.
nocache: the library takes no runtime cache. context: asking for memory takes 300 MiB of it. unmanaged: no NVML.
large: activations take 5 GiB. second: a GPU has one execution context at a time. ptx: the driver is too old for PTX.
"""
ACTIVATIONS = (5 << 30) if "large" in FAULTS else (100 << 20)
"""Bytes of an execution context."""
GPUS = tuple(filter(None, os.environ.get("FAKE_GPUS", "Fake RTX 8.9").split(",")))
"""Name and compute capability of each."""
DRIVER = int(os.environ.get("FAKE_DRIVER", "13010"))
RELEASE = os.environ.get("FAKE_RELEASE", "590.1")
MILLISECONDS = float(os.environ["FAKE_MS"]) if "FAKE_MS" in os.environ else None
"""How long a network takes, exactly; None for threads that take a moment for everything."""
INTERPRETED = os.environ.get("FAKE_KERNELS") == "interpreted"
"""Whether kernels of our own run in Triton's interpreter, and not as NumPy functions."""
AT_ONCE = int(os.environ.get("FAKE_AT_ONCE", "1"))
"""How many networks the GPU computes at once without being slower, if it keeps the time."""
SHARED = 1.25
"""How much longer a network takes after one of another stream (the cache is cold), if one is computed at a time."""
RATES = {1: 20e9, 2: 400e9}
"""Bytes per second of copies to or from the GPU, and of those on it, if it keeps the time."""
MOST_MOVED = 1 << 20
"""Bytes that are really copied, if it keeps the time. Of larger frames there is only the time."""
FREE = int(os.environ.get("FAKE_FREE", str(8 << 30)))


def fails(what: str) -> bool:
    return what in FAULTS


def name(index: int) -> str:
    return GPUS[index].rpartition(" ")[0]


def capability(index: int) -> tuple[int, int]:
    major, _, minor = GPUS[index].rpartition(" ")[2].partition(".")
    return int(major), int(minor)
