"""Weights files as named tensors, whatever their format. Only PyTorch's own formats need torch.

A file is judged by its content, not by its name, and nothing in it is believed before it is checked: every tensor of
a safetensors file must lie inside the file, and a pickle may build tensors but call nothing.
"""

import hashlib
import json
import math
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from os import stat_result
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.errors import CheckpointError

if TYPE_CHECKING:
    import torch

type Array = NDArray[Any]

MAX_HEADER = 1 << 24
"""Longest safetensors header that is read, in bytes; a network of 100,000 tensors has a shorter one."""

_DTYPES = {
    # safetensors' name: (how it is stored, common name); bf16 is widened by hand, NumPy does not know it
    "F64": ("<f8", "fp64"), "F32": ("<f4", "fp32"), "F16": ("<f2", "fp16"), "BF16": ("<u2", "bf16"),
    "I64": ("<i8", "int64"), "I32": ("<i4", "int32"), "I16": ("<i2", "int16"), "I8": ("i1", "int8"),
    "U64": ("<u8", "uint64"), "U32": ("<u4", "uint32"), "U16": ("<u2", "uint16"), "U8": ("u1", "uint8"),
    "BOOL": ("?", "bool"),
}  # fmt: skip
_FLOATS = ("fp64", "fp32", "fp16", "bf16")

ONNX = b"\x08"
"""How an ONNX file begins: with its format's version, as protobuf writes it."""

# Files that are often there instead of the weights, told by how they begin.
_IMPOSTORS = (
    (b"<", "is a web page or an XML file, not weights; the download went wrong, fetch the file itself"),
    (b"version https://git-lfs", "is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'"),
    (b"GGUF", "is a GGUF language model, not an image network"),
    (b"\x89HDF", "is an HDF5 file; convert the weights to .safetensors"),
    (ONNX, "looks like an ONNX file; give the .safetensors or .pth file the network was exported from"),
)

