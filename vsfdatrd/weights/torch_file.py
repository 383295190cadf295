"""PyTorch files (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) as named tensors, read without PyTorch.

Both formats of `torch.save` consist of a pickle that describes a tree of dicts and tensors, and the tensor values
outside of it:

    zip (since 1.6)     <name>/data.pkl, and <name>/data/<key> for each storage, not compressed
    legacy              five pickles (magic number, version, system, the tree, the storages' keys), then the storages

The pickle is read as data (`pickle_data`), so nothing in it can run. Values are read on demand, and never more than the
file can hold.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights import pickle_data
from vsfdatrd.weights.files import (
    STORED,
    Array,
    Entry,
    check_file,
    finite_float32,
    is_valid_shape,
    refuse,
    to_numpy_type,
)
from vsfdatrd.weights.pickle_data import GlobalName, Opaque

MAX_PICKLE = 64 << 20
"""Largest accepted pickle in bytes; that of 10,000 tensors with an optimizer has about 5 million."""
MAX_DIRECTORY = 16 << 20
"""Largest accepted zip directory in bytes; that of 100,000 storages has 10 million."""
MAX_DEPTH = 8
"""Largest nesting depth of dicts that are searched for tensors."""
MAX_VISITS = 300_000
"""Largest number of tree entries visited; a dict that is referenced several times counts each time."""
MAX_KEY = 400
"""Longest dict key in characters; longer ones are truncated."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_TEXT = b"L%dL\n" % LEGACY_MAGIC
"""First bytes of a legacy file in pickle protocol 0 or 1; later protocols start with ``\\x80`` and their number."""

_SAVE = "save its state_dict() as .safetensors on a machine where you trust it"

