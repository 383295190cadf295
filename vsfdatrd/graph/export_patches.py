"""Replacements for PyTorch functions that its ONNX exporter does not support, active while a network is traced."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ExportPatches(TorchFunctionMode):
    """Context in which sorts are not stable, and Fourier transforms of maps are products with constants.

    According to the ONNX specification equal values keep their order. ONNX Runtime complies, OpenVINO 2026.4 does not.
    If that affects the result, the graph fails the comparison with PyTorch.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


class ComplexPair:
    """A complex tensor as two real ones, because ONNX has no complex type. Supports sums and products only."""

    def __init__(self, real: Tensor, imag: Tensor) -> None:
        self.real, self.imag = real, imag

    @property
    def shape(self) -> torch.Size:
        """Shape of the complex tensor."""
        return self.real.shape

    def __mul__(self, other: "ComplexPair | Tensor | float") -> "ComplexPair":
        if isinstance(other, ComplexPair):
            real = self.real * other.real - self.imag * other.imag
            return ComplexPair(real, self.real * other.imag + self.imag * other.real)
        return ComplexPair(self.real * other, self.imag * other)

    def __add__(self, other: "ComplexPair | Tensor | float") -> "ComplexPair":
        if isinstance(other, ComplexPair):
            return ComplexPair(self.real + other.real, self.imag + other.imag)
        return ComplexPair(self.real + other, self.imag)

    __rmul__, __radd__ = __mul__, __add__

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by PyTorch for its functions if an argument is of this class.

        Returns NotImplemented for functions that are not supported, which PyTorch reports as a TypeError.
        """
        match func, args:
            case ((torch.Tensor.mul | torch.Tensor.__rmul__ | torch.mul), (one, other)):
                return other * one if isinstance(other, ComplexPair) else one * other
            case ((torch.Tensor.add | torch.Tensor.__radd__ | torch.add), (one, other)):
                return other + one if isinstance(other, ComplexPair) else one + other
        return NotImplemented


def _sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    return torch.sort(x, dim=dim, descending=descending)


def _fold(x: Tensor, output_size: Any, *others: Any, **named: Any) -> Tensor:
    """Run `torch.nn.functional.fold`, but reject output sizes that depend on the frame size."""
    # Such networks cut the frame into overlapping patches and process them in batches. In PyTorch only one batch is in
    # memory, but a graph would hold all patches at once and grow with the frame.
    if isinstance(output_size, Sequence) and any(isinstance(side, Tensor) for side in output_size):
        raise NotImplementedError(
            "it computes overlapping patches of the frame, each of which a graph would have to hold"
        )
    return functional.fold(x, output_size, *others, **named)


def _rfft2(x: Tensor, s: Any = None, dim: Sequence[int] = (-2, -1), norm: str | None = None) -> ComplexPair:
    """torch.fft.rfft2 as matrix products: x (..., H, W) to (..., H, W/2 + 1)."""
    height, width = (int(side) for side in x.shape[-2:])
    _check_transform(dim, s, (height, width))
    across, down = _fourier_matrix(width, width // 2 + 1), _fourier_matrix(height, height)
    whole = height * width
    gain = {None: 1, "backward": 1, "ortho": whole**-0.5, "forward": 1 / whole}[norm]
    real, imag = (x @ _constant(gain * wave, x) for wave in (across.real, across.imag))
    c, d = (_constant(wave, x) for wave in (down.real, down.imag))
    return ComplexPair(c @ real - d @ imag, c @ imag + d @ real)


def _irfft2(x: Any, s: Any = None, dim: Sequence[int] = (-2, -1), norm: str | None = None) -> Tensor:
    """torch.fft.irfft2 as matrix products: x (..., H, W/2 + 1) to (..., H, W)."""
    if not isinstance(x, ComplexPair):
        raise TypeError(f"an inverse transform of {type(x).__name__} cannot be written as a graph")
    height, half = (int(side) for side in x.shape[-2:])
    width = int(s[1]) if s is not None else 2 * (half - 1)
    _check_transform(dim, s, (height, width))
    if half != width // 2 + 1:
        raise ValueError(f"an inverse transform of {half} waves to {width} values has no graph")
    across, down = _fourier_matrix(width, half).conj().T, _fourier_matrix(height, height)
    waves = np.arange(half)[:, None]
    twice = np.where((waves == 0) | (2 * waves == width), 1, 2)  # counts the omitted mirrored frequencies
    whole = height * width
    gain = {None: 1 / whole, "backward": 1 / whole, "ortho": whole**-0.5, "forward": 1}[norm]
    c, d = (_constant(wave, x.real) for wave in (down.real, down.imag))
    real, imag = c @ x.real + d @ x.imag, c @ x.imag - d @ x.real
    e, f = (_constant(gain * twice * wave, x.real) for wave in (across.real, across.imag))
    return real @ e - imag @ f


def _check_transform(dim: Sequence[int], s: Any, size: tuple[int, int]) -> None:
    if tuple(dim) != (-2, -1) or (s is not None and tuple(int(side) for side in s) != size):
        raise ValueError(f"a transform of {size} along {tuple(dim)} to {s} has no graph")


def _fourier_matrix(places: int, waves: int) -> Any:
    """DFT matrix exp(-2πi · place · wave / places), shape (places, waves)."""
    return np.exp(-2j * math.pi * np.outer(np.arange(places), np.arange(waves)) / places)


def _constant(values: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(values), dtype=like.dtype, device=like.device)


_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    torch.sort: _sort,
    torch.Tensor.sort: _sort,
    torch.fft.rfft2: _rfft2,
    torch.fft.irfft2: _irfft2,
    functional.fold: _fold,
}
