"""Fixtures for all tests: the shared folder, caches, and small networks as files."""

import contextlib
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

# Threads of PyTorch and numpy spin while they wait for each other, and several tests run at a time: in those of PyTorch
# this took a fifth of the processor time. Libraries read it when they are loaded; programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig
from vsfdatrd.archs.fdat_shapes import tensor_shapes
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.backends import speed

with contextlib.suppress(ImportError):  # a machine for tests/gpu may lack it
    import openvino  # noqa: F401 - before VapourSynth loads vs-mlrt's, after which Python's own does not load
with contextlib.suppress(ImportError):
    from hypothesis import HealthCheck, settings

    # How long an example takes says nothing on a machine that has much else to do.
    settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy")

# Where it is set, each of the thousand processes that tests start would compile the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

UNOPTIMIZED = "-O0 -fno-sanitize=undefined"
"""Value of ``CFLAGS`` that makes compiling fast. Without optimization, ziglang would add the sanitizer."""

type Tensors = dict[str, NDArray[Any]]
type Maker = Callable[..., Tensors]

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "heads": 1,
    "groups": (("spatial", "channel", "dictionary"),),
    "dict_tokens": 32,
    "ffn_dim": 64,
    "gate_dim": 4,
    "upsampler": "transpose+conv",
    "tail_scale": 2,
    "unshuffle": 1,
    "mid_dim": 32,
}


def pytest_collection_finish() -> None:
    """Exempt everything that has been imported by now from garbage collection.

    VapourSynth collects garbage after every `clip.frames()`, which would take half a second among PyTorch's objects.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let Python clean up at its exit as usual; Triton's library would list what it has not."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape lone surrogates in what a test printed; pytest-xdist cannot send them from one process to another."""
    return _escaped((yield))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_escaped, value))
    return value


@pytest.fixture(scope="session", autouse=True)
def short_measurements() -> Iterator[None]:
    """Engines are measured for a tenth of the usual time: no test depends on which of them is the fastest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed, "MEASURE_SECONDS", 0.1)
        patch.setattr(speed, "TURN_SECONDS", 0.025)
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder ../shared with fixtures, data and weights."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not there")
    return folder


def tiny_config(**changes: Any) -> FdatRdConfig:
    """A small FDAT-RD of one group: 32 channels, one head."""
    return FdatRdConfig(**(TINY | changes))


def tiny_tensors(seed: int = 0, **changes: Any) -> Tensors:
    """Random float32 weights of a small FDAT-RD. changes: fields of its FdatRdConfig."""
    config = tiny_config(**changes)
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        fan_in = max(1, int(np.prod(shape[1:])))
        values = random.standard_normal(shape) * fan_in**-0.5
        if name.endswith(("n1.weight", "n2.weight", "norm.weight", "conv_offset.1.weight", "temp")):
            values = 1 + 0.1 * random.standard_normal(shape)
        elif name.endswith((".bias", "init_pos")):
            values = 0.02 * random.standard_normal(shape)
        tensors[name] = values.astype(np.float32)
    tensors[META_UPSAMPLE] = _meta(config)
    return tensors


def identity_tensors(scale: int, *, idle: bool = True) -> Tensors:
    """A small FDAT-RD that returns its input, every pixel repeated `scale` times along each side, exactly.

    `conv_after` drops what the blocks compute. idle: their branches are zero as well, so that engines leave them out.
    """
    config = tiny_config(upsampler="conv" if scale == 1 else "pixelshuffledirect", tail_scale=scale)
    tensors = tiny_tensors(upsampler=config.upsampler, tail_scale=scale)
    ends = ("conv_first.weight", "conv_first.bias", "conv_after.weight", "upsampler.0.weight", "upsampler.0.bias")
    branches = ("attn.proj.weight", "attn.proj.bias", "conv.0.weight", "ffn.fc2.weight")
    for name in tensors:
        if name in ends or (idle and name.endswith(branches)):
            tensors[name][...] = 0
    for channel in range(3):
        tensors["conv_first.weight"][channel, channel, 1, 1] = 1
        tensors["upsampler.0.weight"][channel * scale**2 : (channel + 1) * scale**2, channel, 1, 1] = 1
    return tensors


def _meta(config: FdatRdConfig) -> NDArray[np.uint8]:
    width = config.mid_dim if config.upsampler == "pa_up" else config.embed_dim
    numbers = [3, UPSAMPLERS.index(config.upsampler), config.tail_scale, width, config.out_channels, config.mid_dim, 4]
    return np.array(numbers, np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, for the programs it starts as well."""
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests of a module share, so that each engine is built once."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture
def shared_cache(engines: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`engines` as the cache, for the programs that a test starts as well."""
    monkeypatch.setenv("FDATRD_CACHE", str(engines))
    return engines


@pytest.fixture
def unoptimized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that the test starts compile the plugin without optimization, in less than half of the time."""
    monkeypatch.setenv("CFLAGS", UNOPTIMIZED)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread, since small networks are not worth sharing out, and with fixed random numbers."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def six_threads() -> Iterator[None]:
    """VapourSynth with six threads on every machine, so that frames are requested concurrently."""
    import vapoursynth as vs

    before = vs.core.num_threads
    vs.core.num_threads = 6
    yield
    vs.core.num_threads = before


@pytest.fixture(scope="session")
def make_tensors() -> Maker:
    """`tiny_tensors`."""
    return tiny_tensors


@pytest.fixture(scope="session")
def make_config() -> Callable[..., FdatRdConfig]:
    """`tiny_config`."""
    return tiny_config


@pytest.fixture(scope="session")
def _networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("networks")


@pytest.fixture(scope="session")
def tiny_model(_networks: Path) -> Path:
    """A weights file: a small 2x FDAT-RD with random weights, sides padded to multiples of 30."""
    path = _networks / "tiny_2x.safetensors"
    save_file(tiny_tensors(), path)
    return path


@pytest.fixture(scope="session")
def identity_1x(_networks: Path) -> Path:
    """A weights file: a 1x FDAT-RD that returns its input exactly."""
    path = _networks / "identity_1x.safetensors"
    save_file(identity_tensors(1), path)
    return path


@pytest.fixture(scope="session")
def identity_2x(_networks: Path) -> Path:
    """A weights file: a 2x FDAT-RD that repeats every pixel twice along each side, exactly."""
    path = _networks / "identity_2x.safetensors"
    save_file(identity_tensors(2), path)
    return path
