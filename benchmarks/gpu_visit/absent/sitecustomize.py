"""First on PYTHONPATH, this hides from Python what the visited machine does not have: modules and distributions.

Python imports it by this name at every start, so that subprocesses lack the same.
"""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from typing import Any

_NAMES = (
    "openvino",
    "vapoursynth",
    "tensorrt",
    "tensorrt_rtx",
    "tensorrt_libs",
    "spandrel",
    "spandrel_extra_arches",
    "platformdirs",
    "resvg_py",
    "av",
    "ray",
    "vsutil",
    "imageio_ffmpeg",
    "vsfdatrd",
)
ABSENT = frozenset(_NAMES) - frozenset(os.environ.get("PRESENT", "").split())
"""What is hidden, but for the names in the environment variable PRESENT."""


class Remaining:
    """Finds what `PathFinder` finds, but for what is absent."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`. The package itself is absent as a distribution only."""
        absent = name.partition(".")[0] in ABSENT - {"vsfdatrd"}
        return None if absent else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(context: DistributionFinder.Context) -> Iterator[Distribution]:
        """See `importlib.metadata.DistributionFinder`."""
        for result in PathFinder.find_distributions(context):
            name = (result.metadata["Name"] or "").replace("-", "_").lower()
            if not any(name == absent or name.startswith(f"{absent}_cu1") for absent in ABSENT):
                yield result

    @staticmethod
    def invalidate_caches() -> None:
        """See `importlib.abc.MetaPathFinder`."""
        PathFinder.invalidate_caches()


sys.meta_path[:] = [Remaining if finder is PathFinder else finder for finder in sys.meta_path]
# An editable installation's checkout: there, the package comes from the current directory alone.
_given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
sys.path[:] = [place for place in sys.path if place in _given or not Path(place, "vsfdatrd", "__init__.py").exists()]
