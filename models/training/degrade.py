"""What DVD and LaserDisc do to a picture, as batched tensor operations.

(B, 3, 2H, 2W) RGB in [0, 1]  ->  (B, 3, H, W) RGB in [0, 1] of 8 bit, on the tensors' own device.

Every sample draws its own strengths (`draw`), which `degrade` then applies in the order in which the real thing
happens: film and telecine, the master's processing, composite video, grain, MPEG-2. Whatever is linear and separable
is a matrix per sample and axis, and the matrices are multiplied before a pixel is touched: one product across and one
down take luma from the film to the line.

Nothing here moves or tints the picture, but for rare errors of chroma siting: kernels are symmetric and sum to one,
noise has mean zero. The network learns to restore, not to shift. Drifts of colour belong to the truth (`data.py`).

Steps, their units, and how often and how strongly they happen; strengths are drawn evenly in the logarithm, so that
weak is commoner than strong:

=========== ============================================================ ================= =================
step        strength                                                     DVD               LaserDisc
=========== ============================================================ ================= =================
optics      σ of the blur by lens, film and scanner, HR pixels           80 %: 0.3 – 1.4   90 %: 0.4 – 1.6
weave       distance of two exposures laid over each other, HR pixels    15 %: 0.4 – 1.4   25 %: 0.4 – 1.8
luma        bandwidth of luma, MHz                                       60 %: 6.5 – 4.6   100 %: 5.3 – 4.2
chroma      bandwidth of chroma, MHz                                     60 %: 3.2 – 1.2   100 %: 1.5 – 0.6
halo        edge enhancement across, share of the removed detail         50 %: 0.1 – 0.8   40 %: 0.1 – 0.7
halo_width  σ of the detail it works on, LR pixels                       100 %: 0.6 – 1.6  100 %: 0.6 – 1.6
halo_down   the enhancement down                                         25 %: 0.05 – 0.4  15 %: 0.05 – 0.3
twitter     odd lines made of their neighbours, share                    8 %: 0.2 – 0.8    15 %: 0.2 – 0.8
quarter     chroma at a quarter of the width (4:1:1), share              3 %: 1            25 %: 1
half        chroma at half the width and height (4:2:0), share           100 %: 1          85 %: 1
siting      4:2:0 read back half-way from left to centre siting, pixels  10 %: 0.1 – 0.25  10 %: 0.1 – 0.25
dots        dot crawl: chroma's carrier left in luma, share              8 %: 0.05 – 0.3   70 %: 0.1 – 0.6
rainbow     cross-colour: fine luma taken for chroma, share              8 %: 0.05 – 0.3   70 %: 0.1 – 0.5
grain       σ of film grain and noise in luma, levels of 255             75 %: 0.4 – 5     90 %: 0.8 – 6
grain_size  σ of the blur on that grain, LR pixels                       50 %: 0.3 – 0.9   60 %: 0.4 – 1
speckle     σ of coloured noise, levels of 255                           20 %: 0.3 – 1.5   80 %: 0.5 – 4
dust        specks on the cel, per 10,000 LR pixels                      6 %: 0.5 – 4      6 %: 0.5 – 4
quantiser   MPEG-2 quantiser_scale                                       85 %: 3 – 24      40 %: 3 – 16
predicted   the frame is a P frame over an intra frame, share            50 %: 1           50 %: 1
level       error of black and of contrast, levels of 255                30 %: 0.1 – 0.5   50 %: 0.1 – 0.7
=========== ============================================================ ================= =================

Besides, every sample is halved by one of four kernels: area, triangle, cubic, Lanczos. MHz are those of a line sampled
at 13.5 MHz, ITU-R BT.601. A bandwidth's weak end is the wide one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

KERNELS = ("area", "triangle", "cubic", "lanczos")
"""By which the picture is halved."""

SAMPLING = 13.5
"""Luma samples per microsecond (ITU-R BT.601)."""

SUBCARRIER = 3.579545 / SAMPLING
"""NTSC's colour carrier in cycles per luma sample."""


class Range(NamedTuple):
    """How often a step happens, and between which strengths."""

    share: float
    weak: float
    strong: float


