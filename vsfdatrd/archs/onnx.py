"""What is known of a network that comes as an ONNX file: how pictures go in and come out."""

from dataclasses import dataclass
from typing import Literal

type Layout = Literal["NCHW", "NHWC"]
type Range = Literal["1", "255"]


@dataclass(frozen=True, slots=True)
class OnnxConfig:
    """The ends of an ONNX graph. Names are those in the file."""

    input: str
    """The input for the frame."""
    layout: Layout
    output: str
    output_layout: Layout
    range: Range = "1"
    """White in the numbers that the network takes: 1, or 255."""
    output_range: Range = "1"
    """White in the numbers that it gives."""
    height: int | None = None
    """Height and width in pixels of the only frames that the network takes; None if it takes others, too."""
    width: int | None = None
    channels: int = 3
    """Channels of the input for the frame, which the file need not say."""
    margin: int = 0
    """Pixels that are put around the frame on each side, for networks whose convolutions cut off a border."""
    crop: int = 0
    """Pixels of the output that are cut off above and on the left."""
    crop_end: int = 0
    """Pixels of the output that are cut off below and on the right."""
    style: str | None = None
    """The input for a second picture, whose style the frame is given; None if there is none."""
    style_layout: Layout = "NCHW"
    style_height: int | None = None
    """Size in pixels of that picture; None if it is that of the frame."""
    style_width: int | None = None
    external: str = ""
    """``name=sha256`` of every file that holds weights beside it, joined by spaces, names in percent-encoding."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the only frames the network takes."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def style_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of the second picture for frames of a padded size."""
        if self.style_height is None or self.style_width is None:
            return height, width
        return self.style_height, self.style_width

    def style_rows(self, height: int, width: int) -> int:
        """Rows that the second picture takes below the frame, in an engine's input.

        Engines have one input: the pixels of each of the second picture's planes follow those of the frame's, row after
        row, in rows as wide as the frame.
        """
        if self.style is None:
            return 0
        tall, wide = self.style_size(height, width)
        return -(-tall * wide // width)
