"""Degrade held-out pictures like clean, DVD and LaserDisc sources. Everything is fixed, including the noise.

Truth is the busiest 480×400 pixels of a picture. Each degradation halves it by area average and returns 8-bit RGB of
200×240: `clean` without more, `dvd` through real MPEG-2 at 4:2:0, `laserdisc` through a composite signal.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.demo import crop_busiest
from benchmarks.errors import BenchmarkError
from vsfdatrd.system.programs import ffmpeg, run

type Picture = NDArray[np.uint8]
type Planes = NDArray[np.float64]
type Degradation = Callable[[Picture, str, int], Picture]

WIDTH, HEIGHT = 480, 400

SUBCARRIER = 3.579545 / 13.5
"""Frequency of the NTSC color subcarrier in cycles per pixel, at the 13.5 MHz of Rec. 601."""
RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.147, -0.289, 0.436], [0.615, -0.515, -0.100]])
"""Matrix from R'G'B' of 0 to 1 to the luma and color differences of analog NTSC and PAL."""
SIGNAL_NOISE = 0.012
"""Standard deviation of the noise on the composite signal, relative to white: about 38 dB, a good LaserDisc player."""


def read_truths(folder: Path, limit: int | None = None) -> dict[str, Picture]:
    """Read the part of every picture that is measured, uint8 (400, 480, 3), by the file's name without its suffix.

    Smaller pictures are omitted.

    Args:
        folder: Of the pictures.
        limit: Number of pictures, the first by name; None for all.

    Raises:
        BenchmarkError: None is left, or the folder does not exist.
    """
    result: dict[str, Picture] = {}
    for file in picture_files(folder):
        image = read_image(file)
        if image.width < WIDTH or image.height < HEIGHT:
            continue
        left, top, *_ = crop_busiest(image, HEIGHT)
        left = min(left, image.width - WIDTH)
        result[file.stem] = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)))
        if len(result) == limit:
            break
    if not result:
        raise BenchmarkError(f"{folder} holds no picture (png, webp, jpg) of {WIDTH}×{HEIGHT} pixels or more")
    return result


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name.

    Args:
        folder: The folder.

    Raises:
        BenchmarkError: The folder does not exist.
    """
    try:
        return sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".webp", ".jpg"))
    except OSError as error:
        raise BenchmarkError(f"{folder} is not a folder of pictures: {error.strerror}") from error


def read_image(file: Path) -> Image.Image:
    """Read a picture as RGB.

    Args:
        file: The picture.

    Raises:
        BenchmarkError: It cannot be read.
    """
    try:
        return Image.open(file).convert("RGB")
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read as a picture: {error}") from error


def halve(truth: Picture) -> Picture:
    """Average 2×2 pixels, (H, W, 3) to (H/2, W/2, 3): output pixel i covers 2i and 2i+1, so nothing is displaced."""
    height, width, _ = truth.shape
    mean = truth.reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3))
    return np.rint(mean).astype(np.uint8)


def through_mpeg2(picture: Picture) -> Picture:
    """Encode as one MPEG-2 intra frame (4:2:0, quantizer 6) and decode it; uint8 (H, W, 3), both sides even."""
    height, width, _ = picture.shape
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command = [ffmpeg(), "-v", "error", *raw, "-i", "-", "-vf", "scale=out_color_matrix=smpte170m,format=yuv420p"]
    coder = ["-c:v", "mpeg2video", "-qscale:v", "6", "-threads", "1", "-flags", "+bitexact", "-f", "mpeg2video", "-"]
    video = run([*command, *coder], picture.tobytes())
    back = ["-vf", "scale=in_color_matrix=smpte170m:flags=accurate_rnd+full_chroma_int,format=rgb24"]
    pixels = run([ffmpeg(), "-v", "error", "-f", "mpegvideo", "-i", "-", *back, "-f", "rawvideo", "-"], video)
    return np.frombuffer(pixels, np.uint8)[: height * width * 3].reshape(height, width, 3)


def through_composite(picture: Picture, name: str, frame: int) -> Picture:
    """Return what an NTSC LaserDisc and a player with a line comb filter would make of a picture; uint8 (H, W, 3).

    The picture is converted to Y'UV with the weights of Rec. 601. U and V are limited to 0.6 MHz (-3 dB) and modulated
    onto a subcarrier of 3.58 MHz whose phase changes by half a cycle from line to line and from frame to frame (SMPTE
    170M). Noise is added to the sum of both. A 1H comb ((-1, 2, -1) / 4 of three lines) and a band-pass separate the
    color, which is limited to 0.6 MHz once more. The errors of the comb are the visible faults of composite video: luma
    detail near 3.58 MHz turns into colors (cross-color), and along horizontal borders of colors the subcarrier remains
    in the luma (dot crawl). All filters are symmetric, so nothing is displaced. The field structure of interlaced video
    is omitted. The model is our own, derived from the definition of the signal.

    Args:
        picture: uint8 (H, W, 3).
        name: Seed of the noise.
        frame: Further seed; it also gives the phase, so that dots crawl from frame to frame.
    """
    height, width, _ = picture.shape
    random = np.random.default_rng([zlib.crc32(name.encode()), frame])
    y, u, v = np.moveaxis(picture / 255 @ RGB_TO_YUV.T, -1, 0)
    lines, columns = np.mgrid[0:height, 0:width]
    phase = 2 * np.pi * SUBCARRIER * columns + np.pi * (lines + frame)
    chroma = _gaussian(u, 3.0) * np.sin(phase) + _gaussian(v, 3.0) * np.cos(phase)
    signal = y + chroma + SIGNAL_NOISE * random.standard_normal(y.shape)
    padded = np.pad(signal, ((1, 1), (0, 0)), "reflect")
    comb = _band_pass((2 * signal - padded[:-2] - padded[2:]) / 4)
    luma = _gaussian(signal - comb, 0.45)
    u, v = _gaussian(2 * comb * np.sin(phase), 3.0), _gaussian(2 * comb * np.cos(phase), 3.0)
    rgb = np.stack([luma, u, v], -1) @ np.linalg.inv(RGB_TO_YUV).T
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _gaussian(plane: Planes, sigma: float) -> Planes:
    """Apply a horizontal low-pass to a plane (H, W); standard deviation `sigma` in pixels; borders reflected."""
    reach = max(1, int(np.ceil(3 * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return _filter_rows(plane, kernel / kernel.sum())


def _band_pass(plane: Planes) -> Planes:
    """Extract the band around the subcarrier: a Gaussian of 2 pixels modulated to it, with a gain of 1 at it."""
    reach = 6
    at = np.arange(-reach, reach + 1)
    envelope = np.exp(-0.5 * (at / 2.0) ** 2)
    kernel = 2 * envelope / envelope.sum() * np.cos(2 * np.pi * SUBCARRIER * at)
    return _filter_rows(plane, kernel - envelope / envelope.sum() * kernel.sum())


def _filter_rows(plane: Planes, kernel: Planes) -> Planes:
    """Convolve the rows of a plane (H, W) with a symmetric kernel of odd length; borders reflected."""
    reach = len(kernel) // 2
    padded = np.pad(plane, ((0, 0), (reach, reach)), "reflect")
    result: Planes = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=1) @ kernel
    return result


DEGRADATIONS: dict[str, Degradation] = {
    "clean": lambda truth, name, frame: halve(truth),
    "dvd": lambda truth, name, frame: through_mpeg2(halve(truth)),
    "laserdisc": lambda truth, name, frame: through_composite(halve(truth), name, frame),
}
"""Functions of the truth, uint8 (H, W, 3), the name of the picture and the number of the frame, which return uint8
(H/2, W/2, 3).
"""