class Step(NamedTuple):
    """A step's ranges on both media."""

    dvd: Range
    laserdisc: Range


STEPS: Mapping[str, Step] = {
    "optics": Step(Range(0.80, 0.3, 1.4), Range(0.90, 0.4, 1.6)),
    "weave": Step(Range(0.15, 0.4, 1.4), Range(0.25, 0.4, 1.8)),
    "luma": Step(Range(0.60, 6.5, 4.6), Range(1.00, 5.3, 4.2)),
    "chroma": Step(Range(0.60, 3.2, 1.2), Range(1.00, 1.5, 0.6)),
    "halo": Step(Range(0.50, 0.1, 0.8), Range(0.40, 0.1, 0.7)),
    "halo_width": Step(Range(1.00, 0.6, 1.6), Range(1.00, 0.6, 1.6)),
    "halo_down": Step(Range(0.25, 0.05, 0.4), Range(0.15, 0.05, 0.3)),
    "twitter": Step(Range(0.08, 0.2, 0.8), Range(0.15, 0.2, 0.8)),
    "quarter": Step(Range(0.03, 1, 1), Range(0.25, 1, 1)),
    "half": Step(Range(1.00, 1, 1), Range(0.85, 1, 1)),
    "siting": Step(Range(0.10, 0.1, 0.25), Range(0.10, 0.1, 0.25)),
    "dots": Step(Range(0.08, 0.05, 0.3), Range(0.70, 0.1, 0.6)),
    "rainbow": Step(Range(0.08, 0.05, 0.3), Range(0.70, 0.1, 0.5)),
    "grain": Step(Range(0.75, 0.4, 5.0), Range(0.90, 0.8, 6.0)),
    "grain_size": Step(Range(0.50, 0.3, 0.9), Range(0.60, 0.4, 1.0)),
    "speckle": Step(Range(0.20, 0.3, 1.5), Range(0.80, 0.5, 4.0)),
    "dust": Step(Range(0.06, 0.5, 4.0), Range(0.06, 0.5, 4.0)),
    "quantiser": Step(Range(0.85, 3, 24), Range(0.40, 3, 16)),
    "predicted": Step(Range(0.50, 1, 1), Range(0.50, 1, 1)),
    "level": Step(Range(0.30, 0.1, 0.5), Range(0.50, 0.1, 0.7)),
}
"""The table above, as numbers."""

_TO_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
"""R'G'B' to Y'CbCr of ITU-R BT.601; chroma from -0.5 to 0.5."""

# MPEG-2's default intra quantiser matrix (ISO/IEC 13818-2, 6.3.11); that of other blocks is 16 throughout.
_INTRA = torch.tensor([
    [8, 16, 19, 22, 26, 27, 29, 34], [16, 16, 22, 24, 27, 29, 34, 37],
    [19, 22, 26, 27, 29, 34, 34, 38], [22, 22, 26, 27, 29, 34, 37, 40],
    [22, 26, 27, 29, 32, 35, 40, 48], [26, 27, 29, 32, 35, 40, 48, 58],
    [26, 27, 29, 34, 38, 46, 56, 69], [27, 29, 35, 38, 46, 56, 69, 83],
], dtype=torch.float32)  # fmt: skip
_OTHER = torch.full((8, 8), 16.0)

# Orthonormal DCT-II of 8 samples: row k holds the k-th cosine.
_DCT = torch.tensor(
    [[math.sqrt((2 if k else 1) / 8) * math.cos(math.pi * (2 * n + 1) * k / 16) for n in range(8)] for k in range(8)]
)


@dataclass(frozen=True, slots=True)
class Strengths:
    """What happens to each sample of a batch."""

    clean: Tensor
    """(B,) bool: nothing but halving by area average, and 8 bit."""
    kernel: Tensor
    """(B,) index into `KERNELS`."""
    steps: Mapping[str, Tensor]
    """(B,) strength of every step of `STEPS`; 0 is off."""

    @classmethod
    def only(
        cls, batch: int, steps: Mapping[str, float], kernel: str = "area", device: torch.device | str = "cpu"
    ) -> "Strengths":
        """The same for every sample: the steps named, and nothing else. Raises KeyError for a step unknown."""
        found = {name: torch.zeros(batch, device=device) for name in STEPS}
        for name, strength in steps.items():
            found[name] += strength
        index = torch.full((batch,), KERNELS.index(kernel), device=device)
        return cls(torch.zeros(batch, dtype=torch.bool, device=device), index, found)