# Under which key training programs put the weights, the averaged ones first.
_WRAPPERS = (
    "params_ema", "params-ema", "ema", "params", "model_state_dict", "state_dict", "model", "net", "net_g", "netG",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """What a file says of one tensor."""

    dtype: str
    """``fp64``, ``fp32``, ``fp16``, ``bf16``, an integer's name or ``bool``."""
    shape: tuple[int, ...]
    offset: int = 0
    """Where its values begin in the file, where that is known."""

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
        """The tensors by the names the file gives them, without the keys that wrap all of them."""
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
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error


def require_torch(path: Path, what: str) -> None:
    """Raises CheckpointError unless PyTorch is installed. what: continues "the weights file X ..." up to "needs"."""
    if find_spec("torch") is None:
        raise refuse(path, f"{what} needs PyTorch: pip install torch")


def needs_torch(path: Path) -> bool:
    """Whether the file is in one of PyTorch's own formats. Raises CheckpointError if it is in no known format."""
    size = check_file(path).st_size
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length <= max(size, MAX_HEADER):
        return False
    if head.startswith(b"PK\x03\x04") or (head[0] == 0x80 and head[1:2] <= b"\x05") or head[257:262] == b"ustar":
        return True
    if path.suffix.lower() == ".safetensors":
        if length > size - 8:
            reason = f"is damaged: it announces a header of {length:,} bytes and has {max(0, size - 8):,} in all"
        else:
            reason = "is damaged: no safetensors header follows its first eight bytes"
        for start, impostor in _IMPOSTORS[:2]:
            reason = impostor if head.startswith(start) else reason
        raise refuse(path, reason if "; " in reason else f"{reason}; download it again")
    for start, reason in _IMPOSTORS:
        if head.startswith(start):
            raise refuse(path, reason)
    raise refuse(path, "is neither a safetensors nor a PyTorch file; give a .safetensors or .pth file of weights")


def is_onnx(path: Path) -> bool:
    """Whether the file is an ONNX file by its name, or by how it begins. Raises CheckpointError if it is no file."""
    check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error
    return path.suffix.lower() == ".onnx" or (head.startswith(ONNX) and head[8:9] != b"{")  # that is safetensors


def is_shader(head: bytes, suffix: str) -> bool:
    """Whether a file that begins so is a shader for mpv, of ArtCNN or another. suffix: of its name, as ``.glsl``."""
    return suffix.lower() in (".glsl", ".hook") or re.search(rb"^//!(?:DESC|HOOK|BIND) ", head, re.M) is not None


def open_weights(path: Path) -> WeightsFile:
    """Read what a weights file says of its tensors.

    Raises CheckpointError, naming the reason and a cure, for anything that is not a sound file of tensors.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise refuse(path, f"cannot be read ({error}); check its permissions") from error
    if is_shader(head, path.suffix) and head[8:9] != b"{":
        from vsfdatrd.archs.artcnn_glsl import GlslFile

        return GlslFile(path)
    if head.startswith(ONNX) and head[8:9] != b"{":
        from vsfdatrd.archs.artcnn_onnx import ArtCnnFile

        if (artcnn := ArtCnnFile.of(path)) is not None:
            return artcnn
    return TorchFile(path) if needs_torch(path) else SafetensorsFile(path)


class SafetensorsFile:
    """A .safetensors file: eight bytes of header length, a JSON header, then the tensors' values without gaps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = check_file(path).st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, MAX_HEADER):
                raise self._damaged(f"its header cannot be {length:,} bytes long in a file of {size:,} bytes")
            raw = file.read(length)
        try:
            header = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is no JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is no list of tensors")
        header.pop("__metadata__", None)
        self.entries: dict[str, Entry] = {}
        end = 0
        spans = {name: self._span(name, said) for name, said in header.items()}
        for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
            if start != end:
                raise self._damaged(f"the values of its tensor {name!r} overlap others or leave a gap")
            end = stop
            dtype, shape = header[name]["dtype"], tuple(header[name]["shape"])
            self.entries[name] = Entry(_DTYPES[dtype][1], shape, 8 + length + start)
        if 8 + length + end != size:
            what = "truncated" if 8 + length + end > size else "followed by data that belong to no tensor"
            raise self._damaged(f"it is {what}: {8 + length + end:,} bytes are described, {size:,} are there")

    def _damaged(self, reason: str) -> CheckpointError:
        return refuse(self.path, f"is damaged: {reason}; download it again")

    def _span(self, name: str, said: object) -> tuple[int, int]:
        """Checks what the header says of one tensor -> where its values start and stop."""
        match said:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]}:
                pass
            case _:
                raise self._damaged(f"its header does not describe the tensor {name!r}")
        if dtype not in _DTYPES:
            raise refuse(self.path, f"stores {name!r} as {dtype[:20]}; convert it to fp16, bf16 or fp32")
        if len(shape) > 8 or not all(type(side) is int and 0 <= side < 2**40 for side in shape):
            raise self._damaged(f"its tensor {name!r} has the shape {str(shape)[:80]}")
        if not 0 <= start <= stop or math.prod(shape) * np.dtype(_DTYPES[dtype][0]).itemsize != stop - start:
            raise self._damaged(f"its tensor {name!r} of shape {shape} does not fill bytes {start} to {stop}")
        return start, stop

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        stored = {entry_name: code for code, (_, entry_name) in _DTYPES.items()}
        with self.path.open("rb") as file:
            for name, key in names.items():
                entry = self.entries[key]
                values = np.empty(entry.shape, _DTYPES[stored[entry.dtype]][0])
                file.seek(entry.offset)
                if entry.count and file.readinto(values.reshape(-1).view(np.uint8)) != values.nbytes:
                    raise self._damaged("it ended early")
                if entry.dtype == "bf16":  # the upper half of a float32
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                yield name, finite(self.path, name, values) if entry.is_float else values


