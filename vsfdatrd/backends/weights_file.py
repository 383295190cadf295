"""Weights file and verification of engines with kernels of this package (native, cuda), which run an FDAT-RD."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, FdatRdConfig, config_from_shapes
from vsfdatrd.archs.fdat_shapes import check_tensors
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.errors import CheckpointError, EngineError
from vsfdatrd.weights.files import Entry

FILE = "weights.npz"
VERIFICATION_SIZE = (120, 180)
"""Approximate height and width of the images used for verification; rounded to a multiple that the network takes."""


def write_weights(directory: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write the weights.

    Args:
        directory: The directory.
        tensors: All tensors of the network by name.
    """
    np.savez(directory / FILE, allow_pickle=False, **tensors)


def read_weights(directory: Path, engine: str) -> tuple[FdatRdConfig, dict[str, NDArray[Any]]]:
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
        with np.load(directory / FILE, allow_pickle=False) as tensors:
            arrays = dict(tensors)
        config = config_from_shapes(
            {name: tensor.shape for name, tensor in arrays.items()}, [int(n) for n in arrays[META_UPSAMPLE]]
        )
        # the kernels do not check shapes: a wrong one would make them read beyond an array
        kinds = {name: "fp32" if tensor.dtype.kind == "f" else str(tensor.dtype) for name, tensor in arrays.items()}
        check_tensors(config, {name: Entry(kinds[name], tensor.shape) for name, tensor in arrays.items()})
        return config, arrays
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, BadZipFile, CheckpointError) as error:
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
