"""The options of `upscale`, once: their names, defaults, meanings and checks. Imports nothing heavy."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, get_args

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import ArgumentError, did_you_mean
from vsfdatrd.system.home import expand_user

type Precision = Literal["fp32", "bf16", "fp16", "mixed", "int16"]

BACKENDS = ("tensorrt", "native", "openvino", "torch", "cuda")
"""All backends, in the order in which `backend="auto"` tries them; it does not try cuda."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision.__value__)

FIT_CHOICES = ("tiles", "resize")
CHROMA_FILTERS = ("none", "luma_guided")
MIN_TILE = 32
MAX_SIZE_MULTIPLE = 512
MAX_STREAMS = 32
MAX_REUSE_THRESHOLD = 0.1
"""Largest allowed `reuse` threshold, for RGB in [0, 1]; larger differences are visible in line art."""


class _Normalized[In, Out]:
    """A field that accepts what scripts and VapourSynth pass and stores one form of it.

    The standard library calls this a descriptor-typed field of a dataclass: `__init__` takes In, attributes are Out.

    Args:
        normalize: The conversion. It leaves values that are normalized already as they are.
        default: The field's default, as `upscale` has it.
    """

    def __init__(self, normalize: Callable[[In], Out], default: In) -> None:
        self._normalize = normalize
        self._default = default

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object | None, owner: type) -> Out:
        # `dataclass` asks the class for the default, which `__init__` then passes to `__set__` like any other value.
        return self._default if instance is None else instance.__dict__[self._name]  # type: ignore[return-value]

    def __set__(self, instance: object, value: In) -> None:
        instance.__dict__[self._name] = self._normalize(value)


def _to_path_text(value: str | PathLike[str]) -> str:
    return fspath(value)


def _parse_device(value: int | Iterable[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)


def _to_text(value: int | str | None) -> str | None:
    return None if value is None else str(value)  # an enum member becomes its number, which the look-ups accept


def _parse_matrix(value: int | str | None) -> str:
    return _to_text(value) or "auto"


def _parse_tile(value: int | Sequence[int] | None) -> tuple[int, int] | None:
    match [value] if isinstance(value, int) else value:
        case None:
            return None
        case [side]:
            return (side, side)
        case [width, height]:
            return (width, height)
    raise ArgumentError(f"tile={value} is not a size; give one side or [width, height], for example tile=[360, 270]")


def _parse_path(value: str | PathLike[str] | None) -> Path | None:
    return expand_user(value) if value else None


def _parse_reuse(value: str | float | None) -> float | None:
    named = {"exact": 0.0, "off": None}
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in named:
        return named[value.lower()]
    try:
        threshold = float(value)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= MAX_REUSE_THRESHOLD:
        raise ArgumentError(
            f'reuse={value!r} is unknown; give "exact", "off" or a number from 0 to {MAX_REUSE_THRESHOLD}'
        )
    return threshold


def _parse_range(value: str | float | None) -> Range | None:
    if value is None:
        return None
    names: dict[str, Range] = {"1": "1", "1.0": "1", "[0, 1]": "1", "255": "255", "255.0": "255", "[0, 255]": "255"}
    if str(value) not in names:
        raise ArgumentError(f'input_range={value!r} is unknown; give the value of white in the network, "1" or "255"')
    return names[str(value)]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of one `upscale` call, normalized, and checked as far as possible without the clip or the machine.

    Raises:
        ArgumentError: An option cannot be used; the message names it, its value and what to use instead.
    """

    model: _Normalized[str | PathLike[str], str] = _Normalized(_to_path_text, "medium")
    """Name from the catalog, or path of a weights file."""
    backend: _Normalized[str, str] = _Normalized(str.lower, "auto")
    """``auto``, ``tensorrt``, ``native``, ``openvino``, ``torch`` or ``cuda``."""
    device: _Normalized[int | Iterable[int], tuple[int, ...]] = _Normalized(_parse_device, (0,))
    """Numbers of the GPUs to use; frames are distributed to them in turn. (0,) on a CPU."""
    precision: _Normalized[str, str] = _Normalized(str.lower, "auto")
    """Arithmetic in the network: ``fp32``, ``bf16``, ``fp16``, ``mixed`` (fp16 products, fp32 sums), ``int16``
    (integer products, everything else fp32), or ``auto`` (the fastest that passes verification)."""
    format: _Normalized[int | str | None, str | None] = _Normalized(_to_text, None)
    """Output format by name or number; None follows the input."""
    matrix: _Normalized[int | str | None, str] = _Normalized(_parse_matrix, "auto")
    """Matrix of a YUV or GRAY output: ``auto``, ``source``, a name or a number."""
    streams: int | None = None
    """Frames in flight at once; None is the fastest number for the device."""
    tile: _Normalized[int | Sequence[int] | None, tuple[int, int] | None] = _Normalized(_parse_tile, None)
    """Largest tile as (width, height) in source pixels; None upscales whole frames."""
    cache: _Normalized[str | PathLike[str] | None, Path | None] = _Normalized(_parse_path, None)
    """Directory of built engines; None is $FDATRD_CACHE or the platform's cache directory."""
    reuse: _Normalized[str | float | None, float | None] = _Normalized(_parse_reuse, "exact")
    """Largest difference from an earlier frame, in RGB values of [0, 1], at which its result is reused (``exact`` is
    0); None (``off``) computes every frame."""
    multiple: int | None = None
    """Number that width and height of an ONNX network's input must be multiples of; None determines it."""
    input_range: _Normalized[str | float | None, Range | None] = _Normalized(_parse_range, None)
    """Value of white in an ONNX network's input, ``1`` or ``255``; None determines it."""
    fit: _Normalized[str, str] = _Normalized(str.lower, "tiles")
    """How frames are passed to a network of one fixed size: in ``tiles`` of it, or with a ``resize`` to it and back."""
    chroma_filter: _Normalized[str, str] = _Normalized(str.lower, "none")
    """Filter for the chroma of the upscaled clip: ``none``, or ``luma_guided`` smoothing."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ArgumentError('model="" is empty; give a name such as "medium" or the path of a weights file')
        _check_choice("backend", self.backend, ("auto", *BACKENDS))
        _check_choice("precision", self.precision, ("auto", *PRECISIONS))
        _check_choice("fit", self.fit, FIT_CHOICES)
        _check_choice("chroma_filter", self.chroma_filter, CHROMA_FILTERS)
        if self.multiple is not None and not 1 <= self.multiple <= MAX_SIZE_MULTIPLE:
            raise ArgumentError(
                f"multiple={self.multiple} is out of range; give the number, 1 to {MAX_SIZE_MULTIPLE}, of which the "
                "sides of the network's frames must be multiples, or leave it out to have it determined"
            )
        if not self.device or min(self.device) < 0 or len(set(self.device)) != len(self.device):
            raise ArgumentError(
                f"device={list(self.device)} is not a list of GPU numbers; give each once, for example device=[0, 1]"
            )
        if self.streams is not None and not 1 <= self.streams <= MAX_STREAMS:
            raise ArgumentError(f"streams={self.streams} is out of range; give 1 to {MAX_STREAMS} frames in flight")
        if self.tile is not None and min(self.tile) < MIN_TILE:
            raise ArgumentError(
                f"tile={list(self.tile)} is too small; give [width, height] of at least {MIN_TILE} pixels each, "
                "or leave it out to upscale whole frames"
            )


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        hint = did_you_mean(value, choices)
        advice = f"{hint} Choose" if hint else "; choose"
        raise ArgumentError(f"{name}={value!r} is unknown{advice} one of {', '.join(choices)}")
