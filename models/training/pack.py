"""Packs a folder of pictures and drawings into one file of square tiles, once.

    python -m models.training.pack FOLDER tiles.zip [--drawings 3000] [--fonts FOLDER] [--budget MIB] [--quality 97]

FOLDER holds painted or inked pictures (`.png`, `.webp`, `.avif`, `.jpg`) and vector drawings (`.svg`, also inside
`.tar.gz`), in any sub-folders; fonts are looked for there and in the system's folder of fonts. The result is a zip of
tiles of 384×384 pixels that any program can look into: `pages/<page>_<n>.webp` (RGB), `sprites/<drawing>.webp`
(RGBA, color multiplied by alpha) and `lettering/<n>.webp` (RGBA, white letters over a black outline). Pages of a comic
are cut into their panels first, at full size and at three quarters. Needs the extra `train`.
"""

import argparse
import io
import random
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

type Pixels = NDArray[np.uint8]
type Box = tuple[int, int, int, int]
"""Top, bottom, left and right edge in pixels; bottom and right are exclusive."""

TILE = 384
"""Side of a tile in pixels."""

SCALES = (1.0, 0.75)
"""Factors by which pictures are resized before they are cut; smaller ones keep less of their own sharpening and grain.
"""

PICTURES = (".png", ".webp", ".avif", ".jpg", ".jpeg")
FONTS = (".ttf", ".otf", ".ttc")
FONT_FOLDER = Path("/usr/share/fonts")

FACES = "dicebear"
"""Drawings with this in their path are heads, which are shown large, as films do."""

_GUTTER = 4
"""Minimum number of rows in the margin's color that separate two panels."""
_LEAST = 224
"""Shortest side of a panel that is used; sides shorter than a tile are extended by mirroring."""


def panels(page: Pixels) -> list[Box]:
    """Split a comic page (H, W, 3) into the rectangles between gutters; the complete picture if there are none.

    A gutter is a run of rows or columns, across all of a rectangle, in the color of the picture's border.
    """
    border = np.concatenate([page[:4].reshape(-1, 3), page[-4:].reshape(-1, 3), page[:, :4].reshape(-1, 3)])
    paper = (np.abs(page.astype(np.int16) - np.median(border, 0).astype(np.int16)) <= 12).all(-1)

    def runs(empty: NDArray[np.bool_]) -> list[tuple[int, int]]:
        """Find the ranges between gutters."""
        result: list[tuple[int, int]] = []
        start, blank = None, _GUTTER
        for i, is_empty in enumerate(empty):
            blank = blank + 1 if is_empty else 0
            if not is_empty and start is None:
                start = i
            if start is not None and blank == _GUTTER:
                result.append((start, i + 1 - _GUTTER))
                start = None
        if start is not None:
            result.append((start, len(empty) - min(blank, _GUTTER)))
        return result

    def split(box: Box, turns: int) -> Iterator[Box]:
        top, bottom, left, right = box
        inside = paper[top:bottom, left:right]
        rows, columns = runs(inside.mean(1) > 0.985), runs(inside.mean(0) > 0.985)
        if turns == 0 or (len(rows) == 1 and len(columns) == 1):
            if rows and columns:
                yield top + rows[0][0], top + rows[-1][1], left + columns[0][0], left + columns[-1][1]
        elif len(rows) > 1:
            for first, last in rows:
                yield from split((top + first, top + last, left, right), turns - 1)
        else:
            for first, last in columns:
                yield from split((top, bottom, left + first, left + last), turns - 1)

    return list(split((0, page.shape[0], 0, page.shape[1]), 6))


def is_text(page: Pixels) -> bool:
    """Return whether a picture (H, W, 3) is almost all bright and colorless, like pages of names and empty pages."""
    high, low = page.max(-1).astype(np.int16), page.min(-1).astype(np.int16)
    return bool((((high - low) < 36) & (high > 140)).mean() > 0.9)


