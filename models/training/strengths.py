"""How often and how strongly each step of a degradation happens.

Steps, their units, and how often and how strongly they happen; strengths are drawn evenly in the logarithm, so that
weak is commoner than strong:

=========== ============================================================ ================= =================
step        strength                                                     DVD               LaserDisc
=========== ============================================================ ================= =================
optics      σ of the blur by lens, film and scanner, HR pixels           80 %: 0.3 – 1.4   90 %: 0.4 – 1.6
weave       distance of two exposures laid over each other, HR pixels    15 %: 0.4 – 1.4   25 %: 0.4 – 1.8
luma        bandwidth of luma, MHz                                       60 %: 6.5 – 4.6   100 %: 5.3 – 4.2
chroma      bandwidth of chroma, MHz                                     60 %: 3.2 – 1.2   100 %: 1.5 – 0.33
halo        edge enhancement across, share of the removed detail         50 %: 0.1 – 0.8   40 %: 0.1 – 0.7
halo_width  σ of the detail it works on, LR pixels                       100 %: 0.6 – 1.6  100 %: 0.6 – 1.6
halo_down   the enhancement down                                         25 %: 0.05 – 0.4  15 %: 0.05 – 0.3
ringing     one-sided ringing after edges, share of the edge             12 %: 0.04 – 0.2  30 %: 0.05 – 0.3
twitter     odd lines made of their neighbors, share                    8 %: 0.2 – 0.8    15 %: 0.2 – 0.8
quarter     chroma at a quarter of the width (4:1:1), share              3 %: 1            25 %: 1
half        chroma at half the width and height (4:2:0), share           100 %: 1          85 %: 1
siting      4:2:0 read back half-way from left to center siting, pixels  10 %: 0.1 – 0.25  10 %: 0.1 – 0.25
delay       chroma displaced across, either way, LR pixels               10 %: 0.2 – 1     25 %: 0.2 – 1.5
comb        sent as composite, color taken out by a 1H comb, share      5 %: 1            50 %: 1
dots        dot crawl: chroma's carrier left in luma, share              8 %: 0.05 – 0.3   70 %: 0.1 – 0.6
rainbow     cross-color: fine luma taken for chroma, share              8 %: 0.05 – 0.3   70 %: 0.1 – 0.5
combing     odd lines from another moment, displaced across, LR pixels   3 %: 0.5 – 4      3 %: 0.5 – 4
grain       σ of film grain and noise in luma, levels of 255             75 %: 0.4 – 5     90 %: 0.8 – 6
grain_size  σ of the blur on that grain, LR pixels                       50 %: 0.3 – 0.9   60 %: 0.4 – 1
speckle     σ of colored noise, levels of 255                           20 %: 0.3 – 1.5   80 %: 0.5 – 4
dust        specks on the cel, per 10,000 LR pixels                      6 %: 0.5 – 4      6 %: 0.5 – 4
quantizer   MPEG-2 quantizer_scale                                       85 %: 3 – 24      40 %: 3 – 16
predicted   the frame is a P frame over an intra frame, share            50 %: 1           50 %: 1
one_field   lines of one field made from those of the other, share       10 %: 1           10 %: 1
level       error of black and of contrast, levels of 255                30 %: 0.1 – 0.5   50 %: 0.1 – 0.7
=========== ============================================================ ================= =================

Besides, every sample is halved by one of four kernels: area, triangle, cubic, Lanczos. MHz are those of a line sampled
at 13.5 MHz, ITU-R BT.601. A bandwidth's weak end is the wide one.

A share of both can be digital: drawn and mastered without film, as animation has been since about 2000. Then the steps
in `FILM_STEPS` are left out and, on DVD, those in `ANALOG_STEPS` too, so that what remains is 4:2:0 and MPEG-2; on
LaserDisc it is composite video and its noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Generator, Tensor

KERNELS = ("area", "triangle", "cubic", "lanczos")
"""Kernels by which the picture is halved."""


class Range(NamedTuple):
    """How often a step happens, and the range of its strength."""

    share: float
    weak: float
    strong: float


class Step(NamedTuple):
    """The ranges of a step on both media."""

    dvd: Range
    laserdisc: Range


STEPS: Mapping[str, Step] = {
    "optics": Step(Range(0.80, 0.3, 1.4), Range(0.90, 0.4, 1.6)),
    "weave": Step(Range(0.15, 0.4, 1.4), Range(0.25, 0.4, 1.8)),
    "luma": Step(Range(0.60, 6.5, 4.6), Range(1.00, 5.3, 4.2)),
    "chroma": Step(Range(0.60, 3.2, 1.2), Range(1.00, 1.5, 0.33)),
    "halo": Step(Range(0.50, 0.1, 0.8), Range(0.40, 0.1, 0.7)),
    "halo_width": Step(Range(1.00, 0.6, 1.6), Range(1.00, 0.6, 1.6)),
    "halo_down": Step(Range(0.25, 0.05, 0.4), Range(0.15, 0.05, 0.3)),
    "ringing": Step(Range(0.12, 0.04, 0.2), Range(0.30, 0.05, 0.3)),
    "twitter": Step(Range(0.08, 0.2, 0.8), Range(0.15, 0.2, 0.8)),
    "quarter": Step(Range(0.03, 1, 1), Range(0.25, 1, 1)),
    "half": Step(Range(1.00, 1, 1), Range(0.85, 1, 1)),
    "siting": Step(Range(0.10, 0.1, 0.25), Range(0.10, 0.1, 0.25)),
    "delay": Step(Range(0.10, 0.2, 1.0), Range(0.25, 0.2, 1.5)),
    "comb": Step(Range(0.05, 1, 1), Range(0.50, 1, 1)),
    "dots": Step(Range(0.08, 0.05, 0.3), Range(0.70, 0.1, 0.6)),
    "rainbow": Step(Range(0.08, 0.05, 0.3), Range(0.70, 0.1, 0.5)),
    "combing": Step(Range(0.03, 0.5, 4.0), Range(0.03, 0.5, 4.0)),
    "grain": Step(Range(0.75, 0.4, 5.0), Range(0.90, 0.8, 6.0)),
    "grain_size": Step(Range(0.50, 0.3, 0.9), Range(0.60, 0.4, 1.0)),
    "speckle": Step(Range(0.20, 0.3, 1.5), Range(0.80, 0.5, 4.0)),
    "dust": Step(Range(0.06, 0.5, 4.0), Range(0.06, 0.5, 4.0)),
    "quantizer": Step(Range(0.85, 3, 24), Range(0.40, 3, 16)),
    "predicted": Step(Range(0.50, 1, 1), Range(0.50, 1, 1)),
    "one_field": Step(Range(0.10, 1, 1), Range(0.10, 1, 1)),
    "level": Step(Range(0.30, 0.1, 0.5), Range(0.50, 0.1, 0.7)),
}
"""The table above as numbers."""

FILM_STEPS = frozenset(("optics", "weave", "dust", "luma", "halo", "halo_down", "ringing", "twitter")) | frozenset(
    ("quarter", "delay", "combing", "one_field", "level")
)
"""Steps that a digital sample omits: those of film and its scanner, and of analog masters made from it."""

ANALOG_STEPS = frozenset(("chroma", "comb", "dots", "rainbow", "grain", "speckle"))
"""Steps that a digital sample also omits on DVD: composite video and noise."""


@dataclass(frozen=True, slots=True)
class Strengths:
    """The degradation of each sample of a batch."""

    clean: Tensor
    """(B,) bool: only halved by area average, with 8 bits."""
    kernel: Tensor
    """(B,) index into `KERNELS`."""
    steps: Mapping[str, Tensor]
    """(B,) strength of every step of `STEPS`; 0 is off."""

    def repeated(self, order: Tensor) -> "Strengths":
        """Return those of the samples with the numbers `order` (N,), in that order."""
        steps = {name: strength[order] for name, strength in self.steps.items()}
        return Strengths(self.clean[order], self.kernel[order], steps)

    @classmethod
    def only(
        cls, batch: int, steps: Mapping[str, float], kernel: str = "area", device: torch.device | str = "cpu"
    ) -> "Strengths":
        """Return the same degradation for every sample: only the named steps.

        Args:
            batch: Number of samples.
            steps: Strengths by step, in the units of the table above.
            kernel: Kernel by which the picture is halved, one of `KERNELS`.
            device: Device of the tensors.

        Raises:
            KeyError: A step does not exist.
        """
        result = {name: torch.zeros(batch, device=device) for name in STEPS}
        for name, strength in steps.items():
            result[name] += strength
        index = torch.full((batch,), KERNELS.index(kernel), device=device)
        return cls(torch.zeros(batch, dtype=torch.bool, device=device), index, result)


@cache
def _digital_shares(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 0 for the steps that digital samples of LaserDisc and DVD omit and 1 for the rest: (steps, 1) twice."""
    film = torch.tensor([[float(name not in FILM_STEPS)] for name in STEPS], device=device)
    analog = torch.tensor([[float(name not in ANALOG_STEPS)] for name in STEPS], device=device)
    return film, film * analog


