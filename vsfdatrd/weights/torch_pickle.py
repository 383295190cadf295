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
    **{"DoubleStorage": "fp64", "FloatStorage": "fp32", "HalfStorage": "fp16", "BFloat16Storage": "bf16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool"},
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
_MAX_SIDES = 64
"""Largest number of dimensions; neither PyTorch nor NumPy supports more."""

_PERSISTENT_TEXT = re.compile(r"\('storage', <class '([\w.]{1,60})'>, '(\w{1,20})', '[\w:]{1,20}', \d{1,15}[,)]")
"""Persistent id in pickle protocol 0, where it has to be text."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A contiguous run of values in the file."""

    key: str
    dtype: str
    """Data type; empty if the tensor specifies it (UntypedStorage)."""
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
    """A NumPy array, whose values are in the pickle itself, as bytes or Latin-1 text. Filled in by `set_state`."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    fortran: bool = False
    data: object = b""


# Replacements for the functions that describe tensors


def _sides(values: Any) -> tuple[Any, ...]:
    """Shape or strides of a tensor. Members that are not 64-bit integers become None: they could be too long to print.

    Raises:
        ValueError: There are more of them than any tensor has.
    """
    if len(values) > _MAX_SIDES:
        raise ValueError(f"{len(values)} dimensions")
    return tuple(side if type(side) is int and -1 << 63 <= side < 1 << 63 else None for side in values)


def _rebuild_tensor(arguments: tuple[Any, ...]) -> Any:
    """Replace ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`` and ``_rebuild_tensor``."""
    storage, offset, shape, strides = arguments[:4]
    flags = arguments[6] if len(arguments) > 6 else None
    lazy = isinstance(flags, dict) and (len(flags) > 10 or any(flags.values()))  # conjugated or negated when used
    if not isinstance(storage, Storage) or not storage.dtype or lazy:
        return Opaque("torch.Tensor")
    return TensorView(storage, storage.dtype, offset, _sides(shape), _sides(strides))


def _rebuild_tensor_v3(arguments: tuple[Any, ...]) -> Any:
    """``torch._utils._rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype)``."""
    storage, offset, shape, strides, _, _, dtype = arguments[:7]
    dtype_name = _TORCH_DTYPES.get(dtype.full.removeprefix("torch.")) if isinstance(dtype, GlobalName) else None
    if not isinstance(storage, Storage) or dtype_name is None:
        return Opaque("torch.Tensor")
    return TensorView(storage, dtype_name, offset, _sides(shape), _sides(strides))


def _first_argument(arguments: tuple[Any, ...]) -> Any:
    """Return the data of a parameter, buffer or device tensor."""
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
    items = [part for key, value in pairs for part in (key, value)]
    pairs.clear()  # so that another call with the same list takes no time
    return pickle_data.fill_dict({}, items)


def _rebuild_array(arguments: tuple[Any, ...]) -> Any:
    """``numpy._core.numeric._frombuffer(buffer, dtype, shape, order)``."""
    data, dtype, shape, order = arguments
    return NumPyArray(_dtype_name(dtype), _sides(shape), order == "F", data)


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
    "_codecs.encode": _first_argument,  # bytes as text; not encoded here, as a pickle may do it many times
    "numpy.dtype": lambda arguments: _NumPyDtype(arguments[0][:8] if isinstance(arguments[0], str) else ""),
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
        target.dtype, target.shape = _dtype_name(dtype), _sides(shape)
    return target


def _dtype_name(dtype: Any) -> str:
    """Data type of a NumPy array; empty for unsupported types and big-endian values."""
    if not isinstance(dtype, _NumPyDtype) or dtype.order not in ("<", "|", "="):
        return ""
    return _NUMPY_DTYPES.get(dtype.code.lstrip("<|="), "")


def resolve_storage(identifier: Any) -> Any:
    """Resolve ``("storage", class, key, device, count)``; in legacy files ``(key, start, count)`` of a view follows."""
    if isinstance(identifier, str) and (text := _PERSISTENT_TEXT.match(identifier)):
        identifier = ("storage", GlobalName(text[1]), text[2], "", 0)
    match identifier:
        case ("storage", GlobalName(full=kind), str(key), _, int(), *rest):
            dtype = "" if kind.endswith("UntypedStorage") else _STORAGE_DTYPES.get(kind.rpartition(".")[2])
            if dtype is None:
                return Opaque(kind)
            match rest:
                case [(_, int(start), int())]:
                    return Storage(key, dtype, start)
            return Storage(key, dtype)
    return Opaque("a persistent object")


def storage_extent(tensor: TensorView) -> int:
    """Number of storage values from the first to the last one of a tensor."""
    if 0 in tensor.shape:
        return 0
    return 1 + sum((side - 1) * step for side, step in zip(tensor.shape, tensor.strides, strict=True))
