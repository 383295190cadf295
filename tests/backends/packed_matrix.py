"""Reads matrices that the native kernels have packed."""

import ctypes

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.backends.native import kernels as native_kernels


def integers_of(matrix: native_kernels.Matrix) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """A packed matrix's integers (columns, inner) and scales (columns)."""
    size = matrix.columns * matrix.inner
    panels = np.ctypeslib.as_array(ctypes.cast(matrix.panels, ctypes.POINTER(ctypes.c_int16)), (size,))
    scale = np.ctypeslib.as_array(ctypes.cast(matrix.scale, ctypes.POINTER(ctypes.c_float)), (matrix.columns,))
    # (columns / 16, inner / 2, 16, 2) -> (columns / 16, 16, inner / 2, 2)
    return panels.reshape(-1, matrix.inner // 2, 16, 2).transpose(0, 2, 1, 3).reshape(matrix.columns, -1), scale
