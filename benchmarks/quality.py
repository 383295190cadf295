"""Picture quality of a model beside Lanczos, on a folder of pictures that it was not trained on.

    python -m benchmarks.quality FOLDER [--models medium path.safetensors ...] [--pictures]

From each picture the busiest part of 480×400 pixels is taken as the truth, halved (area average) and given back at its
old size, once as it is (clean) and once through real MPEG-2 at 4:2:0 (dvd: ffmpeg's mpeg2video, quantiser 6).
PSNR of luma in dB, mean over the pictures; higher is better.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.demo import busiest
from benchmarks.programs import ffmpeg, run
from benchmarks.report import save

type Picture = NDArray[np.uint8]

WIDTH, HEIGHT = 480, 400
LUMA = np.array([0.2126, 0.7152, 0.0722])


def truths(folder: Path) -> dict[str, Picture]:
    """The part of every picture that is measured, (400, 480, 3)."""
    found = {}
    for file in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".webp", ".jpg")):
        image = Image.open(file).convert("RGB")
        if image.width < WIDTH or image.height < HEIGHT:
            continue
        left, top, *_ = busiest(image, HEIGHT)
        left = min(left, image.width - WIDTH)
        found[file.stem] = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)))
    return found


def halved(truth: Picture) -> Picture:
    """Area average of 2×2 pixels."""
    mean = truth.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean((1, 3))
    return np.rint(mean).astype(np.uint8)


def through_mpeg2(picture: Picture) -> Picture:
    """Encoded as one intra frame and decoded again."""
    height, width, _ = picture.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command = [ffmpeg(), "-v", "error", *raw, "-i", "-", "-vf", "scale=out_color_matrix=smpte170m,format=yuv420p"]
    video = run([*command, "-c:v", "mpeg2video", "-qscale:v", "6", "-f", "mpeg2video", "-"], picture.tobytes())
    back = ["-vf", "scale=in_color_matrix=smpte170m:flags=accurate_rnd+full_chroma_int,format=rgb24"]
    pixels = run([ffmpeg(), "-v", "error", "-f", "mpegvideo", "-i", "-", *back, "-f", "rawvideo", "-"], video)
    return np.frombuffer(pixels, np.uint8)[: height * width * 3].reshape(height, width, 3)


def as_clip(picture: Picture) -> vs.VideoNode:
    """One RGBS frame."""
    height, width, _ = picture.shape
    frame = vs.core.create_video_frame(vs.core.get_video_format(vs.RGBS), width, height)
    for i in range(3):
        np.copyto(np.asarray(frame[i]), picture[..., i].astype(np.float32) / 255)
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=1)
    return vs.core.std.ModifyFrame(blank, blank, lambda n, f: frame)


def psnr_luma(truth: Picture, clip: vs.VideoNode) -> float:
    """PSNR of luma against the truth, in dB; a border of 8 pixels does not count."""
    with clip.get_frame(0) as frame:
        planes = np.stack([np.asarray(frame[i], np.float64) for i in range(3)], -1)
    error = (np.clip(planes, 0, 1) - truth / 255) @ LUMA
    return float(-10 * np.log10(np.mean(error[8:-8, 8:-8] ** 2)))


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", default=["medium"])
    parser.add_argument("--pictures", type=Path, help="also write each result as PNG into this folder")
    a = parser.parse_args()
    found = truths(a.folder)
    scores: dict[str, dict[str, list[float]]] = {m: {"clean": [], "dvd": []} for m in ("Lanczos", *a.models)}
    for name, truth in tqdm(found.items(), unit="picture"):
        small = halved(truth)
        for kind, source in (("clean", small), ("dvd", through_mpeg2(small))):
            clip = as_clip(source)
            for method, rows in scores.items():
                if method == "Lanczos":
                    result = clip.resize.Lanczos(WIDTH, HEIGHT)
                else:
                    result = vs.core.fdatrd.upscale(clip, model=method)
                rows[kind].append(psnr_luma(truth, result))
                if a.pictures:
                    write(result, a.pictures / f"{name}_{kind}_{Path(method).stem}.png")
    means: dict[str, Any] = {}
    for method, rows in scores.items():
        means[method] = {kind: round(float(np.mean(values)), 2) for kind, values in rows.items()}
        print(f"{method:<40} clean {means[method]['clean']:.2f} dB   dvd {means[method]['dvd']:.2f} dB")
    save("quality", {"pictures": list(found), "psnr_y_db": means})
    return 0


def write(clip: vs.VideoNode, file: Path) -> None:
    """Save an RGBS clip's frame as PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with clip.resize.Point(format=vs.RGB24).get_frame(0) as frame:
        Image.fromarray(np.stack([np.asarray(frame[i]) for i in range(3)], -1)).save(file)


if __name__ == "__main__":
    sys.exit(main())
