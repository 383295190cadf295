"""Input size requirements of a network. Sizes are in pixels."""

from dataclasses import dataclass


def round_up(side: int, multiple: int) -> int:
    """Round `side` up to a multiple of `multiple`."""
    return -(-side // multiple) * multiple


@dataclass(frozen=True, slots=True)
class SizeRequirements:
    """Requirements for height and width of a network's input. The defaults accept every size."""

    multiple_of: int = 1
    """Each side is a multiple of this."""
    minimum: int = 0
    """Each side is at least this; 0 is no limit."""
    square: bool = False
    """Whether the sides must be equal."""

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Compute the smallest (height, width) that meets the requirements, by padding at the bottom and right.

        Args:
            height: Height of the frame, at least 0.
            width: Width of the frame, at least 0.
        """
        height, width = (round_up(max(side, self.minimum), self.multiple_of) for side in (height, width))
        return (max(height, width),) * 2 if self.square else (height, width)
