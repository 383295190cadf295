"""The page of a preview: frames, models and their speeds, in one file.

The markup stands in preview.html and preview_shot.html beside this file.
"""

import shlex
from dataclasses import dataclass, field
from html import escape

from vsfdatrd import __version__
from vsfdatrd.compare import page
from vsfdatrd.compare.pictures import WIDEST

SOURCE = "Source, resized"


@dataclass(slots=True)
class Candidate:
    """A model that is looked at."""

    name: str
    fps: float | None = None
    """Frames a second that were measured; None as long as nobody knows."""
    hours: float | None = None
    """For the whole film."""


@dataclass(slots=True)
class Views:
    """Data URIs of a frame as one of the pictures shows it."""

    whole: str
    detail: str


@dataclass(slots=True)
class Shot:
    """A frame of the film, from the source and from each model that has made it."""

    seconds: float
    """Since the start of the film."""
    size: tuple[int, int]
    """Width and height of the whole frame."""
    detail: tuple[int, int]
    """Width and height of the part that is looked at closely."""
    source: Views
    made: dict[int, Views] = field(default_factory=dict)
    """By the model's place in the list."""


@dataclass(slots=True)
class Preview:
    """All that the page shows."""

    name: str
    """Of the film's file."""
    about: str
    """What is known of the film, as a sentence."""
    candidates: list[Candidate]
    count: int
    """Frames that there will be."""
    shots: list[Shot] = field(default_factory=list)
    state: str = "working"
    """``working``, ``done`` or ``stopped``."""


def duration(hours: float) -> str:
    """Hours as people say them: ``35 hours``, ``6.5 hours``, ``40 minutes``."""
    minutes = max(1, round(hours * 60))
    if minutes < 90:
        return f"{minutes} minute{'s'[: minutes - 1]}"
    return f"{hours:.1f}".removesuffix(".0") + " hours" if hours < 9.95 else f"{round(hours):,} hours"


def speed(fps: float) -> str:
    """Frames a second, with two digits that count or more."""
    return f"{fps:.0f}" if fps >= 20 else f"{fps:.1f}" if fps >= 2 else f"{fps:.2f}"


def render(preview: Preview) -> str:
    """The page as HTML. Names are escaped; the page forbids itself to load anything."""
    made = sum(len(shot.made) for shot in preview.shots)
    total = preview.count * len(preview.candidates)
    told = {
        "working": f"{made} of {total} pictures are made; this page looks for more by itself.",
        "stopped": f"{made} of {total} pictures were made before this was stopped.",
        "done": "",
    }[preview.state]
    options = [("source", SOURCE), *((f"m{i}", one.name) for i, one in enumerate(preview.candidates))]
    return page.template("preview.html").substitute(
        name=escape(preview.name),
        film=escape(preview.about),
        state=preview.state,
        hidden="" if told else "hidden",
        told=told,
        chips="".join(_chip(i, one, preview.state) for i, one in enumerate(preview.candidates)),
        options="".join(f'<option value="{value}">{escape(text)}</option>' for value, text in options),
        shots="\n".join(_shot(i, shot, preview) for i, shot in enumerate(preview.shots, 1)),
        widest=WIDEST,
        command=escape(_command(preview)),
        version=escape(__version__),
        **page.assets(),
    )


def _command(preview: Preview) -> str:
    stem = preview.name.rpartition(".")[0] or preview.name
    return f"vsfdatrd encode {shlex.quote(preview.name)} {shlex.quote(f'{stem}_hd.mkv')} --model NAME"


def _chip(number: int, one: Candidate, state: str) -> str:
    if one.fps is None or one.hours is None:
        told = "not measured yet" if state == "working" else "not measured"
    else:
        told = f"{speed(one.fps)} fps, {duration(one.hours)}"
    return (
        f'<label class="chip"><input type="radio" name="model" value="m{number}" data-name="{escape(one.name)}"'
        f"{'' if number else ' checked'}><span>{escape(one.name)} <small>{told}</small></span></label>"
    )


def _shot(number: int, shot: Shot, preview: Preview) -> str:
    pictures = [("source", SOURCE, shot.source)]
    pictures += [(f"m{i}", preview.candidates[i].name, views) for i, views in sorted(shot.made.items())]
    clock = page.clock(shot.seconds)
    (width, height), (detail_width, detail_height) = shot.size, shot.detail
    return page.template("preview_shot.html").substitute(
        number=number,
        count=preview.count,
        clock=clock,
        width=width,
        height=height,
        detail_width=detail_width,
        detail_height=detail_height,
        whole="\n    ".join(_image(of, f"{text}, {clock}", views.whole, shot.size) for of, text, views in pictures),
        detail="\n    ".join(
            _image(of, f"{text}, detail, {clock}", views.detail, shot.detail) for of, text, views in pictures
        ),
    )


def _image(of: str, text: str, uri: str, size: tuple[int, int]) -> str:
    return f'<img data-of="{of}" src="{uri}" width="{size[0]}" height="{size[1]}" alt="{escape(text)}">'
