"""Plans of the CUDA backend, run by the kernels themselves in Triton's interpreter."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tests.kernels.interpreter import TYPES, Array, launch
from tests.kernels.large_tiles import enlarge_tiles
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.cuda import packing
from vsfdatrd.backends.cuda.constants import pack_constants
from vsfdatrd.backends.cuda.plan import Constant, Frame, Region, find_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.graph.weights import Weights
from vsfdatrd.kernels import catalog
from vsfdatrd.options import Precision


def upscaled(config: FdatRdConfig, tensors: Mapping[str, Any], picture: Array, precision: Precision) -> Array:
    """Run a network on a picture (3, H, W), from its weights on. Memory starts as NaN."""
    kernels = {
        kernel.kernel: replace(kernel, constants=enlarge_tiles(kernel.kernel, kernel.constants))
        for kernel in catalog.variants(config.embed_dim, precision)
    }
    constants = {name: kernel.constants for name, kernel in kernels.items()}
    types, weights = packing.TYPES[precision], Weights(tensors)
    height, width = picture.shape[1:]
    plan = make_plan(config, find_active(config, weights), constants, height, width, types)
    block = pack_constants(plan, config, weights, constants, types)

    arena = np.full(plan.arena, 0xFF, np.uint8)  # NaN in all types
    result = np.full((3, height * config.scale, width * config.scale), np.nan, np.float32)
    for step in plan.launches:
        kernel = kernels[step.kernel]
        arguments: dict[str, Any] = {}
        for (name, type_name), argument in zip(kernel.signature.items(), step.arguments, strict=True):
            match argument:
                case Region():
                    assert argument.dtype == TYPES[type_name], f"{step.kernel}: {name}"
                    arguments[name] = arena[argument.offset : argument.offset + argument.size].view(argument.dtype)
                case Constant():
                    arguments[name] = block.arrays[argument]
                case Frame():
                    arguments[name] = result if argument.is_output else picture
                case _:
                    arguments[name] = argument
        launch(kernel, step.grid, arguments)
    return result
