"""A whole network, from its weights to a picture: the plan of the CUDA backend, run by the kernels themselves."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from tests.backends.closeness import run_network
from tests.conftest import tiny_config, tiny_tensors
from tests.kernels.interpreter import TYPES, Case, launch
from tests.kernels.large_tiles import enlarged
from vsfdatrd.backends.cuda import packing
from vsfdatrd.backends.cuda.constants import pack_constants
from vsfdatrd.backends.cuda.plan import Constant, Frame, Region, find_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.graph.weights import Weights
from vsfdatrd.kernels import catalog


def cases() -> Iterator[Case]:
    fields: dict[str, Any] = {
        "embed_dim": 96,
        "heads": 3,
        "ffn_dim": 192,
        "gate_dim": 12,
        "tail_scale": 4,
        "unshuffle": 2,
        "groups": (("spatial", "channel", "dictionary", "spatial"),),
        "dict_tokens": 19,
    }
    config, tensors = tiny_config(**fields), tiny_tensors(1, **fields)
    for idle in (0, 2):
        tensors[f"groups.0.blocks.{idle}.ffn.fc2.weight"][...] = 0  # left out
    picture = np.random.default_rng(2).random((3, 60, 60), np.float32)
    expected = run_network(config, tensors, picture)
    kernels = {
        kernel.kernel: replace(kernel, constants=enlarged(kernel.kernel, kernel.constants))
        for kernel in catalog.variants(config.embed_dim, "fp16")
    }
    constants = {name: kernel.constants for name, kernel in kernels.items()}
    types, weights = packing.TYPES["fp16"], Weights(tensors)
    plan = make_plan(config, find_active(config, weights), constants, 60, 60, types)
    block = pack_constants(plan, config, weights, constants, types)

    arena = np.full(plan.arena, 0xFF, np.uint8)  # NaN in all types
    result = np.full((3, 120, 120), np.nan, np.float32)
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
    # 55 dB of signal to noise, as with NumPy in place of the kernels
    yield Case("network", result - expected.mean(), expected - expected.mean(), 10 ** (-55 / 20))
