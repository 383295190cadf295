"""Every number that a training depends on, in one place; read from a TOML file."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

_SPELLINGS = {
    "optimiser": "optimizer",
    "colour": "color",
    "colour_structure": "color_structure",
    "flat_colours": "flat_colors",
}
"""Names in recipes and checkpoints of earlier trainings, such as trunk.safetensors."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One training. What a TOML file leaves out keeps the value it has here."""

    # The network
    variant: str = "medium"
    """``small``, ``medium`` or ``large``; ``tiny`` is one group of three blocks, for rehearsals and tests."""
    form: Literal["whole", "unfolded"] = "whole"
    """``unfolded`` trains a part of it on single pixels (`pixel_network.py`), a good start that costs little."""
    attention: bool = True
    """Where false, a ``whole`` training leaves attention out and as it is: all convolutions and feed-forward networks
    learn, at a third of the cost."""
    blocks: int = 1
    """How many blocks of every group an ``unfolded`` training has, from the first on; more reach further."""
    drop_path: float = -1.0
    """Stochastic-depth rate of the last block; negative takes the variant's own."""

    # The plan
    minutes: float = 25.0
    """Length of the whole training, over which the learning rate is planned."""
    steps: int = 0
    """Where above 0, the plan is this many steps instead, however long they take."""
    warm: float = 0.02
    """Share of the plan during which `conv_first` and the tail learn alone."""
    batch: int = 64
    """Crops per step."""
    size: int = 120
    """Side of the low-resolution crop in pixels; a multiple of 60, the network's own padding."""
    seed: int = 1
    """Of crops, degradation and first weights."""

    bank: int = 0
    """Where above 0, so many crops are composed beforehand, of twice the side, and views of them are trained on."""

    # The optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` is for ``unfolded``: Muon for inner matrices, AdamW for the rest."""
    learning_rate: float = 8e-4
    """At its highest."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """``cosine`` falls all the way; ``wsd`` stays at the highest until the last `decay` of the plan, then falls."""
    decay: float = 0.3
    """Share of the plan in which ``wsd`` falls to nothing; 0 never falls, 1 falls from the first step on."""
    ramp: int = 200
    """Steps in which the rate rises from 0, at the start and again when the whole network joins."""
    weight_decay: float = 1e-4
    """On matrices and kernels alone."""
    beta2: float = 0.99
    """AdamW's decay of squared gradients."""
    clip: float = 0.5
    """Largest norm of the gradient; a longer one is shortened to it."""
    ema: float = 0.999
    """Decay of the averaged weights per step, which are what is kept; reached gradually."""

    # The loss: weights of its terms (`loss.py`)
    pixel: float = 1.0
    """Charbonnier distance of pixels."""
    gradient: float = 0.1
    """Differences of neighboring pixels."""
    edges: float = 0.0
    """Charbonnier distance of luma on the truth's lines and edges alone: more for their shape than for all between."""
    crisp: float = 0.0
    """By so much, 1 being twice its detail, the truth's lines are steepened before it is compared: solid lines, at a
    cost in PSNR."""
    frequency: float = 0.05
    """Amplitudes of the spectrum."""
    texture: float = 0.0
    """Strength of lines and texture by direction, wherever exactly they lie; sharper, at some cost in PSNR."""
    structure: float = 0.0
    """One minus SSIM of luma at three sizes."""

    color: float = 0.0
    """Charbonnier distance of Cb and Cr, besides that of pixels."""
    color_structure: float = 0.0
    """One minus SSIM of Cb and Cr at three sizes."""
    consistency: float = 0.0
    """Distance of the outputs for two noisy copies of one truth, so that held cels do not boil."""

    pairs: int = 0
    """So many crops of every batch are a second noisy copy of another one."""
    flat_colors: int = 0
    """Number of crops of one flat color added to every step; the network learns to return them unchanged."""

    # What is shown: shares of the crops
    clean: float = 0.28
    """Only halved by area average and rounded to 8 bit."""
    laserdisc: float = 0.25
    """Degraded as LaserDisc; the rest, neither clean nor this, as DVD."""
    clean_noise: float = 0.0
    """Up to so many 8-bit steps of white noise are on a half of the clean crops, so that held cels do not boil."""
    drawings: float = 0.65
    """With vector drawings before the painting."""
    flat: float = 0.15
    """With a flat or shaded background instead of a painting."""
    lines: float = 0.35
    """With drawn strokes, hair, grids or marks like letters over everything."""
    lettering: float = 0.08
    """With words over everything, where the tiles have some."""
    sprites: int = 0
    """Drawings to load; 0 is all. Each takes 0.6 MB of the device's memory."""

    # While it runs
    checkpoint: Literal["full", "slim"] = "full"
    """``full`` is everything, ``slim`` the averaged weights as fp16 and the place in the plan: a tenth of the size."""
    checkpoint_minutes: float = 1.0
    """Between two saved states: what a crash can cost."""
    validate_minutes: float = 3.0
    """Between two measurements on held-back pictures."""
    validate_crops: int = 24
    """Crops in a measurement, for each of clean, DVD and LaserDisc."""

    def __post_init__(self) -> None:
        if self.size % 60 or self.size <= 0:
            raise ValueError(f"size {self.size} is no multiple of 60, to which the network pads its input")
        if self.clean + self.laserdisc > 1:
            raise ValueError(f"clean {self.clean} and laserdisc {self.laserdisc} are more than the whole")
        if self.schedule not in ("cosine", "wsd"):
            raise ValueError(f"schedule {self.schedule!r} is not known: choose cosine or wsd")
        if self.form == "unfolded" and not self.attention:
            raise ValueError("an unfolded network has no attention to leave out; remove attention = false")
        if self.form not in ("whole", "unfolded"):
            raise ValueError(f"form {self.form!r} is not known: choose whole or unfolded")
        if self.optimizer not in ("adamw", "muon") or (self.optimizer == "muon" and self.form == "whole"):
            raise ValueError(f"optimizer {self.optimizer!r} is not for the form {self.form!r}: choose adamw")
        if self.checkpoint not in ("full", "slim"):
            raise ValueError(f"checkpoint {self.checkpoint!r} is not known: choose full or slim")
        if self.pairs > self.batch // 2:
            raise ValueError(f"pairs {self.pairs} are more than half of a batch of {self.batch}")
        if self.batch < 1 or (self.minutes <= 0 and self.steps <= 0):
            raise ValueError("a training needs at least one crop per step and a plan longer than nothing")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Raises ValueError for a name that no recipe has, or a value of the wrong kind."""
        types: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
        values = {_SPELLINGS.get(name, name): value for name, value in values.items()}
        for name, value in values.items():
            if name not in types:
                raise ValueError(f"{name!r} is nothing a recipe has: choose from {', '.join(types)}")
            whole_for_fraction = types[name] is float and type(value) is int
            if type(value) is not types[name] and not whole_for_fraction:
                raise ValueError(f"{name} is {value!r}, which is no {types[name].__name__}")
        return cls(**{name: types[name](value) for name, value in values.items()})

    @classmethod
    def read(cls, file: Path) -> Self:
        """The recipe in a TOML file; a bare name such as ``medium.toml`` also means the one in this folder."""
        beside = Path(__file__).parent / file.name
        with (file if file.exists() or not beside.exists() else beside).open("rb") as opened:
            return cls.from_mapping(tomllib.load(opened))

    def progress(self, step: int, minutes: float) -> float:
        """How far the plan is, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else minutes / self.minutes)