def cut_tiles(picture: Pixels, least: float = 10.0) -> list[Pixels]:
    """Cut tiles (384, 384, 3) that cover a picture (H, W, 3) with as little overlap as possible.

    Tiles whose standard deviation is below `least` levels (empty margins) are omitted, and so are pictures with a side
    below 224 pixels; sides between that and a tile's are extended by mirroring.
    """
    height, width, _ = picture.shape
    if min(height, width) < _LEAST:
        return []
    picture = np.pad(picture, ((0, max(0, TILE - height)), (0, max(0, TILE - width)), (0, 0)), "reflect")

    def starts(length: int) -> list[int]:
        count = -(-length // TILE)
        return [round(i * (length - TILE) / max(1, count - 1)) for i in range(count)]

    height, width, _ = picture.shape
    tiles = [picture[y : y + TILE, x : x + TILE] for y in starts(height) for x in starts(width)]
    return [tile for tile in tiles if tile.std() >= least]


def page_tiles(file: Path, scales: Sequence[float], quality: int) -> list[bytes]:
    """Return the tiles of a picture, lossless at quality 100; none for a page of names."""
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    tiles: list[Pixels] = []
    if is_text(np.asarray(rgb.reduce(4))):  # smaller, so that letters are as gray as lines of them look
        return []
    for scale in scales:
        size = (round(rgb.width * scale), round(rgb.height * scale))
        page = np.asarray(rgb if scale == 1 else rgb.resize(size, Image.Resampling.LANCZOS))
        for top, bottom, left, right in panels(page):
            tiles += cut_tiles(page[top:bottom, left:right])
    return [encode_webp(tile) if quality >= 100 else encode_jpeg(tile, quality) for tile in tiles]


def sprite_tile(drawing: tuple[str, str], seed: int) -> bytes | None:
    """Render a drawing (path, SVG) as one WebP tile with alpha; None if nothing is visible or it is not readable.

    Half of them are so close that only a part fits: the busiest of eight views. Heads are 300 to 600 pixels high.
    """
    import resvg_py

    path, svg = drawing
    chance = random.Random(seed)
    is_face = FACES in path
    zoom = chance.uniform(0.8, 1.6) if is_face else chance.choice((1.0, 1.0, 1.0, 1.6, 2.5, 3.0))
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
    return encode_webp(busiest)


WORDS = (
    "the once upon a time before after never always moon star storm river iron captain director produced by music "
    "original story animation key background color photography sound editing assistant voice presented starring "
    "chapter episode part one two three where are you going we have to hurry wait for me I don't know what happened "
    "here it is not over yet listen thank you good night 1983 1987 1991 24 07 No. & ? ! ..."
)
JAPANESE = (
    "原作 監督 脚本 音楽 作画 美術 撮影 録音 演出 製作 制作 協力 声の出演 総監督 第一話 第二話 終 つづく "
    "月 星 海 嵐の夜 少年 少女 空 花 風 カメラ アニメーション デザイン キャラクター オープニング "
    "エンディング スタジオ テレビ まって どこへ行くの ありがとう さようなら もう一度"
)


def lettering_tile(seed: int, files: Sequence[Path]) -> bytes | None:
    """Render lines of words in one of the fonts like titles, credits and subtitles; None if the font cannot be used.

    White letters on transparency, color multiplied by alpha; a third of them with a black outline.
    """
    chance = random.Random(seed)
    file = chance.choice(files)
    size = round(16 * 5.0 ** chance.random())  # 16 to 80 pixels high
    try:
        font = ImageFont.truetype(str(file), size)
        can_write_japanese = font.getmask("原").getbbox() not in (None, font.getmask("\ufffe").getbbox())
        words = JAPANESE if can_write_japanese and chance.random() < 0.6 else WORDS
        image = Image.new("RGBA", (TILE, TILE), (0, 0, 0, 0))
        pen = ImageDraw.Draw(image)
        outline = max(1, round(size * chance.uniform(0.04, 0.1))) if chance.random() < 0.35 else 0
        capitals = chance.random() < 0.3
        top = chance.uniform(-0.3, 0.3) * size
        while top < TILE:
            line = ("" if words is JAPANESE else " ").join(chance.choices(words.split(), k=12))
            line = line.upper() if capitals else line
            left = -chance.uniform(0, 2) * size
            pen.text((left, top), line, font=font, fill="white", stroke_width=outline, stroke_fill="black")
            top += size * chance.choice((1.15, 1.3, 1.8, 3.0))
    except OSError:  # no scalable font, or a damaged one
        return None
    straight = np.asarray(image).astype(np.uint16)
    alpha = straight[..., 3:]
    pixels: Pixels = np.concatenate([(straight[..., :3] * alpha + 127) // 255, alpha], -1).astype(np.uint8)
    return encode_webp(pixels) if 0.02 < (alpha > 0).mean() < 0.8 else None


def encode_webp(pixels: Pixels) -> bytes:
    """Encode (H, W, 3 or 4) as lossless WebP.

    Colors of transparent pixels are kept by the encoder; they are zero, because color is multiplied by alpha.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=20, method=1, exact=True)
    return buffer.getvalue()


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode (H, W, 3) as JPEG with chroma at full size, which lossy WebP would halve."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def iter_drawings(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the path and text of every SVG in a folder and its archives, in the order of their names."""
    for file in sorted(file for file in folder.rglob("*.svg") if file.is_file()):
        yield file.as_posix(), file.read_text("utf-8", "replace")
    for file in sorted(folder.rglob("*.tar.gz")):
        with tarfile.open(file) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(".svg") and (content := archive.extractfile(member)):
                    yield member.name, content.read().decode("utf-8", "replace")


def list_fonts(folders: Sequence[Path]) -> list[Path]:
    """List every font file in the folders, by name."""
    return sorted(file for folder in folders for file in folder.rglob("*") if file.suffix.lower() in FONTS)


class Packed(NamedTuple):
    """Number of tiles of each kind in a pack."""

    pages: int
    sprites: int
    lettering: int


def pack(
    folder: Path,
    out: Path,
    *,
    count: int = 3000,
    letterings: int = 400,
    scales: Sequence[float] = SCALES,
    quality: int = 100,
    budget: float = 0,
    font_folders: Sequence[Path] = (FONT_FOLDER,),
    workers: int = 2,
) -> Packed:
    """Write the tiles.

    Args:
        folder: Folder of the pictures and drawings.
        out: The file to write.
        count: Maximum number of drawings, chosen at random but always the same ones.
        letterings: Number of tiles of words to draw.
        scales: Factors by which pictures are resized.
        quality: Quality of pictures: 1 to 99 as JPEG, 100 lossless.
        budget: Maximum size in MiB, 0 for no limit; pages get two thirds of it, and each as much as the others.
        font_folders: Folders of fonts, besides `folder`.
        workers: Number of processes.

    Returns:
        Number of tiles of each kind.
    """
    pages = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURES)
    vectors = list(iter_drawings(folder))
    random.Random(0).shuffle(vectors)
    vectors.sort(key=lambda drawing: FACES not in drawing[0])  # all heads are among those that are asked for
    vectors[:count] = random.Random(1).sample(vectors[:count], len(vectors[:count]))
    types = list_fonts([folder, *font_folders])
    shares = {"pages": 0.66, "sprites": 0.30, "lettering": 0.04}
    room = {kind: share * budget * 2**20 if budget else float("inf") for kind, share in shares.items()}
    result = dict.fromkeys(shares, 0)
    beside = out.with_name(out.name + ".part")
    total = len(pages) + min(count, len(vectors)) + (letterings if types else 0)
    with (
        ProcessPoolExecutor(workers) as processes,
        zipfile.ZipFile(beside, "w") as archive,
        tqdm(total=total, unit="picture") as bar,
    ):

        def add(kind: str, name: str, tile: bytes | None) -> None:
            size = len(tile or b"") + 150  # of its entry in the zip
            if tile is not None and size <= room[kind]:
                archive.writestr(f"{kind}/{name}", tile)
                room[kind] -= size
                result[kind] += 1

        suffix = "webp" if quality >= 100 else "jpg"
        one = partial(page_tiles, scales=scales, quality=quality)
        for left, (n, tiles) in zip(range(len(pages), 0, -1), enumerate(processes.map(one, pages)), strict=True):
            bar.update()
            random.Random(n).shuffle(tiles)
            fair, used = room["pages"] / left, 0
            for i, tile in enumerate(tiles):
                used += len(tile)
                if used > fair and i:
                    break
                add("pages", f"{n:05}_{i:02}.{suffix}", tile)
        # As many as are asked for, whichever cannot be used.
        for start in range(0, len(vectors), 64):
            if result["sprites"] >= count or room["sprites"] < 1000:
                break
            some = vectors[start : start + 64]
            for i, tile_of in enumerate(processes.map(sprite_tile, some, range(start, start + len(some)))):
                if result["sprites"] < count:
                    add("sprites", f"{start + i:05}.webp", tile_of)
                    bar.update()
        if types:
            write = partial(lettering_tile, files=types)
            for n, tile_of in enumerate(processes.map(write, range(letterings), chunksize=8)):
                add("lettering", f"{n:05}.webp", tile_of)
                bar.update()
    beside.replace(out)
    return Packed(**result)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m models.training.pack", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--drawings", type=int, default=3000, help="at most so many vector drawings (3000)")
    parser.add_argument("--lettering", type=int, default=400, help="so many tiles of words (400)")
    parser.add_argument(
        "--scales", type=float, nargs="+", default=SCALES, help="pictures are resized by these (1 0.75)"
    )
    parser.add_argument("--fonts", type=Path, default=FONT_FOLDER, help=f"a folder of fonts ({FONT_FOLDER})")
    parser.add_argument("--quality", type=int, default=100, help="of pictures: JPEG below 100, which is lossless (100)")
    parser.add_argument("--budget", type=float, default=0, metavar="MIB", help="leave out what would not fit into it")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    a = parser.parse_args(arguments)
    packed = pack(
        a.folder,
        a.out,
        count=a.drawings,
        letterings=a.lettering,
        scales=a.scales,
        quality=a.quality,
        budget=a.budget,
        font_folders=[a.fonts],
        workers=a.workers,
    )
    counts = f"{packed.pages} tiles of pictures, {packed.sprites} drawings, {packed.lettering} of lettering"
    print(f"{a.out}: {counts}, {a.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