def draw(batch: int, generator: Generator, *, clean: float, laserdisc: float) -> Strengths:
    """Strengths of `batch` samples, on the generator's device.

    clean, laserdisc: shares of such samples; the rest are DVD.
    """
    device = generator.device
    kind = torch.rand(batch, generator=generator, device=device)
    is_laserdisc = (kind >= clean) & (kind < clean + laserdisc)
    kernel = torch.randint(len(KERNELS), (batch,), generator=generator, device=device)
    table = torch.tensor([[*step.dvd, *step.laserdisc] for step in STEPS.values()], device=device)  # (steps, 6)
    share, weak, strong = torch.where(is_laserdisc, table[:, 3:].T[..., None], table[:, :3].T[..., None])
    happens, place = torch.rand(2, len(STEPS), batch, generator=generator, device=device)
    strength = weak * (strong / weak) ** place * (happens < share)  # (steps, B)
    return Strengths(kind < clean, kernel, dict(zip(STEPS, strength, strict=True)))


@torch.no_grad()
def degrade(hr: Tensor, strengths: Strengths, generator: Generator) -> Tensor:
    """(B, 3, 2H, 2W) -> (B, 3, H, W), H and W multiples of 4; see the module's docstring."""
    b, _, h2, w2 = hr.shape
    h, w = h2 // 2, w2 // 2
    s = strengths.steps
    ycc = _coloured(hr, _TO_YCC)

    # Film, telecine, master.
    across, down = _film(w2, strengths), _film(h2, strengths)
    twitter = _twitter(h, s["twitter"])
    luma_across = _halo(w, s["halo"], s["halo_width"]) @ _band(w, s["luma"]) @ across
    luma_down = twitter @ _halo(h, s["halo_down"], s["halo_width"]) @ down
    chroma_across = _quarter(w, s["quarter"]) @ _soft_band(w, s["chroma"]) @ across
    luma = _through(ycc[:, :1], luma_down, luma_across)
    chroma = _through(ycc[:, 1:], twitter @ down, chroma_across)

    luma, chroma = _composite(luma, chroma, s["dots"], s["rainbow"], generator)
    luma, chroma = _level(luma, chroma, s["level"], generator)
    luma = luma + _dust(luma, s["dust"], generator)
    still = torch.cat([luma, chroma], 1)
    now = still + _grain(still, s, generator)
    before = still + _grain(still, s, generator)  # the same drawing a frame earlier

    # 4:2:0 and MPEG-2.
    offset = 2 * torch.randint(8, (2, b), generator=generator, device=hr.device)  # of macroblocks
    to_half = (_subsample(h, 2, 1.0, hr.device), _subsample(w, 2, 0.5, hr.device))
    half = _mpeg2(_through(now[:, 1:], *to_half), _through(before[:, 1:], *to_half), s, 224, offset // 2)
    luma = _mpeg2(now[:, :1], before[:, :1], s, 219, offset % 8)
    middle = torch.ones_like(s["siting"])
    sampled = _through(half, _supersample(h, 2, middle), _supersample(w, 2, 0.5 * middle + s["siting"]))
    chroma = torch.lerp(now[:, 1:], sampled, _maps(s["half"]))

    lr = _coloured(torch.cat([luma, chroma], 1), torch.linalg.inv(_TO_YCC))
    lr = torch.where(_maps(strengths.clean), F.avg_pool2d(hr, 2), lr)
    return torch.round(lr.clamp(0, 1) * 255) / 255


def noisy(lr: Tensor, clean: Tensor, most: float, generator: Generator) -> Tensor:
    """With white noise, of up to `most` 8-bit steps, on a half of the clean samples. (B, 3, H, W), (B,) -> as lr.

    That lines are as sharp as can be is no sign that a picture has no noise.
    """
    often, place = torch.rand(2, len(clean), generator=generator, device=lr.device)
    sigma = _maps(clean & (often < 0.5)) * _maps(place) * most / 255
    noise = torch.randn(lr.shape, generator=generator, device=lr.device)
    return torch.round((lr + sigma * noise).clamp(0, 1) * 255) / 255


def _maps(values: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)


def _coloured(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, 3, H, W) through a 3×3 matrix."""
    return torch.einsum("ij,bjhw->bihw", matrix.to(x), x)


def _through(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """(B, C, H, W) with (B or 1, H', H) and (B or 1, W', W) -> (B, C, H', W')."""
    b, c, h, w = x.shape
    x = (x.reshape(b, c * h, w) @ across.mT).view(b, c, h, -1)
    return down[:, None] @ x


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


# Matrices. Rows sum to one, so flat stays flat; at the border what lies outside is left out.


def _distances(rows: int, columns: int, scale: float, centre: float, device: torch.device) -> Tensor:
    """Input sample j's distance from output sample i: (1, rows, columns), in input samples.

    Output sample i lies at i·scale + centre, input sample j at j + 0.5, from the picture's left edge.
    """
    at = torch.arange(rows, device=device, dtype=torch.float32) * scale + centre
    samples = torch.arange(columns, device=device, dtype=torch.float32) + 0.5
    return (samples - at.view(rows, 1))[None]


def _square(n: int, device: torch.device) -> Tensor:
    return _distances(n, n, 1, 0.5, device)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _triangle(d: Tensor) -> Tensor:
    return (1 - d.abs()).clamp_min(0)


def _cubic(d: Tensor) -> Tensor:
    """Keys 1981 with a = -0.5."""
    a = d.abs()
    near, far = (1.5 * a - 2.5) * a * a + 1, ((-0.5 * a + 2.5) * a - 4) * a + 2
    return torch.where(a < 1, near, torch.where(a < 2, far, 0))


def _lanczos(d: Tensor) -> Tensor:
    """Three lobes."""
    return torch.where(d.abs() < 3, torch.sinc(d) * torch.sinc(d / 3), 0)


def _gaussian(n: int, sigma: Tensor) -> Tensor:
    """(B,) σ in samples -> (B, n, n); 0 is the identity."""
    d = _square(n, sigma.device) / sigma.clamp_min(0.05).view(-1, 1, 1)
    return _normalised(torch.exp(-0.5 * d * d))


def _film(n: int, strengths: Strengths) -> Tensor:
    """Optics, two exposures and halving: (B, n / 2, n)."""
    s, device = strengths.steps, strengths.kernel.device
    d = _distances(n // 2, n, 2, 1, device) / 2
    halving = _normalised(torch.cat([(d.abs() < 0.5).to(d), _triangle(d), _cubic(d), _lanczos(d)]))[strengths.kernel]
    apart = s["weave"].view(-1, 1, 1) / 2
    d = _square(n, device)
    twice = _normalised(_triangle(d - apart) + _triangle(d + apart))
    return halving @ twice @ _gaussian(n, s["optics"])


def _band(n: int, megahertz: Tensor) -> Tensor:
    """A filter that is flat up to a frequency and steep there, as digital ones are: (B, n, n); 0 is none."""
    nyquist = SAMPLING / 2
    share = torch.where(megahertz > 0, megahertz / nyquist, 1)
    return _normalised(_lanczos(_square(n, megahertz.device) * share.view(-1, 1, 1)))


def _soft_band(n: int, megahertz: Tensor) -> Tensor:
    """A Gaussian filter that halves power at a frequency, as analogue chroma's are: (B, n, n); 0 is none."""
    sigma = math.sqrt(math.log(2)) / math.tau * SAMPLING / megahertz.clamp_min(0.1)
    return _gaussian(n, torch.where(megahertz > 0, sigma, 0))


def _halo(n: int, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp masking: (B, n, n)."""
    a = amount.view(-1, 1, 1)
    return (1 + a) * torch.eye(n, device=amount.device) - a * _gaussian(n, sigma)


def _twitter(n: int, share: Tensor) -> Tensor:
    """Odd lines partly replaced by the mean of their neighbours: (B, n, n)."""
    d = _square(n, share.device)
    odd = (torch.arange(n, device=share.device) % 2).view(1, n, 1) * share.view(-1, 1, 1)
    neighbours = _normalised(((d.abs() - 1).abs() < 0.5).to(d))
    return torch.lerp(torch.eye(n, device=share.device)[None], neighbours, odd)


def _subsample(n: int, factor: int, centre: float, device: torch.device) -> Tensor:
    """(1, n / factor, n): a triangle over 2·factor samples, the first output `centre` from the left edge."""
    return _normalised(_triangle(_distances(n // factor, n, factor, centre, device) / factor))


def _supersample(n: int, factor: int, centre: Tensor) -> Tensor:
    """(B, n, n / factor): straight lines between samples, the first of which lies `centre` (B,) from the left edge."""
    device = centre.device
    at = (torch.arange(n, device=device) + 0.5 - centre.view(-1, 1)) / factor
    at = at.clamp(0, n // factor - 1)[..., None]
    return _triangle(torch.arange(n // factor, device=device) - at)


def _quarter(n: int, share: Tensor) -> Tensor:
    """To a quarter of the width and back: (B, n, n)."""
    there, back = _subsample(n, 4, 0.5, share.device), _supersample(n, 4, torch.full_like(share, 0.5))
    return torch.lerp(torch.eye(n, device=share.device)[None], back @ there, share.view(-1, 1, 1))


# What is not a matrix. luma: (B, 1, H, W) in [0, 1]; chroma: (B, 2, H, W) in [-0.5, 0.5].


def _blurred(x: Tensor, across: float, down: float) -> Tensor:
    h, w = x.shape[-2:]
    return _through(x, _gaussian(h, x.new_tensor([down])), _gaussian(w, x.new_tensor([across])))


def _composite(
    luma: Tensor, chroma: Tensor, dots: Tensor, rainbow: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Luma and chroma once sent over one wire and not told apart again: dot crawl at edges of colour, cross-colour."""
    b, _, h, w = luma.shape
    phase, woven = torch.rand(2, b, 1, 1, 1, generator=generator, device=luma.device)
    # The carrier turns by half a cycle from line to line; where two fields are woven, by half in every second line.
    turn = torch.where(woven < 0.5, 0.5, 0.25) * torch.arange(h, device=luma.device).view(h, 1)
    cycles = phase + turn + SUBCARRIER * torch.arange(w, device=luma.device)
    carrier = torch.cat([torch.sin(math.tau * cycles), torch.cos(math.tau * cycles)], 1)  # (B, 2, H, W)
    edges = chroma - _blurred(chroma, 2.5, 1.0)
    fine = luma - _blurred(luma, 1.0, 0.01)
    luma = luma + _maps(dots) * (edges * carrier).sum(1, keepdim=True)
    return luma, chroma + _maps(rainbow) * _blurred(2 * fine * carrier, 1.4, 0.6)


def _level(luma: Tensor, chroma: Tensor, level: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    error = torch.rand(4, len(level), generator=generator, device=level.device) * 2 - 1  # mean zero
    black, contrast, blue, red = (_maps(part) for part in error * level / 255)
    return luma * (1 + contrast) + black, chroma * (1 + contrast) + torch.cat([blue, red], 1)


def _dust(luma: Tensor, specks: Tensor, generator: Generator) -> Tensor:
    """Specks of about a pixel, two thirds of them dark."""
    here, dark, how = torch.rand(3, *luma.shape, generator=generator, device=luma.device)
    value = torch.where(dark < 0.67, -1.0, 1.0) * (0.5 + how)
    return _blurred(value * (here < _maps(specks) / 10_000), 0.6, 0.6)


def _grain(still: Tensor, s: Mapping[str, Tensor], generator: Generator) -> Tensor:
    """(B, 3, H, W): grain in luma, strongest in the mid tones, and coloured noise, blurred as told."""
    noise = _normal(still, generator)
    h, w = still.shape[-2:]

    def soft(x: Tensor, sigma: Tensor) -> Tensor:
        down, across = _gaussian(h, sigma), _gaussian(w, sigma)
        # A blur takes as much from white noise's deviation as its rows' norms say; that is given back.
        loss: Tensor = down.square().sum(-1)[:, None, :, None] * across.square().sum(-1)[:, None, None, :]
        return _through(x, down, across) / loss.sqrt()

    y = still[:, :1].clamp(0, 1)
    luma = _maps(s["grain"]) / 255 * (0.6 + 1.6 * y * (1 - y)) * soft(noise[:, :1], s["grain_size"])
    chroma = _maps(s["speckle"]) / 255 * soft(noise[:, 1:], torch.full_like(s["speckle"], 1.5))
    return torch.cat([luma, chroma], 1)


def _mpeg2(x: Tensor, before: Tensor, s: Mapping[str, Tensor], levels: int, offset: Tensor) -> Tensor:
    """x through an intra frame, or through a P frame predicted from `before`'s intra frame.

    x, before: (B, C, H, W), one step of 8 bit being 1 / levels. offset: (2, B) rows and columns of the first block
    that lie outside the picture, 0 to 7.
    """
    b, _, h, w = x.shape
    coded = s["quantiser"] > 0
    q = torch.where(coded, s["quantiser"], 1)
    each = torch.arange(b, device=x.device)[:, None, None]

    def indices(n: int, padded: int, by: Tensor) -> Tensor:
        return (torch.arange(padded, device=x.device) - by[:, None]).clamp(0, n - 1)

    def blocks(picture: Tensor) -> Tensor:
        """-> coefficients (B, C, H / 8, W / 8, 8, 8) of the picture on the block grid, borders repeated."""
        ph, pw = (h + 14) // 8 * 8, (w + 14) // 8 * 8
        rows, columns = indices(h, ph, offset[0])[:, :, None], indices(w, pw, offset[1])[:, None, :]
        grid = torch.round(picture * levels)[each, :, rows, columns]  # (B, H, W, C)
        return dct @ grid.view(b, ph // 8, 8, pw // 8, 8, -1).permute(0, 5, 1, 3, 2, 4) @ dct.mT

    def picture(coefficients: Tensor) -> Tensor:
        grid = (dct.mT @ coefficients @ dct).permute(0, 2, 4, 3, 5, 1)  # (B, H / 8, 8, W / 8, 8, C)
        grid = grid.flatten(3, 4).flatten(1, 2)
        rows = torch.arange(h, device=x.device) + offset[0][:, None]
        columns = torch.arange(w, device=x.device) + offset[1][:, None]
        return grid[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2) / levels

    dct = _DCT.to(x)
    intra = quantised(blocks(torch.where(_maps(s["predicted"]) > 0, before, x)), q)
    predicted = intra + quantised_difference(blocks(x) - intra, q)
    result = picture(torch.where(s["predicted"].view(b, 1, 1, 1, 1, 1) > 0, predicted, intra))
    return torch.where(_maps(coded), result, x)


def quantised(coefficients: Tensor, q: Tensor) -> Tensor:
    """Intra blocks (B, C, …, 8, 8) of levels through MPEG-2's quantiser at scales q (B,), and back.

    ISO/IEC 13818-2, 7.4.2; the DC coefficient has its own step, 2 at 10 bit. Encoders round down a little.
    """
    step = _INTRA.to(coefficients) * q.view(-1, 1, 1, 1, 1, 1) / 16
    step = step.clone()
    step[..., 0, 0] = 2
    bias = torch.full_like(_INTRA, 0.42).to(coefficients)
    bias[0, 0] = 0.5
    return coefficients.sign() * torch.floor(coefficients.abs() / step + bias) * step


def quantised_difference(coefficients: Tensor, q: Tensor) -> Tensor:
    """Predicted blocks' differences likewise: a dead zone around 0, and values put back mid-step."""
    step = _OTHER.to(coefficients) * q.view(-1, 1, 1, 1, 1, 1) / 16
    whole = torch.floor(coefficients.abs() / step)
    return torch.where(whole > 0, coefficients.sign() * (whole + 0.5) * step, 0)
