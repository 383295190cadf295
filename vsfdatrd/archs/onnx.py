"""OnnxConfig: layout, value range and size of the inputs and outputs of a network stored as an ONNX file."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.size import SizeRequirements

type Layout = Literal["NCHW", "NHWC"]
type Range = Literal["1", "255"]


@dataclass(frozen=True, slots=True)
class OnnxConfig(NetworkConfig):
    """Inputs and outputs of an ONNX graph, names as in the file, and properties found by running it."""

    input: str
    """Name of the input for the frame."""
    layout: Layout
    output: str
    output_layout: Layout
    range: Range = "1"
    """Value of white at the input: 1 or 255."""
    output_range: Range = "1"
    """Value of white at the output: 1 or 255."""
    height: int | None = None
    """Height in pixels if the network accepts a single frame size only, as does `width`; None if it accepts others."""
    width: int | None = None
    channels: int = 3
    """Channels of the frame input; the file does not always state them."""
    margin: int = 0
    """Pixels of padding added on each side of the frame, for networks with unpadded (valid) convolutions."""
    crop: int = 0
    """Output pixels to crop at the top and at the left."""
    crop_end: int = 0
    """Output pixels to crop at the bottom and at the right."""
    style: str | None = None
    """Name of the input for a second picture whose style is transferred to the frame; None if there is none."""
    style_layout: Layout = "NCHW"
    style_height: int | None = None
    """Height in pixels of the second picture, like `style_width`; None if it has the size of the frame."""
    style_width: int | None = None
    external: str = ""
    """``name=sha256`` of every external data file, separated by spaces; names are percent-encoded."""
    scale: int = 1
    """Output pixels per input pixel, along each side."""
    out_channels: int = 3
    multiple: int = 1
    """Height and width of the padded frame are multiples of this, in pixels."""
    minimum: int = 0
    """Smallest height and width of the padded frame in pixels; 0 is no limit."""
    largest: int = 0
    """Elements of the largest intermediate tensor per pixel of the frame."""

    name: ClassVar[str] = "ONNX"
    accepts_chroma: ClassVar[bool] = True

    @property
    def in_channels(self) -> int:
        """Channels of the frame input."""
        return self.channels

    @property
    def size(self) -> SizeRequirements:
        """Size requirements of the frame."""
        return SizeRequirements(self.multiple, self.minimum)

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) if the network accepts a single frame size only, otherwise None."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def graph_fields(self) -> dict[str, Any]:
        """Return the fields on which the graph for an engine depends, besides the file and the size of the frame."""
        others = ("scale", "out_channels", "multiple", "minimum", "largest")
        return {name: value for name, value in asdict(self).items() if name not in others}

    def peak_values_per_pixel(self) -> tuple[Mapping[str, float], ...]:
        """See `NetworkConfig.peak_values_per_pixel`."""
        return ({"largest": self.largest},)

    def info(self) -> dict[str, Any]:
        """See `NetworkConfig.info`."""
        return {"white": f"{self.range} in its input, {self.output_range} in its output"}

    def style_size(self, height: int, width: int) -> tuple[int, int] | None:
        """See `NetworkConfig.style_size`."""
        if self.style is None:
            return None
        if self.style_height is None or self.style_width is None:
            return height, width
        return self.style_height, self.style_width

    def style_rows(self, height: int, width: int) -> int:
        """Count the rows of the second picture below the padded frame in an engine's input; 0 if there is none.

        Engines have a single input. In each plane the pixels of the second picture follow those of the frame, in
        row-major order, wrapped into rows as wide as the frame.
        """
        size = self.style_size(height, width)
        return -(-size[0] * size[1] // width) if size else 0
