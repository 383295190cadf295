"""Cache results of methods and their measures on disk, so that a rerun computes only what has changed."""

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import quality_measures, ssimulacra2
from vsfdatrd.system.files import replace_file, write_atomic

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
            with replace_file(file, durable=False) as part:
                np.save(part, rounded)
        return (rounded / np.float32(65535)).astype(np.float32)

    def numbers(self, method: str, source: Picture, truth: Picture) -> Numbers:
        """Return the measures of that result against a truth; empty if they are not cached.

        Args:
            method: As of `result`.
            source: As of `result`, or several pictures stacked.
            truth: The picture that a perfect method would return.
        """
        file = self._numbers_file(method, source, truth)
        if file is None or not file.is_file():
            return {}
        known: Numbers = json.loads(file.read_text(encoding="utf-8"))
        return known

    def keep_numbers(self, method: str, source: Picture, truth: Picture, numbers: Numbers) -> None:
        """Store measures for `numbers`, which has the same arguments."""
        if (file := self._numbers_file(method, source, truth)) is not None:
            write_atomic(file, json.dumps(numbers), durable=False)

    def _numbers_file(self, method: str, source: Picture, truth: Picture) -> Path | None:
        return self._file(method + _MEASURES + hashlib.sha256(truth.tobytes()).hexdigest(), source, ".json")

    def _file(self, method: str, source: Picture, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(method.encode() + bytes(str(source.shape), "ascii") + source.tobytes())
        return self._folder / (digest.hexdigest()[:40] + suffix)
