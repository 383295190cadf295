"""Weights file and verification of engines with kernels of this package (native, cuda), which run an FDAT-RD."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig, config_from_shapes
from vsfdatrd.archs.fdat_shapes import check_tensors
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.errors import CheckpointError, EngineError
from vsfdatrd.weights.files import Array
from vsfdatrd.weights.safetensors_file import SafetensorsFile

FILE = "weights.safetensors"
REFERENCE = "verification.npy"
"""File with the fp32 output for `accuracy.draw_line_art`."""
SKY_LEVELS = "verification.json"
"""File with `accuracy.count_levels` of the sky in fp32."""
VERIFICATION_SIZE = (120, 180)
"""Approximate height and width of the images used for verification; rounded to a multiple that the network takes."""


def write_weights(directory: Path, tensors: Mapping[str, Array]) -> None:
    """Write the weights; those that are exact in fp16 in fp16, because every start of a script reads and hashes them.

    Args:
        directory: The directory.
        tensors: All tensors of the network by name.
    """
    save_file({name: _shortest(tensor) for name, tensor in tensors.items()}, directory / FILE)


def _shortest(tensor: Array) -> Array:
    with np.errstate(over="ignore"):
        half = tensor.astype(np.float16)
    return half if tensor.dtype.kind == "f" and np.array_equal(half, tensor) else tensor


def read_weights(directory: Path, engine: str) -> tuple[FdatRdConfig, dict[str, Array]]:
    """Read the weights.

    Args:
        directory: The engine's directory in the cache.
        engine: Name of the engine, for the error message.

    Returns:
        The configuration, and all tensors by name, of the shapes that the configuration asks for.

    Raises:
        EngineError: They cannot be read.
    """
    try:
        file = SafetensorsFile(directory / FILE)
        tensors = dict(file.read({name: name for name in file.entries}))
        config = config_from_shapes(
            {name: entry.shape for name, entry in file.entries.items()}, [int(n) for n in tensors[META_UPSAMPLE]]
        )
        # the kernels do not check shapes: a wrong one would make them read beyond an array
        check_tensors(config, file.entries)
        return config, tensors
    except (OSError, ValueError, TypeError, KeyError, ArithmeticError, CheckpointError) as error:
        raise EngineError(f"the {engine} engine's weights cannot be read: {error}") from error


def verification_size(spec: EngineSpec) -> tuple[int, int]:
    """Return height and width of the images that an engine computes when it is verified; see `VERIFICATION_SIZE`."""
    multiple = spec.checkpoint.descriptor.size.multiple_of
    height, width = (max(multiple, side // multiple * multiple) for side in VERIFICATION_SIZE)
    return height, width


def check_scale(spec: EngineSpec, output: list[int], engine: str) -> None:
    """Check that the weights file has a network of the right scale.

    Args:
        spec: Parameters of the engine.
        output: (C, H, W) of the loaded engine's output.
        engine: Name of the engine, for the error message.

    Raises:
        EngineError: It has not.
    """
    scale = spec.checkpoint.descriptor.scale
    if output != [3, spec.height * scale, spec.width * scale]:
        raise EngineError(f"the {engine} engine belongs to another network, of a different scale")
