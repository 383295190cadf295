"""The arguments of `upscale` as one frozen dataclass with their checks. Imports nothing heavy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, get_args

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.home import expand_user

type Precision = Literal["fp32", "bf16", "fp16", "mixed", "int16"]

BACKENDS = ("tensorrt", "native", "openvino", "torch")
"""All backends, in the order in which `backend="auto"` tries them."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision.__value__)

FITS = ("tiles", "resize")
CHROMA_FILTERS = ("none", "luma_guided")
MIN_TILE = 32
MAX_MULTIPLE = 512
MAX_STREAMS = 32
MAX_REUSE = 0.1
"""Largest allowed `reuse` threshold, for RGB in [0, 1]; larger differences are visible in line art."""


@dataclass(frozen=True, slots=True)
class Options:
    """The user's options, checked as far as possible without the clip, the model or the machine."""

    model: str = "medium"
    """Name from the catalog, or path of a weights file."""
    backend: str = "auto"
    """``auto``, ``tensorrt``, ``native``, ``openvino`` or ``torch``."""
    device: tuple[int, ...] = (0,)
    """Numbers of the GPUs to use; frames are distributed to them in turn. (0,) on a CPU."""
    precision: str = "auto"
    """Arithmetic in the network: ``fp32``, ``bf16``, ``fp16``, ``mixed`` (fp16 products, fp32 sums), ``int16``
    (integer products, everything else fp32), or ``auto`` (the fastest that passes verification)."""
    format: str | None = None
    """Output format by name or number; None follows the input."""
    matrix: str | None = None
    """Matrix of a YUV or GRAY output by name or number; None is ``auto``."""
    streams: int | None = None
    """Frames in flight at once; None is the fastest number for the device."""
    tile: tuple[int, int] | None = None
    """Largest tile as (width, height) in source pixels; None upscales whole frames."""
    cache: Path | None = None
    """Directory of built engines; None is $FDATRD_CACHE or the platform's cache directory."""
    reuse: float | None = 0.0
    """Largest difference from an earlier frame, in RGB values of [0, 1], at which its result is reused; None computes
    every frame."""

    multiple: int | None = None
    """Number that width and height of an ONNX network's input must be multiples of; None determines it."""
    input_range: Range | None = None
    """Value of white in an ONNX network's input, ``1`` or ``255``; None determines it."""
    fit: str = "tiles"
    """How frames are passed to a network of one fixed size: in ``tiles`` of it, or with a ``resize`` to it and back."""
    chroma_filter: str = "none"
    """Filter for the chroma of the upscaled clip: ``none``, or ``luma_guided`` smoothing."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ArgumentError('model="" names nothing; give a name such as "medium" or the path of a weights file')
        _choice("backend", self.backend, ("auto", *BACKENDS))
        _choice("precision", self.precision, ("auto", *PRECISIONS))
        _choice("fit", self.fit, FITS)
        _choice("chroma_filter", self.chroma_filter, CHROMA_FILTERS)
        if self.multiple is not None and not 1 <= self.multiple <= MAX_MULTIPLE:
            raise ArgumentError(
                f"multiple={self.multiple} is out of range; give 1 to {MAX_MULTIPLE}, what the sides of the network's "
                "frames must be multiples of, or leave it out to have it found"
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

    @classmethod
    def parse(
        cls,
        model: str | PathLike[str] = "medium",
        backend: str = "auto",
        device: int | Iterable[int] = (0,),
        precision: str = "auto",
        format: int | str | None = None,
        matrix: int | str | None = None,
        streams: int | None = None,
        tile: int | Sequence[int] | None = None,
        cache: str | PathLike[str] | None = None,
        reuse: str | float = "exact",
        multiple: int | None = None,
        input_range: str | float | None = None,
        fit: str = "tiles",
        chroma_filter: str = "none",
    ) -> "Options":
        """Create options from the values a script or VapourSynth passes.

        Accepts a single number in place of a list, a number in place of a name, and path objects. For the meaning of
        each argument see the field of the same name.

        Raises:
            ArgumentError: An argument cannot be used; the message names it, its value and what to use instead.
        """
        return cls(
            model=fspath(model),
            backend=backend.lower(),
            device=(device,) if isinstance(device, int) else tuple(device),
            precision=precision.lower(),
            # An enum member becomes its number, which both look-ups accept.
            format=None if format is None else str(int(format) if isinstance(format, int) else format),
            matrix=None if matrix is None else str(int(matrix) if isinstance(matrix, int) else matrix),
            streams=streams,
            tile=_tile(tile),
            cache=None if cache is None else expand_user(cache),
            reuse=_reuse(reuse),
            multiple=multiple,
            input_range=_range(input_range),
            fit=fit.lower(),
            chroma_filter=chroma_filter.lower(),
        )


def _tile(given: int | Sequence[int] | None) -> tuple[int, int] | None:
    match [given] if isinstance(given, int) else given:
        case None:
            return None
        case [side]:
            return (side, side)
        case [width, height]:
            return (width, height)
    raise ArgumentError(f"tile={given} is not a size; give one side or [width, height], for example tile=[360, 270]")


def _reuse(given: str | float) -> float | None:
    named = {"exact": 0.0, "off": None}
    if isinstance(given, str) and given.lower() in named:
        return named[given.lower()]
    try:
        threshold = float(given)
    except ValueError:
        threshold = math.nan
    if not 0 <= threshold <= MAX_REUSE:
        raise ArgumentError(f'reuse={given!r} is unknown; give "exact", "off" or a number from 0 to {MAX_REUSE}')
    return threshold


def _range(given: str | float | None) -> Range | None:
    if given is None:
        return None
    known: dict[str, Range] = {"1": "1", "1.0": "1", "[0, 1]": "1", "255": "255", "255.0": "255", "[0, 255]": "255"}
    if str(given) not in known:
        raise ArgumentError(f'input_range={given!r} is unknown; give what white is in the network, "1" or "255"')
    return known[str(given)]


def _choice(name: str, given: str, known: Sequence[str]) -> None:
    if given not in known:
        near = get_close_matches(given, known, 1)
        hint = f"; did you mean {near[0]!r}? Choose" if near else "; choose"
        raise ArgumentError(f"{name}={given!r} is unknown{hint} one of {', '.join(known)}")
