"""Contact sheets: the same part of every picture at full size, as truth, source and every method's result.

    python -m benchmarks.quality_sheets FOLDER          the picture of the README, docs/before_after.webp

The crops are fixed beforehand, so that none is chosen to flatter a method: the middle of the samples of
`quality_discs.py`, which is a face or lettering, and the busiest part of all others.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from benchmarks.command_line import run
from benchmarks.demo import crop_busiest
from benchmarks.errors import BenchmarkError
from benchmarks.quality_degradations import picture_files
from benchmarks.quality_discs import Sample, dvds, laserdiscs
from benchmarks.quality_methods import lanczos, network

type Picture = NDArray[np.uint8]

PART = 240
"""Side of a crop in pixels of the truth."""
LABEL, GAP = 22, 4
README_SIZE = (400, 400)


def crop_box(kind: str, truth: Picture, side: int = PART) -> tuple[int, int]:
    """Return the corner (left, top) of the part of a picture that is shown, even numbers."""
    height, width, _ = truth.shape
    side = min(side, height, width)
    if kind.startswith("made_"):
        left, top = (width - side) // 2, (height - side) // 2
    else:
        left, top, *_ = crop_busiest(Image.fromarray(truth), side - 2)
    return min(left, width - side) // 2 * 2, min(top, height - side) // 2 * 2


def sheet(
    kind: str, samples: Mapping[str, Sample], shown: Mapping[tuple[str, str, str], Picture], names: list[str]
) -> Image.Image:
    """Draw one row per picture and one column per method."""
    columns = ["truth", "source", *names]
    side = min(PART, *(min(sample.truth.shape[:2]) for sample in samples.values()))
    image = Image.new("RGB", (len(columns) * (side + GAP), LABEL + len(samples) * (side + GAP)), "white")
    draw = ImageDraw.Draw(image)
    for x, column in enumerate(columns):
        draw.text((x * (side + GAP) + GAP, 3), column, fill="black", font_size=15)
    for y, (name, sample) in enumerate(samples.items()):
        left, top = crop_box(kind, sample.truth)
        for x, column in enumerate(columns):
            if column == "truth":
                whole = sample.truth
            elif column == "source":
                whole = sample.sources[0].repeat(2, 0).repeat(2, 1)
            else:
                whole = shown[column, kind, name]
            part = Image.fromarray(np.ascontiguousarray(whole[top : top + side, left : left + side]))
            image.paste(part, (x * (side + GAP), LABEL + y * (side + GAP)))
    return image


def write(
    samples: Mapping[str, Mapping[str, Sample]],
    shown: Mapping[tuple[str, str, str], Picture],
    names: list[str],
    folder: Path,
) -> list[Path]:
    """Write a sheet of every kind as PNG into a folder, which is created if missing; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for kind, pictures in samples.items():
        file = folder / f"{kind}.png"
        sheet(kind, pictures, shown, names).save(file)
        files.append(file)
    return files


def before_after(folder: Path, name: str, file: Path, dvd: str = "medium", laserdisc: str = "ld") -> None:
    """Draw a face from a DVD and from a LaserDisc, enlarged with Lanczos and by the plugin.

    Args:
        folder: Of the pictures for measuring.
        name: Of one of them, without its suffix.
        file: The picture to write.
        dvd: The model for the DVD: a name from the catalog, or the path of a weights file.
        laserdisc: The model for the LaserDisc, likewise.

    Raises:
        BenchmarkError: There is no such picture, or LaserDiscs cannot be made here.
    """
    width, height = README_SIZE
    if name not in (names := [picture.stem for picture in picture_files(folder)]):
        raise BenchmarkError(f"{folder} has no picture {name}; it has {', '.join(names) or 'none'}")
    rows: list[tuple[str, Sample, str]] = [
        ("DVD", dvds(folder)[name], dvd),
        ("LaserDisc", laserdiscs(folder)[name], laserdisc),
    ]
    image = Image.new("RGB", (2 * width + GAP, len(rows) * (height + LABEL)), "white")
    draw = ImageDraw.Draw(image)
    for y, (disc, sample, model) in enumerate(rows):
        ours = f"vsfdatrd, {Path(model).stem}"
        for x, (label, way) in enumerate(((f"{disc}, enlarged with Lanczos", lanczos()), (ours, network(model)))):
            whole = np.rint(next(iter(way(sample.sources[:1]))) * 255).astype(np.uint8)
            top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
            part = Image.fromarray(np.ascontiguousarray(whole[top : top + height, left : left + width]))
            image.paste(part, (x * (width + GAP), y * (height + LABEL) + LABEL))
            draw.text((x * (width + GAP) + GAP, y * (height + LABEL) + 3), label, fill="black", font_size=15)
    image.save(file, quality=90, method=6)


def main(arguments: list[str] | None = None) -> int:
    """Write the README's picture; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality_sheets", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the pictures for measuring")
    parser.add_argument("--picture", default="renpy_concert1", help="name of one of them")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs" / "before_after.webp")
    a = parser.parse_args(arguments)
    before_after(a.folder, a.picture, a.out)
    print(a.out)
    return 0


if __name__ == "__main__":
    run(main)
