"""The subcommand ``vsfdatrd compare BEFORE AFTER``: arguments and output. Imports nothing heavy."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsfdatrd.errors import FdatrdError
from vsfdatrd.system.files import max_name_bytes, shorten_name

if TYPE_CHECKING:
    from vsfdatrd.compare.comparison import Comparison


def add_parser(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the subcommand to the command line."""
    parser = commands.add_parser("compare", help="compare two videos: pictures side by side, metrics, a page")
    parser.add_argument("before", type=Path, help="the original, such as episode.mkv")
    parser.add_argument("after", type=Path, help="the upscaled video, such as episode_hd.mkv")
    parser.add_argument(
        "--frames",
        type=int,
        nargs="+",
        default=(),
        metavar="N",
        help="frames to show, counted in AFTER from 0; by default informative ones are chosen",
    )
    parser.add_argument("--count", type=int, default=6, help="how many frames are chosen (6)")
    parser.add_argument(
        "--offset",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="length of what AFTER leaves out at the start of BEFORE (0)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the pictures (AFTER's name plus _compare)"
    )
    parser.add_argument("--html", action="store_true", help="also a page with sliders, one file that works offline")
    parser.set_defaults(run=_run)


def require_pillow() -> None:
    """Raise FdatrdError if Pillow, which writes the pictures, is not installed."""
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise FdatrdError(
            "pictures are written with Pillow, which is not installed; install it with: pip install pillow"
        ) from error


def _run(arguments: argparse.Namespace) -> int:
    require_pillow()
    from vsfdatrd.compare.comparison import compare

    folder = arguments.out or Path(shorten_name(arguments.after.stem, "_compare", max_name_bytes(Path())))
    comparison = compare(
        arguments.before,
        arguments.after,
        folder,
        frames=arguments.frames,
        count=arguments.count,
        offset=arguments.offset,
        html=arguments.html,
        report=lambda text: print(f"compare: {text}", file=sys.stderr, flush=True),
    )
    for note in comparison.notes:
        print(f"compare: {note}", file=sys.stderr)
    for line in _format_table(comparison):
        print(line)
    print(f"{len(comparison.files)} files in {folder}" + (f"; open {comparison.files[-1]}" if arguments.html else ""))
    return 0


def _format_table(comparison: "Comparison") -> Iterator[str]:
    yield f"{'frame':>7} {'before':>7}  {'lines':>13}  {'noise':>13}  {'SSIM':>5}  {'SSIMULACRA2':>11}  why"
    for shot in comparison.shots:
        yield f"{shot.pair.after:>7} {shot.pair.before:>7}  {_format_metrics(shot.metrics)}  {shot.why}"
    yield f"{'mean':>7} {'':>7}  {_format_metrics(comparison.mean)}"


def _format_metrics(m: Any) -> str:
    from vsfdatrd.compare.page import format_value

    lines, noise = (
        f"{format_value(a, 1)} → {format_value(b, 1)}"
        for a, b in ((m.lines_before, m.lines_after), (m.noise_before, m.noise_after))
    )
    return f"{lines:>13}  {noise:>13}  {format_value(m.ssim, 3):>5}  {format_value(m.ssimulacra2, 1):>11}"