_STORAGES = {
    f"{name}Storage": kind
    for name, kind in (
        *(("Double", "fp64"), ("Float", "fp32"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Bool", "bool")),
        *(("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8")),
    )
}
"""torch storage classes -> data types. Complex and quantized types are not supported."""
_WHOLE = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
_TORCH_DTYPES = dict(zip(_WHOLE, _WHOLE, strict=True)) | {
    **{"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
    **{"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"},
}
_NUMPY_DTYPES = {STORED[kind].lstrip("<"): kind for kind in (*_WHOLE[:-1], "fp64", "fp32", "fp16")} | {"b1": "bool"}


_PERSISTENT_TEXT = re.compile(r"\('storage', <class '([\w.]{1,60})'>, '(\w{1,20})', '[\w:]{1,20}', (\d{1,15})[,)]")
"""Persistent id in pickle protocol 0, where it has to be text."""


@dataclass(frozen=True, slots=True)
class _Storage:
    """A contiguous run of values in the file."""

    key: str
    dtype: str
    """Data type; empty if the tensor specifies it (UntypedStorage)."""
    count: int
    """Number of values, or of bytes if there is no dtype."""
    start: int = 0
    """Index of the first value within the storage that the key refers to."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor as its pickle describes it: a view of a storage. Not validated yet."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _NumPyDtype:
    code: str
    order: str = "<"


@dataclass(slots=True)
class _NumPyArray:
    """A NumPy array, whose values are in the pickle itself. Filled in by `_build`."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: object = b""


@dataclass(frozen=True, slots=True)
class _Latin1:
    """Bytes that pickle protocol 2 stores as text. Not decoded here, because a pickle may refer to them many times."""

    text: str


# Replacements for the functions that describe tensors


def _rebuilt(arguments: tuple[Any, ...]) -> Any:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, and `_rebuild_tensor`."""
    storage, offset, shape, strides = arguments[:4]
    flags = arguments[6] if len(arguments) > 6 else None
    if not isinstance(storage, _Storage) or not storage.dtype or (isinstance(flags, dict) and any(flags.values())):
        return Opaque("torch.Tensor")  # flags: lazily conjugated or negated
    return _Tensor(storage, storage.dtype, offset, tuple(shape), tuple(strides))


def _rebuilt_typed(arguments: tuple[Any, ...]) -> Any:
    """``torch._utils._rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)``."""
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    dtype_name = _TORCH_DTYPES.get(dtype.full.removeprefix("torch.")) if isinstance(dtype, GlobalName) else None
    if not isinstance(storage, _Storage) or dtype_name is None:
        return Opaque("torch.Tensor")
    return _Tensor(storage, dtype_name, offset, tuple(shape), tuple(strides))


def _first_argument(arguments: tuple[Any, ...]) -> Any:
    """Parameter, buffer or device tensor: return its data."""
    return arguments[0]


def _of_subclass(arguments: tuple[Any, ...]) -> Any:
    """``torch._tensor._rebuild_from_type_v2(function, type, arguments, state)``."""
    function, _, inner = arguments[:3]
    rebuild = _CALLS.get(function.full) if isinstance(function, GlobalName) else None
    return rebuild(inner) if rebuild and rebuild is not _of_subclass else Opaque("torch.Tensor")


def _ordered(arguments: tuple[Any, ...]) -> Any:
    """``OrderedDict()`` and, as written by Python 2, ``OrderedDict([[key, value], ...])``."""
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        return pairs
    return pickle_data.filled({}, [part for key, value in pairs for part in (key, value)])


def _array(arguments: tuple[Any, ...]) -> Any:
    """``numpy._core.numeric._frombuffer(buffer, dtype, shape, order)``."""
    data, dtype, shape, order = arguments
    return _NumPyArray(_values_of(dtype), tuple(shape), order == "F", data)


_CALLS: dict[str, pickle_data.Call] = {
    "torch._utils._rebuild_tensor": _rebuilt,
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_typed,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_device_tensor_from_numpy": _first_argument,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._tensor._rebuild_from_type_v2": _of_subclass,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch.nn.parameter.Buffer": _first_argument,
    "collections.OrderedDict": _ordered,
    "typing.OrderedDict": _ordered,
    "collections.Counter": _ordered,
    "collections.defaultdict": lambda arguments: {},
    "_codecs.encode": lambda arguments: _Latin1(arguments[0]),
    "numpy.dtype": lambda arguments: _NumPyDtype(str(arguments[0])[:8]),
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), lambda arguments: _NumPyArray()
    ),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _array),
}


def _build(target: Any, state: Any) -> Any:
    """Apply a state to an object; the state of unknown objects is discarded."""
    if isinstance(target, _NumPyDtype):
        target.order = state[1]
    elif isinstance(target, _NumPyArray):
        _, shape, dtype, target.fortran, target.data = state
        target.dtype, target.shape = _values_of(dtype), tuple(shape)
    return target


def _values_of(dtype: Any) -> str:
    """Data type of a NumPy array; empty for unsupported types and big-endian values."""
    if not isinstance(dtype, _NumPyDtype) or dtype.order not in ("<", "|", "="):
        return ""
    return _NUMPY_DTYPES.get(dtype.code.lstrip("<|="), "")


def _persistent(identifier: Any) -> Any:
    """Resolve ``("storage", class, key, device, count)``; in legacy files ``(key, start, count)`` of a view follows."""
    if isinstance(identifier, str) and (text := _PERSISTENT_TEXT.match(identifier)):
        identifier = ("storage", GlobalName(text[1]), text[2], "", int(text[3]))
    match identifier:
        case ("storage", GlobalName(full=kind), str(key), _, int(count), *rest):
            dtype = "" if kind.endswith("UntypedStorage") else _STORAGES.get(kind.rpartition(".")[2])
            if dtype is None:
                return Opaque(kind)
            match rest:
                case [(_, int(start), int(size))]:
                    return _Storage(key, dtype, size, start)
            return _Storage(key, dtype, count)
    return Opaque("a persistent object")


# The file


class TorchFile:
    """A file written by `torch.save`: a state dict, by itself or within a training checkpoint.

    A tensor's name consists of the dict keys that lead to it, joined by ``/``.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is damaged, unsafe, or in an unsupported format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = check_file(path).st_size
        self._places: dict[str, tuple[int, int]] = {}
        """Location of each storage: offset in the file and size, in bytes."""
        self._objects: list[str] = []
        """Class names of objects that are neither tensors nor dicts."""
        try:
            with path.open("rb") as file:
                tree = self._read_zip(file) if file.read(4) == b"PK\x03\x04" else self._read_legacy(file)
        except pickle_data.ForbiddenName as error:
            raise refuse(path, f"was refused because reading it would run code ({error}); {_SAVE}") from error
        except pickle_data.PickleError as error:
            raise self._damaged(str(error)) from error
        except OSError as error:
            raise refuse(path, f"cannot be read ({error}); check its permissions") from error
        self._tensors = self._collect_tensors(tree)
        self.entries: dict[str, Entry] = {}
        claimed = 0
        for name, tensor in self._tensors.items():
            entry = self.entries[name] = Entry(tensor.dtype, tensor.shape)
            reach = _storage_extent(tensor) if isinstance(tensor, _Tensor) else 0
            claimed += max(entry.count, reach) * np.dtype(STORED[tensor.dtype]).itemsize
        # A tensor with strides of 0 repeats stored values; without a limit, a small file could fill the memory.
        if claimed > 8 * self._size:
            raise self._damaged(f"its {self._size:,} bytes claim to hold {claimed:,}")
        if not self.entries and self._objects:
            content = f"a Python object ({self._objects[0][:100]}) instead of weights"
            raise refuse(path, f"holds {content}, and creating one would run code; {_SAVE}")

    def _damaged(self, reason: str) -> CheckpointError:
        return refuse(self.path, f"is truncated or damaged: {reason[:200]}; download it again")

    def _load(self, file: IO[bytes]) -> Any:
        return pickle_data.load(file, _CALLS, _persistent, _build)

    def _read_zip(self, file: IO[bytes]) -> Any:
        try:
            with zipfile.ZipFile(_Bounded(file)) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._damaged(str(error)) from error
        pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            advice = "unpack it, or give a .safetensors or .pth file"
            raise refuse(self.path, f"is a zip archive without PyTorch weights; {advice}")
        folder = pickles[0].filename.removesuffix("data.pkl")
        result = {record.filename: record for record in records}
        if not all(map(_is_stored, records)):
            raise refuse(self.path, "has compressed parts, which PyTorch does not write; download the original file")
        if f"{folder}constants.pkl" in result:
            raise refuse(self.path, f"is a TorchScript program, which would run code; {_SAVE}")
        if (order := result.get(f"{folder}byteorder")) and self._read_member(file, order, 16) != b"little":
            raise refuse(self.path, "was written by a computer with another byte order; save it again as .safetensors")
        for name, record in result.items():
            if name.startswith(f"{folder}data/"):
                self._places[name.removeprefix(f"{folder}data/")] = self._span(file, record)
        return self._load(io.BytesIO(self._read_member(file, pickles[0], MAX_PICKLE)))

    def _span(self, file: IO[bytes], record: zipfile.ZipInfo) -> tuple[int, int]:
        """Offset and size in bytes of the content of a zip member."""
        if not 0 <= record.header_offset < self._size:
            raise self._damaged(f"its part {record.filename[:60]!r} is not where its directory says")
        file.seek(record.header_offset)
        head = file.read(30)
        if head[:4] != b"PK\x03\x04" or len(head) < 30:
            raise self._damaged(f"its part {record.filename[:60]!r} is not where its directory says")
        start = (
            record.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        )  # lengths of the name and the extra field
        if start + record.file_size > self._size:
            raise self._damaged(f"its part {record.filename[:60]!r} is incomplete")
        return start, record.file_size

    def _read_member(self, file: IO[bytes], record: zipfile.ZipInfo, most: int) -> bytes:
        start, size = self._span(file, record)
        if size > most:
            raise self._damaged(f"its part {record.filename[:60]!r} has {size:,} bytes")
        file.seek(start)
        return file.read(size)

    def _read_legacy(self, file: IO[bytes]) -> Any:
        file.seek(257)
        if file.read(5) == b"ustar":
            raise refuse(self.path, f"is in PyTorch's format from before 2017, which is not supported; {_SAVE}")
        file.seek(0)
        head = io.BytesIO(file.read(MAX_PICKLE))
        first = self._load(head)
        if first != LEGACY_MAGIC:
            return first  # possibly a plain pickle of NumPy arrays
        _, system = self._load(head), self._load(head)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise refuse(self.path, "was written by a computer with another byte order; save it again as .safetensors")
        sizes: dict[str, int] = {}

        def persistent(identifier: Any) -> Any:
            storage = _persistent(identifier)
            if isinstance(storage, _Storage) and storage.dtype:
                sizes[storage.key] = np.dtype(STORED[storage.dtype]).itemsize
            return storage

        tree = pickle_data.load(head, _CALLS, persistent, _build)
        keys = self._load(head)
        position = head.tell()
        for key in keys if isinstance(keys, list) else []:
            file.seek(position)
            count = int.from_bytes(file.read(8), "little")
            if not isinstance(key, str) or key not in sizes:
                break  # not a weight: its element size, and so the offset of the next storage, is unknown
            self._places[key] = (position + 8, count * sizes[key])
            position += 8 + count * sizes[key]
            if position > self._size:
                raise self._damaged(f"it ends within its storage {key[:40]!r}")
        return tree

    def _collect_tensors(self, tree: Any) -> dict[str, "_Tensor | _NumPyArray"]:
        """Every tensor in a tree of dicts, by its name. Tensors of unsupported types are skipped."""
        result: dict[str, _Tensor | _NumPyArray] = {}
        waiting = [("", tree, 0)]
        visits = 0
        while waiting:
            prefix, node, depth = waiting.pop()
            if isinstance(node, Opaque):
                self._objects.append(node.name)
                node = node.items
            elif isinstance(node, list | tuple):
                node = dict(enumerate(node)) if depth == 0 else {}
            if not isinstance(node, dict):
                continue
            below = []
            for key, value in node.items():
                visits += 1
                if visits > MAX_VISITS:
                    raise self._damaged("it has more entries than any weights file")
                name = f"{prefix}{str(key)[:MAX_KEY]}"
                if isinstance(value, _Tensor | _NumPyArray):
                    if self._is_sound(name, value):
                        result[name] = value
                elif isinstance(value, dict | Opaque) and depth < MAX_DEPTH:
                    below.append((f"{name}/", value, depth + 1))
            waiting += reversed(below)
        return result

    def _is_sound(self, name: str, tensor: "_Tensor | _NumPyArray") -> bool:
        """Return whether a tensor's type is supported. Raises CheckpointError if its shape or values are invalid."""
        if not tensor.dtype:
            return False
        if not is_valid_shape(tensor.shape):
            raise self._damaged(f"its tensor {name!r} has the shape {str(tensor.shape)[:80]}")
        size, length = np.dtype(STORED[tensor.dtype]).itemsize, math.prod(tensor.shape)
        if isinstance(tensor, _NumPyArray):
            data = tensor.data.text if isinstance(tensor.data, _Latin1) else tensor.data
            if not isinstance(data, bytes | bytearray | str) or len(data) != length * size:
                raise self._damaged(f"its array {name!r} of shape {tensor.shape} is incomplete")
            return True
        numbers = (tensor.offset, tensor.storage.start, *tensor.strides)
        if len(tensor.strides) != len(tensor.shape) or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
            raise self._damaged(f"its tensor {name!r} has an impossible position or stride")
        if tensor.storage.key not in self._places:
            raise self._damaged(f"the values of its tensor {name!r} are missing")
        if (tensor.storage.start + tensor.offset + _storage_extent(tensor)) * size > self._places[tensor.storage.key][
            1
        ]:
            raise self._damaged(f"the values of its tensor {name!r} are incomplete")
        return True

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        with self.path.open("rb") as file:
            for name, key in names.items():
                tensor = self._tensors[key]
                values = (
                    self._unpacked(key, tensor) if isinstance(tensor, _NumPyArray) else self._values(file, key, tensor)
                )
                is_float = self.entries[key].is_float
                yield name, finite_float32(self.path, name, to_numpy_type(values, tensor.dtype)) if is_float else values

    def _values(self, file: IO[bytes], key: str, tensor: _Tensor) -> Array:
        """Read the values of a tensor in their stored type, contiguous."""
        kind = np.dtype(STORED[tensor.dtype])
        row = np.empty(_storage_extent(tensor), kind)
        file.seek(self._places[tensor.storage.key][0] + (tensor.storage.start + tensor.offset) * kind.itemsize)
        if row.size and file.readinto(row.view(np.uint8)) != row.nbytes:  # type: ignore[attr-defined]
            raise self._damaged(f"it ends within its tensor {key!r}")
        strides = [step * kind.itemsize for step in tensor.strides]
        if not row.size:
            return np.empty(tensor.shape, kind)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(row, tensor.shape, strides)).reshape(tensor.shape)

    def _unpacked(self, key: str, array: _NumPyArray) -> Array:
        """Decode the values of a NumPy array."""
        data = array.data.text if isinstance(array.data, _Latin1) else array.data
        try:
            data = data.encode("latin-1") if isinstance(data, str) else data
        except UnicodeEncodeError as error:
            raise self._damaged(f"its array {key!r} holds something other than bytes") from error
        values: Array = np.frombuffer(data, STORED[array.dtype])  # type: ignore[call-overload]
        return values.reshape(array.shape, order="F" if array.fortran else "C").copy()


class _Bounded(io.RawIOBase):
    """File wrapper for `zipfile`, which otherwise reads a directory of any size that the file claims."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell  # type: ignore[method-assign]

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY:
            raise ValueError(f"its directory cannot be {size:,} bytes long")
        return self._file.read(size)


def _is_stored(record: zipfile.ZipInfo) -> bool:
    """Return whether a zip member is neither compressed nor encrypted."""
    plain = record.compress_type == zipfile.ZIP_STORED and not record.flag_bits & 1
    return plain and record.file_size == record.compress_size


def _storage_extent(tensor: _Tensor) -> int:
    """Number of storage values from the first to the last one of a tensor."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True))
