"""Worker process that runs the CUDA kernels; `backend.py` is the client. Run as a module.

One set of weights serves frames of every size: the process plans the network for the requested size, uploads the packed
weights and captures all launches as one CUDA graph.
"""

import lzma
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends import weights_file
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.cuda.constants import ConstantBlock, pack_constants
from vsfdatrd.backends.cuda.driver import Arguments, Kernel
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import Constant, Frame, Launch, Plan, Region, find_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.execution_context import ExecutionContext
from vsfdatrd.backends.gpu.server import GpuServer, verify_contexts
from vsfdatrd.errors import EngineError, PrecisionUnfit
from vsfdatrd.graph.weights import Weights
from vsfdatrd.kernels import manifest
from vsfdatrd.options import Precision
from vsfdatrd.workers.server import serve_forever


class CudaServer(GpuServer["_KernelContext"]):
    """Request handler that runs one network on one or more GPUs once it is loaded."""

    _model: "_Model"
    _weights: "list[_GpuWeights]"

    def do_load(
        self,
        directory: str,
        height: int,
        width: int,
        precision: Precision,
        devices: list[int],
        streams: int | None,
        contexts: int | None = 1,
        rates: tuple[float, float] | None = None,
    ) -> dict[str, Any]:
        """Answer the request ``load``: load the network on every GPU, for padded frames of height × width pixels.

        The last arguments and the result are those of `GpuServer.choose_contexts`.

        Args:
            directory: The engine's files.
            height: Height of a padded frame in pixels.
            width: Width of a padded frame in pixels.
            precision: Type of tokens and matrices.
            devices: Numbers of the GPUs.
            streams: Frames in flight on each GPU; None for as many as keep it busy.
            contexts: Execution contexts on each GPU; see `GpuServer.choose_contexts`.
            rates: Frames per second of one context and of two; see `GpuServer.choose_contexts`.

        Raises:
            PrecisionUnfit: A weight exceeds the range of the precision.
            EngineUnavailable: The driver is too old.
            EngineError: The weights cannot be read, or a GPU cannot run the network.
        """
        self._model = _Model(Path(directory), precision)
        if height % self._model.config.multiple or width % self._model.config.multiple:
            raise EngineError(
                f"the cuda engine belongs to another network, which does not accept frames of {width}×{height}"
            )
        self._weights = [_GpuWeights(self._model, index) for index in devices]
        self._contexts = [_KernelContext(self._model, weights, height, width) for weights in self._weights]
        return self.choose_contexts(devices, streams, contexts, rates)

    def do_verify(self, directory: str, height: int, width: int, precision: Precision) -> float:
        """Answer the request ``verify``: compare every GPU with fp32, and return the lowest PSNR in dB.

        The outputs are compared at the size of the reference, height × width. At the engine's own size they are only
        checked for values that are not finite.

        Args:
            directory: The engine's files, including the reference.
            height: Height of the reference's frames in pixels.
            width: Width of the reference's frames in pixels.
            precision: Type of tokens and matrices, for messages.

        Raises:
            PrecisionUnfit: The output differs too much, or has values that are not finite.
            EngineError: A GPU cannot run the network.
        """
        small = [_KernelContext(self._model, weights, height, width, captured=False) for weights in self._weights]
        try:
            reference, levels = (Path(directory, name) for name in (weights_file.REFERENCE, weights_file.SKY_LEVELS))
            psnr = verify_contexts(small, reference, levels, precision)
        finally:
            for context in small:
                context.close()
        for context in self._contexts:
            full_height, full_width = context.shapes[0][1:]
            if not np.isfinite(context.run_once(draw_line_art(full_height, full_width))).all():
                raise PrecisionUnfit(
                    f"the {precision} engine's output for {full_width}×{full_height} has values that are not finite."
                )
        return psnr


