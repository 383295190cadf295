"""The user's settings for an encode, validated as far as possible without reading the source."""

import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.encode import field_detection, presets
from vsfdatrd.encode.bitstream import codec_of
from vsfdatrd.encode.crop import Borders, parse_borders
from vsfdatrd.encode.input_file import require_av
from vsfdatrd.encode.presets import CONTAINERS, PRESETS, Preset
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import max_name_bytes
from vsfdatrd.system.programs import ffmpeg

MIN_MINUTES, MAX_MINUTES = 0.01, 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that affects the output, and the devices that encode it.

    Raises:
        ArgumentError: A value is invalid.
    """

    model: str = "medium"
    """Catalog name, or path of a weights file."""
    backend: str = "auto"
    """Inference backend, as in `upscale`."""
    precision: str = "auto"
    """Arithmetic precision, as in `upscale`."""
    chroma_filter: str = "none"
    """Filter for the upscaled chroma, as in `upscale`."""
    devices: tuple[int, ...] = (0,)
    """GPU numbers; each GPU encodes its own chunks."""
    field: str = "auto"
    """Field processing, one of `field_detection.FIELD_CHOICES`."""
    crop: str = "none"
    """``none``, ``auto`` or ``left,top,right,bottom`` in source pixels."""
    keep_sar: bool = False
    """Keep non-square pixels instead of resizing to square ones."""
    preset: str = "x265"
    """Encoder preset, one of `presets.PRESETS`."""
    further: tuple[str, ...] = ()
    """Additional ffmpeg options; they override those of the preset."""
    minutes: float = 5.0
    """Length of a chunk in minutes, `MIN_MINUTES` to `MAX_MINUTES`."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        from vsfdatrd.options import Options

        Options(
            model=self.model,
            backend=self.backend,
            device=self.devices,
            precision=self.precision,
            chroma_filter=self.chroma_filter,
        )
        if self.preset not in PRESETS:
            raise ArgumentError(f"--preset {self.preset} is unknown; choose one of {', '.join(PRESETS)}")
        if self.field not in field_detection.FIELD_CHOICES:
            raise ArgumentError(
                f"--field {self.field} is unknown; choose one of {', '.join(field_detection.FIELD_CHOICES)}"
            )
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise ArgumentError(
                f"--chunk {self.minutes:g} is out of range; give {MIN_MINUTES} to {MAX_MINUTES:g} minutes"
            )
        if self.crop not in ("none", "auto"):
            parse_borders(self.crop)
        _check_encoder_options(self.further)

    @property
    def selected_preset(self) -> Preset:
        """The `Preset` of this name."""
        return PRESETS[self.preset]

    @property
    def encoder(self) -> str:
        """ffmpeg's name of the video encoder: the preset's, unless additional options select another."""
        return presets.selected_encoder(self.further, self.selected_preset.encoder)

    @property
    def borders(self) -> Borders | None:
        """The borders to crop; None if they are to be detected."""
        return None if self.crop == "auto" else Borders() if self.crop == "none" else parse_borders(self.crop)


# ffmpeg options that conflict with those set by encode, or whose effect would be lost when chunks are joined.
_FORBIDDEN_OPTIONS = re.compile(
    "-("
    "i|f|map|[avsd]n|[as]codec|filter_complex|lavfi|attach|dump_attachment|target|"  # files and streams
    "ss|sseof|t|to|fs|[vad]?frames|stream_loop|shortest|"  # which frames
    "r|fpsmax|fps_mode|vsync|itsoffset|itsscale|copyts|start_at_zero|timestamp|"  # when they are shown
    "s|aspect|pass|passlogfile|force_key_frames|"  # how they are encoded
    "metadata|map_metadata|map_chapters|disposition|program|stream_group|streamid"  # what describes them
    ")"
)


def _check_encoder_options(words: Sequence[str]) -> None:
    """Raise ArgumentError unless `words` can be options of a video encoder."""
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
        if _FORBIDDEN_OPTIONS.fullmatch(name) or other:
            raise ArgumentError(
                f"{word} after -- would change which frames or streams there are, or how they are written, which "
                "encode controls itself; give options of the video encoder only, such as -crf 14 or -preset slow"
            )


def pair_outputs(paths: list[Path], folder: Path | None) -> list[tuple[Path, Path]]:
    """Pair inputs with outputs, from ``in out`` or from any number of inputs and a folder.

    Args:
        paths: Positional paths of the command line.
        folder: The folder given with ``--out``; None if `paths` is one input and one output.

    Raises:
        ArgumentError: The number of paths is wrong, or an output cannot be used.
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
            raise ArgumentError(f"the output {str(target)!r} has no known suffix; end it in .mkv, .mp4 or .mov")
        most = max_name_bytes(target.parent)
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
    """Check that ffmpeg has the encoder and that the containers can hold its output.

    Args:
        settings: The encode's settings.
        targets: All output files.

    Raises:
        ArgumentError: A container cannot hold the codec.
        EncodeError: No ffmpeg has the encoder, or PyAV is not installed.
    """
    av = require_av()
    preset = settings.selected_preset
    try:
        codec = av.Codec(settings.encoder, "w").canonical_name
    except ValueError:  # PyAV's ffmpeg lacks the encoder
        codec = codec_of(settings.encoder)
    for suffix in {target.suffix.lower() for target in targets}:
        if suffix not in preset.suffixes:
            raise ArgumentError(
                f"the preset {preset.name} ({preset.about}) cannot be stored in a {suffix} file; "
                f"give an output that ends in {' or '.join(preset.suffixes)}"
            )
        with av.open(io.BytesIO(), "w", format=CONTAINERS[suffix]) as file:
            if codec and codec not in file.supported_codecs:
                raise ArgumentError(
                    f"a {suffix} file cannot hold what {settings.encoder} encodes; give another output or encoder"
                )
    ffmpeg(settings.encoder)
