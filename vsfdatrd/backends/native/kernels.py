"""Bindings of `_native/cpu_*.c` through ctypes, which releases the GIL during calls.

The functions are part of the plugin's library. Arrays must be C-contiguous; shapes and meanings are documented in the
C files.
"""

import ctypes
import importlib.util
import logging
import math
import time
from collections.abc import Callable, Sequence
from ctypes import Array, Structure, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.backends.native import amx
from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.system.instructions import VARIABLE, instruction_cap

log = logging.getLogger(__name__)

type Floats = NDArray[np.float32]
type Argument = NDArray[Any] | Structure | Array[Any] | int | None

COLUMN_ALIGNMENT = 16
"""Column alignment of packed matrices."""
ROWS_PER_BLOCK = 8
"""Rows of a matrix per block in a product."""
TOKENS_PER_BLOCK = 60
"""Number of tokens that a kernel processes together."""
KEY_STRIDE = 304
"""Row length of a window's position bias: the 300 tokens of a window, padded."""
MAX_QUANTIZED = 8191
"""Largest magnitude of the 16-bit integers to which tokens are quantized."""


class Matrix(Structure):
    """Weights packed for products of 16-bit integers; see `KernelArrays.matrix`."""

    _fields_ = (
        ("panels", c_void_p),
        ("scale", c_void_p),
        ("inner", c_int64),
        ("columns", c_int64),
        ("spans", c_void_p),
        ("bounds", c_void_p),
        ("bytes", c_void_p),
        ("blocks", c_void_p),
        ("block_bounds", c_void_p),
    )


class Norm(Structure):
    """Scale and shift of a LayerNorm, (C) each."""

    _fields_ = (("scale", c_void_p), ("shift", c_void_p))


class KeyValue(Structure):
    """Keys and values of one head, packed by the C function ``memorise``."""

    _fields_ = (
        ("keys", c_void_p),
        ("key_scale", c_void_p),
        ("values", c_void_p),
        ("value_scale", c_void_p),
        ("count", c_int64),
        ("padded", c_int64),
    )


@cache
def load_library() -> ctypes.CDLL:
    """Load the plugin's shared library, which contains the kernels, with ctypes.

    Raises:
        OSError: It is missing or does not load.
    """
    spec = importlib.util.find_spec("vapoursynth")
    for folder in (spec and spec.submodule_search_locations) or ():
        for result in sorted(Path(folder, "plugins", "vsfdatrd").glob("vsfdatrd.*")):
            return ctypes.CDLL(str(result))
    raise OSError("the plugin's library is not where VapourSynth looks for plugins; install vsfdatrd again")


def _symbol(name: str) -> "ctypes._NamedFuncPointer":
    """Return a C function of the plugin's library.

    Raises:
        EngineUnavailable: The library is missing, does not load, or is of another version and lacks the function.
    """
    try:
        return load_library()[name]
    except OSError as error:
        raise EngineUnavailable(f"the native kernels are missing: {error}") from error
    except AttributeError as error:
        raise EngineUnavailable(
            f"the native kernels do not belong to this version of vsfdatrd ({error}); install vsfdatrd again"
        ) from error


def unsupported_reason() -> str | None:
    """Explain why this machine's CPU cannot run the kernels; None if it can."""
    try:
        # Query all functions that are called later, because an older library may lack some.
        names = ("supported", "avx512", "vnni", "amx_int8")
        is_supported, *_ = (bool(_symbol(f"fdatrd_cpu_{name}")()) for name in names)
    except EngineUnavailable as error:
        return str(error)
    if is_supported:
        return None
    limit = instruction_cap()
    return f"{VARIABLE}={limit} turns AVX2 off" if limit == "sse41" else "the processor has no AVX2"


def has_avx512() -> bool:
    """Return whether the CPU also has AVX-512."""
    return bool(_symbol("fdatrd_cpu_avx512")())


def has_amx_int8() -> bool:
    """Return whether the CPU also has AMX with products of bytes; `uses_amx` tells whether the kernels use it."""
    return bool(_symbol("fdatrd_cpu_amx_int8")())


@cache
def has_vnni() -> bool:
    """Return whether the CPU has AVX-512 with VNNI, which most functions have a variant for (`_native/vnni_*.c`)."""
    return bool(_symbol("fdatrd_cpu_vnni")())


def instruction_set() -> str:
    """Return the name of the instructions on which the image depends; AMX does not change the image."""
    return "AVX-512 VNNI" if has_vnni() else "AVX2"


