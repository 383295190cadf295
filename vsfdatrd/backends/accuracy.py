"""Holding an engine against a reference: finite, close enough on a drawing, and smooth in a sky."""

import numpy as np

from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.errors import PrecisionUnfit

BOUND_DB = 50.0
"""Lowest PSNR at which an engine counts as the same network: its errors are then under half a step of 8 bits."""

SHARE_OF_STEPS = 0.97
"""Smallest share of a sky's steps of ten bits, counted in fp32, that an engine may leave: fewer are seen as bands."""
SKY = (0.61, 0.64, 0.67)
"""Red, green and blue at the left of the sky: where half precisions are coarsest and screens are bright."""


def drawing(height: int, width: int) -> FramePlanes:
    """A picture with what cel animation is made of: flat colours, soft gradients, thin lines of every slope, text-like
    dots. (3, height, width) in [0, 1], the same at every call.
    """
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    picture = np.stack([0.35 + 0.3 * y / height, 0.5 + 0.2 * x / width, 0.7 - 0.3 * y / height])
    rng = np.random.default_rng(1)
    for _ in range(12):  # cels: flat discs with an ink line around them
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


def sky(height: int, width: int) -> FramePlanes:
    """A clear sky: every row the same and brighter to the right, two pixels for a step of ten bits or more, and 160
    steps at most. (3, height, width) in [0, 1], with 16 bits as films have.
    """
    span = min(160, width / 2) / 1023
    rows = [np.linspace(start, start + span, width) for start in SKY]
    values = np.rint(np.stack(rows) * 65535) / 65535
    return np.repeat(values[:, None].astype(np.float32), height, axis=1)


def steps(result: FramePlanes) -> int:
    """How many values of ten bits three rows of an upscaled `sky` have in all planes. result: (C, H, W) in [0, 1]."""
    height = result.shape[1]
    rows = (plane[height * i // 4] for plane in result for i in (1, 2, 3))
    return sum(len(np.unique(np.rint(np.clip(row, 0, 1) * 1023))) for row in rows)


def compare_steps(reference: int, candidate: int, what: str) -> None:
    """Raise PrecisionUnfit if an engine's sky has fewer than `SHARE_OF_STEPS` of the reference's `steps`."""
    if candidate < SHARE_OF_STEPS * reference:
        raise PrecisionUnfit(
            f"the {what} engine leaves {candidate} of a sky's {reference} steps of ten bits, which shows as bands."
        )


def compare(reference: FramePlanes, candidate: FramePlanes, what: str) -> float:
    """PSNR of an engine's output against the reference's, in dB for a peak of 1.

    Raises PrecisionUnfit if the candidate is not finite or below `BOUND_DB`.
    """
    if not np.isfinite(candidate).all():
        count = int(np.count_nonzero(~np.isfinite(candidate)))
        raise PrecisionUnfit(f"the {what} engine's output has {count} values that are not finite.")
    error = float(np.mean((np.clip(reference, 0, 1).astype(np.float64) - np.clip(candidate, 0, 1)) ** 2))
    psnr = 10 * np.log10(1 / max(error, 1e-20))
    if psnr < BOUND_DB:
        raise PrecisionUnfit(f"the {what} engine agrees with fp32 to {psnr:.1f} dB only, {BOUND_DB:.0f} are needed.")
    return float(psnr)
