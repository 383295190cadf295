"""The VapourSynth script that vspipe runs: source, field processing, crop, upscaling, conversion for the encoder."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd import __version__
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.settings import Settings
from vsfdatrd.encode.source import vapoursynth_path

_HEAD = """\
# Written by vsfdatrd encode {version}. vspipe runs it:
#     vspipe -c y4m -p this.vpy - | ffmpeg -i - -c:v libx265 out.mkv
# y4m carries no color tags; those of HD are added by: -vf setparams=colorspace=bt709
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
# The 8-bit clip for VIVTC, by `Fields.vivtc_format`; "" stands for all other formats.
# SetFieldBased(0): the resizer would process frames marked as interlaced field by field; only the bit depth changes.
_EIGHT = {
    "clip": "clip",
    "GRAY8": "clip.std.SetFieldBased(0).std.ShufflePlanes(0, vs.GRAY).resize.Point(format=vs.GRAY8)",
    "": "clip.std.SetFieldBased(0).resize.Point(format=vs.{form})",
}
_DEINTERLACED = """
# Shot in fields, {first} field first: one frame of each two fields.
clip = core.bwdif.Bwdif(clip, field={order})
"""


def preparation_script(
    path: Path, video: int, index: Path | None, fields: Fields, crop: Borders, device: str, threads: int = 0
) -> str:
    """Return the first part of the script, which defines ``clip``: the frames ready to be upscaled.

    Args:
        path: The source file, absolute.
        video: Index of the video stream.
        index: Absolute path prefix of BestSource's index; None for BestSource's default.
        fields: Field processing to apply.
        crop: Borders to remove.
        device: Default of the script's ``device`` argument: GPU numbers separated by commas.
        threads: Threads in which BestSource decodes; 0 for one for each CPU.
    """
    options = f"track={video}, threads={threads}, showprogress=0"
    if index:
        options += f", cachemode=4, cachepath={vapoursynth_path(index)!r}"
    text = _HEAD.format(version=__version__, device=device)
    text += f"\nclip = core.bs.VideoSource({vapoursynth_path(path)!r}, {options})\n"
    order = int(fields.top_first)
    padding = fields.padding if fields.kind != "progressive" else 0
    if padding:
        text += _PADDED.format(lines=padding)
    match fields.kind:
        case "ivtc" | "match":
            eight = _EIGHT.get(fields.vivtc_format, _EIGHT[""]).format(form=fields.vivtc_format)
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


def upscaling_script(
    settings: Settings, model: str, size: tuple[int, int] | None, sar: Fraction, rate: Fraction
) -> str:
    """Return the rest of the script, after `preparation_script`: upscaling, resizing, frame properties and output.

    Args:
        settings: What to encode and how.
        model: The model as it appears in the script.
        size: Width and height to resize to for square pixels; None to keep the upscaled size.
        sar: Sample aspect ratio of the output.
        rate: Frames per second; the mean if the rate is variable.
    """
    options = f"model={_model_argument(model)!r}, backend={settings.backend!r}, precision={settings.precision!r}"
    options += ", device=device"
    if settings.chroma_filter != "none":
        options += f", chroma_filter={settings.chroma_filter!r}"
    text = "\n"
    form = settings.selected_preset.format
    if size is None:
        text += f"clip = core.fdatrd.upscale(clip, {options}, format={form!r})\n"
    else:
        width, height = size
        text += f"clip = core.fdatrd.upscale(clip, {options}, format={form.rstrip('0123456789') + '16'!r})\n"
        text += f'clip = clip.resize.Spline36({width}, {height}, format=vs.{form}, dither_type="error_diffusion")\n'
    text += f"clip = core.std.SetFrameProps(clip, _SARNum={sar.numerator}, _SARDen={sar.denominator})\n"
    text += f"clip = core.std.AssumeFPS(clip, fpsnum={rate.numerator}, fpsden={rate.denominator})\n"
    return text + "clip.set_output()\n"


def _model_argument(model: str) -> str | bytes:
    """Return the model's name or path in the form VapourSynth expects: bytes if it is not valid UTF-8."""
    return vapoursynth_path(Path(model)) if Path(model).is_absolute() else model


def without_devices(text: str) -> str:
    """Remove the line that selects GPUs from a script, leaving only what affects the picture.

    Args:
        text: A script made by `preparation_script`.
    """
    return re.sub(r"^device = .*\n", "", text, flags=re.MULTILINE)


def with_index(text: str, before: Path, after: Path) -> str:
    """Replace the path prefix of BestSource's index in a script, for a machine that stores it elsewhere.

    Args:
        text: A script made by `preparation_script`.
        before: The path prefix in the script.
        after: The new path prefix.
    """
    return text.replace(f"cachepath={vapoursynth_path(before)!r}", f"cachepath={vapoursynth_path(after)!r}")


def run_script(text: str) -> Any:
    """Run a script made by `preparation_script` in this process and return its ``clip``.

    Args:
        text: The script.
    """
    names: dict[str, Any] = {}
    exec(compile(text, "<vsfdatrd encode>", "exec"), names)  # safe: the text was generated by this module
    return names["clip"]
