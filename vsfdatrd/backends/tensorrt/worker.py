"""Worker process in which TensorRT and CUDA run; `backend.py` is the client. Run as a module.

In a separate process TensorRT cannot clash with another plugin's TensorRT, nothing is printed into the video, all GPU
memory is free as soon as a script releases its engine, and a crash of the driver becomes the error of a frame.
"""

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.gpu.execution_context import ExecutionContext
from vsfdatrd.backends.gpu.server import GpuServer, verify_contexts
from vsfdatrd.backends.tensorrt.builder import (
    ENGINE_FILE,
    REFERENCE_FILE,
    SKY_LEVELS_FILE,
    build_empty_engine,
    build_engine,
    create_logger,
)
from vsfdatrd.backends.tensorrt.library import RTX, TENSORRT, Library
from vsfdatrd.errors import EngineError
from vsfdatrd.system.files import keep_if_possible, read_or_none
from vsfdatrd.workers.server import serve_forever


class TensorRtServer(GpuServer["_TensorRtContext"]):
    """Request handler: holds TensorRT's runtime and, once an engine is loaded, its copies on one or more GPUs."""

    def do_refusal_reason(self, library: str, devices: list[int], targets: list[str]) -> str | None:
        """Return, before a build for kinds of GPU such as ``sm89``, why TensorRT would refuse to load the engine.

        Args:
            library: Module name of the TensorRT to use.
            devices: Numbers of the GPUs on which the engine would run.
            targets: Kinds of GPU for which it would be built, such as ``sm89``.

        Returns:
            The reason; None if the library can run the engine, or cannot be asked.
        """
        chosen = _library_named(library)
        trt = chosen.load()
        if not hasattr(trt.Runtime, "get_engine_validity"):
            return None
        blob = build_empty_engine(chosen, targets)
        for index in devices:
            cuda.set_device(index)
            messages = create_logger(trt)
            try:
                _check_validity(trt, trt.Runtime(messages), blob, messages)
            except EngineError as error:
                return f"{chosen.module} {chosen.version} on {list_gpus()[index].name}: {error}"
        return None

    def do_build(
        self, library: str, graph: str, directory: str, targets: list[str], how: dict[str, Any], log: str
    ) -> dict[str, Any]:
        """Build an engine from a graph file; see `builder.build_engine` for arguments and result."""
        return build_engine(_library_named(library), Path(graph), Path(directory), targets, how, Path(log))

    def do_load(
        self,
        library: str,
        directory: str,
        devices: list[int],
        streams: int | None,
        state: str | None,
        contexts: int | None = 1,
        rates: tuple[float, float] | None = None,
    ) -> dict[str, Any]:
        """Load an engine on every GPU.

        Kernels compiled for a GPU are stored in the folder `state`, if any, so that they are compiled only once. The
        last arguments and the result are those of `GpuServer.choose_contexts`.

        Args:
            library: Module name of the TensorRT to use.
            directory: The engine's files.
            devices: Numbers of the GPUs.
            streams: Frames in flight on each GPU; None for as many as keep it busy.
            state: Folder in which kernels compiled for a GPU are stored, so that they are compiled only once; None
                for none.
            contexts: Execution contexts on each GPU; see `GpuServer.choose_contexts`.
            rates: Frames per second of one context and of two; see there.

        Raises:
            EngineError: TensorRT does not load the engine.
        """
        chosen, blob = _library_named(library), Path(directory, ENGINE_FILE).read_bytes()
        self._contexts = [_TensorRtContext(chosen, blob, index, Path(state) if state else None) for index in devices]
        return self.choose_contexts(devices, streams, contexts, rates)

    def do_verify(self, directory: str, precision: str) -> float:
        """Compare the outputs of every GPU with the fp32 reference; see `server.verify_contexts`.

        Args:
            directory: The engine's files, including the reference.
            precision: Precision of the engine, for messages.
        """
        reference, levels = Path(directory, REFERENCE_FILE), Path(directory, SKY_LEVELS_FILE)
        return verify_contexts(self._contexts, reference, levels, precision)

    def do_layers(self, runs: int) -> dict[str, float]:
        """Return the seconds per frame of each layer on the first GPU by name, from TensorRT's profiler.

        Args:
            runs: Number of frames.
        """
        return self._contexts[0].layers(runs)


