"""Statistics of the difference between two methods: mean over the pictures, its standard error, and number of wins."""

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np

type Row = dict[str, Any]

HIGHER_IS_BETTER = {
    "psnr_y_db": True,
    "ssim": True,
    "ssimulacra2": True,
    "ssimulacra2_vszip": True,
    "xpsnr_y_db": True,
    "chroma_error_steps": False,
    "halo_steps": False,
    "flat_noise_steps": False,
    "flicker_steps": False,
    "chroma_flicker_steps": False,
}
"""Measures with a better and a worse direction; sharpness is best at 1."""


class Difference(TypedDict):
    """The difference of a measure between two methods."""

    mean: float
    standard_error: float | None
    wins: int
    pictures: int


def difference(
    first: Mapping[str, float | None], second: Mapping[str, float | None], measure: str
) -> Difference | None:
    """Compare the values of two methods by picture.

    Args:
        first: Values of a method by picture; its wins are counted.
        second: Values of another method by picture.
        measure: Name of the measure.

    Returns:
        The difference; None if the two have no picture in common.
    """
    pairs = [(a, b) for name, a in first.items() if a is not None and (b := second.get(name)) is not None]
    if not pairs:
        return None
    a, b = np.array(pairs).T
    worse = np.abs(1 - np.array([a, b])) if measure == "sharpness" else np.array([a, b])
    wins = worse[0] > worse[1] if HIGHER_IS_BETTER.get(measure) else worse[0] < worse[1]
    error = float((a - b).std(ddof=1) / np.sqrt(len(a))) if len(a) > 1 else None
    return Difference(
        mean=round(float((a - b).mean()), 4),
        standard_error=None if error is None else round(error, 4),
        wins=int(wins.sum()),
        pictures=len(a),
    )


def differences(rows: Mapping[str, Row | str], reference: str) -> dict[str, dict[str, dict[str, Difference]]]:
    """Compare the reference with every other method, by method, kind and measure."""
    own = rows[reference]
    if isinstance(own, str):
        return {}
    found: dict[str, dict[str, dict[str, Difference]]] = {}
    for name, row in rows.items():
        if isinstance(row, str) or name == reference:
            continue
        found[name] = {}
        for kind, measures in own.items():
            found[name][kind] = {}
            for measure, entry in measures.items():
                one = difference(entry["pictures"], row[kind][measure]["pictures"], measure)
                if one is not None:
                    found[name][kind][measure] = one
    return found


def spread(found: Difference | None, digits: int = 2) -> str:
    """Format as text: mean ± standard error (wins of pictures)."""
    if found is None:
        return "–"
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.{digits}f}"
    return f"{found['mean']:+.{digits}f}{error} ({found['wins']}/{found['pictures']})"
