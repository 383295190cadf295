"""The log of a training, and its plot."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from models.training.state import write

_INK, _PALE = (30, 30, 30), (215, 215, 215)
COLORS = {
    "loss": (40, 90, 200),
    "clean": (20, 140, 60),
    "dvd": (210, 110, 0),
    "laserdisc": (170, 40, 140),
    "digital dvd": (120, 90, 60),
    "digital laserdisc": (90, 130, 220),
}
"""Line -> its color."""
_WIDTH, _HEIGHT, _LEFT, _REST = 900, 300, 70, 40

type Line = Sequence[tuple[float, float]]


class Log:
    """A log as lines of JSON in a file. When a training resumes, entries after the restored state are removed."""

    def __init__(self, file: Path, step: int) -> None:
        self.file = file
        self.entries = [entry for entry in _read(file) if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.entries)
        write(file, lambda opened: opened.write(text.encode()))

    def add(self, entry: Mapping[str, Any]) -> None:
        """Add an entry; it has at least ``step`` and ``minutes``."""
        self.entries.append(dict(entry))
        with self.file.open("a") as opened:
            opened.write(json.dumps(entry) + "\n")

    def draw(self, file: Path) -> None:
        """Plot loss and PSNR over minutes, as PNG."""
        losses = [(e["minutes"], math.log10(e["loss"])) for e in self.entries if e.get("loss", 0) > 0]
        scores: dict[str, list[tuple[float, float]]] = {}
        for entry in self.entries:
            for kind, psnr in entry.get("psnr", {}).items():
                scores.setdefault(kind, []).append((entry["minutes"], psnr - entry["bicubic"][kind]))
        image = Image.new("RGB", (_WIDTH, 2 * _HEIGHT), "white")
        _panel(image, 0, "loss, log10", {"loss": losses})
        _panel(image, _HEIGHT, "PSNR of luma over cubic interpolation, dB", scores)
        write(file, lambda opened: image.save(opened, "PNG"))


def _read(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    entries = []
    for line in file.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # cut short by a crash
            continue
    return entries


def _panel(image: Image.Image, top: int, title: str, lines: Mapping[str, Line]) -> None:
    """Draw axes with five ticks each, and labeled lines in their colors."""
    pen = ImageDraw.Draw(image)
    points = [point for line in lines.values() for point in line]
    pen.text((_LEFT, top + 8), title, fill=_INK)
    if not points:
        return
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*points, strict=True))
    x1, y1 = max(x1, x0 + 1e-6), max(y1, y0 + 1e-6)
    width, height = _WIDTH - _LEFT - _REST, _HEIGHT - 2 * _REST

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - x0) / (x1 - x0), (point[1] - y0) / (y1 - y0)
        return _LEFT + across * width, top + _REST + (1 - up) * height

    for k in range(5):
        x, y = x0 + (x1 - x0) * k / 4, y0 + (y1 - y0) * k / 4
        at_x, at_y = place((x, y))
        pen.line([(_LEFT, at_y), (_LEFT + width, at_y)], fill=_PALE)
        pen.text((8, at_y - 6), f"{y:.3f}", fill=_INK)
        pen.text((at_x - 12, top + _HEIGHT - _REST + 6), f"{x:.1f} min", fill=_INK)
    legend = _LEFT + 330.0
    for name, line in lines.items():
        pen.line([place(point) for point in line], fill=COLORS[name], width=2)
        for point in line if len(line) < 40 else ():
            x, y = place(point)
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=COLORS[name])
        if len(lines) > 1:
            pen.text((legend, top + 8), name, fill=COLORS[name])
            legend += pen.textlength(name) + 24