class _TensorRtContext(ExecutionContext):
    """An engine on one GPU with one of TensorRT's execution contexts."""

    def __init__(self, library: Library, blob: bytes, index: int, state: Path | None) -> None:
        trt = library.load()
        super().__init__(index)
        self._library = library
        self._log = create_logger(trt)
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:  # the bindings raise it if creating the object failed
            raise EngineError(f"TensorRT does not start: {self._log.why()}") from error
        _check_validity(trt, self._runtime, blob, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(blob)
        if self._engine is None:
            raise EngineError(f"TensorRT does not load the engine: {self._log.why()}")
        name = list_gpus()[index].name
        compiled = state / f"compiled for {name}, driver {cuda.describe_driver()}" if state else None
        before = read_or_none(compiled)
        shape = {name: [int(side) for side in self._engine.get_tensor_shape(name)] for name in ("input", "output")}
        self.shapes = (shape["input"][1:], shape["output"][1:])
        self._begin(before)
        after = library.runtime_cache_bytes(self._owners)
        if compiled and after and after != before:
            keep_if_possible(compiled, after)

    def _begin(self, compiled: bytes | None) -> None:
        """Create the execution context with its buffers and stream, and run one frame."""
        # TensorRT does not guarantee that a CUDA graph stays valid if the context's addresses are changed.
        self._allocate()
        self._context, self._owners = self._create_context(compiled)
        self._run_and_capture()

    @property
    def context_bytes(self) -> int:
        """See `ExecutionContext.context_bytes`: activations, which the library allocates with a context."""
        return int(self._engine.device_memory_size_v2)

    def another_context(self) -> Self:
        """See `ExecutionContext.another_context`."""
        cuda.set_device(self.index)
        other = copy.copy(self)
        other._context = other._owners = other._graph = None
        other._held = ExitStack()
        try:
            other._begin(self._library.runtime_cache_bytes(self._owners))
        except EngineError:
            other.close()
            raise
        return other

    def close(self) -> None:
        """Free the execution context with its buffers and stream. The context must not be computing."""
        self._context = self._owners = None  # TensorRT frees a context with its last reference
        super().close()

    def _create_context(self, runtime_cache: bytes | None, capture_graph: bool = False) -> tuple[Any, Any]:
        """Return an execution context that reads and writes the two buffers, and objects that must live as long."""
        context, owners = self._library.create_context(self._engine, runtime_cache, capture_graph)
        if context is None:
            name = list_gpus()[self.index].name
            raise EngineError(f"TensorRT cannot prepare the engine on {name}: {self._log.why()}")
        for name, memory in (("input", self._source), ("output", self._result)):
            if not context.set_tensor_address(name, memory.address):
                raise EngineError(f"TensorRT does not take the memory of its {name}: {self._log.why()}")
        return context, owners

    def layers(self, runs: int) -> dict[str, float]:
        """Return the seconds per frame of each layer by name.

        Raises:
            EngineError: This TensorRT does not report layer times.
        """
        trt = self._library.load()
        seconds: dict[str, float] = {}

        class Profiler(trt.IProfiler):  # type: ignore[misc,name-defined]  # its base is known when TensorRT is loaded
            def __init__(self) -> None:
                trt.IProfiler.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                seconds[layer_name] = seconds.get(layer_name, 0.0) + ms / 1000 / runs

        # In a separate context: in some versions a profiler cannot be removed and would measure all later frames.
        computing_context, graph = (self._context, self._owners), self._graph
        self._context, self._owners = self._create_context(None)
        self._graph = None  # layers inside a CUDA graph are not reported
        try:
            profiler = Profiler()
            self._context.profiler = profiler
            picture = draw_line_art(*self.shapes[0][1:])[: self.shapes[0][0]]
            for _ in range(runs):
                self.run_once(picture)
        finally:
            (self._context, self._owners), self._graph = computing_context, graph
        if not seconds:
            raise EngineError("this TensorRT does not report how long its layers take")
        return seconds

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream.handle)):
            raise EngineError(f"TensorRT could not start the network: {self._log.why()}")

    def _make_graph(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """See `ExecutionContext._make_graph`."""
        if self._library.can_capture(self._context, int(self._stream.handle)):
            super()._make_graph(picture, expected)
        else:
            self._let_library_capture(picture, expected)

    def _let_library_capture(self, picture: FramePlanes, expected: FramePlanes) -> None:
        """Let TensorRT capture the CUDA graph itself; it can exclude kernels that cannot be captured.

        Raises:
            EngineError: TensorRT cannot do so, or the output differs. The previous context is restored.
        """
        if not self._library.has_own_graph:
            raise EngineError("TensorRT says that this network cannot be one")
        plainly = self._context, self._owners
        try:
            self._context, self._owners = self._create_context(
                self._library.runtime_cache_bytes(self._owners), capture_graph=True
            )
            self.run_once(picture)  # TensorRT captures the graph in the first run
            self._check_output(picture, expected)
        except EngineError:
            self._context, self._owners = plainly
            raise


def _library_named(name: str) -> Library:
    return {RTX.module: RTX, TENSORRT.module: TENSORRT}[name]


def _check_validity(trt: Any, runtime: Any, blob: bytes, log: Any) -> None:
    """Ask the library why it would refuse an engine, if it can tell.

    Raises:
        EngineError: The engine cannot run on the current GPU.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return
    validity, diagnostics = runtime.get_engine_validity(blob)
    if validity == trt.EngineValidity.INVALID:
        kinds = trt.EngineInvalidityDiagnostics
        reasons = [
            kind.name.lower().replace("_", " ") for kind in kinds.__members__.values() if int(kind) & int(diagnostics)
        ]
        raise EngineError(f"the engine cannot run on this GPU: {', '.join(reasons) or log.why()}")


if __name__ == "__main__":
    serve_forever(TensorRtServer)
