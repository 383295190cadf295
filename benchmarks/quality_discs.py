"""The second set: discs as they were made, at the scale of a film. Seeded by the pictures' names, never trained on.

`quality_degradations.py` halves a picture and does one thing to it; here a frame goes the whole way. A picture becomes
a frame of 1440×960 (none is enlarged; where it is smaller it is continued by reflection), squeezed as the disc's pixels
are, and ends as 8-bit RGB of 720×480, of which `LR` pixels around a face or lettering are what methods are given. The
truth is the same part of the frame before anything happened to it, so networks see anamorphic pixels as on a disc.

Every picture draws its own parameters, evenly from these ranges:

- pixels 8:9, 32:27 (NTSC), 16:15, 64:45 (PAL) in turn, those of Rec. 601 at 4:3 and 16:9; LaserDiscs are all 8:9;
- optics of camera, film and scanner: a Gaussian of 0.5 to 1.1 pixels of the truth (training draws 0.3 to 1.6);
- halved by area, bicubic or Lanczos; on two DVDs in three (1 2 1)/4 down the picture against interline twitter;
- edge enhancement, 0.2 to 0.6 (LaserDisc 0 to 0.4) of the detail of 0.7 to 1.3 pixels, across;
- grain of 0.8 to 2.5 levels of 255, strongest in mid tones, new in every frame (training: 0.4 to 6);
- DVD: every other picture pans by a pixel a frame; I B B P B B P at 4 to 7 Mbit/s for 720×480 (DVD-Video allows 9.8),
  of which a P or a B frame is measured; one in three deinterlaced, the lower field being made of the upper by the
  spatial filter of bwdif, (-981 5077 5077 -981) / 8192;
- LaserDisc: encoded to composite NTSC (SMPTE 170M) at four times the subcarrier and decoded by a comb filter of two
  dimensions, one in three by one of three, with `vapoursynth-composite`; noise of 40 to 46 dB on the wire that rises
  with frequency, as that of FM does; luma up to 4.4 to 5.2 MHz (players are sold with 400 to 440 lines); chroma up to
  0.5 to 1.0 MHz (SMPTE 170M: I 1.3 MHz, Q 0.5, decoders in between), late by -0.7 to 1.0 pixels and 0 or 1 line.

Where no source is named, the range is our own, inside that of `models/training/strengths.py`.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo import crop_busiest
from benchmarks.errors import Missing
from benchmarks.quality_degradations import picture_files, read_image
from benchmarks.quality_methods import as_clip
from vsfdatrd.system.programs import ffmpeg, run

type Picture = NDArray[np.uint8]
type Planes = NDArray[np.float64]

FRAME = (1440, 960)
"""Width and height of a frame's truth."""
LR = (320, 240)
"""Width and height of the source that is upscaled."""
HELD = 3
"""Number of frames of a LaserDisc in which one drawing is held and flicker is measured."""
SAMPLING = 13.5
"""MHz of a line of 720 pixels, Rec. 601."""
FOCUS = {
    "morevna_sita": (0.41, 0.29),
    "renpy_concert1": (0.74, 0.37),
    "renpy_demo_0": (0.52, 0.23),
    "renpy_question_0": (0.20, 0.20),
    "renpy_question_3": (0.40, 0.18),
    "snowy_1": (0.55, 0.33),
    "snowy_cg": (0.40, 0.43),
    "wapuu_edinburgh-wapuu": (0.47, 0.22),
    "wapuu_wapuu-tiger": (0.34, 0.42),
}
"""Positions of the faces (of the tiger, the lettering), as shares of the width and height of the pictures."""
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture and the frames that a disc would contain of it."""

    truth: Picture
    """The truth, (2 LR height, 2 LR width, 3)."""
    sources: list[Picture]
    """The sources: one frame, or `HELD` frames of one drawing."""


def dvds(folder: Path, limit: int | None = None) -> dict[str, Sample]:
    """Create the samples of every picture of a folder, as from a DVD."""
    return _create_samples(folder, limit, _make_dvd, ((8, 9), (32, 27), (16, 15), (64, 45)))


def laserdiscs(folder: Path, limit: int | None = None) -> dict[str, Sample]:
    """Create the samples of every picture of a folder, as from an NTSC LaserDisc.

    Raises:
        Missing: The VapourSynth plugin vapoursynth-composite is not installed.
    """
    if not hasattr(vs.core, "composite"):
        raise Missing("not installed: pip install vapoursynth-composite")
    return _create_samples(folder, limit, _make_laserdisc, ((8, 9),))


FILM_HOLDS = (300, 400, 474, 553)
"""First frames of drawings that the film holds for three frames or more."""


def film(path: Path, limit: int | None = None) -> dict[str, Sample]:
    """Create samples from real cels of 1936, with grain and weave.

    The truth is the film at half its size; the source is half of that, coded as on a DVD. Each sample has `HELD` frames
    of one drawing. The low bit rate of the file is hardly visible at half size.

    Args:
        path: The film, of which frames `FILM_HOLDS` are taken.
        limit: Number of samples; None for all.

    Raises:
        Missing: The film is not there.
    """
    if not path.is_file():
        raise Missing(f"{path} is not a file; give the film as --film")
    clip = vs.core.bs.VideoSource(str(path), cachemode=0, showprogress=0)
    result = {}
    for start in FILM_HOLDS[:limit]:
        frames = []
        for n in range(start - 3, start + 4):
            with clip.resize.Spline36(format=vs.RGB24, matrix_in=1).get_frame(n) as frame:
                whole = np.stack([np.asarray(frame[i]) for i in range(3)], -1)
            height, width = whole.shape[0] // 4 * 4, whole.shape[1] // 4 * 4
            frames.append(_halve(whole[:height, :width] / 255, Image.Resampling.BOX))
        sources = _through_mpeg2([_as_picture(_halve(f, Image.Resampling.BICUBIC)) for f in frames], 6.0)
        result[f"frame_{start}"] = Sample(_as_picture(frames[3]), sources[3 : 3 + HELD])
    return result


type _Make = Callable[[Planes, int, Generator], list[Planes]]


def _create_samples(
    folder: Path, limit: int | None, make: _Make, pixels: Sequence[tuple[int, int]]
) -> dict[str, Sample]:
    files = picture_files(folder)[:limit]
    result = {}
    for number, file in enumerate(files):
        frame, (left, top) = _frame(read_image(file), file.stem, pixels[number % len(pixels)])
        random = np.random.default_rng([zlib.crc32(file.stem.encode()), 19])
        width, height = LR
        part = (slice(top, top + height), slice(left, left + width))
        sources = [_as_picture(source[part]) for source in make(frame / 255, number, random)]
        truth = frame[2 * top : 2 * (top + height), 2 * left : 2 * (left + width)]
        result[file.stem] = Sample(np.ascontiguousarray(truth), sources)
    return result


def _frame(image: Image.Image, name: str, pixel: tuple[int, int]) -> tuple[Picture, tuple[int, int]]:
    """Squeeze a picture into a frame with the disc's pixel aspect ratio.

    Returns:
        The frame, and the corner of the part that is upscaled, in source pixels.
    """
    width, height = FRAME
    scale = min(1.0, height / image.height)
    size = round(image.width * scale * pixel[1] / pixel[0]), round(image.height * scale)
    if size != image.size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if name in FOCUS:
        x, y = FOCUS[name][0] * image.width, FOCUS[name][1] * image.height
    else:
        left, top, right, bottom = crop_busiest(image, min(2 * LR[1], image.width - 2, image.height - 2))
        x, y = (left + right) / 2, (top + bottom) / 2
    # The frame's middle is the focus, as far as the picture reaches.
    left, top = (
        int(np.clip(m - s / 2, 0, max(0, full - s))) // 2 * 2
        for m, s, full in ((x, width, image.width), (y, height, image.height))
    )
    part = np.asarray(image.crop((left, top, min(image.width, left + width), min(image.height, top + height))))
    below, right_of = height - part.shape[0], width - part.shape[1]
    frame = np.pad(part, ((0, below), (0, right_of), (0, 0)), "symmetric" if min(part.shape[:2]) > 1 else "edge")
    corner = [
        int(np.clip((m - o) / 2 - s / 2, 0, max(0, (full - 2 * s) / 2))) // 2 * 2
        for m, o, s, full in ((x, left, LR[0], part.shape[1]), (y, top, LR[1], part.shape[0]))
    ]
    return frame, (corner[0], corner[1])


def _as_picture(values: Planes) -> Picture:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


# ---- DVD and LaserDisc ---------------------------------------------------------------------------------------


def _make_dvd(frame: Planes, number: int, random: Generator) -> list[Planes]:
    interlaced = number % 3 == 2
    kept = _blur(frame, random.uniform(0.5, 1.1), both=True)
    kernel = (Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)[random.integers(3)]
    halo, width, grain = random.uniform(0.2, 0.6), random.uniform(0.7, 1.3), random.uniform(0.8, 2.5)
    rate, measured = random.uniform(4, 7), 3 + number % 2  # a P or a B frame
    frames = []
    for n in range(7):
        moved = np.roll(kept, 2 * (measured - n), 1) if number % 2 else kept
        half = _halve(moved, kernel)
        if interlaced or number % 3 == 1:
            half = _soften_vertically(half)
        half = half + halo * (half - _blur(half, width))
        frames.append(half + _grain(half, grain, random))
    decoded = _through_mpeg2([_as_picture(f) for f in frames], rate)[measured] / 255
    return [_upper_field(decoded) if interlaced else decoded]


def _make_laserdisc(frame: Planes, number: int, random: Generator) -> list[Planes]:
    kept = _halve(_blur(frame, random.uniform(0.5, 1.1), both=True), Image.Resampling.BICUBIC)
    halo, width, grain = random.uniform(0.0, 0.4), random.uniform(0.7, 1.3), random.uniform(0.8, 2.5)
    kept = kept + halo * (kept - _blur(kept, width))
    noise, across, down = random.uniform(40, 46), random.uniform(-0.7, 1.0), int(random.integers(2))
    luma, chroma = random.uniform(4.4, 5.2), random.uniform(0.5, 1.0)
    # The comb looks at the frames around; the first and the last have only one neighbor.
    master = [np.clip(kept + _grain(kept, grain, random), 0, 1) for _ in range(HELD + 2)]
    results = _through_composite(master, noise, 3 if number % 3 == 2 else 2, random)[1:-1]
    result = []
    for ycc in results:
        ycc[..., 0] = _limit_bandwidth(ycc[..., 0], luma)
        for i in (1, 2):
            ycc[..., i] = _displace(_limit_bandwidth(ycc[..., i], chroma), across, down)
        result.append(ycc @ np.linalg.inv(TO_YCC).T)
    return result


def _through_mpeg2(frames: list[Picture], rate: float) -> list[Picture]:
    """Code frames with ffmpeg's encoder, 4:2:0. `rate` is in Mbit/s for a complete frame."""
    height, width, _ = frames[0].shape
    bits = rate * 1e6 * height * width / (720 * 480)
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command = [ffmpeg(), "-v", "error", *raw, "-r", "24000/1001", "-i", "-"]
    command += ["-vf", "scale=out_color_matrix=smpte170m:flags=accurate_rnd+bicubic,format=yuv420p"]
    coder = ["-c:v", "mpeg2video", "-g", "15", "-bf", "2", "-sc_threshold", "1000000000", "-b:v", f"{bits:.0f}"]
    coder += ["-maxrate", f"{1.5 * bits:.0f}", "-bufsize", "1835008", "-threads", "1", "-flags", "+bitexact"]
    video = run([*command, *coder, "-f", "mpeg2video", "-"], b"".join(frame.tobytes() for frame in frames))
    back = ["-vf", "scale=in_color_matrix=smpte170m:flags=accurate_rnd+full_chroma_int+bicubic,format=rgb24"]
    back += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    pixels = run([ffmpeg(), "-v", "error", "-f", "mpegvideo", "-i", "-", *back], video)
    return list(np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3))


