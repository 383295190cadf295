"""Picture quality of a model beside its peers, on a folder of pictures that none of our models was trained on.

    python -m benchmarks.quality FOLDER [--models medium path.safetensors ...] [--peers Lanczos ...] [--checks]
        [--pictures grid.png]

The busiest 480×400 pixels of each picture are the truth. They are halved and degraded in three fixed ways
(`quality_degradations.py`): clean, dvd (real MPEG-2 at 4:2:0) and laserdisc (composite, noise). Every method doubles
the same 8-bit RGB; `quality_measures.py` says what is measured, `quality_checks.py` what must never happen (--checks).
The table shows means over the pictures, benchmarks/results/quality.json each of them.

A film's DVD is not among the sources. The frames of the pair in ../shared/data/clips can be aligned (4k of the film is
5k of the DVD), but the DVD is kept as HEVC of 45 kbit/s, whose blocks are all that a comparison would measure.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from benchmarks.demo import busiest
from benchmarks.quality_checks import run_checks
from benchmarks.quality_degradations import DEGRADATIONS, HEIGHT, WIDTH, truths
from benchmarks.quality_measures import MEASURES, flicker
from benchmarks.quality_methods import PEERS, Method, Missing, Picture, Result, network
from benchmarks.report import save

type Row = dict[str, Any]
type Sources = dict[tuple[str, str, int], Picture]
type Shown = dict[tuple[str, str, str], Picture]

HELD = 3
"""Frames of a held drawing, on LaserDisc, whose flicker is measured."""
COLUMNS = {
    "psnr_y_db": "PSNR-Y", "ssim": "SSIM", "ssimulacra2": "SSIMULACRA2", "xpsnr_y_db": "XPSNR-Y",
    "sharpness": "sharpness", "halo_steps": "halo", "flat_noise_steps": "flat noise", "flicker_steps": "flicker",
}  # fmt: skip


def methods(models: list[str], peers: list[str]) -> dict[str, Method | str]:
    """Every method by the name of its row; a sentence in the place of one that cannot run here."""
    found: dict[str, Method | str] = {}
    for peer in peers:
        try:
            found[peer] = PEERS[peer]()
        except Missing as missing:
            found[peer] = str(missing)
    for model in models:
        found[Path(model).name.removesuffix(".safetensors").removesuffix(".pth")] = network(model)
    return found


def degraded(pictures: dict[str, Picture]) -> Sources:
    """What every method is given, by (degradation, picture, frame); LaserDisc has `HELD` frames of each picture."""
    return {
        (kind, name, frame): degradation(truth, name, frame)
        for kind, degradation in DEGRADATIONS.items()
        for name, truth in pictures.items()
        for frame in range(HELD if kind == "laserdisc" else 1)
    }


def measure(
    method: Method, pictures: dict[str, Picture], sources: Sources, bar: Any = None
) -> tuple[Row, list[Result]]:
    """One method's numbers, by degradation and measure, each with its mean and every picture; and its first frames."""
    row: Row = {kind: {m: {"mean": None, "pictures": {}} for m in MEASURES} for kind in DEGRADATIONS}
    row["laserdisc"]["flicker_steps"] = {"mean": None, "pictures": {}}
    firsts: list[Result] = []
    held: list[Result] = []
    for (kind, name, frame), result in zip(sources, method(list(sources.values())), strict=True):
        if result.shape != pictures[name].shape:
            raise ValueError(
                f"a result is {result.shape}, its truth {pictures[name].shape}: the model is not a doubler"
            )
        if frame == 0:
            firsts.append(result)
            for key, function in MEASURES.items():
                row[kind][key]["pictures"][name] = _number(function(pictures[name] / 255, result))
        if kind == "laserdisc":
            held = [*held, result] if frame else [result]
            if frame == HELD - 1:
                row[kind]["flicker_steps"]["pictures"][name] = _number(flicker(held))
        if bar is not None:
            bar.update()
    for kind in DEGRADATIONS:
        for entry in row[kind].values():
            values = [value for value in entry["pictures"].values() if value is not None]
            entry["mean"] = _number(float(np.mean(values))) if values else None
    return row, firsts


