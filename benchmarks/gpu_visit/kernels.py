"""GPU kernels of our own: error and time of each, and of the whole network in one CUDA graph.

Errors are found on a small frame: every launch against what stands in for the kernel in NumPy, from the same memory.
Times are those of a full frame; the bytes and operations that they are compared with are in `benchmarks.kernels`.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import kernels
from benchmarks.gpu_visit import engines
from benchmarks.gpu_visit.engines import checkpoints, compute_in_fp32, compute_psnr
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device
from benchmarks.weights import random_tensors
from tests.backends.numpy_kernels import KERNELS
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.backends.cuda.constants import pack_constants
from vsfdatrd.backends.cuda.driver import Arguments, Kernel
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import Constant, Frame, Launch, Region, find_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.gpu import cuda
from vsfdatrd.graph.weights import Weights
from vsfdatrd.kernels import manifest
from vsfdatrd.options import Precision

SMALL = replace(engines.SMALL, embed_dim=96, heads=3, ffn_dim=192, gate_dim=12, tail_scale=4, unshuffle=2, mid_dim=64)
"""In a rehearsal in place of medium: with heads of 32 channels, as the kernels need."""
SIDE = 60
"""Height and width of the frame on which errors are found."""


class Network:
    """A network on the GPU for frames of one size. Close the stack when it is not needed any more."""

    def __init__(
        self, stack: ExitStack, config: FdatRdConfig, weights: Weights, precision: Precision, height: int, width: int
    ) -> None:
        self._config = config
        self._compiled = manifest.load().of_network(config.embed_dim, precision)
        self.tiles = {name: each.constants for name, each in self._compiled.items()}
        types = TYPES[precision]
        self.plan = make_plan(config, find_active(config, weights), self.tiles, height, width, types)
        self.block = pack_constants(self.plan, config, weights, self.tiles, types)
        self.stream = stack.enter_context(cuda.Stream())
        self.shapes = (3, height, width), (3, height * config.scale, width * config.scale)
        sizes = self.block.size, self.plan.arena, *(4 * int(np.prod(shape)) for shape in self.shapes)
        self._memory = [stack.enter_context(cuda.DeviceMemory(size)) for size in sizes]
        constants = np.zeros(self.block.size, np.uint8)
        for name, array in self.block.arrays.items():
            start = self.block.offsets[name]
            constants[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        self.write(0, constants)
        self._kernels: dict[str, Kernel] = {}

    def write(self, place: int, values: NDArray[Any]) -> None:
        """Send values to the constants (0), the arena (1) or the frame (2)."""
        self.stream.upload(self._memory[place], values.ctypes.data)
        self.stream.synchronize()

    def read(self, place: int, values: NDArray[Any]) -> None:
        """Fetch the arena (1) or the result (3)."""
        self.stream.download(values.ctypes.data, self._memory[place])
        self.stream.synchronize()

    def step(self, launch: Launch) -> Callable[[], None]:
        """Return what queues a launch."""
        if launch.kernel not in self._kernels:
            about = self._compiled[launch.kernel]
            kernel = Kernel(manifest.read_ptx(about), about.entry, about.threads, about.shared)
            kernel.allow_shared(0)
            self._kernels[launch.kernel] = kernel
        constants, arena, frame, result = (memory.address for memory in self._memory)
        values: list[tuple[int, bool]] = []
        for argument in launch.arguments:
            match argument:
                case Region():
                    values.append((arena + argument.offset, True))
                case Constant():
                    values.append((constants + self.block.offsets[argument], True))
                case Frame():
                    values.append((result if argument.is_output else frame, True))
                case _:
                    values.append((argument, False))
        arguments = Arguments([*values, (0, True), (0, True)])
        kernel = self._kernels[launch.kernel]
        return lambda: kernel.launch(self.stream, launch.grid, arguments)


def kernel_errors(network: Network, picture: NDArray[np.float32]) -> dict[str, float]:
    """The largest error of each kernel, relative to the root of the mean square of what NumPy computes in its place.

    A kernel is compared where it first has other numbers as arguments, such as another window.
    """
    arena = np.zeros(network.plan.arena, np.uint8)
    network.write(1, arena)
    network.write(2, picture)
    result = np.zeros(network.shapes[1], np.float32)
    found: dict[str, float] = {}
    known: set[tuple[object, ...]] = set()
    for launch in network.plan.launches:
        stand_in, output = arena.copy(), np.zeros_like(result)
        network.step(launch)()
        before = arena.copy()
        network.read(1, arena)
        network.read(3, result)
        numbers = launch.kernel, *(argument for argument in launch.arguments if isinstance(argument, int))
        if numbers in known:
            continue
        known.add(numbers)
        arguments: list[Any] = []
        for argument in launch.arguments:
            match argument:
                case Region():
                    arguments.append(_view(stand_in, argument))
                case Constant():
                    arguments.append(network.block.arrays[argument].reshape(-1))
                case Frame():
                    arguments.append((output if argument.is_output else picture).reshape(-1))
                case _:
                    arguments.append(argument)
        KERNELS[launch.kernel](network.tiles[launch.kernel], launch.grid, *arguments)
        pairs = [
            (_view(arena, region), _view(stand_in, region))
            for region in {argument for argument in launch.arguments if isinstance(argument, Region)}
            if not np.array_equal(_bytes(stand_in, region), _bytes(before, region))
        ]
        if Frame(is_output=True) in launch.arguments:
            pairs.append((result.reshape(-1), output.reshape(-1)))
        error = max((_difference(got, expected) for got, expected in pairs), default=float("nan"))
        found[launch.kernel] = max(error, found.get(launch.kernel, 0.0))
    return found


def _bytes(arena: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
    return arena[region.offset : region.offset + region.size]


def _view(arena: NDArray[np.uint8], region: Region) -> NDArray[Any]:
    return _bytes(arena, region).view(region.dtype)


def _difference(got: NDArray[Any], expected: NDArray[Any]) -> float:
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(np.sqrt(np.mean((got - expected) ** 2) / max(float(np.mean(expected**2)), 1e-30)))


def time_launches(network: Network, steps: list[Callable[[], None]], sizes: Sizes) -> float:
    """The median time of one graph with these launches."""

    def enqueue() -> None:
        for step in steps:
            step()

    with network.stream.capture(enqueue) as graph:
        times = []
        for turn in range(sizes.turns + 1):  # the first is not counted
            start = time.perf_counter()
            graph.launch(network.stream)
            network.stream.synchronize()
            if turn:
                times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Check and measure every kernel, then the whole network."""
    cuda.set_device(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        checkpoint = None if sizes.small else checkpoints(Path(folder), sizes)["whole"]
        config, tensors = SMALL, random_tensors(SMALL)
        if checkpoint:
            described = checkpoint.descriptor.config
            assert isinstance(described, FdatRdConfig)
            config, tensors = described, checkpoint.tensors()
        weights = Weights(tensors)
        needs = kernels.needs(config, sizes.height, sizes.width)
        for precision in sizes.precisions:
            wrong = kernel_errors(Network(stack, config, weights, precision, SIDE, SIDE), draw_line_art(SIDE, SIDE))
            network = Network(stack, config, weights, precision, sizes.height, sizes.width)
            network.write(2, draw_line_art(sizes.height, sizes.width))
            every = [network.step(launch) for launch in network.plan.launches]
            measured: set[str] = set()
            for launch, step in zip(network.plan.launches, every, strict=True):
                step()
                if launch.kernel in measured:
                    continue
                measured.add(launch.kernel)
                # Again and again from the same memory, as nothing is computed in place
                took = time_launches(network, [step] * sizes.frames, sizes) / sizes.frames
                need = needs[launch.kernel]
                rows.append(
                    {
                        "kernel": launch.kernel,
                        "precision": precision,
                        "launches": need.launches,
                        "error": float(f"{wrong[launch.kernel]:.3g}"),
                        "ms": round(took, 4),
                        "gb_s": round(need.bytes / took / 1e6, 1),
                        "tflop_s": round(need.operations / took / 1e9, 2),
                    }
                )
                record({"kernels": rows})
            output = np.empty(network.shapes[1], np.float32)
            network.read(3, output)
            whole: dict[str, Any] = {"kernel": "all", "precision": precision, "launches": len(every)}
            whole["ms"] = round(time_launches(network, every, sizes), 3)
            if checkpoint:
                result = torch.from_numpy(output)[None].to(device())
                whole["psnr_db"], whole["nan"] = compute_psnr(result, compute_in_fp32(checkpoint, sizes))
            rows.append(whole)
            record({"kernels": rows})
