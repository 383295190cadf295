"""Compare an engine with a reference: finite values, PSNR on line art, and no banding in a smooth sky."""

import numpy as np

from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.errors import PrecisionUnfit

MIN_PSNR_DB = 50.0
"""Lowest acceptable PSNR in dB. Errors are then below half an 8-bit step."""

MIN_STEP_RATIO = 0.97
"""Smallest acceptable ratio of an engine's 10-bit steps in a sky to those of fp32. Fewer steps are visible as bands."""
SKY_COLOR = (0.61, 0.64, 0.67)
"""Red, green and blue at the left edge of the sky: a range where half precisions are coarse and screens are bright."""


def draw_line_art(height: int, width: int) -> FramePlanes:
    """Draw synthetic cel animation: flat colors, soft gradients, thin lines of every slope, text-like dots.

    Args:
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        (3, height, width) in [0, 1], identical on every call.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([0.35 + 0.3 * y / height, 0.5 + 0.2 * x / width, 0.7 - 0.3 * y / height])
    rng = np.random.default_rng(1)
    for _ in range(12):  # cels: flat discs with an ink outline
        cx, cy, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.25) * min(height, width)
        distance = np.hypot(x - cx, y - cy) - radius
        cover = np.clip(0.5 - distance, 0, 1)
        picture += cover * (rng.random(3, np.float32)[:, None, None] - picture)
        picture *= 1 - 0.9 * np.clip(1.5 - np.abs(distance), 0, 1)
    for angle in np.linspace(0, np.pi, 9):  # strands and grids
        across = (x * np.cos(angle) + y * np.sin(angle)) % 47
        picture *= 1 - 0.7 * np.clip(1 - np.abs(across - 23), 0, 1) * (rng.random() > 0.3)
    picture += rng.normal(0, 0.008, picture.shape)
    finished: FramePlanes = np.clip(picture, 0, 1).astype(np.float32)
    return finished


def draw_sky(height: int, width: int) -> FramePlanes:
    """Draw a clear sky with identical rows, which gets brighter to the right.

    A 10-bit step is at least two pixels wide, and there are at most 160 steps. Values have 16 bits, as in video.

    Args:
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        (3, height, width) in [0, 1].
    """
    span = min(160, width / 2) / 1023
    rows = [np.linspace(start, start + span, width) for start in SKY_COLOR]
    values = np.rint(np.stack(rows) * 65535) / 65535
    return np.repeat(values[:, None].astype(np.float32), height, axis=1)


def count_levels(result: FramePlanes) -> int:
    """Count the distinct 10-bit values in three rows of the upscaled image of `draw_sky`, summed over all planes.

    Args:
        result: (C, H, W) in [0, 1].
    """
    height = result.shape[1]
    rows = (plane[height * i // 4] for plane in result for i in (1, 2, 3))
    return sum(len(np.unique(np.rint(np.clip(row, 0, 1) * 1023))) for row in rows)


def check_banding(reference: int, candidate: int, precision: str) -> None:
    """Check that an engine's output of a smooth sky has almost as many shades as fp32, and so no bands.

    Args:
        reference: `count_levels` of the sky in fp32.
        candidate: `count_levels` of the engine's sky.
        precision: The engine's precision, for the message.

    Raises:
        PrecisionUnfit: The engine has fewer than `MIN_STEP_RATIO` of the reference's steps.
    """
    if candidate < MIN_STEP_RATIO * reference:
        raise PrecisionUnfit(
            f"the {precision} engine leaves {candidate} of a sky's {reference} steps of ten bits, which shows as bands."
        )


def check_psnr(reference: FramePlanes, candidate: FramePlanes, precision: str) -> float:
    """Compute the PSNR of an engine's output against the reference, for a peak of 1.

    Args:
        reference: (C, H, W) in [0, 1].
        candidate: The engine's output, of the same shape.
        precision: The engine's precision, for the message.

    Returns:
        PSNR in dB.

    Raises:
        PrecisionUnfit: The candidate has values that are not finite, or its PSNR is below `MIN_PSNR_DB`.
    """
    if count := np.count_nonzero(~np.isfinite(candidate)):
        raise PrecisionUnfit(f"the {precision} engine's output has {count} values that are not finite.")
    decibels = compute_psnr(reference, candidate)
    if decibels < MIN_PSNR_DB:
        raise PrecisionUnfit(
            f"the {precision} engine agrees with fp32 to {decibels:.1f} dB only, {MIN_PSNR_DB:.0f} are needed."
        )
    return decibels


def compute_psnr(reference: FramePlanes, candidate: FramePlanes) -> float:
    """Compute the PSNR of two pictures in dB for a peak of 1, clipped to [0, 1]; at most 200.

    Args:
        reference: (C, H, W).
        candidate: A finite picture of the same shape.
    """
    error = float(np.mean((np.clip(reference, 0, 1).astype(np.float64) - np.clip(candidate, 0, 1)) ** 2))
    return float(10 * np.log10(1 / max(error, 1e-20)))
