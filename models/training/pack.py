"""Packs a folder of pictures and drawings into one file of square tiles, once.

    python -m models.training.pack FOLDER tiles.zip [--drawings 2000] [--scale 0.75] [--workers 2]

FOLDER holds painted or inked pictures (`.png`, `.webp`, `.jpg`) and vector drawings (`.svg`, also inside `.tar.gz`), in
any sub-folders. The result is a zip of lossless WebP tiles of 384×384 pixels that any program can look into:
`pages/<page>_<n>.webp` (RGB) and `sprites/<drawing>.webp` (RGBA, colour multiplied by alpha). Needs the extra `train`.
"""

import argparse
import io
import random
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

type Pixels = NDArray[np.uint8]

TILE = 384
"""Side of a tile in pixels."""

PICTURES = (".png", ".webp", ".jpg", ".jpeg")


def cut(picture: Pixels, least: float = 10.0) -> list[Pixels]:
    """Tiles (384, 384, 3) that cover a picture (H, W, 3) with as little overlap as can be.

    Tiles whose standard deviation is under `least` levels, empty margins, are left out, and pictures smaller than one.
    """
    height, width, _ = picture.shape
    if height < TILE or width < TILE:
        return []

    def starts(length: int) -> list[int]:
        count = -(-length // TILE)
        return [round(i * (length - TILE) / max(1, count - 1)) for i in range(count)]

    tiles = [picture[y : y + TILE, x : x + TILE] for y in starts(height) for x in starts(width)]
    return [tile for tile in tiles if tile.std() >= least]


def page_tiles(file: Path, scale: float) -> list[bytes]:
    """A picture's tiles as WebP, after it was resized: less of its own sharpening and grain is left when smaller."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    if scale != 1:
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.LANCZOS)
    picture = np.asarray(rgb)
    return [webp(tile) for tile in cut(picture)]


def sprite_tile(svg: str, seed: int) -> bytes | None:
    """A drawing as one WebP tile with alpha, or None where nothing can be seen or read.

    One in three comes so close that only a part fits: the busiest of eight.
    """
    import resvg_py

    chance = random.Random(seed)
    zoom = chance.choice((1.0, 1.0, 1.0, 1.0, 1.6, 2.5))
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=round(TILE * zoom), skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    except (ValueError, OSError, Image.DecompressionBombError):
        return None
    if zoom == 1 and image.height > TILE:
        image.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    straight = np.asarray(image).astype(np.uint16)
    alpha = straight[..., 3:]
    pixels: Pixels = np.concatenate([(straight[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)
    height, width, _ = pixels.shape
    before = (max(0, TILE - height) // 2, max(0, TILE - width) // 2)
    after = (max(0, TILE - height) - before[0], max(0, TILE - width) - before[1])
    pixels = np.pad(pixels, ((before[0], after[0]), (before[1], after[1]), (0, 0)))
    parts = []
    for _ in range(8 if zoom > 1 else 1):
        y, x = chance.randint(0, pixels.shape[0] - TILE), chance.randint(0, pixels.shape[1] - TILE)
        parts.append(pixels[y : y + TILE, x : x + TILE])
    busiest = max(parts, key=lambda part: float(part.std()))
    if (busiest[..., 3] > 0).mean() < 0.05 or busiest.std() < 10:
        return None
    return webp(busiest)


def webp(pixels: Pixels) -> bytes:
    """(H, W, 3 or 4) as lossless WebP. Invisible colour is kept, since it is multiplied by alpha and so zero."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=60, method=4, exact=True)
    return buffer.getvalue()


def drawings(folder: Path) -> Iterator[str]:
    """The text of every SVG in a folder and its archives, in the order of their names."""
    for file in sorted(file for file in folder.rglob("*.svg") if file.is_file()):
        yield file.read_text("utf-8", "replace")
    for file in sorted(folder.rglob("*.tar.gz")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".svg") and (content := archive.extractfile(member)):
                    yield content.read().decode("utf-8", "replace")


def pack(folder: Path, out: Path, *, count: int = 2000, scale: float = 0.75, workers: int = 2) -> tuple[int, int]:
    """Write the tiles; returns how many of pages and how many of drawings.

    count: drawings at most, chosen at random but always the same ones.
    """
    pages = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    vectors = list(drawings(folder))
    random.Random(0).shuffle(vectors)
    found = [0, 0]
    partial = out.with_name(out.name + ".part")
    with (
        ProcessPoolExecutor(workers) as processes,
        zipfile.ZipFile(partial, "w") as archive,
        tqdm(total=len(pages) + min(count, len(vectors)), unit="picture") as bar,
    ):
        for n, tiles in enumerate(processes.map(page_tiles, pages, [scale] * len(pages))):
            bar.update()
            for i, tile in enumerate(tiles):
                archive.writestr(f"pages/{n:05}_{i:02}.webp", tile)
            found[0] += len(tiles)
        # As many as are asked for, whichever cannot be used.
        for start in range(0, len(vectors), 64):
            if found[1] >= count:
                break
            some = vectors[start : start + 64]
            for i, sprite in enumerate(processes.map(sprite_tile, some, range(start, start + len(some)))):
                if sprite is not None and found[1] < count:
                    archive.writestr(f"sprites/{start + i:05}.webp", sprite)
                    found[1] += 1
                    bar.update()
    partial.replace(out)
    return found[0], found[1]


def main() -> int:
    """Pack; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m models.training.pack", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drawings", type=int, default=2000, help="at most so many vector drawings (2000)")
    parser.add_argument("--scale", type=float, default=0.75, help="pictures are resized by this first (0.75)")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    a = parser.parse_args()
    pages, sprites = pack(a.folder, a.out, count=a.drawings, scale=a.scale, workers=a.workers)
    print(f"{a.out}: {pages} tiles of pictures, {sprites} drawings, {a.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
