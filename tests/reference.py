"""The checkpoints in ../shared/fixtures, with inputs and outputs of the reference implementation."""

FIXTURES = (
    "1x_conv",
    "1x_unshuffle",
    "2x_dysample",
    "2x_lda",
    "2x_nearest-conv",
    "2x_pa_up",
    "2x_pixelshuffle",
    "2x_pixelshuffledirect",
    "2x_transpose-conv",
    "2x_unshuffle_64d",
    "2x_unshuffle_dysample",
    "2x_unshuffle_lda",
    "2x_unshuffle_nearest-conv",
    "2x_unshuffle_pa_up",
    "2x_unshuffle_pixelshuffle",
    "2x_unshuffle_pixelshuffledirect",
    "2x_unshuffle_transpose-conv",
    "3x_nearest-conv",
    "3x_pa_up",
    "3x_pixelshuffle",
    "3x_pixelshuffledirect",
    "3x_transpose-conv",
    "4x",
)
"""Names without their ``fdatrd_``."""
