"""The script that vspipe runs: the source, its fields put right, upscaled, in the encoder's format."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.source import file_name

_HEAD = """\
# Written by vsfdatrd encode {version}. vspipe runs it:
#     vspipe -c y4m -p this.vpy - | ffmpeg -i - -c:v libx265 out.mkv
import vapoursynth as vs
from vapoursynth import core

# Numbers of the GPUs: vspipe --arg device=0,1
device = [int(number) for number in str(globals().get("device", {device!r})).split(",")]
"""

_TELECINED = """
# Telecined film: fields that belong together are matched, then one frame in five, a repetition, is dropped.
# What stays combed was shot in fields, credits for example, and is deinterlaced.
eight = {eight}
matched = core.vivtc.VFM(eight, order={order}, clip2=clip)
bobbed = core.bwdif.Bwdif(clip, field={order})
clip = core.std.FrameEval(
    matched, lambda n, f: bobbed if f.props["_Combed"] else matched, prop_src=matched, clip_src=[matched, bobbed]
)
"""
_PADDED = """
# VFM and Bwdif leave the last line of chroma unwritten if the number of its lines is odd: two more, off again below.
clip = core.std.StackVertical([clip, core.std.Crop(clip, top=clip.height - {lines})])
"""
_DECIMATED = """\
eight = {eight}
clip = core.vivtc.VDecimate(eight, clip2=clip)
"""
# Only bits are dropped: frames marked as interlaced would be resized by fields.
_EIGHT = {
    "clip": "clip",
    "GRAY8": "clip.std.SetFieldBased(0).std.ShufflePlanes(0, vs.GRAY).resize.Point(format=vs.GRAY8)",
    "": "clip.std.SetFieldBased(0).resize.Point(format=vs.{form})",
}
_DEINTERLACED = """
# Shot in fields, {first} field first: one frame of each two fields.
clip = core.bwdif.Bwdif(clip, field={order})
"""


@dataclass(frozen=True, slots=True)
class Upscaling:
    """What the script asks of `core.fdatrd.upscale`, and of the frames that come out."""

    model: str
    backend: str
    precision: str
    chroma_filter: str
    format: str
    """Of the output, as VapourSynth names it."""
    size: tuple[int, int] | None
    """Width and height that make pixels square; None leaves them as they are."""
    sar: Fraction
    """Of the output's pixels."""


def prepare(
    path: Path, video: int, index: Path | None, fields: Fields, crop: Borders, device: str, version: str
) -> str:
    """The script as far as frames that can be upscaled, in `clip`. Paths are absolute."""
    where = f", cachemode=4, cachepath={file_name(index)!r}" if index else ""
    text = _HEAD.format(version=version, device=device)
    text += f"\nclip = core.bs.VideoSource({file_name(path)!r}, track={video}, showprogress=0{where})\n"
    order = int(fields.top_first)
    padding = fields.padding if fields.kind != "progressive" else 0
    if padding:
        text += _PADDED.format(lines=padding)
    match fields.kind:
        case "ivtc" | "match":
            eight = _EIGHT.get(fields.seen_as, _EIGHT[""]).format(form=fields.seen_as)
            text += _TELECINED.format(order=order, eight=eight)
            text += _DECIMATED.format(eight=eight) if fields.kind == "ivtc" else ""
        case "deint":
            text += _DEINTERLACED.format(order=order, first="top" if fields.top_first else "bottom")
    if padding:
        text += f"clip = core.std.Crop(clip, bottom={padding})\n"
    text += "clip = core.std.SetFieldBased(clip, 0)\n"
    if crop:
        text += f"clip = core.std.Crop(clip, {crop.left}, {crop.right}, {crop.top}, {crop.bottom})\n"
    return text


def upscaled(up: Upscaling, rate: Fraction) -> str:
    """What follows `prepare`, to the end of the script. rate: frames a second, of a variable rate the mean."""
    options = f"model={_text(up.model)!r}, backend={up.backend!r}, precision={up.precision!r}, device=device"
    if up.chroma_filter != "none":
        options += f", chroma_filter={up.chroma_filter!r}"
    text = "\n"
    if up.size is None:
        text += f"clip = core.fdatrd.upscale(clip, {options}, format={up.format!r})\n"
    else:
        width, height = up.size
        deep = up.format.rstrip("0123456789") + "16"
        text += f"clip = core.fdatrd.upscale(clip, {options}, format={deep!r})\n"
        text += (
            f'clip = clip.resize.Spline36({width}, {height}, format=vs.{up.format}, dither_type="error_diffusion")\n'
        )
    text += f"clip = core.std.SetFrameProps(clip, _SARNum={up.sar.numerator}, _SARDen={up.sar.denominator})\n"
    text += f"clip = core.std.AssumeFPS(clip, fpsnum={rate.numerator}, fpsden={rate.denominator})\n"
    return text + "clip.set_output()\n"


def _text(model: str) -> str | bytes:
    """A model's name or path as VapourSynth takes it: bytes where it is not UTF-8."""
    return file_name(Path(model)) if Path(model).is_absolute() else model


def without_devices(text: str) -> str:
    """What of a script makes a difference to the picture: not on which GPUs it is made."""
    return re.sub(r"^device = .*\n", "", text, flags=re.MULTILINE)


def with_index(text: str, before: Path, after: Path) -> str:
    """A script of ours for a machine on which BestSource's index lies elsewhere."""
    return text.replace(f"cachepath={file_name(before)!r}", f"cachepath={file_name(after)!r}")


def evaluate(text: str) -> Any:
    """The clip that a script of ours makes, in this process."""
    names: dict[str, Any] = {}
    exec(compile(text, "<vsfdatrd encode>", "exec"), names)  # a text that this file has written
    return names["clip"]
