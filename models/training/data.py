"""Compose an endless stream of animation frames on the training device, from packed tiles (`pack.py`).

A crop is a painting or a flat color as the background, drawings in front of it in changed size, colors and outline, and
strokes over everything. Nothing is decoded during training: the tiles are uint8 tensors on the device, and composing a
batch takes a few dozen tensor operations.
"""

import io
import math
import random
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from models.training.recipe import Recipe

ASPECTS = (8 / 9, 32 / 27, 16 / 15, 64 / 45)
"""Pixel aspect ratios (width / height) of DVDs: NTSC and PAL at 4:3 and at 16:9 (ITU-R BT.601, with 702 of the 720
samples visible).
"""

HELD_BACK = 12
"""One of this many pages, and of this many drawings, is never used for training but for validation."""


def load(file: Path, folder: str, *, held_back: bool, most: int = 0) -> Tensor:
    """Read a folder of packed tiles.

    Args:
        file: The packed file.
        folder: Folder of the tiles in it.
        held_back: Whether to read the tiles for validation instead of those for training. The number in a tile's name
            decides, so that all tiles of a page are on the same side.
        most: Maximum number of tiles; 0 is all.

    Returns:
        (K, C, T, T) uint8, on the CPU.
    """
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith(f"{folder}/"))
        names = [name for name in names if (_number(name) % HELD_BACK == 0) == held_back]
        contents = [archive.read(name) for name in (names[:most] if most else names)]
    if not contents and folder == "lettering":
        return torch.empty(0)
    if not contents:
        raise ValueError(f"{file} has no {folder} {'to hold back' if held_back else 'to train on'}; pack more pictures")

    mode = "RGB" if folder == "pages" else "RGBA"

    def decode(content: bytes) -> Tensor:
        with Image.open(io.BytesIO(content)) as image:
            # WebP forgets an alpha that is full everywhere.
            return torch.from_numpy(np.array(image.convert(mode))).permute(2, 0, 1)

    with ThreadPoolExecutor() as threads:
        return torch.stack(list(threads.map(decode, contents)))


def _number(name: str) -> int:
    return int(name.rpartition("/")[2].partition(".")[0].partition("_")[0])


def flat_colors(count: int, generator: Generator) -> Tensor:
    """Draw 8-bit colors, a third of them gray: (count, 3, 1, 1) in [0, 1]."""
    colors = torch.rand((count, 3, 1, 1), generator=generator, device=generator.device)
    gray = torch.rand((count, 1, 1, 1), generator=generator, device=generator.device) < 1 / 3
    return torch.round(torch.where(gray, colors[:, :1], colors) * 255) / 255


