"""Color properties of frames: missing values, defaults, and reasons why a frame cannot be upscaled.

Constants are those of ITU-T H.273, which VapourSynth's frame properties use.
"""

import logging
from collections.abc import Mapping
from typing import Any

import vapoursynth as vs

log = logging.getLogger(__name__)

type Props = Mapping[str, Any]

MATRIX_NUMBERS = {"709": 1, "fcc": 4, "470bg": 5, "601": 6, "170m": 6, "240m": 7, "ycgco": 8, "2020": 9, "2020ncl": 9}
"""Accepted names for the matrix of a YUV output, with their numbers."""
SD_MATRICES = (4, 5, 6, 7)

_UNSPECIFIED = 2
_MATRIX_NAMES = {0: "rgb", 10: "2020cl", 12: "chromancl", 13: "chromacl", 14: "ictcp"} | {
    number: name for name, number in MATRIX_NUMBERS.items() if name not in ("601", "2020ncl")
}
_PROPERTY_VALUES = "_Matrix: 1 is 709, 5 is 470bg, 6 is 170m, 9 is 2020; _Range: 0 is limited, 1 is full"
# Values that zimg accepts. It rejects reserved values even if nothing is converted.
_CURVES = (1, *range(4, 19))
_TRANSFERS = (*_CURVES, _UNSPECIFIED)
_DERIVABLE = (1, *range(4, 10), 11, 12, 22)
_PRIMARIES = (*_DERIVABLE, 10, _UNSPECIFIED)
_CHROMA_LOCATIONS = range(6)


def matrix_name(matrix: int) -> str:
    """Return the name of a matrix, or its number as text."""
    return _MATRIX_NAMES.get(matrix, str(matrix))


def int_prop(props: Props, name: str, default: int) -> int:
    """Return an integer property, or `default` if it is missing or not a single integer."""
    value = props.get(name, default)
    return int(value) if isinstance(value, int) else default


def missing_props(props: Props, form: vs.VideoFormat, width: int, height: int) -> dict[str, int]:
    """Return replacements for missing, unspecified or impossible color properties.

    VapourSynth itself converts the older _ColorRange to _Range (with swapped values).

    Args:
        props: The frame's properties.
        form: The frame's format.
        width: Frame width in pixels.
        height: Frame height in pixels.

    Returns:
        The properties to set so that the resizer interprets the frame correctly; empty if none.
    """
    result: dict[str, int] = {}
    matrix = int_prop(props, "_Matrix", _UNSPECIFIED)
    if form.color_family == vs.RGB:
        if matrix != 0:
            result["_Matrix"] = 0  # any other value is left over from a conversion from YUV
    elif matrix == _UNSPECIFIED or (form.color_family == vs.GRAY and not is_convertible(props)):
        result["_Matrix"] = usual_matrix(width, height)  # gray is treated as luma, even if tagged as RGB
    if int_prop(props, "_Range", -1) not in (0, 1):
        result["_Range"] = int(form.color_family == vs.RGB)
    if int_prop(props, "_Transfer", _UNSPECIFIED) not in _TRANSFERS:
        result["_Transfer"] = _UNSPECIFIED
    if int_prop(props, "_Primaries", _UNSPECIFIED) not in _PRIMARIES:
        result["_Primaries"] = _UNSPECIFIED
    if int_prop(props, "_ChromaLocation", 0) not in _CHROMA_LOCATIONS:
        result["_ChromaLocation"] = 0
    return result


def interlaced_reason(n: int, props: Props) -> str | None:
    """Return an error message with advice if frame `n` is marked as interlaced; else None."""
    field = int_prop(props, "_FieldBased", 0)
    if not field:
        return None
    order, first = (1, "top") if field == vs.FIELD_TOP else (0, "bottom")
    return (
        f"frame {n} is interlaced (_FieldBased is {field}, {first} field first). Undo the telecine of film, "
        f"core.vivtc.VDecimate(core.vivtc.VFM(clip, order={order})), or deinterlace video, "
        f"core.bwdif.Bwdif(clip, field={order}), before upscaling; if the frames are progressive and only marked "
        "wrongly, use core.std.SetFieldBased(clip, 0)"
    )