class TorchFile:
    """A file written by torch.save: a state dict, alone or inside what a training program keeps beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = check_file(path).st_size
        self._tensors = _flatten(_unwrap(self._load()))
        self.entries: dict[str, Entry] = {}
        claimed = 0
        for name, tensor in self._tensors.items():
            self.entries[name] = Entry(_torch_dtype(tensor), tuple(tensor.shape))
            claimed += tensor.numel() * tensor.element_size()
        # A tensor may repeat a single stored value any number of times; believed, that would fill the memory.
        if claimed > 8 * self._size:
            raise refuse(path, f"is damaged: its {self._size:,} bytes claim to hold {claimed:,}; download it again")

    def _load(self) -> object:
        require_torch(self.path, "is in PyTorch's format; reading it")
        import torch

        # torch judges a path by its suffix, so it gets one only where it is to map the file.
        mapped = _is_sound_archive(self.path) and self.path.suffix.lower() != ".safetensors"
        try:
            with self.path.open("rb") as file, warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected pickle protocol|Validating sparse tensor", UserWarning)
                source = self.path if mapped else file
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # damaged files raise nearly anything
            raise refuse(self.path, _why(str(error))) from error

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        for name, key in names.items():
            tensor = self._tensors[key].detach()
            if not self.entries[key].is_float:
                yield name, tensor.contiguous().numpy()
            else:
                yield name, finite(self.path, name, tensor.double().numpy() if tensor.dtype.itemsize == 8
                                   else tensor.float().numpy())  # fmt: skip


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


def _is_sound_archive(path: Path) -> bool:
    """Whether the file is a zip archive, which torch can map. Raises CheckpointError if it is a damaged one."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise refuse(path, f"is truncated or damaged ({error}); download it again") from error
    if not any(record.filename.endswith("data.pkl") for record in records):
        raise refuse(path, "is a zip archive without PyTorch weights; unpack it, or give a .safetensors or .pth file")
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in records):
        raise refuse(path, "has compressed parts, which PyTorch does not write; download the original file")
    return True


def _why(message: str) -> str:
    """A reason and a cure for what torch.load said."""
    save = "save its state_dict() as .safetensors on a machine where you trust it"
    if "TorchScript" in message:
        return f"is a TorchScript program, which would run code; {save}"
    if "legacy .tar" in message:
        return f"is in PyTorch's format of before 2017, which cannot be read safely; {save}"
    if wanted := re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", message):
        return f"was refused because reading it would run code ({wanted[1]}); {save}"
    if "Weights only load failed" in message and "Unsupported operand" in message:
        return f"was refused because it holds more than tensors; {save}, or download it again if it should not"
    first = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    return f"is truncated or damaged ({first[:160]}); download it again"


def _unwrap(tree: object) -> object:
    """Follow the keys that wrap all weights."""
    for _ in range(4):
        if not isinstance(tree, Mapping):
            break
        key = next((key for key in _WRAPPERS if isinstance(tree.get(key), Mapping)), None)
        if key is None and len(tree) == 1 and isinstance(only := next(iter(tree.values())), Mapping):
            tree = only
        elif key is None:
            break
        else:
            tree = tree[key]
    return tree


def _flatten(tree: object, prefix: str = "", depth: int = 0) -> "dict[str, torch.Tensor]":
    """Every dense tensor of nested dicts, under its keys joined by dots."""
    import torch

    found: dict[str, torch.Tensor] = {}
    if isinstance(tree, Mapping) and depth < 6:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, torch.Tensor):
                plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
                if plain and _torch_dtype(value):
                    found[name] = value
            else:
                found |= _flatten(value, f"{name}.", depth + 1)
    return found


def _torch_dtype(tensor: "torch.Tensor") -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    name = {"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}.get(name, name)
    return name if any(name == known for _, known in _DTYPES.values()) else ""
