"""Cache results of methods and their measures on disk, so that a rerun computes only what has changed."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import quality_measures, ssimulacra2

type Picture = NDArray[np.uint8]
type Result = NDArray[np.float32]
type Numbers = dict[str, float | None]

_MEASURES = hashlib.sha256(
    b"".join(Path(module.__file__ or "").read_bytes() for module in (quality_measures, ssimulacra2))
).hexdigest()


class Cache:
    """A folder of results; if None, nothing is cached."""

    def __init__(self, folder: Path | None) -> None:
        """Create the folder."""
        self._folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def result(self, method: str, source: Picture) -> Result | None:
        """Return the output of a method for a source, with 16 bits, or None if it is not cached.

        Args:
            method: Name, version and weights of the method.
            source: The picture that it upscales.
        """
        file = self._file(method, source, ".npy")
        if file is None or not file.is_file():
            return None
        rounded: NDArray[np.uint16] = np.load(file)
        return (rounded / np.float32(65535)).astype(np.float32)

    def keep(self, method: str, source: Picture, result: Result) -> Result:
        """Store a result; return it as the cache will return it."""
        rounded = np.rint(np.clip(result, 0, 1) * 65535).astype(np.uint16)
        if (file := self._file(method, source, ".npy")) is not None:
            part = file.with_suffix(".part.npy")
            np.save(part, rounded)
            part.replace(file)
        return (rounded / np.float32(65535)).astype(np.float32)

    def numbers(self, method: str, source: Picture, truth: Picture) -> tuple[Numbers, Path | None]:
        """Return the cached measures of that result against a truth, and the file in which `write` stores them."""
        file = self._file(method + _MEASURES + hashlib.sha256(truth.tobytes()).hexdigest(), source, ".json")
        if file is None or not file.is_file():
            return {}, file
        known: Numbers = json.loads(file.read_text(encoding="utf-8"))
        return known, file

    def _file(self, method: str, source: Picture, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(method.encode() + bytes(str(source.shape), "ascii") + source.tobytes())
        return self._folder / (digest.hexdigest()[:40] + suffix)
