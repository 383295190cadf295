"""What the pickles of `torch.save` describe: tensors as views of storages, NumPy arrays, and nothing that could run.

`CALLS`, `resolve_storage` and `set_state` are the arguments of `pickle_data.load`.
"""

import re
from dataclasses import dataclass
from typing import Any

from vsfdatrd.weights import pickle_data
from vsfdatrd.weights.files import STORED_DTYPES
from vsfdatrd.weights.pickle_data import GlobalName, Opaque

_STORAGE_DTYPES = {
    f"{name}Storage": kind
    for name, kind in (
        *(("Double", "fp64"), ("Float", "fp32"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Bool", "bool")),
        *(("Long", "int64"), ("Int", "int32"), ("Short", "int16"), ("Char", "int8"), ("Byte", "uint8")),
    )
}
"""torch storage classes -> data types. Complex and quantized types are not supported."""
_INTEGERS_AND_BOOL = ("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
_TORCH_DTYPES = dict(zip(_INTEGERS_AND_BOOL, _INTEGERS_AND_BOOL, strict=True)) | {
    **{"float64": "fp64", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
    **{"float8_e4m3fn": "fp8_e4m3", "float8_e5m2": "fp8_e5m2"},
}
_NUMPY_DTYPES = {
    STORED_DTYPES[kind].lstrip("<"): kind for kind in (*_INTEGERS_AND_BOOL[:-1], "fp64", "fp32", "fp16")
} | {"b1": "bool"}


_PERSISTENT_TEXT = re.compile(r"\('storage', <class '([\w.]{1,60})'>, '(\w{1,20})', '[\w:]{1,20}', (\d{1,15})[,)]")
"""Persistent id in pickle protocol 0, where it has to be text."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A contiguous run of values in the file."""

    key: str
    dtype: str
    """Data type; empty if the tensor specifies it (UntypedStorage)."""
    count: int
    """Number of values, or of bytes if there is no dtype."""
    start: int = 0
    """Index of the first value within the storage that the key refers to."""


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as its pickle describes it: a view of a storage. Not validated yet."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(slots=True)
class _NumPyDtype:
    code: str
    order: str = "<"


@dataclass(slots=True)
class NumPyArray:
    """A NumPy array, whose values are in the pickle itself. Filled in by `set_state`."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: object = b""


@dataclass(frozen=True, slots=True)
class Latin1Bytes:
    """Bytes that pickle protocol 2 stores as text. Not decoded here, because a pickle may refer to them many times."""

    text: str


# Replacements for the functions that describe tensors


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Any:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``, and the older ``_rebuild_tensor``."""
    storage, offset, shape, strides = arguments[:4]
    flags = arguments[6] if len(arguments) > 6 else None
    if not isinstance(storage, Storage) or not storage.dtype or (isinstance(flags, dict) and any(flags.values())):
        return Opaque("torch.Tensor")  # flags: lazily conjugated or negated
    return TensorView(storage, storage.dtype, offset, tuple(shape), tuple(strides))


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> Any:
    """``torch._utils._rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)``."""
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    dtype_name = _TORCH_DTYPES.get(dtype.full.removeprefix("torch.")) if isinstance(dtype, GlobalName) else None
    if not isinstance(storage, Storage) or dtype_name is None:
        return Opaque("torch.Tensor")
    return TensorView(storage, dtype_name, offset, tuple(shape), tuple(strides))


def _first_argument(arguments: tuple[Any, ...]) -> Any:
    """Parameter, buffer or device tensor: return its data."""
    return arguments[0]


def _rebuild_subclass(arguments: tuple[Any, ...]) -> Any:
    """``torch._tensor._rebuild_from_type_v2(function, type, arguments, state)``."""
    function, _, inner = arguments[:3]
    rebuild = CALLS.get(function.full) if isinstance(function, GlobalName) else None
    return rebuild(inner) if rebuild and rebuild is not _rebuild_subclass else Opaque("torch.Tensor")


def _ordered_dict(arguments: tuple[Any, ...]) -> Any:
    """Stand in for ``OrderedDict``: without arguments or, as Python 2 wrote it, with a list of [key, value] pairs."""
    pairs = arguments[0] if arguments else []
    if isinstance(pairs, dict):
        return pairs
    return pickle_data.fill_dict({}, [part for key, value in pairs for part in (key, value)])


def _rebuild_array(arguments: tuple[Any, ...]) -> Any:
    """``numpy._core.numeric._frombuffer(buffer, dtype, shape, order)``."""
    data, dtype, shape, order = arguments
    return NumPyArray(_dtype_name(dtype), tuple(shape), order == "F", data)


CALLS: dict[str, pickle_data.Call] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first_argument,
    "torch._utils._rebuild_parameter_with_state": _first_argument,
    "torch._utils._rebuild_device_tensor_from_numpy": _first_argument,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _first_argument,
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch.nn.parameter.Parameter": _first_argument,
    "torch.nn.parameter.Buffer": _first_argument,
    "collections.OrderedDict": _ordered_dict,
    "typing.OrderedDict": _ordered_dict,
    "collections.Counter": _ordered_dict,
    "collections.defaultdict": lambda arguments: {},
    "_codecs.encode": lambda arguments: Latin1Bytes(arguments[0]),
    "numpy.dtype": lambda arguments: _NumPyDtype(str(arguments[0])[:8]),
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), lambda arguments: NumPyArray()
    ),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _rebuild_array),
}


def set_state(target: Any, state: Any) -> Any:
    """Apply a state to an object; the state of unknown objects is discarded."""
    if isinstance(target, _NumPyDtype):
        target.order = state[1]
    elif isinstance(target, NumPyArray):
        _, shape, dtype, target.fortran, target.data = state
        target.dtype, target.shape = _dtype_name(dtype), tuple(shape)
    return target


def _dtype_name(dtype: Any) -> str:
    """Data type of a NumPy array; empty for unsupported types and big-endian values."""
    if not isinstance(dtype, _NumPyDtype) or dtype.order not in ("<", "|", "="):
        return ""
    return _NUMPY_DTYPES.get(dtype.code.lstrip("<|="), "")


def resolve_storage(identifier: Any) -> Any:
    """Resolve ``("storage", class, key, device, count)``; in legacy files ``(key, start, count)`` of a view follows."""
    if isinstance(identifier, str) and (text := _PERSISTENT_TEXT.match(identifier)):
        identifier = ("storage", GlobalName(text[1]), text[2], "", int(text[3]))
    match identifier:
        case ("storage", GlobalName(full=kind), str(key), _, int(count), *rest):
            dtype = "" if kind.endswith("UntypedStorage") else _STORAGE_DTYPES.get(kind.rpartition(".")[2])
            if dtype is None:
                return Opaque(kind)
            match rest:
                case [(_, int(start), int(size))]:
                    return Storage(key, dtype, size, start)
            return Storage(key, dtype, count)
    return Opaque("a persistent object")


def storage_extent(tensor: TensorView) -> int:
    """Number of storage values from the first to the last one of a tensor."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True))
