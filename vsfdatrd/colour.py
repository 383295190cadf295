"""Any constant-format clip to RGB floats and back, with the right colours by default.

    describe ─► Source ─► to_rgb ─► (RGBS, [0, 1], through the network) ─► from_rgb ─► out
                   └────► target ─► Target ─────────────────────────────────┘

Every frame says in its properties how its numbers are meant; where it does not, its size decides, as players do.
VapourSynth's own resizer (zimg) converts. Its ``matrix_in`` would override what frames say of themselves, so what is
missing is filled in frame by frame instead, and clips of mixed origin stay right.

The network works on gamma-encoded R'G'B', the way animation is stored: transfer and primaries are never converted,
only passed on. Luma is never resampled. Chroma is, with Spline36 both ways: flat areas stay exact, and 4:2:0 to RGB and
back keeps 2.7 dB more of the chroma of drawings than Catmull-Rom does (0.6 dB after 2x), with a little less ringing at
the hard edges of cels than Lanczos.

Constants and numbers are those of ITU-T H.273, which VapourSynth's properties use.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import vapoursynth as vs

from vsfdatrd.errors import PREFIX, ArgumentError, ClipError

log = logging.getLogger(__name__)

type Props = Mapping[str, Any]

MIN_SIDE = 8
MATRICES = {
    "709": 1, "fcc": 4, "470bg": 5, "601": 6, "170m": 6, "240m": 7, "ycgco": 8, "2020": 9, "2020ncl": 9,
}  # fmt: skip
"""Names a script may use for the matrix of a YUV output, and their numbers."""

_UNSPECIFIED = 2
_SD_MATRICES = (4, 5, 6, 7)
_MATRIX_NAMES = {0: "rgb", 10: "2020cl", 12: "chromancl", 13: "chromacl", 14: "ictcp"} | {
    number: name for name, number in MATRICES.items() if name not in ("601", "2020ncl")
}
_LEGEND = "_Matrix: 1 is 709, 5 is 470bg, 6 is 170m, 9 is 2020; _Range: 0 is limited, 1 is full"
# What zimg knows. It refuses the reserved numbers even where nothing is to be converted.
_CURVES = (1, *range(4, 19))
_TRANSFERS = (*_CURVES, _UNSPECIFIED)
_DERIVABLE = (1, *range(4, 10), 11, 12, 22)
_PRIMARIES = (*_DERIVABLE, 10, _UNSPECIFIED)
_CHROMA_LOCATIONS = range(6)


@dataclass(frozen=True, slots=True)
class Source:
    """A clip that can be upscaled, and how its first frame is to be understood."""

    clip: vs.VideoNode
    format: vs.VideoFormat
    matrix: int
    """0 for RGB."""
    range: int
    """0 is limited, 1 is full."""
    chroma: int | None
    """Chroma location; None where chroma is not subsampled."""
    told: bool
    """Whether the user has been told of what the clip does not say."""


@dataclass(frozen=True, slots=True)
class Target:
    """What the output is to be; the fields are as in Source."""

    format: vs.VideoFormat
    matrix: int
    range: int
    chroma: int | None


def describe(clip: vs.VideoNode) -> Source:
    """Look at a clip and its first frame; log what has to be guessed.

    Raises ClipError for a variable format or size, a format or size that cannot be upscaled, and a first frame that is
    interlaced or whose colours cannot be converted to RGB. A first frame that cannot be read is not an error here.
    """
    form = clip.format
    if form.color_family == vs.UNDEFINED or not clip.width or not clip.height:
        raise ClipError(
            f"the clip has a variable {'format' if form.color_family == vs.UNDEFINED else 'size'}, and an engine is "
            "built for one; make it constant first, for example with "
            "core.resize.Spline36(clip, width=720, height=480, format=vs.YUV420P8)"
        )
    if not _supported(form):
        raise ClipError(
            f"the format {form.name} is not supported; convert the clip to 8 to 16 bit integers or half or single "
            "floats, for example with core.resize.Spline36(clip, format=vs.YUV444P16)"
        )
    if clip.width < MIN_SIDE or clip.height < MIN_SIDE:
        raise ClipError(
            f"the clip is {clip.width}×{clip.height} pixels, and the smallest that can be upscaled is "
            f"{MIN_SIDE}×{MIN_SIDE}; enlarge it with core.resize or add borders with core.std.AddBorders"
        )
    props = _first_props(clip)
    known: dict[str, Any] = dict(props or {})
    repairs = _repairs(known, form, clip.width, clip.height)
    told = False
    if props is not None:
        if refusal := _refusal(0, props, form, clip.width, clip.height):
            raise ClipError(refusal)
        told = _tell("the clip", repairs, form, clip.width, clip.height)
    known |= repairs
    return Source(
        clip,
        form,
        matrix=int(known["_Matrix"]),
        range=int(known["_Range"]),
        chroma=_number(known, "_ChromaLocation", 0) if _is_subsampled(form) else None,
        told=told,
    )


def to_rgb(source: Source) -> vs.VideoNode:
    """The clip as RGBS, gamma-encoded, nominally [0, 1].

    Not clamped: YUV holds colours that RGB does not, and those come out below 0 or above 1. A frame that is interlaced
    or cannot be converted fails alone, with its number in the message; the others are not affected.
    """
    tagged = _tagged(source)
    return tagged if source.format.id == vs.RGBS else tagged.resize.Spline36(format=vs.RGBS, range=1)


def target(source: Source, scale: int, format: str | None, matrix: str | None) -> Target:
    """What the output is to be, from what was asked for and what the source is.

    format: a name or a number; None for the source's family and subsampling, 16 bit if it is of integers.
    matrix: ``auto`` or None, ``source``, a name of MATRICES or its number.
    Raises ArgumentError for an unknown format or matrix, and for a format that does not go with the size.
    """
    form = _output_format(source.format, format)
    width, height = source.clip.width * scale, source.clip.height * scale
    if width % (1 << form.subsampling_w) or height % (1 << form.subsampling_h):
        raise ArgumentError(
            f"format={format!r} is not possible at {width}×{height} pixels: {form.name} needs a width that is a "
            f"multiple of {1 << form.subsampling_w} and a height that is a multiple of {1 << form.subsampling_h}; crop "
            "the clip with core.std.Crop, or ask for a format without subsampling, such as YUV444P16"
        )
    crossing = (form.color_family == vs.RGB) != (source.format.color_family == vs.RGB)
    return Target(
        form,
        matrix=_output_matrix(source, form, matrix or "auto", _is_hd(width, height)),
        range=int(form.color_family == vs.RGB) if crossing else source.range,
        chroma=(source.chroma or 0) if _is_subsampled(form) else None,
    )


def from_rgb(clip: vs.VideoNode, target: Target) -> vs.VideoNode:
    """The upscaled clip (RGBS, [0, 1]) in its output format.

    All properties stay, but _Matrix, _Range, _ChromaLocation and _FieldBased, which say what the clip now holds.
    Integers of less than 16 bits are dithered.
    """
    form = target.format
    if form.id != vs.RGBS:
        arguments: dict[str, Any] = {"range": target.range}
        if form.color_family != vs.RGB:
            arguments["matrix"] = target.matrix
        if target.chroma is not None:
            arguments["chromaloc"] = target.chroma
        if form.sample_type == vs.INTEGER and form.bits_per_sample < 16:
            arguments["dither_type"] = "error_diffusion"  # fewer steps than the network makes: no bands in skies
        clip = clip.resize.Spline36(format=form.id, **arguments)
    if target.chroma is None:
        clip = clip.std.RemoveFrameProps("_ChromaLocation")
    return clip.std.SetFrameProps(_Range=target.range, _FieldBased=0)


def _tagged(source: Source) -> vs.VideoNode:
    """The clip with what its frames do not say filled in; planes are shared, not copied."""
    form, told = source.format, source.told

    def tag(n: int, f: vs.VideoFrame) -> vs.VideoFrame | str:
        nonlocal told
        props = f.props
        if refusal := _refusal(n, props, form, f.width, f.height):
            return PREFIX + refusal  # it fails later than filter.py could add that
        repairs = _repairs(props, form, f.width, f.height)
        if not repairs:
            return f
        if not told:
            told = _tell(f"frame {n}", repairs, form, f.width, f.height)
        out = f.copy()
        out.props.update(repairs)
        return out

    # Not std.ModifyFrame, where an error is an exception and reaches the user as a traceback.
    return vs.core.fdatrd.PerFrame(source.clip, func=tag)


def _first_props(clip: vs.VideoNode) -> dict[str, Any] | None:
    try:
        with clip.get_frame(0) as frame:
            return dict(frame.props)
    except vs.Error as error:  # a bad first frame fails when it is asked for, alone
        log.debug("the first frame cannot be read: %s", error)
        return None


# ---- what a frame says of itself ----------------------------------------------------------------------------------


def _number(props: Props, name: str, default: int) -> int:
    """A property that should be one number."""
    value = props.get(name, default)
    return int(value) if isinstance(value, int) else default


def _repairs(props: Props, form: vs.VideoFormat, width: int, height: int) -> dict[str, int]:
    """What to set so that the resizer takes a frame as it is meant: all that is missing, says nothing or cannot be.

    VapourSynth itself turns the older _ColorRange into _Range (with the opposite numbers).
    """
    found: dict[str, int] = {}
    matrix = _number(props, "_Matrix", _UNSPECIFIED)
    if form.color_family == vs.RGB:
        if matrix != 0:
            found["_Matrix"] = 0  # another one is left over from the YUV it once was
    elif matrix == _UNSPECIFIED or (form.color_family == vs.GRAY and not _converts(props)):
        found["_Matrix"] = _usual_matrix(width, height)  # grey is luma, even where it says that it was a part of RGB
    if _number(props, "_Range", -1) not in (0, 1):
        found["_Range"] = int(form.color_family == vs.RGB)
    if _number(props, "_Transfer", _UNSPECIFIED) not in _TRANSFERS:
        found["_Transfer"] = _UNSPECIFIED
    if _number(props, "_Primaries", _UNSPECIFIED) not in _PRIMARIES:
        found["_Primaries"] = _UNSPECIFIED
    if _number(props, "_ChromaLocation", 0) not in _CHROMA_LOCATIONS:
        found["_ChromaLocation"] = 0
    return found


def _refusal(n: int, props: Props, form: vs.VideoFormat, width: int, height: int) -> str | None:
    """Why a frame cannot be upscaled, and what to do; None if it can."""
    if field := _number(props, "_FieldBased", 0):
        order, first = (1, "top") if field == vs.FIELD_TOP else (0, "bottom")
        return (
            f"frame {n} is interlaced (_FieldBased is {field}, {first} field first). Undo the telecine of film, "
            f"core.vivtc.VDecimate(core.vivtc.VFM(clip, order={order})), or deinterlace video, "
            f"core.bwdif.Bwdif(clip, field={order}), before upscaling; if the frames are progressive and only marked "
            "wrongly, use core.std.SetFieldBased(clip, 0)"
        )
    matrix = _number(props, "_Matrix", _UNSPECIFIED)
    if form.color_family == vs.YUV and matrix != _UNSPECIFIED and not _converts(props):
        usual = _usual_matrix(width, height)
        transfer, primaries = (_number(props, name, _UNSPECIFIED) for name in ("_Transfer", "_Primaries"))
        return (
            f"frame {n} cannot be converted to RGB: it is YUV, and its _Matrix is {matrix} "
            f"({_MATRIX_NAMES.get(matrix, 'unknown')}; with _Transfer {transfer} and _Primaries {primaries}). Say what "
            f"it really is before upscaling: core.std.SetFrameProps(clip, _Matrix={usual}) makes it "
            f"{_MATRIX_NAMES[usual]}, as is usual for {width}×{height} ({_LEGEND})"
        )
    return None


def _converts(props: Props) -> bool:
    """Whether zimg can convert YUV so marked to gamma-encoded RGB."""
    transfer, primaries = _number(props, "_Transfer", 0), _number(props, "_Primaries", 0)
    match matrix := _number(props, "_Matrix", _UNSPECIFIED):
        case 10:  # constant luminance: the curve is part of the conversion
            return transfer in (1, 6, 7, 14, 15)
        case 12 | 13:  # derived from the primaries
            return primaries in _DERIVABLE and (matrix == 12 or transfer in _CURVES)
        case 14:  # ICtCp
            return transfer in (16, 18) and primaries == 9
    return matrix in MATRICES.values()


def _tell(whose: str, repairs: Mapping[str, int], form: vs.VideoFormat, width: int, height: int) -> bool:
    """Log what had to be guessed; whether there was anything. Range means nothing for floats, nor matrix for grey."""
    guesses = {}
    if form.color_family == vs.YUV and "_Matrix" in repairs:
        guesses["matrix"] = _MATRIX_NAMES[repairs["_Matrix"]]
    if form.color_family != vs.RGB and form.sample_type == vs.INTEGER and "_Range" in repairs:
        guesses["range"] = "limited"
    if guesses:
        log.warning(
            "%s does not say its %s; taken as %s, as is usual for %d×%d. If that is wrong, set it before upscaling: "
            "core.std.SetFrameProps(clip, %s) (%s)",
            whose, " and ".join(guesses), " and ".join(guesses.values()), width, height,
            ", ".join(f"_{name.title()}={repairs[f'_{name.title()}']}" for name in guesses), _LEGEND,
        )  # fmt: skip
    return bool(guesses)


def _usual_matrix(width: int, height: int) -> int:
    return 1 if _is_hd(width, height) else 5 if height > 540 else 6


def _is_hd(width: int, height: int) -> bool:
    return width >= 1280 or height > 576


# ---- formats ------------------------------------------------------------------------------------------------------


def _supported(form: vs.VideoFormat) -> bool:
    """Whether it is one that zimg converts, which 17 to 32 bit integers and chroma at less than a quarter are not."""
    bits = range(8, 17) if form.sample_type == vs.INTEGER else (16, 32)
    return (
        form.color_family != vs.UNDEFINED
        and form.bits_per_sample in bits
        and max(form.subsampling_w, form.subsampling_h) <= 2
    )


def _is_subsampled(form: vs.VideoFormat) -> bool:
    return bool(form.subsampling_w or form.subsampling_h)


def _output_format(source: vs.VideoFormat, asked: str | None) -> vs.VideoFormat:
    if asked is None:
        return source if source.sample_type == vs.FLOAT else source.replace(bits_per_sample=16)
    name = asked.strip().upper()
    number = int(vs.PresetVideoFormat[name]) if name in vs.PresetVideoFormat.__members__ else 0
    if name.isascii() and name.isdigit():
        number = int(name)
    if number >= 2**31 or not _supported(form := vs.core.get_video_format(number)):
        near = get_close_matches(name, vs.PresetVideoFormat.__members__, 1)
        raise ArgumentError(
            f"format={asked!r} is not a format that can be made{f' (did you mean {near[0]}?)' if near else ''}; give "
            "one of 8 to 16 bit integers or half or single floats, such as YUV420P10, YUV444P16, RGB48 or RGBS, or its "
            f"number, such as {int(vs.YUV420P10)}"
        )
    return form


def _output_matrix(source: Source, form: vs.VideoFormat, asked: str, hd: bool) -> int:
    name = asked.strip().lower()
    if name not in ("auto", "source", *MATRICES, *map(str, MATRICES.values())):
        raise ArgumentError(
            f"matrix={asked!r} is unknown; give auto, source, {', '.join(MATRICES)}, or a number such as 1 (709)"
        )
    if form.color_family == vs.RGB:
        if name in ("auto", "source"):
            return 0
        raise ArgumentError(
            f"matrix={asked!r} makes no sense for the RGB output {form.name}; leave it out, or ask for a YUV format, "
            'for example format="YUV444P16"'
        )
    if name in MATRICES:
        return MATRICES[name]
    if name not in ("auto", "source"):
        return int(name)
    if source.format.color_family == vs.RGB:
        return 1 if hd else 6
    # Players take HD for 709 whatever it says, so what grows from SD to HD is converted.
    grown = hd and not _is_hd(source.clip.width, source.clip.height)
    return 1 if name == "auto" and grown and source.matrix in _SD_MATRICES else source.matrix
