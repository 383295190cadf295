"""NetworkConfig: hyper-parameters of one network. Other code reads them instead of checking the architecture."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from vsfdatrd.archs.size import SizeRequirements

SMALLEST_PERIOD = 32
"""Smallest `NetworkConfig.period` of unknown networks: those that pad inside mostly have windows of 8 or 16 pixels."""


class NetworkConfig:
    """Hyper-parameters of one network. Subclasses are frozen dataclasses of plain values, which are cached as JSON."""

    __slots__ = ()

    accepts_chroma: ClassVar[bool] = False
    """Whether an output of two channels is Cb and Cr; otherwise only RGB to RGB and luma to luma are used."""

    if TYPE_CHECKING:
        # Not defined at run time: `dataclass` would use an inherited attribute as the default of a field of its name.

        @property
        def name(self) -> str:
            """Name of the architecture for users, such as ``FDAT-RD`` or ``ArtCNN C4F32``."""

        @property
        def scale(self) -> int:
            """Output pixels per input pixel, along each side."""

        @property
        def in_channels(self) -> int:
            """Channels of the network's input."""

        @property
        def out_channels(self) -> int:
            """Channels of the network's output."""

        @property
        def size(self) -> SizeRequirements:
            """Size requirements of the network's input."""

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels if the network accepts a single frame size only; None if it accepts others."""
        return None

    @property
    def cell(self) -> int:
        """Side in pixels of the input square that becomes one element of the feature maps."""
        return 1

    @property
    def period(self) -> int:
        """Number of pixels; frames whose sides differ by a multiple of it get the same padding and window layout."""
        return self.size.multiple_of * -(-SMALLEST_PERIOD // self.size.multiple_of)

    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        """Count the values in memory per input pixel, at each point of the computation where memory use may peak.

        Returns:
            For each point, kinds of tensors -> number of values. Every backend has a table of bytes for each kind. The
            kind ``largest``, the elements of the largest tensor, can be used without measuring the architecture.
        """
        raise NotImplementedError

    def flops(self, height: int, width: int) -> float | None:
        """Estimate the floating-point operations of a frame, two for a multiply-add; None if unknown."""
        return None

    def constant_bytes(self, height: int, width: int) -> int:
        """Count the bytes of those constants in a graph that grow with the frame, for a frame's size before padding."""
        return 0

    def style_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Compute (height, width) of the style picture for padded frames; None if the network has no style input."""
        return None

    def info(self) -> dict[str, Any]:
        """Return what ``vsfdatrd info`` prints about the network, by label."""
        return {}


def from_plain(value_type: Any, plain: Any) -> Any:
    """Rebuild a value from the result of `dataclasses.asdict` after a round trip through JSON.

    Args:
        value_type: Type of the value: a dataclass, or the annotation of a field.
        plain: The value as JSON gives it; lists stand for tuples.

    Raises:
        ValueError: `plain` does not have the type.
    """
    value_type = getattr(value_type, "__value__", value_type)  # of a `type` statement
    if is_dataclass(value_type):
        hints = get_type_hints(value_type)
        if not isinstance(plain, dict) or plain.keys() != {field.name for field in fields(value_type)}:
            raise ValueError(f"{plain!r} are not the fields of a {value_type}")
        return value_type(**{name: from_plain(hints[name], value) for name, value in plain.items()})  # type: ignore[operator]
    if get_origin(value_type) is tuple and isinstance(plain, list | tuple):
        return tuple(from_plain(get_args(value_type)[0], value) for value in plain)
    if get_origin(value_type) is UnionType:
        member = next(member for member in get_args(value_type) if member is not NoneType)
        return None if plain is None else from_plain(member, plain)
    if plain not in get_args(value_type) if get_origin(value_type) is Literal else type(plain) is not value_type:
        raise ValueError(f"{plain!r} is not a {value_type}")
    return plain