@cache
def _table(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ranges of LaserDisc and DVD: (3, steps, 1) twice. Cached, or every batch would wait for them."""
    table = torch.tensor([[*step.dvd, *step.laserdisc] for step in STEPS.values()], device=device)  # (steps, 6)
    return table[:, 3:].T[..., None], table[:, :3].T[..., None]


def draw_strengths(
    batch: int, generator: Generator, *, clean: float, laserdisc: float, digital: float = 0.0
) -> Strengths:
    """Draw the strengths of `batch` samples, on the generator's device.

    Args:
        batch: Number of samples.
        generator: Source of random numbers.
        clean: Share of clean samples.
        laserdisc: Share of LaserDisc samples; the rest are DVD.
        digital: Share of the LaserDisc and of the DVD samples that are digital.
    """
    device = generator.device
    kind = torch.rand(batch, generator=generator, device=device)
    is_laserdisc = (kind >= clean) & (kind < clean + laserdisc)
    start = torch.where(is_laserdisc, clean, clean + laserdisc)
    is_digital = kind < start + digital * torch.where(is_laserdisc, laserdisc, 1 - clean - laserdisc)
    kernel = torch.randint(len(KERNELS), (batch,), generator=generator, device=device)
    share, weak, strong = torch.where(is_laserdisc, *_table(device))
    share = share * torch.where(is_digital, torch.where(is_laserdisc, *_digital_shares(device)), 1.0)
    happens, place = torch.rand(2, len(STEPS), batch, generator=generator, device=device)
    strength = weak * (strong / weak) ** place * (happens < share)  # (steps, B)
    return Strengths(kind < clean, kernel, dict(zip(STEPS, strength, strict=True)))


def to_maps(values: Tensor) -> Tensor:
    """Reshape (B,) -> (B, 1, 1, 1)."""
    return values.view(-1, 1, 1, 1)
