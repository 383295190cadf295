"""The subcommand ``vsfdatrd preview FILE``: arguments and output. Imports nothing heavy."""

import argparse
import sys
import webbrowser
from pathlib import Path
from typing import Any

from vsfdatrd.compare.cli import require_pillow
from vsfdatrd.encode.cli import add_processing_options, processing_settings
from vsfdatrd.system.files import max_name_bytes, shorten_name


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the subcommand to the command line."""
    about = "make a page with frames of a film upscaled by each model, and the time the film would take"
    parser = commands.add_parser("preview", help=about, description=about)
    parser.add_argument("file", type=Path, help="the film, such as episode.mkv")
    parser.add_argument(
        "--model", nargs="+", metavar="MODEL", help="names from the catalog, or weights files (all that ship)"
    )
    parser.add_argument("--frames", type=int, default=6, metavar="N", help="how many frames are chosen (6)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the page (next to the film: NAME.preview.html)")
    parser.add_argument("--open", action="store_true", help="open the page in a browser once it has a picture")
    add_processing_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    require_pillow()
    from vsfdatrd.compare.preview import shipped_models, write_preview
    from vsfdatrd.compare.preview_page import format_fps, format_hours
    from vsfdatrd.encode.settings import Settings

    settings = Settings(**processing_settings(arguments))
    folder = arguments.file.parent
    out: Path = arguments.out or folder / shorten_name(arguments.file.stem, ".preview.html", max_name_bytes(folder))

    def on_first_picture() -> None:
        _report(f"a first picture is in {out}, more follow")
        if arguments.open:
            webbrowser.open(out.absolute().as_uri())

    models = list(dict.fromkeys(arguments.model or shipped_models()))
    for candidate in write_preview(arguments.file, out, settings, models, arguments.frames, _report, on_first_picture):
        if candidate.fps is not None and candidate.hours is not None:
            print(
                f"{candidate.name}: {format_fps(candidate.fps)} frames a second, about {format_hours(candidate.hours)}"
            )
    print(out)
    return 0


def _report(text: str) -> None:
    print(f"preview: {text}", file=sys.stderr, flush=True)