def _through_composite(frames: list[Planes], noise: float, dimensions: int, random: Generator) -> list[Planes]:
    """Combine frames into composite video, add noise, and separate them again; Y'CbCr of 0 to 1.

    The noise rises with frequency, as it does after FM.
    """
    clip = as_clip([frame.astype(np.float32) for frame in frames]).resize.Bicubic(
        format=vs.YUV444P16, matrix=6, range=0
    )
    wire = clip.std.SetFrameProps(_FieldBased=1).composite.Encode(standard="ntsc")
    size = wire.height, wire.width + 1
    # Drawn beforehand, for the filter asks for frames in no certain order.
    rising = [np.diff(random.standard_normal(size), axis=1) / np.sqrt(2) for _ in frames]
    strength = _white_level() * 10 ** (-noise / 20)

    def disturb(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        signal = np.asarray(out[0])
        np.copyto(signal, np.clip(signal + rising[n] * strength, 0, 65535).astype(np.uint16))
        return out

    wire = wire.std.ModifyFrame(wire, disturb)
    apart = wire.composite.Decode(standard="ntsc", dimensions=dimensions, transform=0, width=FRAME[0] // 2)
    apart = apart.resize.Point(format=vs.YUV444PS)
    result = []
    for n in range(apart.num_frames):
        with apart.get_frame(n) as frame:
            result.append(np.stack([np.asarray(frame[i], np.float64) for i in range(3)], -1))
    return result


def _white_level() -> float:
    """Difference between white and black in the composite signal, in its 16-bit levels."""
    levels = []
    for value in (16 << 8, 235 << 8):
        flat: Any = vs.core.std.BlankClip(
            format=vs.YUV444P16, width=720, height=480, length=1, color=[value, 1 << 15, 1 << 15]
        ).std.SetFrameProps(_FieldBased=1, _Matrix=6, _Range=0)
        with flat.composite.Encode(standard="ntsc").get_frame(0) as frame:
            levels.append(float(np.asarray(frame[0]).mean()))
    return levels[1] - levels[0]


# ---- steps, on (H, W, 3) or (H, W) of 0 to 1 -----------------------------------------------------------------


def _halve(frame: Planes, kernel: Image.Resampling) -> Planes:
    height, width, _ = frame.shape
    parts = [
        Image.fromarray(frame[..., i].astype(np.float32)).resize((width // 2, height // 2), kernel) for i in range(3)
    ]
    return np.stack([np.asarray(part, np.float64) for part in parts], -1)


def _blur(x: Planes, sigma: float, both: bool = False) -> Planes:
    """Blur by a Gaussian along the lines, or in both directions; borders repeated."""
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    x = _filter_axis(x, kernel / kernel.sum(), 1)
    return _filter_axis(x, kernel / kernel.sum(), 0) if both else x


def _filter_axis(x: Planes, kernel: Planes, axis: int) -> Planes:
    reach = len(kernel) // 2
    border = [(0, 0)] * x.ndim
    border[axis] = (reach, reach)
    padded = np.pad(x, border, "edge")
    result = np.zeros_like(x)
    for i, tap in enumerate(kernel):
        result += tap * (padded[i : i + x.shape[0]] if axis == 0 else padded[:, i : i + x.shape[1]])
    return result


def _soften_vertically(x: Planes) -> Planes:
    return _filter_axis(x, np.array([0.25, 0.5, 0.25]), 0)


def _grain(x: Planes, sigma: float, random: Generator) -> Planes:
    """Return grain of luma, strongest in the midtones, 1.2 pixels wide; (H, W, 1)."""
    soft = _blur(random.standard_normal(x.shape[:2]), 0.5, both=True)
    luma = np.clip(x @ TO_YCC[0], 0, 1)
    grain: Planes = (sigma / 255 * (0.6 + 1.6 * luma * (1 - luma)) * soft / soft.std())[..., None]
    return grain


def _upper_field(x: Planes) -> Planes:
    """Replace the lines of the lower field by interpolation of the upper field."""
    result = x.copy()
    field = x[::2]
    padded = np.pad(field, ((1, 2), (0, 0), (0, 0)), "edge")
    count = len(x[1::2])
    lines = (5077 * (padded[1:][:count] + padded[2:][:count]) - 981 * (padded[:count] + padded[3:][:count])) / 8192
    result[1::2] = lines
    return result


def _limit_bandwidth(plane: Planes, bandwidth: float) -> Planes:
    """Low-pass the lines with -3 dB at a bandwidth in MHz, by a windowed sinc."""
    at = np.arange(-24, 25)
    cut = bandwidth / SAMPLING * 2
    kernel = np.sinc(cut * at) * np.hamming(len(at))
    return _filter_axis(plane, kernel / kernel.sum(), 1)


def _displace(plane: Planes, across: float, down: int) -> Planes:
    """Move lines by fractions of a pixel (linearly), and by whole lines."""
    x = np.arange(plane.shape[1])
    moved = np.stack([np.interp(x - across, x, line) for line in plane])
    return np.concatenate([moved[:1]] * down + [moved[: len(moved) - down]])
