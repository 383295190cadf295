"""Encoder presets as ffmpeg options."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

CONTAINERS = {".mkv": "matroska", ".mp4": "mp4", ".mov": "mov"}
"""Output suffixes and ffmpeg's names of the container formats."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A video encoder and its options."""

    name: str
    encoder: str
    """ffmpeg's name of the encoder."""
    options: str
    """ffmpeg output options, as on a command line."""
    format: str
    """VapourSynth's name of the encoder's input format."""
    suffixes: tuple[str, ...]
    """Suffixes of the containers that can hold the stream."""
    about: str
    """Short description for the command-line help."""

    @property
    def arguments(self) -> list[str]:
        """`options` as a list of arguments."""
        return self.options.split()

    @property
    def pixel_format(self) -> str:
        """ffmpeg's name of `format`, for raw frames."""
        return {"YUV420P8": "yuv420p", "YUV420P10": "yuv420p10le", "YUV422P10": "yuv422p10le"}[self.format]


_ALL_SUFFIXES = (".mkv", ".mp4", ".mov")
_X265_OPTIONS = "-preset medium -tune animation -crf 16 -x265-params log-level=error"
_NVENC_OPTIONS = "-preset p7 -tune hq -profile:v main10 -pix_fmt p010le -rc vbr -cq 18 -b:v 0"
_PRESETS = (
    Preset("x265", "libx265", _X265_OPTIONS, "YUV420P10", _ALL_SUFFIXES, "HEVC, 10 bit"),
    Preset(
        "x264",
        "libx264",
        "-preset slow -tune animation -crf 16",
        "YUV420P8",
        _ALL_SUFFIXES,
        "H.264, 8 bit, for any player",
    ),
    Preset("svtav1", "libsvtav1", "-preset 5 -crf 20", "YUV420P10", (".mkv", ".mp4"), "AV1, 10 bit"),
    Preset("ffv1", "ffv1", "-level 3 -g 1 -slices 16 -slicecrc 1", "YUV420P10", (".mkv",), "lossless, 10 bit"),
    Preset(
        "prores", "prores_ks", "-profile:v hq -vendor apl0", "YUV422P10", (".mov", ".mkv"), "ProRes 422 HQ, for editing"
    ),
    Preset("nvenc", "hevc_nvenc", _NVENC_OPTIONS, "YUV420P10", _ALL_SUFFIXES, "HEVC, 10 bit, on an NVIDIA GPU"),
)
PRESETS = {preset.name: preset for preset in _PRESETS}
"""Every preset by its name."""


def selected_encoder(options: Sequence[str], default: str = "") -> str:
    """Return the video encoder selected by ffmpeg options, of which the last counts; `default` if there is none.

    Args:
        options: ffmpeg options; the last of several selections counts.
        default: Returned if the options do not select an encoder.
    """
    names = ("-c:v", "-codec:v", "-vcodec", "-c:v:0", "-codec:v:0")
    encoders = [value for option, value in itertools.pairwise(options) if option in names]
    return encoders[-1] if encoders else default


def merge_filters(options: Sequence[str]) -> tuple[str, ...]:
    """Chain all video filters in one option, since ffmpeg would use only those of the last.

    Args:
        options: ffmpeg output options; every option is followed by its value.
    """
    names = ("-vf", "-filter", "-filter:v", "-filter:v:0")
    places = [place for place, option in enumerate(options[:-1]) if option in names]
    chain = ",".join(options[place + 1] for place in places)
    rest = [word for place, word in enumerate(options) if place not in places and place - 1 not in places]
    return ("-vf", chain, *rest) if places else tuple(rest)


def color_options(props: Mapping[str, int], sar: Fraction) -> tuple[str, ...]:
    """Return ffmpeg options for the metadata that y4m does not carry: color tags and sample aspect ratio.

    Args:
        props: Frame properties of an output frame.
        sar: Sample aspect ratio of the output.
    """
    # ffmpeg shares the H.273 numbers of frame properties, but its range and chroma location are one higher.
    color_range, chroma = (int(props.get(name, 0)) + 1 for name in ("_Range", "_ChromaLocation"))
    matrix, transfer, primaries = (int(props.get(name, 2)) for name in ("_Matrix", "_Transfer", "_Primaries"))
    tags = f"range={color_range}:colorspace={matrix}:color_primaries={primaries}:color_trc={transfer}"
    options = {
        "-vf": f"setparams={tags},setsar={sar.numerator}/{sar.denominator}",
        "-colorspace": matrix,
        "-color_primaries": primaries,
        "-color_trc": transfer,
        "-color_range": color_range,
        "-chroma_sample_location": chroma,
    }
    return tuple(str(word) for option in options.items() for word in option)
