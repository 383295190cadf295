"""Render a comparison as one self-contained HTML page: all pictures are embedded, nothing is loaded.

The templates are page.html and shot.html in this folder. Styles and slider scripts are in look.css, slider.css and
slider.js, which `preview` uses as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from string import Template

from vsfdatrd import __version__
from vsfdatrd.compare.match import MatchedPair
from vsfdatrd.compare.metrics import Metrics
from vsfdatrd.compare.video import Video


@dataclass(frozen=True, slots=True)
class FramePair:
    """A pair of frames on the page."""

    pair: MatchedPair
    why: str
    """Why the frame was chosen, as a phrase."""
    seconds: float
    """Since the start of AFTER."""
    size: tuple[int, int]
    """Width and height of the frames in pixels."""
    metrics: Metrics
    frames: tuple[str, ...]
    """Data URIs of BEFORE and AFTER."""
    crops: list[tuple[str, str, tuple[int, int]]]
    """Data URIs of BEFORE and AFTER for each detail crop, and the size of the crop."""


def format_time(seconds: float) -> str:
    """Format seconds as hours, minutes, seconds and tenths: 0:01:02.5."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def render_comparison(
    before: Video, after: Video, shots: Sequence[FramePair], notes: Sequence[str], mean: Metrics
) -> str:
    """Render the page as HTML.

    Names and notes are escaped, and the page's content security policy forbids loading anything.

    Args:
        before: The original.
        after: The upscaled video.
        shots: The pairs of frames.
        notes: Remarks for the reader, as sentences.
        mean: The mean of the metrics.
    """
    return read_template("page.html").substitute(
        title=escape(f"{before.path.name} and {after.path.name}"),
        before=_render_file(before),
        after=_render_file(after),
        notes="".join(f"<li>{escape(note)}</li>" for note in notes),
        hidden="" if notes else "hidden",
        mean=_metric_rows(mean),
        links="".join(
            f'<li><a href="#frame-{s.pair.after}">{format_time(s.seconds)}</a> <small>{escape(s.why)}</small></li>'
            for s in shots
        ),
        shots="\n".join(_render_pair(shot) for shot in shots),
        version=escape(__version__),
        **page_assets(),
    )


def page_assets() -> dict[str, str]:
    """Return the shared styles and scripts by their placeholder names in the templates."""
    return {
        "look": _read_asset("look.css"),
        "slider": _read_asset("slider.css"),
        "follow_slider": _read_asset("slider.js"),
    }


def read_template(name: str) -> Template:
    """Read one of the templates in this folder."""
    return Template(_read_asset(name))


def _read_asset(name: str) -> str:
    return files("vsfdatrd.compare").joinpath(name).read_text(encoding="utf-8").rstrip("\n")


def _render_file(video: Video) -> str:
    clip = video.clip
    rate = (len(video.times) - 1) / float(video.times[-1]) if len(video.times) > 1 else 0.0
    shape = f"{clip.width}×{clip.height}"
    if abs(video.pixel_aspect - 1) > 1e-3:
        shape += f", shown as {round(clip.width * video.pixel_aspect)}×{clip.height}"
    speed = f"{rate:.2f}".rstrip("0").rstrip(".")
    return f"<b>{escape(video.path.name)}</b> <small>{shape}, {clip.num_frames:,} frames, {speed} per second</small>"


def _render_pair(shot: FramePair) -> str:
    width, height = shot.size
    return read_template("shot.html").substitute(
        number=shot.pair.after,
        other=shot.pair.before,
        clock=format_time(shot.seconds),
        why=escape(shot.why),
        before=shot.frames[0],
        after=shot.frames[1],
        width=width,
        height=height,
        likeness=f"{shot.pair.likeness:.2f}",
        crops="".join(_render_crop(i, crop) for i, crop in enumerate(shot.crops, 1)),
        rows=_metric_rows(shot.metrics),
    )


def _render_crop(number: int, crop: tuple[str, str, tuple[int, int]]) -> str:
    first, second, (width, height) = crop
    pictures = (
        f'<figure><img src="{uri}" width="{width}" height="{height}" alt="{label}, detail {number}">'
        f"<figcaption>{label}</figcaption></figure>"
        for uri, label in ((first, "Before"), (second, "After"))
    )
    return f'<div class="pair">{"".join(pictures)}</div>'


def _metric_rows(metrics: Metrics) -> str:
    """Return the table rows of the metrics: name, before, after, change."""
    lines = metrics.lines_before, metrics.lines_after
    noise = metrics.noise_before, metrics.noise_after
    sharper, noisier = _describe_change(*lines, "sharper", "softer"), _describe_change(*noise, "noisier", "cleaner")
    rows = [
        ("Lines", "steps per pixel", *(format_value(value, 1) for value in lines), sharper),
        ("Noise of flat areas", "steps", *(format_value(value, 2) for value in noise), noisier),
        ("SSIM", "1 is unchanged", "", format_value(metrics.ssim, 3), ""),
        ("SSIMULACRA2", "100 is unchanged", "", format_value(metrics.ssimulacra2, 1), ""),
    ]
    return "".join(
        f'<tr><th scope="row">{name} <small>{unit}</small></th><td>{a}</td><td>{b}</td><td>{change}</td></tr>'
        for name, unit, a, b, change in rows
    )


def format_value(value: float, digits: int) -> str:
    """Format a metric; NaN, which was not measured, as a dash."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _describe_change(before: float, after: float, more: str, less: str) -> str:
    """Describe a change in words, such as ``1.8 × sharper``; ``the same`` below 5 %; empty if it is undefined."""
    if not before > 0 or not after > 0:
        return ""
    ratio = after / before
    if abs(ratio - 1) < 0.05:
        return "the same"
    return f"{ratio:.1f} × {more}" if ratio > 1 else f"{1 / ratio:.1f} × {less}"
