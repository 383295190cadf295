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
large: engines take 5 GiB.
"""
GPUS = tuple(filter(None, os.environ.get("FAKE_GPUS", "Fake RTX 8.9").split(",")))
"""Name and compute capability of each."""
DRIVER = int(os.environ.get("FAKE_DRIVER", "13010"))
RELEASE = os.environ.get("FAKE_RELEASE", "590.1")
FREE = int(os.environ.get("FAKE_FREE", str(8 << 30)))


def fails(what: str) -> bool:
    return what in FAULTS


def name(index: int) -> str:
    return GPUS[index].rpartition(" ")[0]


def capability(index: int) -> tuple[int, int]:
    major, _, minor = GPUS[index].rpartition(" ")[2].partition(".")
    return int(major), int(minor)
