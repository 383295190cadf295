"""What a frame says of itself in its properties, what is missing, and why it cannot be upscaled.

Constants and numbers are those of ITU-T H.273, which VapourSynth's properties use.
"""

import logging
from collections.abc import Mapping
from typing import Any

import vapoursynth as vs

log = logging.getLogger(__name__)

type Props = Mapping[str, Any]

MATRICES = {
    "709": 1, "fcc": 4, "470bg": 5, "601": 6, "170m": 6, "240m": 7, "ycgco": 8, "2020": 9, "2020ncl": 9,
}  # fmt: skip
"""Names a script may use for the matrix of a YUV output, and their numbers."""
SD_MATRICES = (4, 5, 6, 7)

_UNSPECIFIED = 2
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


def name_of(matrix: int) -> str:
    """What a matrix is called, or its number."""
    return _MATRIX_NAMES.get(matrix, str(matrix))


def number(props: Props, name: str, default: int) -> int:
    """A property that should be one number."""
    value = props.get(name, default)
    return int(value) if isinstance(value, int) else default


def repairs(props: Props, form: vs.VideoFormat, width: int, height: int) -> dict[str, int]:
    """What to set so that the resizer takes a frame as it is meant: all that is missing, says nothing or cannot be.

    VapourSynth itself turns the older _ColorRange into _Range (with the opposite numbers).
    """
    found: dict[str, int] = {}
    matrix = number(props, "_Matrix", _UNSPECIFIED)
    if form.color_family == vs.RGB:
        if matrix != 0:
            found["_Matrix"] = 0  # another one is left over from the YUV it once was
    elif matrix == _UNSPECIFIED or (form.color_family == vs.GRAY and not converts(props)):
        found["_Matrix"] = usual_matrix(width, height)  # grey is luma, even where it says that it was a part of RGB
    if number(props, "_Range", -1) not in (0, 1):
        found["_Range"] = int(form.color_family == vs.RGB)
    if number(props, "_Transfer", _UNSPECIFIED) not in _TRANSFERS:
        found["_Transfer"] = _UNSPECIFIED
    if number(props, "_Primaries", _UNSPECIFIED) not in _PRIMARIES:
        found["_Primaries"] = _UNSPECIFIED
    if number(props, "_ChromaLocation", 0) not in _CHROMA_LOCATIONS:
        found["_ChromaLocation"] = 0
    return found


def interlaced(n: int, props: Props) -> str | None:
    """Why frame n cannot be upscaled, and what to do, if it is marked as interlaced; else None."""
    field = number(props, "_FieldBased", 0)
    if not field:
        return None
    order, first = (1, "top") if field == vs.FIELD_TOP else (0, "bottom")
    return (
        f"frame {n} is interlaced (_FieldBased is {field}, {first} field first). Undo the telecine of film, "
        f"core.vivtc.VDecimate(core.vivtc.VFM(clip, order={order})), or deinterlace video, "
        f"core.bwdif.Bwdif(clip, field={order}), before upscaling; if the frames are progressive and only marked "
        "wrongly, use core.std.SetFieldBased(clip, 0)"
    )


def unconvertible(n: int, props: Props, form: vs.VideoFormat, width: int, height: int) -> str | None:
    """Why the colours of frame n cannot be converted, and what to do; None if they can."""
    matrix = number(props, "_Matrix", _UNSPECIFIED)
    if form.color_family != vs.YUV or matrix == _UNSPECIFIED or converts(props):
        return None
    usual = usual_matrix(width, height)
    transfer, primaries = (number(props, name, _UNSPECIFIED) for name in ("_Transfer", "_Primaries"))
    return (
        f"frame {n} cannot be converted to RGB: it is YUV, and its _Matrix is {matrix} "
        f"({_MATRIX_NAMES.get(matrix, 'unknown')}; with _Transfer {transfer} and _Primaries {primaries}). Say what "
        f"it really is before upscaling: core.std.SetFrameProps(clip, _Matrix={usual}) makes it "
        f"{_MATRIX_NAMES[usual]}, as is usual for {width}×{height} ({_LEGEND})"
    )


def converts(props: Props) -> bool:
    """Whether zimg can convert YUV so marked to gamma-encoded RGB."""
    transfer, primaries = number(props, "_Transfer", 0), number(props, "_Primaries", 0)
    match matrix := number(props, "_Matrix", _UNSPECIFIED):
        case 10:  # constant luminance: the curve is part of the conversion
            return transfer in (1, 6, 7, 14, 15)
        case 12 | 13:  # derived from the primaries
            return primaries in _DERIVABLE and (matrix == 12 or transfer in _CURVES)
        case 14:  # ICtCp
            return transfer in (16, 18) and primaries == 9
    return matrix in MATRICES.values()


def tell(whose: str, repairs: Mapping[str, int], form: vs.VideoFormat, width: int, height: int) -> bool:
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


def usual_matrix(width: int, height: int) -> int:
    """The matrix that players take for YUV of a size which does not say: 709, 470bg or 170m."""
    return 1 if is_hd(width, height) else 5 if height > 540 else 6


def is_hd(width: int, height: int) -> bool:
    """Whether players take a size for HD, and so for 709."""
    return width >= 1280 or height > 576
