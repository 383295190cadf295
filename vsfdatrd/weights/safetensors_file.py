"""Safetensors files as named tensors. The safetensors package parses the header; values are read on demand.

The package checks that tensors have the right number of bytes and that there are no gaps, but it memory-maps the file,
and if another program truncates a mapped file, this process crashes. So values are read with ordinary file reads.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from vsfdatrd.errors import CheckpointError
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

MAX_HEADER = 1 << 24
"""Longest accepted header in bytes; the header of a network with 100,000 tensors is shorter."""

_DTYPES = {kind.upper().replace("FP", "F").replace("INT", "I").replace("UI", "U"): kind for kind in STORED_DTYPES}
"""Names of data types in safetensors files, such as F32, BF16 and U8 -> keys of `STORED_DTYPES`."""


class SafetensorsFile:
    """A .safetensors file: an eight-byte header length, a JSON header, then the tensor values without gaps.

    Raises:
        CheckpointError: The file is damaged, or stores a tensor in an unsupported type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = check_file(path).st_size
        with reading(path), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER):
            raise self._damaged(f"its header cannot be {length:,} bytes long in a file of {size:,} bytes")
        self.entries: dict[str, Entry] = {}
        self._starts: dict[str, int] = {}
        """Where the values of each tensor begin in the file."""
        start = 8 + length
        try:
            with reading(path), safe_open(path, "np") as opened:
                for name in opened.offset_keys():
                    view = opened.get_slice(name)
                    entry = self.entries[name] = self._entry(name, view.get_dtype(), tuple(view.get_shape()))
                    self._starts[name] = start
                    start += entry.count * np.dtype(STORED_DTYPES[entry.dtype]).itemsize
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise self._damaged(f"its header does not describe it ({reason[:160]})") from error

    def _damaged(self, reason: str) -> CheckpointError:
        return refusal(self.path, f"is damaged: {reason}; download it again")

    def _entry(self, name: str, dtype: str, shape: tuple[int, ...]) -> Entry:
        if dtype not in _DTYPES:
            raise refusal(self.path, f"stores {name!r} as {dtype[:20]}; convert it to fp16, bf16 or fp32")
        if not is_valid_shape(shape):
            raise self._damaged(f"its tensor {name!r} has the shape {str(shape)[:80]}")
        return Entry(_DTYPES[dtype], shape)

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        with reading(self.path), self.path.open("rb") as file:
            for name, key in names.items():
                entry = self.entries[key]
                values = np.empty(entry.count, STORED_DTYPES[entry.dtype])
                file.seek(self._starts[key])
                if values.size and file.readinto(values.view(np.uint8)) != values.nbytes:
                    raise self._damaged("it ended early")
                yield name, decode_values(self.path, name, values.reshape(entry.shape), entry.dtype)
