"""`make demo`: a DVD-style clip through vspipe into ffmpeg, a before/after picture, and frames per second.

    python -m benchmarks.demo [--input disc.vob] [--frames 6] [--model medium] [--out demo]

Without an input it draws a small animation and encodes it like a DVD (MPEG-2, 720×480, SMPTE 170M).
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import vapoursynth as vs
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress

from benchmarks.cartoon import write_dvd
from benchmarks.command_line import positive_int, run
from benchmarks.errors import BenchmarkError
from vsfdatrd.system.programs import ffmpeg, vspipe

SCRIPT = """\
import vapoursynth as vs
from vapoursynth import core

clip = core.bs.VideoSource({source!r}, cachemode=0)
{prepare}clip = clip[:{frames}]
core.fdatrd.upscale(clip, model={model!r}).set_output()
"""

# An interlaced animation DVD contains telecined film; the first frame gives the field order.
IVTC = "clip = core.vivtc.VDecimate(core.vivtc.VFM(clip, order={order}))\n"


def field_order(source: vs.VideoNode) -> int | None:
    """Return 0 or 1 (bottom or top field first) for an interlaced source, None for a progressive one."""
    field = int(source.get_frame(0).props.get("_FieldBased", 0))
    return field - 1 if field else None


def encode(script: Path, output: Path, frames: int) -> float:
    """Run vspipe | ffmpeg with a progress bar.

    Args:
        script: The VapourSynth script.
        output: The video file.
        frames: Number of frames of the script.

    Returns:
        The seconds that it took.

    Raises:
        BenchmarkError: Either program fails.
    """
    start = time.perf_counter()
    pipe = subprocess.Popen(
        [vspipe(), "-c", "y4m", "-p", str(script), "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    encoder = [ffmpeg("libx265"), "-v", "error", "-y", "-i", "-", "-c:v", "libx265", "-preset", "fast", "-crf", "16"]
    # y4m does not carry the matrix; this only sets the tag, without any conversion.
    encoder += ["-vf", "setparams=colorspace=bt709", "-pix_fmt", "yuv420p10le"]
    encoder += ["-x265-params", "log-level=none", str(output)]
    coder = subprocess.Popen(encoder, stdin=pipe.stdout)
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.close()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("upscaling", total=frames)
        line = b""
        while byte := pipe.stderr.read(1):
            if byte not in b"\r\n":
                line += byte
                continue
            text, line = line.decode(errors="replace"), b""
            if text.startswith("Frame: "):
                bar.update(task, completed=int(text.removeprefix("Frame: ").split("/")[0]))
            elif text.strip() and not text.startswith("Output "):
                bar.console.print(text, markup=False, highlight=False)
        if pipe.wait() == 0:
            bar.update(task, completed=frames)
    if coder.wait() or pipe.returncode:
        raise BenchmarkError(f"vspipe ended with {pipe.returncode}, ffmpeg with {coder.returncode}; see above")
    return time.perf_counter() - start


def read_picture(clip: vs.VideoNode, number: int) -> Image.Image:
    """Return one frame of an RGB24 clip as a picture."""
    with clip.get_frame(number) as frame:
        return Image.fromarray(np.stack([np.asarray(frame[i]) for i in range(3)], -1))


def crop_busiest(image: Image.Image, side: int) -> tuple[int, int, int, int]:
    """Return the square with the most edges, where differences are most visible."""
    gray = np.asarray(image.convert("L"), np.float32)
    edges = np.abs(np.diff(gray, axis=0))[:, 1:] + np.abs(np.diff(gray, axis=1))[1:]
    total = edges.cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(x), int(y), int(x) + side, int(y) + side


def before_after(source: Image.Image, upscaled: Image.Image, file: Path) -> None:
    """Write the busiest part of both pictures side by side."""
    side = min(480, source.height, source.width)
    box = crop_busiest(upscaled, side)
    both = Image.new("RGB", (2 * side + 8, side + 28), "white")
    draw = ImageDraw.Draw(both)
    for i, (image, label) in enumerate(((source, "DVD, enlarged with Lanczos"), (upscaled, "vsfdatrd"))):
        both.paste(image.crop(box), (i * (side + 8), 28))
        draw.text((i * (side + 8) + 4, 6), label, fill="black", font_size=16)
    both.save(file)


def main() -> int:
    """Run the demo; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="your own file instead of the drawn one")
    parser.add_argument("--frames", type=positive_int, default=6)
    parser.add_argument("--model", default="medium")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    source = a.input
    if source is None:
        source = a.out / "dvd.mpg"
        print(f"drawing {a.frames} frames and encoding them as a DVD would hold them: {source}", file=sys.stderr)
        write_dvd(source, a.frames)
    elif not source.is_file():
        parser.error(f"--input {source} is not a file")
    script, output = a.out / "upscale.vpy", a.out / "upscaled.mkv"
    try:
        clip = vs.core.bs.VideoSource(str(source), cachemode=0)
    except vs.Error as error:
        raise BenchmarkError(f"{source} cannot be read as a video: {error}") from error
    lines = ""
    if (order := field_order(clip)) is not None:
        clip = vs.core.vivtc.VDecimate(vs.core.vivtc.VFM(clip, order=order))
        lines = IVTC.format(order=order)
    frames = min(a.frames, clip.num_frames)
    script.write_text(
        SCRIPT.format(source=str(source.resolve()), prepare=lines, frames=frames, model=a.model), encoding="utf-8"
    )
    seconds = encode(script, output, frames)
    upscaled = vs.core.bs.VideoSource(str(output), cachemode=0)
    before = clip.resize.Lanczos(upscaled.width, upscaled.height, format=vs.RGB24, matrix_in=clip_matrix(clip))
    after = upscaled.resize.Spline36(format=vs.RGB24, matrix_in=clip_matrix(upscaled))
    before_after(read_picture(before, frames // 2), read_picture(after, frames // 2), a.out / "before_after.png")
    size = f"{upscaled.width}×{upscaled.height}"
    print(f"{frames} frames of {size} in {seconds:.1f} s, start included: {frames / seconds:.3f} fps")
    print(f"script  {script}\nvideo   {output}\npicture {a.out / 'before_after.png'}")
    return 0


def clip_matrix(clip: vs.VideoNode) -> int:
    """Return the matrix property of the first frame; if missing, the usual matrix for the size."""
    named = int(clip.get_frame(0).props.get("_Matrix", 2))
    return named if named != 2 else 1 if clip.height > 576 else 6


if __name__ == "__main__":
    run(main)
