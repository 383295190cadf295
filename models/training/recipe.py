"""All numbers that a training depends on, read from a TOML file."""

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

_REMOVED = {"edges": 0.0, "crisp": 0.0, "texture": 0.0, "weight_decay": 1e-4, "beta2": 0.99}
"""Settings in checkpoints of earlier trainings that recipes no longer have, with the only value that is accepted."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of one training. Those that a TOML file omits have the defaults below."""

    # The network
    variant: str = "medium"
    """``small``, ``medium`` or ``large``; ``tiny`` is one group of three blocks, for rehearsals and tests."""
    form: Literal["whole", "unfolded"] = "whole"
    """``whole`` trains the network itself; ``unfolded`` trains a part of it on single pixels (`pixel_network.py`),
    which is cheap and a good start.
    """
    attention: bool = True
    """If false, a ``whole`` training bypasses attention and leaves it unchanged: only convolutions and feed-forward
    networks learn, at a third of the cost.
    """
    blocks: int = 1
    """Number of blocks at the start of every group that an ``unfolded`` training has; more of them see farther."""
    depth_per_group: int = 0
    """How often a group repeats its three kinds of blocks; 0 for the variant's own number."""
    drop_path: float = -1.0
    """Stochastic-depth rate of the last block; if negative, the variant's own."""

    # The plan
    minutes: float = 25.0
    """Length of the complete training, for which the learning rate is scheduled."""
    steps: int = 0
    """If above 0, the schedule has this many steps instead, however long they take."""
    warm: float = 0.02
    """Share of the schedule in which only `conv_first` and the tail learn."""
    batch: int = 64
    """Crops per step."""
    size: int = 120
    """Side of the low-resolution crop in pixels; a multiple of 60, which the network requires."""
    seed: int = 1
    """Seed of crops, degradation and initial weights."""

    bank: int = 0
    """If above 0, this many crops of twice the side are composed in advance, and views of them are used."""

    # The optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` (for ``unfolded`` only) is Muon for inner matrices and AdamW for the rest."""
    learning_rate: float = 8e-4
    """Highest learning rate."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """``cosine`` decays over the complete schedule; ``wsd`` stays at the highest rate until the last `decay` of it,
    then decays.
    """
    decay: float = 0.3
    """Share of the schedule in which ``wsd`` decays to zero; 0 never decays, 1 decays from the first step."""
    ramp: int = 200
    """Steps in which the learning rate rises from 0, at the start and again when all layers begin to learn."""
    clip: float = 0.5
    """Largest norm of the gradient; larger gradients are clipped to it."""
    ema: float = 0.999
    """Decay of the averaged weights per step, reached gradually. The averaged weights are the result."""

    # The loss: weights of its terms (`loss.py`)
    pixel: float = 1.0
    """Charbonnier distance of pixels."""
    gradient: float = 0.1
    """Differences of neighboring pixels."""
    frequency: float = 0.05
    """Amplitudes of the spectrum."""
    structure: float = 0.0
    """One minus SSIM of luma at three sizes."""

    color: float = 0.0
    """Charbonnier distance of Cb and Cr, in addition to that of pixels."""
    color_structure: float = 0.0
    """One minus SSIM of Cb and Cr at three sizes."""
    consistency: float = 0.0
    """Distance between the outputs for two noisy copies of one truth, so that held cels do not flicker."""

    pairs: int = 0
    """Number of crops per batch that are a second noisy copy of another one."""
    flat_colors: int = 0
    """Number of crops of a single flat color added to every step; the network learns to return them unchanged."""

    # What is shown: shares of the crops
    clean: float = 0.28
    """Clean crops: only halved by area average and rounded to 8 bits."""
    laserdisc: float = 0.25
    """Crops degraded as LaserDisc; the rest, neither clean nor this, are degraded as DVD."""
    digital: float = 0.0
    """Share of the DVD and of the LaserDisc crops that were never on film (`strengths.py`)."""
    clean_noise: float = 0.0
    """Maximum standard deviation, in 8-bit steps, of white noise on half of the clean crops, so that held cels do not
    flicker.
    """
    drawings: float = 0.65
    """Crops with vector drawings in front of the background."""
    flat: float = 0.15
    """Crops with a flat or shaded background instead of a painting."""
    lines: float = 0.35
    """Crops with drawn strokes, hair, grids or letter-like marks over everything."""
    lettering: float = 0.08
    """Crops with words over everything, if the tiles include some."""
    sprites: int = 0
    """Number of drawings to load; 0 is all. Each takes 0.6 MB of the device's memory."""

    # While it runs
    checkpoint: Literal["full", "slim"] = "full"
    """``full`` is everything; ``slim`` is the averaged weights as fp16 and the position in the schedule, a tenth of the
    size.
    """
    checkpoint_minutes: float = 1.0
    """Minutes between two checkpoints, and so what a crash can cost."""
    validate_minutes: float = 3.0
    """Minutes between two validations."""
    validate_crops: int = 24
    """Crops per validation, for each of clean, DVD and LaserDisc."""

    def __post_init__(self) -> None:
        if self.size % 60 or self.size <= 0:
            raise ValueError(f"size {self.size} is no multiple of 60, to which the network pads its input")
        if self.clean + self.laserdisc > 1:
            raise ValueError(f"clean {self.clean} and laserdisc {self.laserdisc} are more than the whole")
        if not 0 <= self.digital <= 1:
            raise ValueError(f"digital {self.digital} is no share; choose 0 to 1")
        if self.depth_per_group < 0:
            raise ValueError(f"depth_per_group {self.depth_per_group} is negative; choose 0 for the variant's own")
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
        """Create a recipe from values by name.

        Raises:
            ValueError: A name is unknown, or a value is of the wrong type or out of range.
        """
        types: dict[str, type] = {field.name: type(field.default) for field in fields(cls)}
        values = {_SPELLINGS.get(name, name): value for name, value in values.items() if _REMOVED.get(name) != value}
        for name, value in values.items():
            if name not in types:
                raise ValueError(f"{name!r} is nothing a recipe has: choose from {', '.join(types)}")
            whole_for_fraction = types[name] is float and type(value) is int
            if type(value) is not types[name] and not whole_for_fraction:
                raise ValueError(f"{name} is {value!r}, which is no {types[name].__name__}")
        return cls(**{name: types[name](value) for name, value in values.items()})

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read the recipe in a TOML file; a bare name such as ``medium.toml`` also means one in this folder.

        Raises:
            ValueError: As `from_mapping` does.
        """
        beside = Path(__file__).parent / file.name
        with (file if file.exists() or not beside.exists() else beside).open("rb") as opened:
            return cls.from_mapping(tomllib.load(opened))

    def progress(self, step: int, minutes: float) -> float:
        """Return the progress of the schedule, from 0 to 1."""
        return min(1.0, step / self.steps if self.steps else minutes / self.minutes)