def unconvertible_reason(n: int, props: Props, form: vs.VideoFormat, width: int, height: int) -> str | None:
    """Return an error message with advice if the colors of frame `n` cannot be converted; else None."""
    matrix = int_prop(props, "_Matrix", _UNSPECIFIED)
    if form.color_family != vs.YUV or matrix == _UNSPECIFIED or is_convertible(props):
        return None
    usual = usual_matrix(width, height)
    transfer, primaries = (int_prop(props, name, _UNSPECIFIED) for name in ("_Transfer", "_Primaries"))
    return (
        f"frame {n} cannot be converted to RGB: it is YUV, and its _Matrix is {matrix} "
        f"({_MATRIX_NAMES.get(matrix, 'unknown')}; with _Transfer {transfer} and _Primaries {primaries}). Say what "
        f"it really is before upscaling: core.std.SetFrameProps(clip, _Matrix={usual}) makes it "
        f"{_MATRIX_NAMES[usual]}, as is usual for {width}×{height} ({_PROPERTY_VALUES})"
    )


def is_convertible(props: Props) -> bool:
    """Return whether zimg can convert YUV with these properties to gamma-encoded RGB."""
    transfer, primaries = int_prop(props, "_Transfer", 0), int_prop(props, "_Primaries", 0)
    match matrix := int_prop(props, "_Matrix", _UNSPECIFIED):
        case 10:  # constant luminance: the transfer curve is part of the conversion
            return transfer in (1, 6, 7, 14, 15)
        case 12 | 13:  # derived from the primaries
            return primaries in _DERIVABLE and (matrix == 12 or transfer in _CURVES)
        case 14:  # ICtCp
            return transfer in (16, 18) and primaries == 9
    return matrix in MATRIX_NUMBERS.values()


def describe_assumptions(
    whose: str, repairs: Mapping[str, int], form: vs.VideoFormat, width: int, height: int
) -> str | None:
    """Return a message that says which matrix and range are assumed, and how to correct them; None if none are.

    Range does not apply to floats, nor matrix to gray.

    Args:
        whose: Subject of the message, such as ``the clip`` or ``frame 7``.
        repairs: The result of `missing_props`.
        form: The frame's format.
        width: Frame width in pixels.
        height: Frame height in pixels.
    """
    guesses = {}
    if form.color_family == vs.YUV and "_Matrix" in repairs:
        guesses["matrix"] = _MATRIX_NAMES[repairs["_Matrix"]]
    if form.color_family != vs.RGB and form.sample_type == vs.INTEGER and "_Range" in repairs:
        guesses["range"] = "limited"
    if not guesses:
        return None
    props = ", ".join(f"_{name.title()}={repairs[f'_{name.title()}']}" for name in guesses)
    return (
        f"{whose} does not say its {' and '.join(guesses)}; taken as {' and '.join(guesses.values())}, as is usual "
        f"for {width}×{height}. If that is wrong, set it before upscaling: core.std.SetFrameProps(clip, {props}) "
        f"({_PROPERTY_VALUES})"
    )


def log_assumptions(whose: str, repairs: Mapping[str, int], form: vs.VideoFormat, width: int, height: int) -> bool:
    """Log the message of `describe_assumptions`, if there is one; return whether there was.

    Args:
        whose: Subject of the message.
        repairs: The result of `missing_props`.
        form: The frame's format.
        width: Frame width in pixels.
        height: Frame height in pixels.
    """
    if message := describe_assumptions(whose, repairs, form, width, height):
        log.warning("%s", message)
    return message is not None


def usual_matrix(width: int, height: int) -> int:
    """Return the matrix that players assume for untagged YUV of this size: 709, 470bg or 170m."""
    return 1 if is_hd(width, height) else 5 if height > 540 else 6


def is_hd(width: int, height: int) -> bool:
    """Return whether players treat this size as HD, and so as 709."""
    return width >= 1280 or height > 576
