"""The two TensorRT libraries and all their differences.

`tensorrt_rtx` (consumer GPUs since Turing) builds in seconds for any GPU, even on a machine without one, and compiles
its kernels for the actual GPU when an engine is loaded; compiled kernels are stored in a runtime cache. `tensorrt`
(data-center GPUs, and all others) times kernels on the GPU it builds for, and stores the timings in a timing cache.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from types import ModuleType
from typing import Any

from vsfdatrd.errors import ArgumentError, EngineBuildError, EngineUnavailable
from vsfdatrd.system.files import keep_if_possible, read_or_none
from vsfdatrd.workers.server import log_line

_DISTRIBUTIONS = ("cu13", "cu12", "cu13_bindings", "cu12_bindings", "bindings")
MIN_CAPABILITY = (7, 5)
"""Lowest compute capability (Turing) that either library supports."""


@dataclass(frozen=True, slots=True)
class Library:
    """One of the two libraries."""

    module: str
    """Name of the Python module, and of the package whose version counts."""
    extra: str
    """Extra that installs it: ``pip install vsfdatrd[extra]``."""
    portable: bool
    """Whether engines are built for any GPU, on any machine."""

    @property
    def installed(self) -> bool:
        """Whether the module can be imported."""
        return importlib.util.find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """Version of the installed package.

        Raises:
            EngineUnavailable: It is not installed.
        """
        # Packages for one CUDA version, or with the bindings only, may be installed without the one of that name.
        for package in (self.module, *(f"{self.module}_{kind}" for kind in _DISTRIBUTIONS)):
            try:
                return installed_version(package)
            except PackageNotFoundError:
                continue
        raise EngineUnavailable(f"{self.module} is not installed; pip install vsfdatrd[{self.extra}]")

    def target_name(self, capability: tuple[int, int], name: str) -> str:
        """Return what an engine is built for, as part of its identity: a compute capability, or one model of GPU.

        Args:
            capability: Compute capability, such as (8, 9).
            name: Name of the GPU.
        """
        return f"sm{capability[0]}{capability[1]}" + ("" if self.portable else f" {name}")

    # The methods below need the module itself and are called in the worker process only.

    def load(self) -> ModuleType:
        """Import the module.

        Raises:
            EngineUnavailable: It cannot be imported.
        """
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            advice = f"pip install --force-reinstall vsfdatrd[{self.extra}]"
            raise EngineUnavailable(f"{self.module} does not load ({error}); {advice}") from error

    def network_flags(self, trt: Any) -> int:
        """Return the flags for a network whose types are exactly those of the graph.

        Args:
            trt: The module.
        """
        flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None or self.portable else 1 << int(flag)

    def set_targets(self, trt: Any, config: Any, targets: Sequence[str]) -> None:
        """Set the kinds of GPU for a build, such as ``sm89``.

        If the library has no name for one of them, the engine is built to run on all GPUs.

        Args:
            trt: The module.
            config: The builder's configuration.
            targets: Kinds of GPU, such as ``sm89``.

        Raises:
            EngineBuildError: The library does not build for one of them.
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

    def require_user_allocation(self, trt: Any, config: Any) -> None:
        """Build an engine whose kernels use only memory that is allocated when it is loaded.

        Kernels that allocate memory while they run cannot be captured in a CUDA graph. The package
        ``tensorrt`` has no such kernels.

        Args:
            trt: The module.
            config: The builder's configuration.
        """
        if self.portable:
            config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)

    @contextlib.contextmanager
    def build_settings(self, config: Any, settings: Mapping[str, Any]) -> Iterator[None]:
        """Set optimization level and timing cache for the duration of a build. The portable library has neither.

        Args:
            config: The builder's configuration.
            settings: ``level``, 0 to 5, or None for the library's default; ``timings``, the path of the timing cache,
                or None.
        """
        if self.portable:
            yield
            return
        if settings.get("level") is not None:
            config.builder_optimization_level = settings["level"]
        path = Path(settings["timings"]) if settings.get("timings") else None
        cache = config.create_timing_cache(read_or_none(path) or b"")
        if cache is None or not config.set_timing_cache(cache, False):  # damaged or from another GPU: start a new one
            cache = config.create_timing_cache(b"")
            if cache is None or not config.set_timing_cache(cache, False):
                cache, path = None, None
                log_line("the library takes no cache of timings; it times everything anew")
        yield
        if path and (timings := cache.serialize()) is not None:
            keep_if_possible(path, bytes(timings))

    def create_context(self, engine: Any, runtime_cache: bytes | None, capture_graph: bool = False) -> tuple[Any, Any]:
        """Create an execution context.

        Args:
            engine: The engine.
            runtime_cache: What `runtime_cache_bytes` returned earlier; None for none.
            capture_graph: Have the library capture its kernels in a CUDA graph; only if it `has_own_graph`.

        Returns:
            The context, and an object that `runtime_cache_bytes` takes and that must live as long as the context.
        """
        if not self.portable:
            return engine.create_execution_context(), None
        config = engine.create_runtime_config()
        cache = config.create_runtime_cache()
        if runtime_cache and not cache.deserialize(runtime_cache):  # from another driver or GPU
            log_line("what was compiled before is not taken; it is compiled again")
        if not config.set_runtime_cache(cache):
            log_line("the library takes no cache of what it compiles; it compiles at every start")
        if capture_graph:
            strategies: Any = self.load().CudaGraphStrategy
            config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config), (config, cache)

    @property
    def has_own_graph(self) -> bool:
        """Whether the library can capture a network's kernels in a CUDA graph itself."""
        return self.portable and hasattr(self.load(), "CudaGraphStrategy")

    def runtime_cache_bytes(self, owners: Any) -> bytes | None:
        """Return the kernels compiled for this GPU so far, to be stored for the next run.

        Args:
            owners: The second result of `create_context`.

        Returns:
            Content of the runtime cache; None if the library has none.
        """
        content = None if owners is None else owners[1].serialize()
        return None if content is None else bytes(content)

    def can_capture(self, context: Any, stream: int) -> bool:
        """Return whether a context's kernels can be captured from a stream in a CUDA graph.

        Also True if the library cannot be asked; then a capture has to be tried.

        Args:
            context: The execution context.
            stream: Handle of the stream.
        """
        return not self.portable or bool(context.is_stream_capturable(stream))


