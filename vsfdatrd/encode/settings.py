"""What the user asked for: one frozen record, checked as far as it can be without looking at the film."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.encode import field_detection, presets
from vsfdatrd.encode.crop import Borders, parse_borders
from vsfdatrd.encode.presets import CONTAINERS, PRESETS, Preset
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import longest_name

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
    chroma_filter: str = "none"
    """What is done to the upscaled chroma, as `upscale` takes it."""
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

        Options.parse(self.model, self.backend, self.devices, self.precision, chroma_filter=self.chroma_filter)
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
        _check_further(self.further)

    @property
    def way(self) -> Preset:
        """The preset."""
        return PRESETS[self.preset]

    @property
    def encoder(self) -> str:
        """The video encoder, as ffmpeg calls it: the preset's, unless further options choose another."""
        return presets.encoder_of(self.further, self.way.encoder)

    @property
    def borders(self) -> Borders | None:
        """What to crop; None where that is to be found out."""
        return None if self.crop == "auto" else Borders() if self.crop == "none" else parse_borders(self.crop)


# Options of ffmpeg that would change what encode sees to itself, or be lost when chunks are joined.
_NOT_FURTHER = frozenset((
    "-i", "-map", "-f", "-ss", "-sseof", "-t", "-to", "-r", "-fpsmax", "-frames", "-vframes", "-aframes", "-dframes",
    "-fs", "-an", "-vn", "-sn", "-dn", "-acodec", "-scodec", "-filter_complex", "-lavfi", "-fps_mode", "-vsync",
    "-shortest", "-itsoffset", "-itsscale", "-stream_loop", "-copyts", "-start_at_zero", "-map_metadata",
    "-map_chapters", "-attach", "-dump_attachment", "-pass", "-passlogfile", "-s", "-aspect", "-metadata",
    "-disposition", "-target", "-force_key_frames", "-timestamp", "-program", "-stream_group", "-streamid",
))  # fmt: skip


def _check_further(words: Sequence[str]) -> None:
    """Raise ArgumentError unless words can be options of a video encoder."""
    name = ""
    for word in words:
        if not word.startswith("-"):
            if not name:
                raise ArgumentError(
                    f"{word!r} after -- is not the value of an option, and ffmpeg would take it for another output; "
                    "give options of the video encoder only, such as -crf 14 or -preset slow"
                )
            name = ""
            continue
        name, _, specifier = word.partition(":")
        other = name in ("-c", "-codec") and not specifier.startswith("v")
        if name in _NOT_FURTHER or other:
            raise ArgumentError(
                f"{word} after -- would change which frames or streams there are, or how they are written, which "
                "encode sees to itself; give options of the video encoder only, such as -crf 14 or -preset slow"
            )


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
        most = longest_name(target.parent)
        if len(os.fsencode(target.name)) > most:
            raise ArgumentError(
                f"the output's name {target.name!r} has {len(os.fsencode(target.name))} bytes, and its folder allows "
                f"{most}; give a shorter name" + (f" with {str(source)!r} and an output of its own" if folder else "")
            )
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
        presets.check(settings.way, suffix, settings.encoder)
