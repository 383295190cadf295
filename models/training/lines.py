"""Linear filters along one axis of a picture, as matrices: (B or 1, outputs, inputs), one per sample of a batch.

Rows sum to one, so flat areas stay flat; samples outside the border are omitted.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from models.training.strengths import Strengths

type Kernel = Callable[[Tensor], Tensor]
"""Weights of samples by their distance, in samples."""

SAMPLING = 13.5
"""Luma samples per microsecond (ITU-R BT.601)."""


def through(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Filter both axes: (B, C, H, W) with `down` (B or 1, H', H) and `across` (B or 1, W', W) -> (B, C, H', W')."""
    b, c, h, w = x.shape
    x = (x.reshape(b, c * h, w) @ across.mT).view(b, c, h, -1)
    return down[:, None] @ x


def _distances(rows: int, columns: int, scale: float, center: float, device: torch.device) -> Tensor:
    """Return the distance of input sample j from output sample i: (1, rows, columns), in input samples.

    Measured from the left edge of the picture, output sample i is at i·scale + center, and input sample j at j + 0.5.
    """
    at = torch.arange(rows, device=device, dtype=torch.float32) * scale + center
    samples = torch.arange(columns, device=device, dtype=torch.float32) + 0.5
    return (samples - at.view(rows, 1))[None]


def _square(n: int, device: torch.device) -> Tensor:
    return _distances(n, n, 1, 0.5, device)


