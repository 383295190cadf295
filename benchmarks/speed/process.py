"""Run a contestant in a separate process, so that its memory, CPU time and libraries are isolated from the others.

It imports nothing of vsfdatrd that older versions lack, so that `benchmarks.guard` can measure those.

Lines of JSON: ``{"do": "open", ...}``, ``{"do": "run", "first": n, "count": m}``, ``{"do": "picture", "file": path}``;
each is answered by ``{"result": ...}``, ``{"missing": reason}`` or ``{"error": text}``.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.errors import Missing
from benchmarks.speed.cases import OURS, Case
from benchmarks.speed.contestant import Contestant
from benchmarks.speed.material import endless


class _Server:
    """Handles the requests inside the contestant's process."""

    contestant: Contestant

    def open(self, case: dict[str, Any], weights: str, folder: str, cache: str) -> dict[str, Any]:
        """Open the contestant and upscale one frame.

        Returns:
            The seconds for both as ``ready``, and the number of frames in flight as ``depth``.
        """
        asked = Case.from_dict(case)
        endless(*asked.size)  # drawn before the timing starts
        if asked.contestant == OURS:
            from benchmarks.speed.ours import open_ours

            start = time.perf_counter()
            self.contestant = open_ours(asked, Path(weights), Path(cache))
        else:
            from benchmarks.speed.peers import PEERS

            peer = PEERS[asked.contestant]
            peer.prepare(asked, Path(weights), Path(folder))
            start = time.perf_counter()
            self.contestant = peer.open(asked, Path(weights), Path(folder))
        self.run(0, 1)
        return {"ready": time.perf_counter() - start, "depth": self.contestant.depth}

    def run(self, first: int, count: int) -> float:
        """Upscale some frames; return the seconds."""
        start = time.perf_counter()
        self.contestant.run(first, count)
        taken = time.perf_counter() - start
        return self.contestant.seconds or taken

    def picture(self, file: str) -> bool:
        """Write the result of frame 0 as .npy; return False if it is not available."""
        result = self.contestant.picture()
        if result is not None:
            np.save(file, result)
        return result is not None


def main() -> None:
    """Answer until the pipe closes."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    server = _Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"result": getattr(server, request.pop("do"))(**request)}
        except Missing as reason:
            answer = {"missing": str(reason)}
        except Exception as error:  # reported as a row of the table
            answer = {"error": f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"}
        replies.write(json.dumps(answer) + "\n")
        replies.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