RTX = Library("tensorrt_rtx", "rtx", portable=True)
TENSORRT = Library("tensorrt", "tensorrt", portable=False)


def choose_library(capability: tuple[int, int] | None) -> Library | None:
    """Return the preferred library for a compute capability, or for no GPU in particular; None if none is installed.

    Args:
        capability: Compute capability; None for no GPU in particular.
    """
    # GeForce and RTX cards have x.5, x.6, x.9 and 12.x; 7.0, 8.0, 9.0 and 10.x are data-center cards.
    data_center = capability is not None and capability[0] < 12 and capability[1] == 0
    order = (TENSORRT, RTX) if data_center else (RTX, TENSORRT)
    return next((library for library in order if library.installed), None)


def parse_target(text: str) -> str:
    """Parse a kind of GPU as users write it: ``sm89``, ``SM_89``, ``8.9``.

    Args:
        text: The user's text.

    Returns:
        Normalized form, such as ``sm89``.

    Raises:
        ArgumentError: It is not a compute capability, or too old.
    """
    digits = text.lower().removeprefix("sm").removeprefix("_").replace(".", "")
    if not digits.isdecimal() or not 2 <= len(digits) <= 3:
        raise ArgumentError(f"{text!r} is not a compute capability; give one such as sm89 (RTX 40) or sm120 (RTX 50)")
    if (int(digits[:-1]), int(digits[-1])) < MIN_CAPABILITY:
        raise ArgumentError(f"{text!r} is older than TensorRT supports; the oldest is sm75 (RTX 20)")
    return f"sm{digits}"