def instructions_in_use() -> str:
    """Describe the instructions that the kernels use in this process, and why they do not use AMX."""
    reason = amx_unused_reason()
    return f"{instruction_set()} and AMX" if reason is None else f"{instruction_set()}, not AMX: {reason}"


@cache
def amx_unused_reason() -> str | None:
    """Explain why products do not use AMX in this process; None if they do.

    The first call asks the operating system for permission, and checks that AMX computes the same sums as AVX-512 and
    takes less time.
    """
    if not has_amx_int8():
        return "the processor has none, or may not use it"
    if not _symbol("fdatrd_cpu_request_amx")():
        return "the operating system does not permit it"
    reason = _compare_amx()
    log.info("AMX: %s", reason or "used for products")
    return reason


def uses_amx() -> bool:
    """Return whether products use AMX in this process; see `_native/cpu_amx.h`."""
    return amx_unused_reason() is None


def _compare_amx() -> str | None:
    """Compare the sums and the time of products with AMX and with AVX-512; explain why not to use AMX, or None."""
    random, own = np.random.default_rng(0), KernelArrays()
    for inner, columns in ((64, 16), (112, 48), (128, 256), (192, 96)):
        matrix = own.matrix(random.standard_normal((columns, inner)), for_amx=True)
        a = random.integers(-32768, 32767, (60, inner), endpoint=True).astype(np.int16)
        a[:4] = np.array([-32768, 32767, -MAX_QUANTIZED, 255])[:, None]
        results = np.zeros((2, 60, columns), np.int32)
        for prefix, result in zip(("fdatrd_amx", "fdatrd_vnni"), results, strict=True):
            _kernel(f"{prefix}_sums")(a, 60, matrix, result)
        if not np.array_equal(*results):
            return "its sums differ from those of AVX-512"
    matrix = own.matrix(random.standard_normal((256, 128)), for_amx=True)
    a, steps, out = np.ones((60, 128), np.int16), np.ones(60, np.float32), np.empty((60, 256), np.float32)
    seconds = [math.inf, math.inf]
    for _ in range(50):  # in turns, about a millisecond each
        for i, prefix in enumerate(("fdatrd_amx", "fdatrd_vnni")):
            multiply = _kernel(f"{prefix}_multiply")
            start = time.perf_counter()
            multiply(a, steps, 60, matrix, out)
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    if seconds[0] < seconds[1]:
        return None
    return f"a product takes {seconds[0] * 1e6:.1f} instead of {seconds[1] * 1e6:.1f} µs"


@cache
def c_function(name: str) -> Callable[..., None]:
    """Return a C function as a callable for arrays, structures, integers and None.

    Args:
        name: Its name without the prefix ``fdatrd_cpu_``, ``fdatrd_vnni_`` or ``fdatrd_amx_``.

    Raises:
        EngineUnavailable: The plugin's library is of another version.
    """
    if name == "pack":
        prefix = "fdatrd_cpu"
    elif uses_amx():
        prefix = "fdatrd_amx"
    else:
        prefix = "fdatrd_vnni" if has_vnni() else "fdatrd_cpu"
    return _kernel(f"{prefix}_{name}")


def _kernel(name: str) -> Callable[..., None]:
    called = _symbol(name)
    called.restype = None

    def call(*arguments: Argument) -> None:
        called(*map(_to_ctypes, arguments))

    return call


def scratch_bytes(width: int, channels: int, hidden: int, dict_tokens: int) -> int:
    """Return the size of a thread's scratch memory in bytes.

    Args:
        width: Width of the feature map in tokens.
        channels: Embedding channels.
        hidden: Channels of the feed-forward network.
        dict_tokens: Tokens of the dictionary.
    """
    size = _symbol("fdatrd_cpu_scratch")
    size.restype = c_int64
    return int(size(*map(c_int64, (width, channels, hidden, dict_tokens))))


def allocate_scratch(width: int, channels: int, hidden: int, dict_tokens: int) -> NDArray[np.uint8]:
    """Allocate a thread's scratch memory, aligned to 64 bytes.

    Args:
        width: Width of the feature map in tokens.
        channels: Embedding channels.
        hidden: Channels of the feed-forward network.
        dict_tokens: Tokens of the dictionary.
    """
    return amx.aligned(scratch_bytes(width, channels, hidden, dict_tokens))


