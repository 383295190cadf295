"""vsfdatrd as a contestant: the engine alone, the filter, and a script through vspipe into ffmpeg.

The filter is used in the same way as by scripts, so that any version can be measured (`benchmarks.guard`).
"""

import subprocess
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs

from benchmarks.speed.cases import Case
from benchmarks.speed.contestant import Contestant, Filter
from benchmarks.speed.material import Frame, drawings, endless, real_clip


def open_ours(case: Case, weights: Path, cache: Path) -> Contestant:
    """Open the contestant of a case.

    Args:
        case: The case.
        weights: Path of the weights file.
        cache: Folder of built engines.
    """
    match case.measure:
        case "engine":
            return Alone(case, weights, cache)
        case "encode":
            return Encode(case, weights, cache)
    width, height = case.size
    source = real_clip(case.clip, width, height) if case.clip else endless(width, height)
    options: dict[str, Any] = (
        {"reuse": case.reuse} if "reuse" in vs.core.fdatrd.upscale.signature else {}
    )  # older ones have none
    return Filter(
        vs.core.fdatrd.upscale(
            source,
            model=str(weights),
            backend=case.backend,
            precision=case.precision,
            streams=case.streams,
            cache=str(cache),
            **options,
        ),
        case.streams or 2,
    )


class Alone(Contestant):
    """The engine alone with all of its slots busy, without writing the input or reading the output."""

    def __init__(self, case: Case, weights: Path, cache: Path) -> None:
        from vsfdatrd.backends.selection import open_engine
        from vsfdatrd.cache.engine_cache import EngineCache
        from vsfdatrd.checkpoint import open_checkpoint
        from vsfdatrd.options import Options
        from vsfdatrd.video.tiling import fill_padding

        options = Options(
            model=weights, backend=case.backend, precision=case.precision, streams=case.streams, cache=cache
        )
        width, height = case.size
        checkpoint = open_checkpoint(weights)
        self._slots = open_engine(checkpoint, height, width, options, EngineCache(cache))
        self.depth = self._slots.engine.slots
        self._cropped = (height * checkpoint.descriptor.scale, width * checkpoint.descriptor.scale)
        for slot in range(self.depth):
            for plane, target in zip(drawings(width, height, 1)[0], self._slots.engine.input(slot), strict=True):
                target[:height, :width] = plane
                fill_padding(target, height, width)

    def run(self, first: int, count: int) -> None:
        """Upscale `count` frames."""
        engine = self._slots.engine
        flying: deque[int] = deque()
        for n in range(count):
            slot = n % self.depth
            if len(flying) == self.depth:
                engine.collect(flying.popleft())
            engine.submit(slot)
            flying.append(slot)
        while flying:
            engine.collect(flying.popleft())

    def picture(self) -> Frame:
        """The result for the first drawing."""
        self._slots.engine.submit(0)
        height, width = self._cropped
        return np.clip(self._slots.engine.collect(0)[:, :height, :width], 0, 1)


SCRIPT = """\
import time
import vapoursynth as vs
times = open({times!r}, "a", buffering=1)

def note(n, f):
    times.write(f"{{time.perf_counter()}}\\n")
    return f

source = vs.core.bs.VideoSource({source!r}, cachemode=0, showprogress=False)
source = source.std.Loop(times=1 << 16)[:{count}]
clip = vs.core.fdatrd.upscale(
    source, model={model!r}, backend={backend!r}, precision={precision!r}, streams={streams!r}, cache={cache!r},
    reuse="off",
)
clip = vs.core.std.ModifyFrame(clip, clip, note)
clip.set_output()
"""


class Encode(Contestant):
    """A clip in DVD format through vspipe into ffmpeg. The rate excludes the start-up until the first frame."""

    def __init__(self, case: Case, weights: Path, cache: Path) -> None:
        from vsfdatrd.system.programs import ffmpeg, run, vspipe

        self._ffmpeg, self._vspipe = ffmpeg("libx264"), vspipe()
        self._folder = tempfile.TemporaryDirectory()
        self._case, self._weights, self._cache = case, weights, cache
        self._source = Path(self._folder.name, "source.mkv")
        width, height = case.size
        raw = b"".join(
            np.round(frame.transpose(1, 2, 0) * 255).astype(np.uint8).tobytes() for frame in drawings(width, height)
        )
        encoder = [self._ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        encoder += ["-r", "24000/1001", "-i", "-"]
        encoder += ["-vf", "scale=out_color_matrix=smpte170m:out_range=tv,format=yuv420p", "-c:v", "ffv1"]
        run([*encoder, str(self._source)], raw)
        self.depth = case.streams or 2
        self.seconds: float | None = None

    def run(self, first: int, count: int) -> None:
        """Encode `count` frames and one more; `seconds` is the time the `count` took after the first."""
        folder = Path(self._folder.name)
        times, script = folder / "times.txt", folder / "script.vpy"
        times.unlink(missing_ok=True)
        case = self._case
        script.write_text(
            SCRIPT.format(
                times=str(times),
                source=str(self._source),
                count=count + 1,
                model=str(self._weights),
                backend=case.backend,
                precision=case.precision,
                streams=case.streams,
                cache=str(self._cache),
            ).replace("streams=None, ", "")
        )
        piped = subprocess.Popen([self._vspipe, "-c", "y4m", str(script), "-"], stdout=subprocess.PIPE)
        encoder = [self._ffmpeg, "-v", "error", "-y", "-i", "-", "-c:v", "libx264", "-preset", "ultrafast"]
        encoder += ["-f", "null", "-"]
        done = subprocess.run(encoder, stdin=piped.stdout, check=False, capture_output=True)
        ended = time.perf_counter()
        if piped.wait() or done.returncode:
            raise RuntimeError(f"vspipe ended with {piped.returncode}, ffmpeg with {done.returncode}")
        noted = sorted(float(line) for line in times.read_text().split())
        self.seconds = ended - noted[0]

    def picture(self) -> Frame | None:
        """None: the video is thrown away."""
        return None