class _Model:
    """Configuration, weights and compiled kernels, which the contexts for frames of all sizes share."""

    def __init__(self, directory: Path, precision: Precision) -> None:
        self.config: FdatRdConfig
        self.config, tensors = weights_file.read_weights(directory, "cuda")
        self.weights = Weights(tensors)
        self.precision, self.types = precision, TYPES[precision]
        self.compiled = manifest.load().of_network(self.config.embed_dim, precision)
        self.tile_sizes = {name: kernel.constants for name, kernel in self.compiled.items()}
        self._active = find_active(self.config, self.weights)
        self._kernels: dict[str, Kernel] = {}

    @cached_property
    def constants(self) -> ConstantBlock:
        """The packed weights, which are the same for frames of every size."""
        plan = self.plan(self.config.multiple, self.config.multiple)
        try:
            return pack_constants(plan, self.config, self.weights, self.tile_sizes, self.types)
        except OverflowError as error:
            raise PrecisionUnfit(f"the network cannot be computed in {self.precision}: {error}.") from error

    def plan(self, height: int, width: int) -> Plan:
        """Plan the network for frames of height × width pixels."""
        return make_plan(self.config, self._active, self.tile_sizes, height, width, self.types)

    def kernel(self, name: str) -> Kernel:
        """Return a kernel. The driver compiles it at the first call.

        Raises:
            EngineUnavailable: The driver is too old.
            EngineError: It cannot be compiled, or the package's files are damaged.
        """
        if name not in self._kernels:
            compiled = self.compiled[name]
            try:
                ptx = manifest.read_ptx(compiled)
            except (OSError, lzma.LZMAError) as error:
                raise EngineError(f"the CUDA kernels cannot be read ({error}); install vsfdatrd again") from error
            self._kernels[name] = Kernel(ptx, compiled.entry, compiled.threads, compiled.shared)
        return self._kernels[name]


class _GpuWeights:
    """The packed weights in the memory of a GPU."""

    def __init__(self, model: _Model, index: int) -> None:
        self.index, self._offsets = index, model.constants.offsets
        block = np.zeros(model.constants.size, np.uint8)
        for name, array in model.constants.arrays.items():
            start = self._offsets[name]
            block[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        cuda.set_device(index)
        self._memory = cuda.DeviceMemory(block.nbytes)
        with cuda.Stream() as stream:
            stream.upload(self._memory, block.ctypes.data)
            stream.synchronize()

    def address(self, constant: Constant) -> int:
        """Return the address of a constant."""
        return self._memory.address + self._offsets[constant]


class _KernelContext(ExecutionContext):
    """An execution context for frames of one size on one GPU."""

    def __init__(self, model: _Model, weights: _GpuWeights, height: int, width: int, captured: bool = True) -> None:
        """Allocate memory and prepare the launches for padded frames of height × width pixels.

        If `captured`, the launches are captured as a CUDA graph, which does not pay for a few frames.
        """
        super().__init__(weights.index)
        self._model, self._weights, self._frame = model, weights, (height, width)
        scale = model.config.scale
        self.shapes = ([3, height, width], [3, height * scale, width * scale])
        try:
            self._allocate()
            plan = model.plan(height, width)
            self._arena = self._held.enter_context(cuda.DeviceMemory(plan.arena))
            self._steps = [self._prepare_launch(launch, model, weights) for launch in plan.launches]
            if captured:
                self._run_and_capture()
        except EngineError:
            self.close()
            raise

    @property
    def context_bytes(self) -> int:
        """See `ExecutionContext.context_bytes`: the size of the arena. All contexts share the weights."""
        return self._arena.size

    def another_context(self) -> Self:
        """See `ExecutionContext.another_context`."""
        return type(self)(self._model, self._weights, *self._frame)

    def _prepare_launch(self, launch: Launch, model: _Model, weights: _GpuWeights) -> Callable[[], None]:
        kernel = model.kernel(launch.kernel)
        kernel.allow_shared(self.index)

        def resolved(argument: Region | Constant | Frame | int) -> tuple[int, bool]:
            match argument:
                case Region():
                    return self._arena.address + argument.offset, True
                case Constant():
                    return weights.address(argument), True
                case Frame():
                    return (self._result if argument.is_output else self._source).address, True
                case _:
                    return argument, False

        values = [resolved(argument) for argument in launch.arguments]
        kinds = [kind.startswith("*") for _, kind in model.compiled[launch.kernel].parameters]
        if kinds != [pointer for _, pointer in values]:
            raise EngineError(f"the kernel {launch.kernel} takes other arguments; install vsfdatrd again")
        # The compiler adds two pointers to scratch memory, which these kernels do not use.
        arguments = Arguments([*values, (0, True), (0, True)])
        return lambda: kernel.launch(self._stream, launch.grid, arguments)

    def _enqueue(self) -> None:
        """See `ExecutionContext._enqueue`."""
        for step in self._steps:
            step()


if __name__ == "__main__":
    serve_forever(CudaServer)
