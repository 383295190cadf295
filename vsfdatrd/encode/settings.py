"""What the user asked for: one frozen record, checked as far as it can be without looking at the film."""

import re
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.encode import field_detection, presets
from vsfdatrd.encode.crop import Borders, parse_borders
from vsfdatrd.encode.presets import CONTAINERS, PRESETS, Preset
from vsfdatrd.errors import ArgumentError

MIN_MINUTES, MAX_MINUTES = 0.01, 240.0


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that makes a difference to the output, and how the work is to be done."""

    model: str = "medium"
    """A name of the catalogue, or the path of a weights file."""
    backend: str = "auto"
    """The engine, as `upscale` takes it."""
    precision: str = "auto"
    """Arithmetic, as `upscale` takes it."""
    devices: tuple[int, ...] = (0,)
    """Numbers of the GPUs; each makes chunks of its own."""
    field: str = "auto"
    """One of `fields.CHOICES`."""
    crop: str = "none"
    """``none``, ``auto`` or ``left,top,right,bottom`` in pixels of the source."""
    keep_sar: bool = False
    """Whether pixels stay as they are, instead of becoming square."""
    preset: str = "x265"
    """One of `presets.PRESETS`."""
    further: tuple[str, ...] = ()
    """More options for ffmpeg; they win over the preset's."""
    minutes: float = 5.0
    """Of a chunk."""
    overwrite: bool = False
    """Whether an output that is there already is replaced."""

    def __post_init__(self) -> None:
        from vsfdatrd.options import Options

        Options.parse(self.model, self.backend, self.devices, self.precision)
        if self.preset not in PRESETS:
            raise ArgumentError(f"--preset {self.preset} is unknown; choose one of {', '.join(PRESETS)}")
        if self.field not in field_detection.CHOICES:
            raise ArgumentError(f"--field {self.field} is unknown; choose one of {', '.join(field_detection.CHOICES)}")
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise ArgumentError(
                f"--chunk {self.minutes:g} is out of range; give {MIN_MINUTES} to {MAX_MINUTES:g} minutes"
            )
        if self.crop not in ("none", "auto"):
            parse_borders(self.crop)
        for option in self.further:
            if option in ("-i", "-map", "-f", "-ss", "-t", "-to", "-r", "-frames:v", "-vframes", "-an", "-c:a", "-c"):
                raise ArgumentError(
                    f"{option} after -- would change which frames or streams there are, which encode sees to itself; "
                    "give options of the video encoder only, such as -crf 14 or -preset slow"
                )

    @property
    def way(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]

    @property
    def borders(self) -> Borders | None:
        """What to crop; None where that is to be found out."""
        return None if self.crop == "auto" else Borders() if self.crop == "none" else parse_borders(self.crop)


def outputs(paths: list[Path], folder: Path | None) -> list[tuple[Path, Path]]:
    """Inputs and outputs, from what stands on the command line: ``in out``, or any number of inputs and a folder.

    Raises ArgumentError.
    """
    if folder is None:
        if len(paths) != 2:
            raise ArgumentError(
                f"{len(paths)} {'path was' if len(paths) == 1 else 'paths were'} given; give an input and an output "
                "(vsfdatrd encode in.mkv out.mkv), or any number of inputs and a folder (--out hd/)"
            )
        pairs = [(paths[0], paths[1])]
    else:
        pairs = [(path, folder / f"{path.stem}.mkv") for path in paths]
        names = [target.name for _, target in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ArgumentError(f"two inputs would both become {twice[0]}; encode them one by one, with other names")
    for source, target in pairs:
        if target.suffix.lower() not in CONTAINERS:
            raise ArgumentError(f"the output {str(target)!r} has no suffix that is known; end it in .mkv, .mp4 or .mov")
        if target.exists() and source.exists() and target.samefile(source):
            raise ArgumentError(f"the output {str(target)!r} is the input itself; give another name")
        if target.is_dir():
            raise ArgumentError(f"the output {str(target)!r} is a folder; give a file, or --out {target}")
        if not target.absolute().parent.is_dir():
            raise ArgumentError(f"there is no folder {str(target.absolute().parent)!r} for the output; create it")
    return pairs


def check_ffmpeg(settings: Settings, targets: list[Path]) -> None:
    """Raises ArgumentError or EncodeError unless ffmpeg can encode so, into such files."""
    for suffix in {target.suffix.lower() for target in targets}:
        presets.check(settings.way, suffix)


def safe(name: str) -> str:
    """A file's name without what terminals would take for commands."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", name)
