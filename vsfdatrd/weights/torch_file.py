"""PyTorch files (``.pth``, ``.pt``, ``.ckpt``, ``.bin``) as named tensors, read without PyTorch.

Both formats of `torch.save` consist of a pickle that describes a tree of dicts and tensors, and the tensor values
outside of it:

    zip (since 1.6)     <name>/data.pkl, and <name>/data/<key> for each storage, not compressed
    legacy              five pickles (magic number, version, system, the tree, the storages' keys), then the storages

The pickle is read as data (`pickle_data`, with the functions of `torch_pickle`), so nothing in it can run. Values are
read on demand, and never more than the file can hold.
"""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from vsfdatrd.errors import CheckpointError
from vsfdatrd.weights import pickle_data, torch_pickle
from vsfdatrd.weights.files import (
    STORED_DTYPES,
    Array,
    Entry,
    check_file,
    decode_values,
    is_valid_shape,
    reading,
    refusal,
)
from vsfdatrd.weights.pickle_data import Opaque
from vsfdatrd.weights.torch_pickle import NumPyArray, TensorView

MAX_PICKLE = 64 << 20
"""Largest accepted pickle in bytes; that of 10,000 tensors with an optimizer has about 5 million."""
MAX_DIRECTORY = 16 << 20
"""Largest accepted zip directory in bytes; that of 100,000 storages has 10 million."""
MAX_DEPTH = 8
"""Largest nesting depth of dicts that are searched for tensors."""
MAX_VISITS = 300_000
"""Largest number of tree entries visited; a dict that is referenced several times counts each time."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_TEXT = b"L%dL\n" % LEGACY_MAGIC
"""First bytes of a legacy file in pickle protocol 0 or 1; later protocols start with ``\\x80`` and their number."""

_SAVE_ADVICE = "save its state_dict() as .safetensors on a machine where you trust it"


class TorchFile:
    """A file written by `torch.save`: a state dict, by itself or within a training checkpoint.

    A tensor's name consists of the dict keys that lead to it, joined by ``/``.

    Raises:
        CheckpointError: The file is damaged, unsafe, or in an unsupported format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = check_file(path).st_size
        self._locations: dict[str, tuple[int, int]] = {}
        """Location of each storage: offset in the file and size, in bytes."""
        self._objects: list[str] = []
        """Class names of objects that are neither tensors nor dicts."""
        try:
            with reading(path), path.open("rb") as file:
                tree = self._read_zip(file) if file.read(4) == b"PK\x03\x04" else self._read_legacy(file)
        except pickle_data.ForbiddenName as error:
            raise refusal(path, f"was refused because reading it would run code ({error}); {_SAVE_ADVICE}") from error
        except pickle_data.PickleError as error:
            raise self._damaged(str(error)) from error
        self._tensors = self._collect_tensors(tree)
        self.entries: dict[str, Entry] = {}
        claimed = 0
        for name, tensor in self._tensors.items():
            entry = self.entries[name] = Entry(tensor.dtype, tensor.shape)
            extent = torch_pickle.storage_extent(tensor) if isinstance(tensor, TensorView) else 0
            claimed += max(entry.count, extent) * np.dtype(STORED_DTYPES[tensor.dtype]).itemsize
        # A tensor with strides of 0 repeats stored values; without a limit, a small file could fill the memory.
        if claimed > 8 * self._size:
            raise self._damaged(f"its {self._size:,} bytes claim to hold {claimed:,}")
        if not self.entries and self._objects:
            content = f"a Python object ({self._objects[0][:100]}) instead of weights"
            raise refusal(path, f"holds {content}, and creating one would run code; {_SAVE_ADVICE}")

    def _damaged(self, reason: str) -> CheckpointError:
        return refusal(self.path, f"is truncated or damaged: {reason[:200]}; download it again")

    def _load(self, file: IO[bytes], persistent: Callable[[Any], Any] = torch_pickle.resolve_storage) -> Any:
        return pickle_data.load(file, torch_pickle.CALLS, persistent, torch_pickle.set_state)

    def _read_zip(self, file: IO[bytes]) -> Any:
        try:
            with zipfile.ZipFile(_BoundedReader(file)) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise self._damaged(str(error)) from error
        pickles = [record for record in records if record.filename.rpartition("/")[2] == "data.pkl"]
        if not pickles:
            advice = "unpack it, or give a .safetensors or .pth file"
            raise refusal(self.path, f"is a zip archive without PyTorch weights; {advice}")
        folder = pickles[0].filename.removesuffix("data.pkl")
        result = {record.filename: record for record in records}
        if not all(map(_is_stored, records)):
            raise refusal(self.path, "has compressed parts, which PyTorch does not write; download the original file")
        if f"{folder}constants.pkl" in result:
            raise refusal(self.path, f"is a TorchScript program, which would run code; {_SAVE_ADVICE}")
        if (order := result.get(f"{folder}byteorder")) and self._read_member(file, order, 16) != b"little":
            raise refusal(self.path, "was written by a computer with another byte order; save it again as .safetensors")
        for name, record in result.items():
            if name.startswith(f"{folder}data/"):
                self._locations[name.removeprefix(f"{folder}data/")] = self._locate_member(file, record)
        return self._load(io.BytesIO(self._read_member(file, pickles[0], MAX_PICKLE)))

    def _locate_member(self, file: IO[bytes], record: zipfile.ZipInfo) -> tuple[int, int]:
        """Offset and size in bytes of the content of a zip member."""
        if not 0 <= record.header_offset < self._size:
            raise self._damaged(f"its part {record.filename[:60]!r} is not where its directory says")
        file.seek(record.header_offset)
        head = file.read(30)
        if head[:4] != b"PK\x03\x04" or len(head) < 30:
            raise self._damaged(f"its part {record.filename[:60]!r} is not where its directory says")
        name_length, extra_length = struct.unpack("<HH", head[26:])
        start = record.header_offset + 30 + name_length + extra_length
        if start + record.file_size > self._size:
            raise self._damaged(f"its part {record.filename[:60]!r} is incomplete")
        return start, record.file_size

    def _read_member(self, file: IO[bytes], record: zipfile.ZipInfo, most: int) -> bytes:
        start, size = self._locate_member(file, record)
        if size > most:
            raise self._damaged(f"its part {record.filename[:60]!r} has {size:,} bytes")
        file.seek(start)
        return file.read(size)

    def _read_legacy(self, file: IO[bytes]) -> Any:
        file.seek(257)
        if file.read(5) == b"ustar":
            raise refusal(self.path, f"is in PyTorch's format from before 2017, which is not supported; {_SAVE_ADVICE}")
        file.seek(0)
        head = io.BytesIO(file.read(MAX_PICKLE))
        first = self._load(head)
        if first != LEGACY_MAGIC:
            return first  # possibly a plain pickle of NumPy arrays
        _, system = self._load(head), self._load(head)
        if isinstance(system, dict) and system.get("little_endian") is False:
            raise refusal(self.path, "was written by a computer with another byte order; save it again as .safetensors")
        sizes: dict[str, int] = {}

        def persistent(identifier: Any) -> Any:
            storage = torch_pickle.resolve_storage(identifier)
            if isinstance(storage, torch_pickle.Storage) and storage.dtype:
                sizes[storage.key] = np.dtype(STORED_DTYPES[storage.dtype]).itemsize
            return storage

        tree, keys = self._load(head, persistent), self._load(head)
        position = head.tell()
        for key in keys if isinstance(keys, list) else []:
            file.seek(position)
            count = int.from_bytes(file.read(8), "little")
            if not isinstance(key, str) or key not in sizes:
                break  # not a weight: its element size, and so the offset of the next storage, is unknown
            self._locations[key] = (position + 8, count * sizes[key])
            position += 8 + count * sizes[key]
            if position > self._size:
                raise self._damaged(f"it ends within its storage {key[:40]!r}")
        return tree

    def _collect_tensors(self, tree: Any) -> dict[str, "TensorView | NumPyArray"]:
        """Every tensor in a tree of dicts, by its name. Tensors of unsupported types are skipped."""
        result: dict[str, TensorView | NumPyArray] = {}
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
                name = f"{prefix}{key}"
                if isinstance(value, TensorView | NumPyArray):
                    if self._is_supported(name, value):
                        result[name] = value
                elif isinstance(value, dict | Opaque) and depth < MAX_DEPTH:
                    below.append((f"{name}/", value, depth + 1))
            waiting += reversed(below)
        return result

    def _is_supported(self, name: str, tensor: "TensorView | NumPyArray") -> bool:
        """Return whether a tensor's type is supported. Raises CheckpointError if its shape or values are invalid."""
        if not tensor.dtype:
            return False
        if not is_valid_shape(tensor.shape):
            raise self._damaged(f"its tensor {name!r} has the shape {str(tensor.shape)[:80]}")
        size, length = np.dtype(STORED_DTYPES[tensor.dtype]).itemsize, math.prod(tensor.shape)
        if isinstance(tensor, NumPyArray):
            if not isinstance(tensor.data, bytes | bytearray | str) or len(tensor.data) != length * size:
                raise self._damaged(f"its array {name!r} of shape {tensor.shape} is incomplete")
            return True
        numbers = (tensor.offset, tensor.storage.start, *tensor.strides)
        if len(tensor.strides) != len(tensor.shape) or not all(type(n) is int and 0 <= n < 1 << 40 for n in numbers):
            raise self._damaged(f"its tensor {name!r} has an impossible position or stride")
        if tensor.storage.key not in self._locations:
            raise self._damaged(f"the values of its tensor {name!r} are missing")
        _, stored_bytes = self._locations[tensor.storage.key]
        if (tensor.storage.start + tensor.offset + torch_pickle.storage_extent(tensor)) * size > stored_bytes:
            raise self._damaged(f"the values of its tensor {name!r} are incomplete")
        return True

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        with reading(self.path), self.path.open("rb") as file:
            for name, key in names.items():
                tensor = self._tensors[key]
                if isinstance(tensor, NumPyArray):
                    values = self._decode_array(key, tensor)
                else:
                    values = self._read_values(file, key, tensor)
                yield name, decode_values(self.path, name, values, tensor.dtype)

    def _read_values(self, file: io.BufferedReader, name: str, tensor: TensorView) -> Array:
        """Read the values of a tensor as a contiguous array of their stored type."""
        kind = np.dtype(STORED_DTYPES[tensor.dtype])
        row = np.empty(torch_pickle.storage_extent(tensor), kind)
        if not row.size:
            return np.empty(tensor.shape, kind)
        file.seek(self._locations[tensor.storage.key][0] + (tensor.storage.start + tensor.offset) * kind.itemsize)
        if file.readinto(row.view(np.uint8)) != row.nbytes:
            raise self._damaged(f"it ends within its tensor {name!r}")
        strides = [step * kind.itemsize for step in tensor.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(row, tensor.shape, strides)).reshape(tensor.shape)

    def _decode_array(self, name: str, array: NumPyArray) -> Array:
        """Decode the values of a NumPy array."""
        try:
            data = array.data.encode("latin-1") if isinstance(array.data, str) else array.data
        except UnicodeEncodeError as error:
            raise self._damaged(f"its array {name!r} holds something other than bytes") from error
        values: Array = np.frombuffer(data, STORED_DTYPES[array.dtype])  # type: ignore[call-overload]
        return values.reshape(array.shape, order="F" if array.fortran else "C").copy()


class _BoundedReader(io.RawIOBase):
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