def _normalized(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def triangle(d: Tensor) -> Tensor:
    """Linear interpolation: weights at distances in samples."""
    return (1 - d.abs()).clamp_min(0)


def _cubic(d: Tensor) -> Tensor:
    """Keys 1981 with a = -0.5."""
    a = d.abs()
    near, far = (1.5 * a - 2.5) * a * a + 1, ((-0.5 * a + 2.5) * a - 4) * a + 2
    return torch.where(a < 1, near, torch.where(a < 2, far, 0))


def spline36(d: Tensor) -> Tensor:
    """The piecewise cubic kernel of six samples that zimg and Avisynth call Spline36."""
    a = d.abs()
    b, c = a - 1, a - 2
    near = ((13 / 11 * a - 453 / 209) * a - 3 / 209) * a + 1
    middle = ((-6 / 11 * b + 270 / 209) * b - 156 / 209) * b
    far = ((1 / 11 * c - 45 / 209) * c + 26 / 209) * c
    return torch.where(a < 1, near, torch.where(a < 2, middle, torch.where(a < 3, far, 0)))


def _lanczos(d: Tensor) -> Tensor:
    """Lanczos with three lobes."""
    return torch.where(d.abs() < 3, torch.sinc(d) * torch.sinc(d / 3), 0)


def gaussian(n: int, sigma: Tensor) -> Tensor:
    """Gaussian blur of (B,) σ in samples -> (B, n, n); 0 is the identity."""
    d = _square(n, sigma.device) / sigma.clamp_min(0.05).view(-1, 1, 1)
    return _normalized(torch.exp(-0.5 * d * d))


def film(n: int, strengths: Strengths) -> Tensor:
    """Optics, two exposures and halving in one: (B, n / 2, n)."""
    s, device = strengths.steps, strengths.kernel.device
    d = _distances(n // 2, n, 2, 1, device) / 2
    halving = _normalized(torch.cat([(d.abs() < 0.5).to(d), triangle(d), _cubic(d), _lanczos(d)]))[strengths.kernel]
    apart = s["weave"].view(-1, 1, 1) / 2
    d = _square(n, device)
    twice = _normalized(triangle(d - apart) + triangle(d + apart))
    return halving @ twice @ gaussian(n, s["optics"])


def band(n: int, megahertz: Tensor) -> Tensor:
    """A low-pass filter that is flat up to a frequency and steep there, as digital ones are: (B, n, n); 0 is none."""
    nyquist = SAMPLING / 2
    share = torch.where(megahertz > 0, megahertz / nyquist, 1)
    return _normalized(_lanczos(_square(n, megahertz.device) * share.view(-1, 1, 1)))


def soft_band(n: int, megahertz: Tensor) -> Tensor:
    """Return matrices (B, n, n) of a Gaussian low-pass filter, as for analog chroma: half the power at a frequency.

    A frequency of 0 means no filter.
    """
    sigma = math.sqrt(math.log(2)) / math.tau * SAMPLING / megahertz.clamp_min(0.1)
    return gaussian(n, torch.where(megahertz > 0, sigma, 0))


def halo(n: int, amount: Tensor, sigma: Tensor) -> Tensor:
    """Unsharp masking: (B, n, n)."""
    a = amount.view(-1, 1, 1)
    return (1 + a) * torch.eye(n, device=amount.device) - a * gaussian(n, sigma)


def ringing(n: int, share: Tensor, cycles: float = 0.31, decay: float = 2.2) -> Tensor:
    """Ringing to the right of edges only, as after analog filters: (B, n, n).

    The sum and the first moment of what is added are zero, so neither the mean nor the position of drawings changes.

    Args:
        n: Number of samples.
        share: (B,) amplitude of the ringing.
        cycles: Frequency of the ringing per sample, 4.2 MHz.
        decay: In samples.
    """
    d = -_square(n, share.device)
    after = torch.exp(-d / decay) * torch.cos(math.tau * cycles * d) * (d > 0.5)
    taps = [math.exp(-k / decay) * math.cos(math.tau * cycles * k) for k in range(1, n)]
    moment = sum(k * tap for k, tap in enumerate(taps, 1))
    at_once, beside = (d.abs() < 0.5).to(d), ((d - 1).abs() < 0.5).to(d) - ((d + 1).abs() < 0.5).to(d)
    added = after - sum(taps) * at_once - moment / 2 * beside
    return _normalized(at_once + share.view(-1, 1, 1) * added)


def displaced(n: int, by: Tensor) -> Tensor:
    """A shift to the right by (B,) samples with linear interpolation: (B, n, n)."""
    return _normalized(triangle(_square(n, by.device) + by.view(-1, 1, 1)) + 1e-6)


def around_carrier(n: int, cycles: float, sigma: Tensor) -> Tensor:
    """A band-pass around a number of cycles per sample: (B,) σ in samples -> (B, n, n).

    Its gain is 1 at its center; the sum of every row is zero.
    """
    d = _square(n, sigma.device)
    envelope = _normalized(torch.exp(-0.5 * (d / sigma.view(-1, 1, 1)) ** 2))
    kernel = 2 * envelope * torch.cos(math.tau * cycles * d)
    return kernel - envelope * kernel.sum(-1, keepdim=True)


def one_field(n: int, odd: Tensor) -> Tensor:
    """Replace every second line by cubic interpolation of the others: (B, n, n). `odd` (B,) selects which, 0 or 1."""
    d = _square(n, odd.device).abs()
    made = ((torch.arange(n, device=odd.device) + odd.view(-1, 1)) % 2).bool()[..., None]
    cubic = 9 * ((d - 1).abs() < 0.5).to(d) - ((d - 3).abs() < 0.5).to(d)
    return torch.where(made, _normalized(cubic), (d < 0.5).to(d))


def twitter(n: int, share: Tensor) -> Tensor:
    """Blend odd lines with the mean of their neighbors: (B, n, n)."""
    d = _square(n, share.device)
    odd = (torch.arange(n, device=share.device) % 2).view(1, n, 1) * share.view(-1, 1, 1)
    neighbors = _normalized(((d.abs() - 1).abs() < 0.5).to(d))
    return torch.lerp(torch.eye(n, device=share.device)[None], neighbors, odd)


def subsample(n: int, factor: int, center: float, device: torch.device) -> Tensor:
    """Downsample by a triangle over 2·factor samples: (1, n / factor, n).

    The first output sample lies `center` input samples from the left edge.
    """
    return _normalized(triangle(_distances(n // factor, n, factor, center, device) / factor))


def supersample(n: int, factor: int, center: Tensor, kernel: Kernel) -> Tensor:
    """Upsample by an interpolating kernel: (B, n, n / factor), the first input sample `center` (B,) from the left edge.

    4:2:0 is read back with `spline36`, as the filter does (`vsfdatrd.video.color`).
    """
    device = center.device
    at = (torch.arange(n, device=device) + 0.5 - center.view(-1, 1)) / factor
    return _normalized(kernel(torch.arange(n // factor, device=device) - at[..., None]))


def quarter(n: int, share: Tensor) -> Tensor:
    """Reduce to a quarter of the width and enlarge again: (B, n, n)."""
    there, back = subsample(n, 4, 0.5, share.device), supersample(n, 4, torch.full_like(share, 0.5), triangle)
    return torch.lerp(torch.eye(n, device=share.device)[None], back @ there, share.view(-1, 1, 1))
