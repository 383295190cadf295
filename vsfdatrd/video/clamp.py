"""Copy planes, clamp them to [0, 1] and check for NaN and infinity, in one pass over memory (`_native/clamp.c`)."""

import ctypes
from ctypes import c_int64, c_void_p
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.video import plugin

type Plane = NDArray[np.float32]


class WorstValue(IntEnum):
    """The worst value in a plane."""

    FINITE = 0
    INFINITE = 1
    NAN = 2


def clamp_copy(source: Plane, target: Plane) -> WorstValue:
    """Copy a plane and clamp every value to [0, 1]. Releases the GIL.

    Args:
        source: (height, width) float32. Any row stride; the pixels of a row are contiguous.
        target: The same shape, writable, not overlapping `source`.

    Returns:
        The worst value of `source`. Infinity becomes 0 or 1 by its sign; NaN becomes 0 or 1.

    Raises:
        ValueError: The arrays are not as described.
        EngineUnavailable: The plugin library belongs to another version of vsfdatrd.
    """
    return WorstValue(_function("fdatrd_clamp_copy")(*_plane_arguments(source, target)))


def clamp_add(source: Plane, target: Plane, rows: Plane, columns: Plane) -> WorstValue:
    """Add ``clamp(source) * rows * columns`` to `target`; otherwise like `clamp_copy`.

    Args:
        source: (height, width) float32.
        target: The accumulator, the same shape.
        rows: Weight of each row, (height, 1).
        columns: Weight of each column, (1, width).

    Returns:
        The worst value of `source`.

    Raises:
        ValueError: The arrays are not as described.
        EngineUnavailable: The plugin library belongs to another version of vsfdatrd.
    """
    planes = _plane_arguments(source, target)
    if rows.shape != (source.shape[0], 1) or columns.shape != (1, source.shape[1]):
        raise ValueError(f"weights of {rows.shape} and {columns.shape} do not belong to a plane of {source.shape}")
    # Bound to names, so that a copy made here lives until the call returns.
    row_weights, column_weights = (np.ascontiguousarray(weights, np.float32) for weights in (rows, columns))
    weights = c_void_p(row_weights.ctypes.data), c_void_p(column_weights.ctypes.data)
    return WorstValue(_function("fdatrd_clamp_add")(*planes, *weights))


def _plane_arguments(source: Plane, target: Plane) -> tuple[c_void_p | c_int64, ...]:
    """Return the C arguments for two planes: pointer and row stride of each, height, width."""
    for plane in (source, target):
        if plane.dtype != np.float32 or plane.ndim != 2 or (plane.shape[1] > 1 and plane.strides[1] != plane.itemsize):
            raise ValueError(
                f"an array {plane.shape} of {plane.dtype} with strides {plane.strides} is not a float32 plane"
            )
    if source.shape != target.shape or not target.flags.writeable:
        raise ValueError(f"a plane of {source.shape} cannot be copied into one of {target.shape}")
    height, width = source.shape
    return (
        c_void_p(source.ctypes.data),
        c_int64(source.strides[0]),
        c_void_p(target.ctypes.data),
        c_int64(target.strides[0]),
        c_int64(height),
        c_int64(width),
    )


@cache
def _function(name: str) -> "ctypes._NamedFuncPointer":
    """Return a function of the library that VapourSynth loaded as the plugin, wherever it is installed."""
    path = plugin.plugin_path()
    try:
        function = ctypes.CDLL(path)[name]
    except (OSError, AttributeError) as error:
        raise EngineUnavailable(
            f"the plugin {path} does not belong to this version of vsfdatrd ({error}); install vsfdatrd again"
        ) from error
    function.restype = c_int64
    return function
