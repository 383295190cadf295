"""Kernels of our own in Triton's interpreter, in place of the NumPy functions, which are faster."""

import sys
from dataclasses import replace
from functools import cache

from tests.kernels import large_tiles
from vsfdatrd.kernels import manifest


def enlarge_tiles():
    """Plan with large tiles, which leave the interpreter few programs to run."""
    load_shipped = manifest.load

    @cache
    def load():
        found = load_shipped()
        kernels = {
            key: replace(kernel, constants=large_tiles.enlarge_tiles(kernel.kernel, kernel.constants))
            for key, kernel in found.kernels.items()
        }
        return replace(found, kernels=kernels)

    manifest.load = load


def run(about, grid, arguments, is_frame):
    """Run a kernel of the manifest. is_frame: it is the last one of a frame."""
    from tests.kernels.interpreter import launch, variant  # imports Triton, which only the worker needs

    kernel = replace(variant(about.kernel, about.channels, about.precision), constants=about.constants)
    launch(kernel, grid, {name: value for (name, _), value in zip(about.parameters, arguments, strict=True)})
    if is_frame:
        print("a frame computed by Triton's interpreter", file=sys.stderr, flush=True)
