"""`make demo`: a DVD-style clip through vspipe into ffmpeg, a before/after picture, and frames per second.

    python -m benchmarks.demo [--input disc.vob] [--frames 6] [--model medium] [--out demo]

Without an input it draws a small animation and encodes it as a DVD would hold it (MPEG-2, 720×480, SMPTE 170M).
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from benchmarks.cartoon import write_dvd
from benchmarks.programs import ffmpeg, run, vspipe

SCRIPT = """\
import vapoursynth as vs
from vapoursynth import core

clip = core.bs.VideoSource({source!r}, cachemode=0)
{prepare}clip = clip[:{frames}]
core.fdatrd.upscale(clip, model={model!r}).set_output()
"""

# What the first frame says of itself decides what must happen before upscaling.
IVTC = "clip = core.vivtc.VDecimate(core.vivtc.VFM(clip, order={order}))\n"


def prepare(source: Path) -> str:
    """Script lines that make the source progressive; telecined film is what an interlaced animation DVD holds."""
    import vapoursynth as vs

    props = vs.core.bs.VideoSource(str(source), cachemode=0).get_frame(0).props
    field = int(props.get("_FieldBased", 0))
    return IVTC.format(order=field - 1) if field else ""


def encode(script: Path, output: Path, frames: int) -> float:
    """vspipe | ffmpeg, with a progress bar; returns seconds. Raises RuntimeError if either program fails."""
    start = time.perf_counter()
    pipe = subprocess.Popen(
        [vspipe(), "-c", "y4m", "-p", str(script), "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    encoder = [ffmpeg(), "-v", "error", "-y", "-i", "-", "-c:v", "libx265", "-preset", "fast", "-crf", "16"]
    encoder += ["-pix_fmt", "yuv420p10le", "-x265-params", "log-level=none", str(output)]
    coder = subprocess.Popen(encoder, stdin=pipe.stdout)
    if pipe.stdout is None or pipe.stderr is None:
        raise RuntimeError("vspipe was started without pipes")
    pipe.stdout.close()
    words = []
    os.set_blocking(pipe.stderr.fileno(), True)
    with tqdm(total=frames, unit="frame", desc="upscaling", dynamic_ncols=True) as bar:
        line = b""
        while byte := pipe.stderr.read(1):
            if byte not in b"\r\n":
                line += byte
                continue
            text, line = line.decode(errors="replace"), b""
            if text.startswith("Frame: "):
                bar.update(int(text.removeprefix("Frame: ").split("/")[0]) - bar.n)
            elif text.strip() and not text.startswith("Output "):
                words.append(text)
                tqdm.write(text, file=sys.stderr)
        bar.update(frames - bar.n if pipe.wait() == 0 else 0)
    if coder.wait() or pipe.returncode:
        raise RuntimeError(f"vspipe ended with {pipe.returncode}, ffmpeg with {coder.returncode}; see above")
    return time.perf_counter() - start


def picture(file: Path, number: int, size: tuple[int, int]) -> Image.Image:
    """One frame of a video as a picture of `size`, enlarged by ffmpeg's Lanczos where needed."""
    width, height = size
    pixels = run(
        [ffmpeg(), "-v", "error", "-i", str(file), "-vf"]
        + [f"select=eq(n\\,{number}),scale={width}:{height}:flags=lanczos+accurate_rnd,format=rgb24"]
        + ["-frames:v", "1", "-f", "rawvideo", "-"]
    )
    return Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(height, width, 3))


def busiest(image: Image.Image, side: int) -> tuple[int, int, int, int]:
    """The square with the most edges: where a before/after picture has something to show."""
    grey = np.asarray(image.convert("L"), np.float32)
    edges = np.abs(np.diff(grey, axis=0))[:, 1:] + np.abs(np.diff(grey, axis=1))[1:]
    total = edges.cumsum(0).cumsum(1)
    sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    y, x = np.unravel_index(int(sums.argmax()), sums.shape)
    return int(x), int(y), int(x) + side, int(y) + side


def before_after(source: Image.Image, upscaled: Image.Image, file: Path) -> None:
    """Write both pictures' busiest part side by side."""
    side = min(480, source.height, source.width)
    box = busiest(upscaled, side)
    both = Image.new("RGB", (2 * side + 8, side + 28), "white")
    draw = ImageDraw.Draw(both)
    for i, (image, label) in enumerate(((source, "DVD, enlarged with Lanczos"), (upscaled, "vsfdatrd"))):
        both.paste(image.crop(box), (i * (side + 8), 28))
        draw.text((i * (side + 8) + 4, 6), label, fill="black", font_size=16)
    both.save(file)


def main() -> int:
    """Run the demo; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--input", type=Path, help="your own file instead of the drawn one")
    parser.add_argument("--frames", type=int, default=6)
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
    script.write_text(
        SCRIPT.format(source=str(source.resolve()), prepare=prepare(source), frames=a.frames, model=a.model),
        encoding="utf-8",
    )
    seconds = encode(script, output, a.frames)
    lines = run([vspipe(), "--info", str(script), "-"]).decode().splitlines()
    info = dict(line.split(": ", 1) for line in lines if ": " in line)
    size = (int(info["Width"]), int(info["Height"]))
    middle = min(a.frames, int(info["Frames"])) // 2
    after = picture(output, middle, size)
    before_after(picture(source, middle, size), after, a.out / "before_after.png")
    frames = int(info["Frames"])
    print(f"{frames} frames of {size[0]}×{size[1]} in {seconds:.1f} s, start included: {frames / seconds:.3f} fps")
    print(f"script  {script}\nvideo   {output}\npicture {a.out / 'before_after.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
