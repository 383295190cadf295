"""The weights file of engines with kernels of this package (native, cuda): the tensors of an FDAT-RD."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs.fdat_rd import META, FdatRdConfig, from_shapes
from vsfdatrd.archs.fdat_shapes import check
from vsfdatrd.errors import CheckpointError, EngineError
from vsfdatrd.weights.files import Entry

FILE = "weights.npz"


def write(directory: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write the weights.

    Args:
        directory: The directory.
        tensors: All tensors of the network by name.
    """
    np.savez(directory / FILE, allow_pickle=False, **tensors)


def read(directory: Path, engine: str) -> tuple[FdatRdConfig, dict[str, NDArray[Any]]]:
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
            found = dict(tensors)
        config = from_shapes({name: tensor.shape for name, tensor in found.items()}, [int(n) for n in found[META]])
        # the kernels do not check shapes: a wrong one would make them read beyond an array
        kinds = {name: "fp32" if tensor.dtype.kind == "f" else str(tensor.dtype) for name, tensor in found.items()}
        check(config, {name: Entry(kinds[name], tensor.shape) for name, tensor in found.items()})
        return config, found
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, BadZipFile, CheckpointError) as error:
        raise EngineError(f"the {engine} engine's weights cannot be read: {error}") from error
