"""The two TensorRTs, and everything in which they differ.

`tensorrt_rtx` (consumer cards from Turing on) builds in seconds for any card, without one too, and compiles its kernels
for the card it finds when an engine is loaded; what it has compiled is kept in a runtime cache. `tensorrt` (data-centre
cards, and all others) times kernels on the very GPU it builds for, and keeps the timings in a timing cache.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from types import ModuleType
from typing import Any

from vsfdatrd.errors import ArgumentError, EngineBuildError, EngineUnavailable
from vsfdatrd.system.files import keep_if_possible, read_or_none

_DISTRIBUTIONS = ("cu13", "cu12", "cu13_bindings", "cu12_bindings", "bindings")
OLDEST = (7, 5)
"""The first compute capability (Turing) that either of them takes."""


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two."""

    module: str
    """Name of the Python module, and of the package whose version counts."""
    extra: str
    """What installs it: ``pip install vsfdatrd[extra]``."""
    portable: bool
    """Whether engines are built for any GPU, on any machine."""

    @property
    def installed(self) -> bool:
        """Whether it can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """Its version. Raises EngineUnavailable if it is not installed."""
        # Packages for one CUDA version, and their bindings alone, come without the one that has the module's name.
        for package in (self.module, *(f"{self.module}_{kind}" for kind in _DISTRIBUTIONS)):
            try:
                return installed_version(package)
            except PackageNotFoundError:
                continue
        raise EngineUnavailable(f"{self.module} is not installed; pip install vsfdatrd[{self.extra}]")

    def target(self, capability: tuple[int, int], name: str) -> str:
        """What an engine is built for, as part of its identity: a kind of GPU, or one model of it."""
        return f"sm{capability[0]}{capability[1]}" + ("" if self.portable else f" {name}")

    # What follows needs the module itself, and is called in the engine's process only.

    def load(self) -> ModuleType:
        """The module. Raises EngineUnavailable if it does not import."""
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            cure = f"pip install --force-reinstall vsfdatrd[{self.extra}]"
            raise EngineUnavailable(f"{self.module} does not load ({error}); {cure}") from error

    def network_flags(self, trt: Any) -> int:
        """Flags of a network whose types are those of the graph, nothing else."""
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None or self.portable else 1 << int(flag)

    def aim(self, trt: Any, config: Any, targets: Sequence[str]) -> None:
        """Have a build made for kinds of GPU, such as ``sm89``. Those the library has no name for get the engine that
        runs on all of them.
        """
        if not self.portable:
            return
        known = [getattr(trt.ComputeCapability, target.upper(), None) for target in targets]
        if None in known:
            return
        config.num_compute_capabilities = len(known)
        for index, capability in enumerate(known):
            if not config.set_compute_capability(capability, index):
                raise EngineBuildError(f"{self.module} does not build for {targets[index]}")

    def reserve(self, trt: Any, config: Any) -> None:
        """Have all memory reserved when an engine is loaded: kernels for which more is fetched while they run cannot be
        collected into a CUDA graph. The classic library fetches none.
        """
        if self.portable:
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)

    @contextlib.contextmanager
    def tune(self, config: Any, how: Mapping[str, Any]) -> Iterator[None]:
        """Set how hard a build is to try, for the duration of the build.

        how: `level` 0 to 5 (None: the library's own), `timings` the path of the timing cache. The portable library
        times nothing, and takes neither.
        """
        if self.portable:
            yield
            return
        if how.get("level") is not None:
            config.builder_optimization_level = how["level"]
        path = Path(how["timings"]) if how.get("timings") else None
        cache = config.create_timing_cache(read_or_none(path) or b"")
        if cache is None or not config.set_timing_cache(cache, False):  # damaged, or of another GPU: begun anew
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                cache, path = None, None
                say("the library takes no cache of timings; it times everything anew")
        yield
        if path and (timings := cache.serialize()) is not None:
            keep_if_possible(path, bytes(timings))

    def context(self, engine: Any, cached: bytes | None, own_graph: bool = False) -> tuple[Any, Any]:
        """(execution context, what `compiled` takes and must live as long).

        cached: what `compiled` returned before. own_graph: have the library collect its kernels into a CUDA graph
        itself; for a library that `has_own_graph`.
        """
        if not self.portable:
            return engine.create_execution_context(), None
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if cached and not cache.deserialize(cached):  # of another driver or GPU
            say("what was compiled before is not taken; it is compiled again")
        if not config.set_runtime_cache(cache):
            say("the library takes no cache of what it compiles; it compiles at every start")
        if own_graph:
            strategies: Any = self.load().CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config), (config, cache)

    @property
    def has_own_graph(self) -> bool:
        """Whether it can collect a network's kernels into a CUDA graph itself."""
        return self.portable and hasattr(self.load(), "CudaGraphStrategy")

    def compiled(self, kept: Any) -> bytes | None:
        """What was compiled for this GPU so far, for the next run; None where there is no such thing."""
        content = None if kept is None else kept[1].serialize()
        return None if content is None else bytes(content)

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether a context's kernels can be collected from a stream into a CUDA graph. Where the library cannot be
        asked, trying tells.
        """
        return not self.portable or bool(context.is_stream_capturable(stream))


def say(what: str) -> None:
    """Print a line for the user; the engine's process has no logging but stderr."""
    print(f"fdatrd: {what}", file=sys.stderr)


RTX = Library("tensorrt_rtx", "rtx", portable=True)
CLASSIC = Library("tensorrt", "tensorrt", portable=False)


def choose(capability: tuple[int, int] | None) -> Library | None:
    """The library for a GPU (None: for no GPU in particular), of those installed; None if neither is."""
    # GeForce and RTX cards: x.5, x.6, x.9 and 12.x; 7.0, 8.0, 9.0 and 10.x are data-centre cards.
    data_centre = capability is not None and capability[0] < 12 and capability[1] == 0
    order = (CLASSIC, RTX) if data_centre else (RTX, CLASSIC)
    return next((library for library in order if library.installed), None)


def parse_target(text: str) -> str:
    """A kind of GPU as people write it: ``sm89``, ``SM_89``, ``8.9``. Raises ArgumentError."""
    digits = text.lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if not digits.isdecimal() or not 2 <= len(digits) <= 3:
        raise ArgumentError(f"{text!r} is no compute capability; give one such as sm89 (RTX 40) or sm120 (RTX 50)")
    if (int(digits[:-1]), int(digits[-1])) < OLDEST:
        raise ArgumentError(f"{text!r} is older than TensorRT supports; the oldest is sm75 (RTX 20)")
    return f"sm{digits}"
