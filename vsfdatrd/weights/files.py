"""A weights file of any format as named tensors. `format` selects the reader for a file."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from os import stat_result
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.errors import TORCH_INSTALL_COMMAND, CheckpointError
from vsfdatrd.system.files import sha256_file

type Array = NDArray[Any]

_FLOAT_DTYPES = {"fp64": "<f8", "fp32": "<f4", "fp16": "<f2", "bf16": "<u2", "fp8_e4m3": "u1", "fp8_e5m2": "u1"}
STORED_DTYPES = {
    **_FLOAT_DTYPES,
    **{"int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1"},
    **{"uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "u1", "bool": "?"},
}
"""Data types -> NumPy type codes for reading them from a file. NumPy has no bf16 and no fp8; see `decode_values`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Data type and shape of one tensor in a file."""

    dtype: str
    """A key of `STORED_DTYPES`."""
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether the tensor can hold weights."""
        return self.dtype in _FLOAT_DTYPES

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class WeightsFile(Protocol):
    """A weights file of any format. Tensors are read on demand."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The tensors by their names in the file; keys of nested dicts are joined by ``/``."""

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors.

        Args:
            names: Name in the result -> name in the file.

        Yields:
            Name and values; floating-point values as float32, others as stored.

        Raises:
            CheckpointError: The file can no longer be read, or contains values that are not finite.
        """


def refusal(path: Path, reason: str) -> CheckpointError:
    """Build the error for a rejected file.

    Args:
        path: The file.
        reason: Completes "the weights file X ...".
    """
    return CheckpointError(f"the weights file {str(path)!r} {reason}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context in which an OSError becomes a CheckpointError: the file cannot be read."""
    try:
        yield
    except OSError as error:
        raise refusal(path, f"cannot be read ({error}); check its permissions") from error


def check_file(path: Path) -> stat_result:
    """Return the status of a non-empty regular file.

    Raises:
        CheckpointError: It is not one.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        raise refusal(path, "does not exist; check the path, or give a name of the catalog") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise refusal(path, f"cannot be opened ({error}); check the path and its permissions") from error
    if S_ISDIR(status.st_mode):
        raise refusal(path, "is a directory; give the path of a .safetensors or .pth file in it")
    if not S_ISREG(status.st_mode):
        raise refusal(path, "is a device or a pipe; give the path of a file on disk")
    if status.st_size == 0:
        raise refusal(path, "is empty; download it again")
    return status


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file as hexadecimal digits, cached until the file changes.

    Raises:
        CheckpointError: The file cannot be read.
    """
    status = check_file(path)
    return _sha256(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int, inode: int) -> str:
    with reading(path):
        return sha256_file(path)


def require_torch(path: Path, purpose: str) -> None:
    """Check that PyTorch is installed.

    Args:
        path: The file, for the message.
        purpose: The words between "the weights file X" and "needs PyTorch" in the message.

    Raises:
        CheckpointError: PyTorch is not installed.
    """
    if find_spec("torch") is None:
        raise refusal(path, f"{purpose} needs PyTorch: {TORCH_INSTALL_COMMAND}")


def is_valid_shape(shape: tuple[object, ...]) -> bool:
    """Return whether a tensor can have this shape: at most 8 dimensions and fewer than 2^40 elements.

    Dimensions of zero count as one, because NumPy checks the product of the others.
    """
    sides = [side for side in shape if type(side) is int and 0 <= side < 1 << 40]
    return len(sides) == len(shape) <= 8 and math.prod(side or 1 for side in sides) < 1 << 40


def decode_values(path: Path, name: str, values: Array, dtype: str) -> Array:
    """Convert values as stored to contiguous float32; those of integer types are returned as they are.

    Args:
        path: The file, for messages.
        name: The tensor's name, for messages.
        values: Values as stored.
        dtype: A key of `STORED_DTYPES`.

    Raises:
        CheckpointError: A value is NaN or beyond float32.
    """
    if dtype not in _FLOAT_DTYPES:
        return values
    if dtype == "bf16":  # the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    elif dtype.startswith("fp8"):
        import ml_dtypes

        values = values.view(ml_dtypes.float8_e4m3fn if dtype == "fp8_e4m3" else ml_dtypes.float8_e5m2)
    with np.errstate(over="ignore"):
        values = np.array(values, np.float32, order="C", copy=True)
    if not np.isfinite(values).all():
        raise refusal(
            path,
            f"holds values that are not finite numbers, in {name!r}: its training diverged or it is damaged; "
            "use an earlier checkpoint or download it again",
        )
    return values