def _number(value: float) -> float | None:
    """For JSON, which knows no NaN."""
    return round(value, 4) if math.isfinite(value) else None


def table(rows: dict[str, Row | str]) -> str:
    """Means as Markdown, one table per degradation."""
    lines = []
    for kind in DEGRADATIONS:
        columns = {k: v for k, v in COLUMNS.items() if k != "flicker_steps" or kind == "laserdisc"}
        lines += [f"\n{kind}\n", f"| | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
        for name, row in rows.items():
            cells = [row] if isinstance(row, str) else [_cell(key, row[kind][key]["mean"]) for key in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{4 if key == 'ssim' else 1 if key == 'ssimulacra2' else 2}f}"


def draw_grid(pictures: dict[str, Picture], sources: Sources, shown: Shown, names: list[str], file: Path) -> None:
    """Part of three pictures, in every degradation, by every method, at twice the size, as one PNG."""
    part, zoom, label = 112, 2, 22
    chosen = [list(pictures)[i] for i in sorted({0, len(pictures) // 2, len(pictures) - 1})]
    columns = ["truth", "source", *names]
    side = part * zoom
    sheet = Image.new("RGB", (len(columns) * (side + 4), label + len(chosen) * len(DEGRADATIONS) * (side + 4)), "white")
    draw = ImageDraw.Draw(sheet)
    for x, column in enumerate(columns):
        draw.text((x * (side + 4) + 4, 3), column, fill="black", font_size=15)
    y = label
    for name in chosen:
        left, top, right, bottom = busiest(Image.fromarray(pictures[name]), part)
        left, top = left // 2 * 2, top // 2 * 2
        right, bottom = left + part, top + part
        for kind in DEGRADATIONS:
            source = sources[kind, name, 0].repeat(2, 0).repeat(2, 1)
            for x, column in enumerate(columns):
                whole = {"truth": pictures[name], "source": source}.get(column)
                whole = shown[column, kind, name] if whole is None else whole
                tile = Image.fromarray(whole[top:bottom, left:right]).resize((side, side), Image.Resampling.NEAREST)
                sheet.paste(tile, (x * (side + 4), y))
            draw.text((side + 8, y + 2), kind, fill="white", font_size=15, stroke_width=2, stroke_fill="black")
            y += side + 4
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def main(arguments: list[str] | None = None) -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=["medium"], help="names of the catalogue, or files")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    parser.add_argument("--pictures", type=Path, help="also draw the results side by side into this PNG")
    parser.add_argument("--checks", action="store_true", help="also check colours, grid, held cels and place")
    parser.add_argument("--limit", type=int, help="only the first pictures")
    a = parser.parse_args(arguments)
    pictures = truths(a.folder, a.limit)
    sources = degraded(pictures)
    rows: dict[str, Row | str] = {}
    checks: dict[str, Any] = {}
    shown: Shown = {}
    found = methods(a.models, a.peers)
    with tqdm(total=len(sources) * len(found), unit="frame", dynamic_ncols=True) as bar:
        for name, method in found.items():
            bar.set_description(name)
            if isinstance(method, str):
                rows[name] = method
                bar.update(len(sources))
                continue
            rows[name], firsts = measure(method, pictures, sources, bar)
            keys = [key for key in sources if key[2] == 0]
            for (kind, picture, _), first in zip(keys, firsts, strict=True):
                shown[name, kind, picture] = np.rint(first * 255).astype(np.uint8)
            if a.checks:
                checks[name] = run_checks(method)
    print(table(rows))
    for name, results in checks.items():
        for check, outcome in results.items():
            verdict = "passed" if outcome["passed"] else "FAILED"
            print(
                f"{name:<16} {check:<14} {verdict}  {outcome['worst']:.3f} {outcome['unit']}, limit {outcome['limit']}"
            )
    if a.pictures:
        draw_grid(pictures, sources, shown, [n for n, row in rows.items() if not isinstance(row, str)], a.pictures)
    result: dict[str, Any] = {
        "pictures": list(pictures),
        "size": [WIDTH, HEIGHT],
        "methods": {n: {"missing": row} if isinstance(row, str) else row for n, row in rows.items()},
    }
    if checks:
        result["checks"] = checks
    save("quality", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
