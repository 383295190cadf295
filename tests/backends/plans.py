"""Plans of the CUDA backend, evaluated with NumPy in place of the kernels."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.backends.numpy_kernels import KERNELS
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.cuda.constants import ConstantBlock, pack_constants
from vsfdatrd.backends.cuda.packing import ALL_FLOAT32, TYPES, StoredTypes
from vsfdatrd.backends.cuda.plan import Constant, Frame, Plan, Region, find_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.graph.weights import Weights
from vsfdatrd.kernels import manifest
from vsfdatrd.options import Precision

TILES = {
    "BLOCK_ROWS": 7,
    "BLOCK_QUERIES": 7,
    "BLOCK_C": 32,
    "BLOCK_DICT": 48,
    "BLOCK_COLUMNS": 64,
    "BLOCK_PIXELS": 100,
    "BLOCK_K": 10,
    "PADDED_TOKENS": 304,
}
"""Sizes of tiles that divide nothing, where kernels need not divide."""


MAP_TILES = {
    "conv_maps": {"BLOCK_COLUMNS": 32, "BLOCK_K": 16},
    "conv_pixel_shuffle": {"BLOCK_COLUMNS": 16, "BLOCK_K": 16},
}
"""Channels of maps are multiples of these tiles."""


def tiles(channels: int) -> dict[str, dict[str, int]]:
    """Compile-time constants of every kernel."""
    return {name: TILES | {"C": channels} | MAP_TILES.get(name, {}) for name in KERNELS}


@dataclass(frozen=True)
class BufferUse:
    """The first and the last launch that a buffer is an argument of."""

    first: int
    last: int


def buffer_lives(plan: Plan) -> dict[Region, BufferUse]:
    """Return the first and last launch that uses each buffer."""
    result: dict[Region, BufferUse] = {}
    for step, launch in enumerate(plan.launches):
        for argument in launch.arguments:
            if isinstance(argument, Region):
                result[argument] = BufferUse(result[argument].first if argument in result else step, step)
    return result


def evaluate(plan: Plan, block: ConstantBlock, channels: int, picture: FramePlanes, scale: int) -> FramePlanes:
    """Run every launch of a plan.

    Before each launch, all memory is filled with NaN, except the buffers that earlier launches have written and that
    are still in use.
    """
    arena = np.empty(plan.arena, np.uint8)
    alive, kernels = buffer_lives(plan), tiles(channels)
    height, width = (side * scale for side in picture.shape[1:])
    result = np.full((3, height, width), np.nan, np.float32)
    for step, launch in enumerate(plan.launches):
        free = np.ones(plan.arena, np.bool_)
        for region, life in alive.items():
            if life.first < step <= life.last:
                free[region.offset : region.offset + region.size] = False
        for region, life in alive.items():
            if life.first == step:
                free[region.offset : region.offset + region.size] = True
        arena[free] = 0xFF
        arguments: list[NDArray[Any] | int] = []
        for argument in launch.arguments:
            match argument:
                case Region():
                    arguments.append(arena[argument.offset : argument.offset + argument.size].view(argument.dtype))
                case Constant():
                    arguments.append(block.arrays[argument].reshape(-1))
                case Frame():
                    arguments.append((result if argument.is_output else picture).reshape(-1))
                case _:
                    arguments.append(argument)
        KERNELS[launch.kernel](kernels[launch.kernel], launch.grid, *arguments)
    return result


def make_plan_and_constants(
    config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]], height: int, width: int, types: StoredTypes = ALL_FLOAT32
) -> tuple[Plan, ConstantBlock]:
    """A plan for frames of height × width, and its constants."""
    weights, kernels = Weights(tensors), tiles(config.embed_dim)
    plan = make_plan(config, find_active(config, weights), kernels, height, width, types)
    return plan, pack_constants(plan, config, weights, kernels, types)


def upscale_with_plan(
    config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]], picture: FramePlanes, types: StoredTypes = ALL_FLOAT32
) -> FramePlanes:
    """Run the plan on a picture, with the padding and cropping that engines get."""
    height, width = picture.shape[1:]
    bottom, right = -height % config.multiple, -width % config.multiple
    mode = "reflect" if bottom < height and right < width else "edge"
    padded = np.pad(picture, ((0, 0), (0, bottom), (0, right)), mode=mode)  # type: ignore[call-overload]
    plan, block = make_plan_and_constants(config, tensors, height + bottom, width + right, types)
    result = evaluate(plan, block, config.embed_dim, padded, config.scale)
    return result[:, : height * config.scale, : width * config.scale]


def assert_fits_compiled(
    config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]], precision: Precision
) -> frozenset[str]:
    """Assert that every argument of a plan is of the type that the PTX takes, and has the name that it has there.

    Returns the names of the kernels.
    """
    weights, types = Weights(tensors), TYPES[precision]
    of_network = manifest.load().of_network(config.embed_dim, precision)
    assert set(of_network) == set(KERNELS)
    constants = {name: kernel.constants for name, kernel in of_network.items()}
    plan = make_plan(config, find_active(config, weights), constants, config.multiple, config.multiple, types)
    block = pack_constants(plan, config, weights, constants, types)
    names = {"*fp16": "float16", "*bf16": "bfloat16", "*fp32": "float32"}
    for launch in plan.launches:
        parameters = of_network[launch.kernel].parameters
        assert [name for name, _ in parameters] == list(inspect.signature(KERNELS[launch.kernel]).parameters)[2:]
        for argument, (name, kind) in zip(launch.arguments, parameters, strict=True):
            match argument:
                case Region():
                    assert argument.dtype.name == names[kind], (launch.kernel, name)
                case Constant():
                    assert argument.name == name
                    assert block.arrays[argument].dtype.name == names[kind], (launch.kernel, name)
                case int():
                    assert kind == "i32", (launch.kernel, name)
                case Frame():
                    assert (name in ("image", "planes"), kind) == (True, "*fp32")
    return frozenset(launch.kernel for launch in plan.launches)
