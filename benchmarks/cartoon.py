"""Draw a small synthetic cel animation: license-free material for the demo, benchmarks and tests.

Ink lines of every slope and width, flat cels over a painted background, held drawings ("on twos") and a slow pan:
the typical content of DVD and LaserDisc animation.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

type Picture = NDArray[np.uint8]

INK = (28, 22, 34)
SKIN, BLUSH = (246, 208, 178), (232, 148, 132)
HAIR, SHINE = (58, 74, 150), (126, 150, 222)
COAT, TRIM = (206, 62, 60), (248, 226, 150)


def draw_frame(number: int, width: int, height: int) -> Picture:
    """Frame `number` as (height, width, 3) RGB, drawn at twice the size and reduced."""
    s = height / 540 * 2
    canvas = Image.fromarray(_background(number, width * 2, height * 2))
    draw = ImageDraw.Draw(canvas)
    _windows(draw, number, s, height * 2)
    _figure(draw, number // 2 * 2, s, width, height)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX))


def _background(number: int, width: int, height: int) -> Picture:
    """An evening sky with soft clouds, panning a pixel a frame."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x = (x + 2 * number) / height
    y = y / height
    cloud = np.sin(7 * x + 3 * np.sin(4 * y)) * np.sin(9 * y + 2 * np.sin(5 * x)) * 0.5 + 0.5
    low, high = np.array([250, 190, 140], np.float32), np.array([84, 96, 170], np.float32)
    sky = high + (low - high) * y[..., None] ** 1.3
    shaded: Picture = np.clip(sky + 26 * (cloud * (1 - y))[..., None], 0, 255).astype(np.uint8)
    return shaded


def _windows(draw: ImageDraw.ImageDraw, number: int, s: float, height: int) -> None:
    """A row of houses with thin window bars, panning with the sky."""
    for i in range(9):
        left = (i * 120 - 40) * s - 2 * number
        top = height - (150 + 34 * math.sin(i * 2.1)) * s
        draw.rectangle((left, top, left + 100 * s, height), (70, 62, 98), INK, max(1, round(1.6 * s)))
        for row in range(3):
            for column in range(3):
                x, y = left + (12 + 28 * column) * s, top + (14 + 40 * row) * s
                lit = (i + row * column) % 3 != 0
                draw.rectangle((x, y, x + 18 * s, y + 26 * s), (250, 214, 120) if lit else (48, 46, 74), INK, 2)
                draw.line((x + 9 * s, y, x + 9 * s, y + 26 * s), INK, max(1, round(0.8 * s)))
                draw.line((x, y + 12 * s, x + 18 * s, y + 12 * s), INK, max(1, round(0.8 * s)))


def _figure(draw: ImageDraw.ImageDraw, number: int, s: float, width: int, height: int) -> None:
    """A girl who waves; drawn anew every second frame."""
    cx, cy = width * 0.98 + 6 * s * math.sin(number / 9), height * 0.86
    line = max(2, round(1.8 * s))

    def at(x: float, y: float) -> tuple[float, float]:
        return cx + x * s, cy + y * s

    def shape(points: list[tuple[float, float]], fill: tuple[int, int, int]) -> None:
        corners = [at(x, y) for x, y in points]
        draw.polygon(corners, fill)
        draw.line([*corners, corners[0], corners[1]], INK, line, joint="curve")

    shape([(-112, 420), (-78, 120), (-30, 92), (30, 92), (78, 120), (112, 420)], COAT)
    shape([(-30, 92), (0, 150), (30, 92), (20, 84), (-20, 84)], TRIM)
    wave = 0.35 * math.sin(number / 3)
    hand = (118 + 64 * math.sin(wave + 0.2), 128 - 150 * math.cos(wave))
    shape([(62, 112), (84, 132), (hand[0] + 16, hand[1] + 8), (hand[0] - 10, hand[1] - 8)], COAT)
    x, y = at(*hand)
    draw.ellipse((x - 19 * s, y - 21 * s, x + 19 * s, y + 17 * s), SKIN, INK, line)
    for finger in range(4):
        angle = -2.3 + 0.42 * finger + wave
        tip = at(hand[0] + 30 * math.cos(angle), hand[1] + 30 * math.sin(angle))
        draw.line((x, y - 4 * s, *tip), INK, round(10 * s))
        draw.line((x, y - 4 * s, *tip), SKIN, round(7 * s))
    # head, hair behind and in front of it, single strands of decreasing width
    x, y = at(0, 0)
    draw.ellipse((x - 96 * s, y - 104 * s, x + 96 * s, y + 96 * s), HAIR, INK, line)
    draw.ellipse((x - 72 * s, y - 74 * s, x + 72 * s, y + 88 * s), SKIN, INK, line)
    for i in range(13):
        start = 10.5 * (i - 6)
        sway = 5 * math.sin(number / 5 + i)
        shape([(start - 7, -74), (start + 7, -74), (start * 1.05 + sway, -20 - 16 * (i % 3))], HAIR)
        draw.line((*at(start, -70), *at(start * 1.02 + sway / 2, -44)), SHINE, max(1, round((2.2 - 0.12 * i) * s)))
    blink = number % 48 >= 44
    for side in (-1, 1):
        x, y = at(side * 31, 14)
        if blink:
            draw.arc((x - 17 * s, y - 8 * s, x + 17 * s, y + 14 * s), 20, 160, INK, line)
            continue
        draw.ellipse((x - 16 * s, y - 21 * s, x + 16 * s, y + 21 * s), (255, 255, 255), INK, line)
        draw.ellipse((x - 10 * s, y - 14 * s, x + 10 * s, y + 17 * s), (52, 120, 108), INK, max(1, line // 2))
        draw.ellipse((x - 6 * s, y - 10 * s, x + 1 * s, y - 2 * s), (255, 255, 255))
        draw.arc((x - 20 * s, y - 26 * s, x + 20 * s, y + 16 * s), 200, 340, INK, round(3 * s))
        for lash in range(3):
            draw.line((*at(side * (44 + 2 * lash), -4 + 5 * lash), *at(side * (54 + 2 * lash), -9 + 7 * lash)), INK, 2)
        draw.ellipse((x - 14 * s + side * 14 * s, y + 26 * s, x + 8 * s + side * 14 * s, y + 36 * s), BLUSH)
    draw.arc((*at(-22, 36), *at(22, 66)), 25, 155, INK, line)
    draw.line((*at(-2, 28), *at(3, 33)), INK, line)


def write_dvd(file: Path, frames: int) -> None:
    """Encode the animation like film on an NTSC DVD: 720×480 MPEG-2 at 24000/1001, SAR 8:9, SMPTE 170M."""
    from vsfdatrd.system.programs import ffmpeg, run  # here, as old commits, which `guard` measures, lack it

    command = [ffmpeg(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "1440x1080"]
    command += ["-r", "24000/1001", "-i", "-", "-vf"]
    command += ["scale=720:480:flags=bicubic:out_color_matrix=smpte170m:out_range=tv,setsar=8/9,format=yuv420p"]
    command += ["-c:v", "mpeg2video", "-b:v", "5M", "-maxrate", "8M", "-bufsize", "1835k", "-g", "12", "-bf", "2"]
    command += ["-color_primaries", "smpte170m", "-color_trc", "smpte170m", "-colorspace", "smpte170m"]
    run([*command, str(file)], b"".join(draw_frame(n, 1440, 1080).tobytes() for n in range(frames)))
