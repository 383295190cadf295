"""What a weights file is, whatever its format: named tensors. `format` finds the reader for a file."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from os import stat_result
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.errors import TORCH_PIP, CheckpointError
from vsfdatrd.system.files import sha256_file

type Array = NDArray[Any]

STORED = {
    "fp64": "<f8", "fp32": "<f4", "fp16": "<f2", "bf16": "<u2", "fp8_e4m3": "u1", "fp8_e5m2": "u1",
    "int64": "<i8", "int32": "<i4", "int16": "<i2", "int8": "i1",
    "uint64": "<u8", "uint32": "<u4", "uint16": "<u2", "uint8": "u1", "bool": "?",
}  # fmt: skip
"""Types of values -> how NumPy reads them from a file. It has no bf16 and no fp8, see `widened`."""
_FLOATS = ("fp64", "fp32", "fp16", "bf16", "fp8_e4m3", "fp8_e5m2")

ONNX = b"\x08"
"""How an ONNX file begins: with its format's version, as protobuf writes it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says of one tensor."""

    dtype: str
    """A key of `STORED`."""
    shape: tuple[int, ...]

    @property
    def is_float(self) -> bool:
        """Whether it can hold weights."""
        return self.dtype in _FLOATS

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class WeightsFile(Protocol):
    """A weights file of any format, its tensors not read yet."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """The tensors by the names the file gives them; between keys of dicts within dicts there is a ``/``."""
        ...

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors. names: name to give -> name in the file. Float values come as float32, others as they are.

        Raises CheckpointError if the file cannot be read (any more), or for values that are not finite.
        """
        ...


def refuse(path: Path, reason: str) -> CheckpointError:
    """The error for a file. reason: continues "the weights file X ..."."""
    return CheckpointError(f"the weights file {str(path)!r} {reason}")


def check_file(path: Path) -> stat_result:
    """The file's status. Raises CheckpointError unless it is a regular file with something in it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise refuse(path, "does not exist; check the path, or give a name of the catalogue") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise refuse(path, f"cannot be opened ({error}); check the path and its permissions") from error
    if S_ISDIR(status.st_mode):
        raise refuse(path, "is a directory; give the path of a .safetensors or .pth file in it")
    if not S_ISREG(status.st_mode):
        raise refuse(path, "is a device or a pipe; give the path of a file on disk")
    if status.st_size == 0:
        raise refuse(path, "is empty; download it again")
    return status


def sha256(path: Path) -> str:
    """The file's SHA-256 as hexadecimal digits; computed once as long as the file does not change.

    Raises CheckpointError if it cannot be read.
    """
    status = check_file(path)
    return _sha256(path.absolute(), status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, modified: int, inode: int) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error


def require_torch(path: Path, what: str) -> None:
    """Raises CheckpointError unless PyTorch is installed. what: continues "the weights file X ..." up to "needs"."""
    if find_spec("torch") is None:
        raise refuse(path, f"{what} needs PyTorch: {TORCH_PIP}")


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX file by its name, or by how it begins. Raises CheckpointError if it is no file."""
    check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error
    return path.suffix.lower() == ".onnx" or (head.startswith(ONNX) and head[8:9] != b"{")  # that is safetensors


def plain_shape(shape: tuple[object, ...]) -> bool:
    """Whether a tensor can have this shape. One side of zero does not excuse the others: NumPy multiplies them."""
    sides = [side for side in shape if type(side) is int and 0 <= side < 1 << 40]
    return len(sides) == len(shape) <= 8 and math.prod(side or 1 for side in sides) < 1 << 40


def widened(values: Array, dtype: str) -> Array:
    """Values as they are stored -> as NumPy calculates with them. dtype: a key of `STORED`."""
    if dtype == "bf16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("fp8"):
        import ml_dtypes

        kinds = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}
        values = values.view(kinds[dtype]).astype(np.float32)
    return values


def finite(path: Path, name: str, values: Array) -> Array:
    """The values as contiguous float32 of their own. Raises CheckpointError if one is NaN or too large."""
    with np.errstate(over="ignore"):
        values = np.array(values, np.float32, order="C", copy=True)
    if not np.isfinite(values).all():
        raise refuse(
            path, f"holds values that are not finite numbers, in {name!r}: its training diverged or it is damaged; "
            "use an earlier checkpoint or download it again"
        )  # fmt: skip
    return values
