"""Render a preview as one self-contained HTML page: frames, models and their speeds.

The templates are preview.html and preview_shot.html in this folder.
"""

import shlex
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from vsfdatrd import __version__
from vsfdatrd.compare import page
from vsfdatrd.compare.pictures import MAX_WIDTH, Box

SOURCE_LABEL = "Source, resized"


@dataclass(slots=True)
class ModelEntry:
    """A model in the preview."""

    name: str
    file: Path
    scale: int
    fps: float | None = None
    """Measured frames per second; None until measured."""
    hours: float | None = None
    """Estimated hours for the complete film; None until measured."""


@dataclass(slots=True)
class Views:
    """Data URIs of one version of a frame: the complete frame and a detail crop."""

    whole: str
    detail: str


@dataclass(slots=True)
class FrameEntry:
    """A frame of the film: the source and the results so far."""

    seconds: float
    """Since the start of the film."""
    size: tuple[int, int]
    """Width and height of the complete frame."""
    box: Box
    """The detail crop in the complete frame."""
    source: Views
    views: dict[int, Views] = field(default_factory=dict)
    """Results by the model's index in the list."""


@dataclass(slots=True)
class Preview:
    """The content of the page."""

    name: str
    """Name of the film's file."""
    about: str
    """Description of the film, one line."""
    candidates: list[ModelEntry]
    count: int
    """Number of frames on the finished page."""
    shots: list[FrameEntry] = field(default_factory=list)
    state: str = "working"
    """``working``, ``done`` or ``stopped``."""


def format_hours(hours: float) -> str:
    """Format hours: ``35 hours``, ``6.5 hours``, ``40 minutes``."""
    minutes = max(1, round(hours * 60))
    if minutes < 90:
        return f"{minutes} minute{'s'[: minutes - 1]}"
    return f"{hours:.1f}".removesuffix(".0") + " hours" if hours < 9.95 else f"{round(hours):,} hours"


def format_fps(fps: float) -> str:
    """Format frames per second with at least two significant digits."""
    return f"{fps:.0f}" if fps >= 20 else f"{fps:.1f}" if fps >= 2 else f"{fps:.2f}"


def render_preview(preview: Preview) -> str:
    """Render the page as HTML. Names are escaped, and the content security policy forbids loading anything."""
    finished = sum(len(shot.views) for shot in preview.shots)
    total = preview.count * len(preview.candidates)
    status = {
        "working": f"{finished} of {total} pictures are made; this page updates itself.",
        "stopped": f"{finished} of {total} pictures were made before this was stopped.",
        "done": "",
    }[preview.state]
    options = [("source", SOURCE_LABEL), *((f"m{i}", candidate.name) for i, candidate in enumerate(preview.candidates))]
    return page.read_template("preview.html").substitute(
        name=escape(preview.name),
        film=escape(preview.about),
        state=preview.state,
        hidden="" if status else "hidden",
        status=status,
        chips="".join(
            _render_model_button(i, candidate, preview.state) for i, candidate in enumerate(preview.candidates)
        ),
        options="".join(f'<option value="{value}">{escape(text)}</option>' for value, text in options),
        shots="\n".join(_render_frame(i, shot, preview) for i, shot in enumerate(preview.shots, 1)),
        widest=MAX_WIDTH,
        command=escape(_encode_command(preview)),
        version=escape(__version__),
        **page.page_assets(),
    )


def _encode_command(preview: Preview) -> str:
    stem = preview.name.rpartition(".")[0] or preview.name
    return f"vsfdatrd encode {shlex.quote(preview.name)} {shlex.quote(f'{stem}_hd.mkv')} --model NAME"


def _render_model_button(number: int, candidate: ModelEntry, state: str) -> str:
    if candidate.fps is None or candidate.hours is None:
        status = "not measured yet" if state == "working" else "not measured"
    else:
        status = f"{format_fps(candidate.fps)} fps, {format_hours(candidate.hours)}"
    return (
        f'<label class="chip"><input type="radio" name="model" value="m{number}" data-name="{escape(candidate.name)}"'
        f"{'' if number else ' checked'}><span>{escape(candidate.name)} <small>{status}</small></span></label>"
    )


def _render_frame(number: int, shot: FrameEntry, preview: Preview) -> str:
    pictures = [("source", SOURCE_LABEL, shot.source)]
    pictures += [(f"m{i}", preview.candidates[i].name, views) for i, views in sorted(shot.views.items())]
    clock = page.format_time(shot.seconds)
    (width, height), (left, top, right, bottom) = shot.size, shot.box
    return page.read_template("preview_shot.html").substitute(
        number=number,
        count=preview.count,
        clock=clock,
        width=width,
        height=height,
        detail_width=right - left,
        detail_height=bottom - top,
        whole="\n    ".join(
            _render_image(of, f"{text}, {clock}", views.whole, shot.size) for of, text, views in pictures
        ),
        detail="\n    ".join(
            _render_image(of, f"{text}, detail, {clock}", views.detail, (right - left, bottom - top))
            for of, text, views in pictures
        ),
    )


def _render_image(of: str, text: str, uri: str, size: tuple[int, int]) -> str:
    return f'<img data-of="{of}" src="{uri}" width="{size[0]}" height="{size[1]}" alt="{escape(text)}">'
