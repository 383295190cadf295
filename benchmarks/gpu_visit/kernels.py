"""GPU kernels of our own: error, time and share of the ceilings of each."""

from collections.abc import Callable
from typing import Any

from benchmarks.gpu_visit.record import Skipped
from benchmarks.gpu_visit.sizes import Sizes


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Skipped as long as there are none."""
    raise Skipped("there are no GPU kernels of our own yet")