class KernelArrays:
    """Structures for the kernels, and the arrays they point to, which live as long as this object."""

    def __init__(self) -> None:
        self._arrays: list[NDArray[Any]] = []

    def keep_alive[T: NDArray[Any]](self, array: T) -> T:
        """Keep a reference to an array, so that the pointers in the structures stay valid, and return the array.

        Args:
            array: The array.
        """
        self._arrays.append(array)
        return array

    def floats(self, values: Any) -> Floats:
        """Convert values to a contiguous float32 array and keep it alive.

        Args:
            values: Anything that NumPy converts.
        """
        return self.keep_alive(np.ascontiguousarray(values, np.float32))

    def norm(self, scale: Any, shift: Any) -> Norm:
        """Create the structure of a LayerNorm.

        Args:
            scale: (C).
            shift: (C).
        """
        return Norm(self.floats(scale).ctypes.data, self.floats(shift).ctypes.data)

    def matrices(self, weights: Sequence[Any]) -> Array[Matrix]:
        """Pack matrices of one shape.

        Args:
            weights: Matrices (columns, inner).
        """
        return (Matrix * len(weights))(*map(self.matrix, weights))

    def matrix(self, weights: Any, for_amx: bool | None = None) -> Matrix:
        """Quantize and pack a matrix. Both dimensions are zero-padded to multiples of 16.

        Args:
            weights: (columns, inner).
            for_amx: Whether to pack it for AMX as well; None to do so if products use it.
        """
        full = _pad_to_alignment(weights)
        columns, inner = full.shape
        panels = self.keep_alive(np.empty(columns * inner, np.int16))
        scale = self.keep_alive(np.empty(columns, np.float32))
        c_function("pack")(full, columns, inner, panels, scale)
        # Products skip blocks of 16 columns and 8 rows that are zero.
        spans, bounds = map(self.keep_alive, nonzero_blocks(full))
        pointers = [array.ctypes.data for array in (spans, bounds)]
        if uses_amx() if for_amx is None else for_amx:
            blocks = amx.blocks_of(panels.reshape(-1, inner // 2, amx.COLUMNS, 2), spans, bounds)
            pointers += [self.keep_alive(array).ctypes.data for array in blocks]
        return Matrix(panels.ctypes.data, scale.ctypes.data, inner, columns, *pointers)


def nonzero_share(matrices: Sequence[Any]) -> float:
    """Return the multiply-adds of products with all matrices, divided by those with one dense matrix of their size.

    Args:
        matrices: Matrices (columns, inner) of one shape.
    """
    blocks = np.stack([_find_blocks(_pad_to_alignment(matrix)) for matrix in matrices])
    return float(np.mean(blocks)) * len(blocks)


def _pad_to_alignment(weights: Any) -> Floats:
    """Pad both sides of a matrix with zeros to multiples of 16."""
    source = np.asarray(weights, np.float32)
    full = np.zeros([-(-side // COLUMN_ALIGNMENT) * COLUMN_ALIGNMENT for side in source.shape], np.float32)
    full[: source.shape[0], : source.shape[1]] = source
    return full


def nonzero_blocks(weights: Floats) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Find the nonzero blocks of a matrix, for block-sparse products.

    Args:
        weights: (columns, inner), padded.

    Returns:
        (first row, length) of every nonzero span of every panel of 16 columns, (spans, 2); and the number of spans
        before each panel and after the last, (columns / 16 + 1).
    """
    blocks = _find_blocks(weights)
    outside = np.zeros((len(blocks), 1), np.int8)
    edges = np.diff(np.hstack([outside, blocks, outside]), axis=1)
    (panel, begins), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    spans = ROWS_PER_BLOCK * np.stack([begins, ends - begins], axis=1)
    bounds = np.searchsorted(panel, np.arange(len(blocks) + 1))
    return np.ascontiguousarray(spans, np.int32), bounds.astype(np.int32)


def _find_blocks(weights: Floats) -> NDArray[np.bool_]:
    """Return which blocks of 16 columns and 8 rows of a padded matrix (columns, inner) are not zero."""
    columns, inner = weights.shape
    blocks = weights.reshape(columns // COLUMN_ALIGNMENT, COLUMN_ALIGNMENT, inner // ROWS_PER_BLOCK, ROWS_PER_BLOCK)
    result: NDArray[np.bool_] = blocks.any(axis=(1, 3))
    return result


def _to_ctypes(argument: Argument) -> Any:
    if argument is None:
        return c_void_p(None)
    if isinstance(argument, int):
        return c_int64(argument)
    if isinstance(argument, np.ndarray):
        return c_void_p(argument.ctypes.data)
    return ctypes.byref(argument)