class CropSampler:
    """An endless supply of crops. All random numbers come from `generator`, on whose device everything is computed.

    Args:
        pages: (K, 3, T, T) uint8.
        sprites: (S, 4, T, T) uint8, color multiplied by alpha.
        lettering: Likewise; may be empty.
        recipe: All numbers of the training.
        generator: Source of random numbers.
    """

    def __init__(self, pages: Tensor, sprites: Tensor, lettering: Tensor, recipe: Recipe, generator: Generator) -> None:
        self.generator, self.device, self.recipe = generator, generator.device, recipe
        self.pages, self.sprites, self.words = (t.to(self.device) for t in (pages, sprites, lettering))
        self.aspects = torch.tensor(ASPECTS, device=self.device)
        self.chance = random.Random(generator.initial_seed())

    @classmethod
    def open(cls, file: Path, recipe: Recipe, generator: Generator, *, held_back: bool = False) -> "CropSampler":
        """Create the sampler of a packed file."""
        pages = load(file, "pages", held_back=held_back)
        sprites = load(file, "sprites", held_back=held_back, most=recipe.sprites)
        lettering = load(file, "lettering", held_back=held_back)
        return cls(pages, sprites, lettering, recipe, generator)

    def sample(self, batch: int, size: int) -> Tensor:
        """Compose a batch: (batch, 3, size, size) RGB in [0, 1]; `size` is at most about 260."""
        out = self._backgrounds(batch, size)
        for share in (1.0, 0.35):  # some have a second drawing before the first
            out = self._some(out, share * self.recipe.drawings, self._with_drawing)
        out = self._some(out, self.recipe.lines, self._with_lines)
        if len(self.words):
            out = self._some(out, self.recipe.lettering, self._with_words)
        # The master's own tone: gamma, contrast and a slight tint belong to the truth and are to be kept.
        gamma = self._between(batch, 0.8, 1.3)
        tint = 1 + 0.06 * self._normal(batch, 3)[..., None, None]
        return (out.clamp(1e-4, 1) ** gamma * tint).clamp(0, 1)

    # Random numbers, shaped (batch, 1, 1, 1) where they are for pictures.

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.device)

    def _between(self, batch: int, low: float, high: float) -> Tensor:
        return low + (high - low) * self._uniform(batch, 1, 1, 1)

    def _pick(self, count: int, batch: int) -> Tensor:
        return torch.randint(count, (batch,), generator=self.generator, device=self.device)

    def _some(self, x: Tensor, share: float, change: Callable[[Tensor], Tensor]) -> Tensor:
        """Change a share of the batch, always whole samples; which ones differs from call to call."""
        # Counted here, or every batch would wait for the device.
        count = min(len(x), int(share * len(x) + self.chance.random()))
        if count == 0:
            return x
        order = torch.randperm(len(x), generator=self.generator, device=self.device)
        x = x[order]
        return torch.cat([change(x[:count]), x[count:]])

    # Backgrounds

    def _backgrounds(self, batch: int, size: int) -> Tensor:
        """Draw backgrounds: paintings, some of them out of focus; flat and shaded colors."""
        out = self._view(self.pages, batch, size, zoom=(1.0, 1.5), straight=0.5)
        out = self._some(out, 0.2, self._out_of_focus)
        return self._some(out, self.recipe.flat, self._shaded).clamp(0, 1)

    def _out_of_focus(self, x: Tensor) -> Tensor:
        sigma = self._between(len(x), 0.6, 2.5)
        taps = torch.arange(-7, 8, device=self.device)
        kernel = torch.exp(-0.5 * (taps / sigma) ** 2)  # (B, 1, 1, 15)
        kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(3, 0)
        b, c, h, w = x.shape
        y = F.pad(x, (7, 7, 7, 7), "reflect").view(1, b * c, h + 14, w + 14)
        y = F.conv2d(F.conv2d(y, kernel, groups=b * c), kernel.mT, groups=b * c)
        return y.view(b, c, h, w)

    def _shaded(self, x: Tensor) -> Tensor:
        """Compose color gradients; half of them are a single flat color."""
        b, _, h, w = x.shape
        angle = self._between(b, 0, math.tau)
        ys, xs = self._axes(h, w)
        ramp = (0.5 + xs / w * torch.cos(angle) + ys / h * torch.sin(angle)).clamp(0, 1)
        one, other = self._uniform(2, b, 3, 1, 1)
        other = torch.where(self._uniform(b, 1, 1, 1) < 0.5, one, other)
        return torch.lerp(one, other, ramp).expand_as(x)

    def _axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return pixel coordinates relative to the center: (H, 1) and (W,)."""
        ys = torch.arange(height, device=self.device) - (height - 1) / 2
        xs = torch.arange(width, device=self.device) - (width - 1) / 2
        return ys[:, None], xs

    # Tiles

    def _view(
        self, bank: Tensor, batch: int, size: int, *, zoom: tuple[float, float], straight: float, beyond: float = 0.0
    ) -> Tensor:
        """View random tiles through a square of `size` pixels.

        Args:
            bank: The tiles, (K, C, T, T) uint8.
            batch: Number of views.
            size: Side of a view in pixels.
            zoom: Range of the zoom, in tile pixels per pixel.
            straight: Share that is neither zoomed nor rotated, so that pixels are those of the tile; half of the others
                are squeezed or stretched horizontally, as on DVDs.
            beyond: How far the view may leave the tile, as a share of its side; outside is 0.

        Returns:
            (batch, C, size, size), approximately in [0, 1].
        """
        tile = bank.shape[-1]
        plain = self._uniform(batch, 1, 1) < straight
        low, high = math.log(zoom[0]), math.log(zoom[1])
        step = torch.where(plain, 1.0, torch.exp(low + (high - low) * self._uniform(batch, 1, 1)))
        aspects = self.aspects[self._pick(len(ASPECTS), batch)].view(batch, 1, 1)
        aspect = torch.where(plain | (self._uniform(batch, 1, 1) < 0.5), 1.0, aspects)
        angle = torch.where(plain, 0.0, 0.15 * self._normal(batch, 1, 1).clamp(-2, 2))
        mirror = torch.where(self._uniform(batch, 1, 1) < 0.5, -1.0, 1.0)
        # The middle of the view lies so far from the middle of the tile, in whole pixels; odd sides would need halves.
        room = torch.stack([tile - size * step * aspect, tile - size * step]).clamp_min(0) / 2 + beyond * tile
        center_x, center_y = torch.round((2 * self._uniform(2, batch, 1, 1) - 1) * room)
        ys, xs = self._axes(size, size)
        cos, sin = step * torch.cos(angle), step * torch.sin(angle)
        picked = bank[self._pick(len(bank), batch)].float() / 255
        total: Tensor | None = None
        # Where the view is smaller than the tile, four looks per pixel, as far apart as a box of its footprint has it.
        apart_x, apart_y = (((side * side - 1).clamp_min(0)).sqrt() / 4 / side for side in (step * aspect, step))
        for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            x, y = (xs + dx * apart_x) * aspect, ys + dy * apart_y
            at_x, at_y = mirror * (cos * x - sin * y) + center_x, sin * x + cos * y + center_y
            grid = torch.stack([at_x, at_y], -1) * (2 / tile)  # (B, size, size, 2) in [-1, 1]
            look = F.grid_sample(
                picked, grid, mode="bicubic", padding_mode="zeros" if beyond else "reflection", align_corners=False
            )
            total = look if total is None else total + look
        assert total is not None
        return total / 4

    # Drawings

    def _with_drawing(self, x: Tensor) -> Tensor:
        """Put a recolored drawing in front, in some cases with an inked outline."""
        b, size = len(x), x.shape[-1]
        seen = self._view(self.sprites, b, size, zoom=(1.0, 2.5), straight=0.3, beyond=0.15)
        alpha = seen[:, 3:].clamp(0, 1)
        matrix = torch.eye(3, device=self.device) + 0.18 * self._normal(b, 3, 3)
        shift = 0.06 * self._normal(b, 3, 1, 1)
        color = torch.einsum("bij,bjhw->bihw", matrix, seen[:, :3]) + shift * alpha
        color = color.clamp_min(0).minimum(alpha)
        x = self._some_outlined(x, alpha)
        return x * (1 - alpha) + color

    def _some_outlined(self, x: Tensor, alpha: Tensor) -> Tensor:
        """Draw dark ink of 1 to 3 pixels around the visible part of half of the drawings."""
        wide = torch.stack([F.max_pool2d(alpha, 2 * r + 1, 1, r) for r in (1, 2, 3)])
        wide = wide[self._pick(3, len(x)), torch.arange(len(x), device=self.device)]
        soft = F.avg_pool2d(F.pad(wide, (1, 1, 1, 1), "replicate"), 3, 1)  # max pooling makes stairs
        ink = 0.25 * self._uniform(len(x), 3, 1, 1) ** 2
        use = (self._uniform(len(x), 1, 1, 1) < 0.5).float() * torch.lerp(wide, soft, 0.6)
        return torch.lerp(x, ink.expand_as(x), use)

    # Lines

    def _with_words(self, x: Tensor) -> Tensor:
        """Draw titles, credits and subtitles: white, light or of any color, with their outlines if they have them."""
        b = len(x)
        seen = self._view(self.words, b, x.shape[-1], zoom=(1.0, 2.0), straight=0.5)
        alpha = seen[:, 3:].clamp(0, 1)
        any_color, white = self._uniform(b, 3, 1, 1), self._uniform(b, 1, 1, 1) < 0.5
        ink = torch.where(white, 1 - 0.15 * any_color, any_color)
        return x * (1 - alpha) + (seen[:, :3] * ink).clamp_min(0).minimum(alpha)

    def _with_lines(self, x: Tensor) -> Tensor:
        """Draw ink (in some cases light) of one of three kinds: strokes and hair, grids, lettering."""
        b, size = len(x), x.shape[-1]
        way = self._uniform(b, 1, 1, 1)
        cover = torch.where(
            way < 0.7, self._strokes(b, size), torch.where(way < 0.85, self._grids(b, size), self._lettering(b, size))
        )
        ink = torch.where(self._uniform(b, 1, 1, 1) < 0.75, 0.3, 1.0) * self._uniform(b, 3, 1, 1)
        light = self._uniform(b, 1, 1, 1) < 0.12
        ink = torch.where(light, 1 - ink, ink)
        return torch.lerp(x, ink.expand_as(x), cover)

    def _strokes(self, b: int, size: int, count: int = 14) -> Tensor:
        """Draw tapered parabolas, separate or side by side like hair: coverage (B, 1, size, size).

        A stroke is v = a + c·u² in coordinates (u, v) rotated by its angle. Its distance is taken as the vertical
        distance divided by the length of the normal, which is exact to first order.
        """
        together = self._uniform(b, 1) < 0.5
        order = torch.arange(count, device=self.device) - (count - 1) / 2

        def each(spread: float, among: float, common: float) -> Tensor:
            """Draw a random number per stroke, or nearly the same one for a bundle: (B, count, 1, 1)."""
            own, slight, one = self._normal(b, count), self._normal(b, count), self._normal(b, 1)
            return torch.where(together, one * common + slight * among, own * spread)[..., None, None]

        angle = each(1.6, 0.04, 1.6)
        gap = self._uniform(b, 1) * 7 + 3
        place = torch.where(together, order * gap + self._normal(b, 1) * size / 8, self._normal(b, count) * size / 3)
        place = place[..., None, None]
        bend = each(1.5, 0.15, 1.2) / size
        middle = each(size / 3, size / 16, size / 6)
        half_length = (0.25 + 0.6 * self._uniform(b, count, 1, 1)) * size
        width = 0.6 + 2.2 * self._uniform(b, 1, 1, 1) + 0.8 * self._uniform(b, count, 1, 1)
        shown = self._uniform(b, count, 1, 1) < 0.8

        ys, xs = self._axes(size, size)
        u = xs * torch.cos(angle) + ys * torch.sin(angle) - middle
        v = ys * torch.cos(angle) - xs * torch.sin(angle) - place
        distance = (v - bend * u * u).abs() / torch.sqrt(1 + (2 * bend * u) ** 2)
        taper = (1 - (u / half_length) ** 2).clamp_min(0).sqrt()
        # A line thinner than a pixel covers less of it.
        cover = (width * taper / 2 + 0.5 - distance).clamp(0, 1).minimum(width * taper)
        return (cover * shown).amax(1, keepdim=True)

    def _grids(self, b: int, size: int) -> Tensor:
        """Draw parallel lines in one or both directions, as of windows, fences and floors: (B, 1, size, size).

        They are drawn at any angle.
        """
        angle = torch.where(self._uniform(b, 1, 1, 1) < 0.4, 0.0, self._between(b, -1.6, 1.6))
        ys, xs = self._axes(size, size)
        cover = torch.zeros(b, 1, size, size, device=self.device)
        for turn, use in ((0.0, 1.0), (math.pi / 2, 0.6)):
            along = xs * torch.cos(angle + turn) + ys * torch.sin(angle + turn)
            period, width = self._between(b, 6, 48), self._between(b, 0.8, 2.6)
            distance = ((along / period + self._between(b, 0, 1)) % 1 - 0.5).abs() * period
            lines = (width / 2 + 0.5 - distance).clamp(0, 1).minimum(width)
            cover = torch.maximum(cover, lines * (self._uniform(b, 1, 1, 1) < use))
        return cover

    def _lettering(self, b: int, size: int) -> Tensor:
        """Draw rows of marks of random squares and bars, as large and as dense as lettering: (B, 1, size, size)."""
        cell = self._between(b, 1.6, 4.0)  # pixels of a letter's stroke
        ys, xs = self._axes(size, size)
        column, row = (xs + size) / cell, (ys + size) / cell
        inside = ((column % 6) < 5) & ((row % 10) < 7)  # letters of 5×7 cells, with room between
        cells = 2 * math.ceil(size / 1.6) + 2
        bits = (self._uniform(b, 1, cells, cells) < 0.55).float()
        bits = torch.maximum(bits, (self._uniform(b, 1, cells // 2, cells) < 0.25).float().repeat_interleave(2, 2))
        each = torch.arange(b, device=self.device)[:, None, None, None]
        marks = bits[each, 0, row.long().clamp(max=cells - 1), column.long().clamp(max=cells - 1)] * inside
        band = (ys / size - self._between(b, -0.4, 0.4)).abs() < self._between(b, 0.05, 0.3)
        # The squares' edges fall between pixels; a small blur stands for the area that they cover.
        return F.avg_pool2d(F.pad(marks * band, (1, 1, 1, 1), "replicate"), 2, 1)[..., :size, :size]
