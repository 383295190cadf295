"""The command line of `vsfdatrd encode`."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsfdatrd.encode.presets import PRESETS
from vsfdatrd.errors import ArgumentError, FdatrdError, error_sentence
from vsfdatrd.system.signals import interrupt_on_sigterm

if TYPE_CHECKING:
    from vsfdatrd.encode.progress import Reporter
    from vsfdatrd.encode.settings import Settings
    from vsfdatrd.encode.workers import Workers

log = logging.getLogger(__name__)

_EPILOG = """\
An interrupted encode continues when the same command is run again. Options for the video encoder follow --,
for example: vsfdatrd encode in.mkv out.mkv -- -crf 14 -preset slow
"""


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the ``encode`` subcommand.

    Args:
        commands: The subparsers of the ``vsfdatrd`` command line.
    """
    about = "upscale and encode a film, in chunks; continues after an interruption"
    parser = commands.add_parser("encode", help=about, description=about, epilog=_EPILOG)
    parser.add_argument("paths", nargs="+", type=Path, metavar="file", help="input and output; or inputs, with --out")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder for the outputs (.mkv) of any number of inputs"
    )
    presets = "; ".join(f"{preset.name}: {preset.about}" for preset in PRESETS.values())
    parser.add_argument("--preset", default="x265", metavar="NAME", help=f"{presets} (x265)")
    parser.add_argument("--model", default="medium", help="a name from the catalog, or a weights file (medium)")
    add_processing_options(parser)
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="encode the chunks on a Ray cluster: auto, or host:port of its head"
    )
    parser.add_argument("--keep-sar", action="store_true", help="keep non-square pixels")
    parser.add_argument("--chunk", type=float, default=5.0, metavar="MINUTES", help="length of a chunk (5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument("--script", action="store_true", help="print the VapourSynth script, and do nothing else")
    parser.add_argument("--json", action="store_true", help="report what happens as JSON on stdout, one event per line")
    parser.set_defaults(run=run)


def add_processing_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that determine the frames to encode; `processing_settings` reads them.

    Args:
        parser: The parser of a subcommand.
    """
    parser.add_argument("--backend", default="auto", help="tensorrt, native, openvino, torch, cuda or auto")
    parser.add_argument("--precision", default="auto", help="fp16, mixed, bf16, fp32, int16 or auto")
    parser.add_argument(
        "--chroma-filter",
        default="none",
        metavar="NAME",
        help="luma_guided puts colors that bled over lines, as on LaserDisc, back behind them (none)",
    )
    parser.add_argument(
        "--device", type=int, nargs="+", metavar="N", help="numbers of the GPUs, which work on separate chunks (0)"
    )
    parser.add_argument("--field", default="auto", help="auto, progressive, ivtc (telecined film) or deint (auto)")
    parser.add_argument(
        "--crop", default="none", help="auto, none or left,top,right,bottom in pixels of the source (none)"
    )


def processing_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `add_processing_options` as arguments of `Settings`.

    Args:
        arguments: The parsed command line.
    """
    texts = {
        name: getattr(arguments, name).lower() for name in ("backend", "precision", "chroma_filter", "field", "crop")
    }
    return texts | {"devices": tuple(arguments.device or [0])}


def split_command_line(arguments: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Split the command line at ``--``.

    Args:
        arguments: The command line without the program name.

    Returns:
        The arguments before ``--``, and the ffmpeg options after it. Commands other than ``encode`` are not split.
    """
    words = list(arguments)
    command = next((word for word in words if not word.startswith(("-v", "--v"))), "")  # -v may stand before it
    if command != "encode" or "--" not in words:
        return words, ()
    at = words.index("--")
    return words[:at], tuple(words[at + 1 :])


def run(arguments: argparse.Namespace) -> int:
    """Encode all inputs, one after the other.

    Args:
        arguments: The parsed command line.

    Returns:
        The exit status: 0 if all inputs were encoded, 130 if the user interrupted.

    Raises:
        FdatrdError: An input failed. The remaining inputs are encoded before it is raised.
    """
    from vsfdatrd.encode import progress, settings
    from vsfdatrd.encode.settings import Settings

    if arguments.ray is not None and arguments.device is not None:
        raise ArgumentError(
            "--device chooses GPUs of this machine, and with --ray Ray assigns them; leave one of the two out"
        )
    options = Settings(
        **processing_settings(arguments),
        model=arguments.model,
        keep_sar=arguments.keep_sar,
        preset=arguments.preset.lower(),
        further=tuple(arguments.further),
        minutes=arguments.chunk,
        overwrite=arguments.overwrite,
    )
    if arguments.script:
        return _print_script(arguments.paths[0], options)
    if arguments.out is not None:
        _make_folder(arguments.out)
    pairs = settings.pair_outputs(arguments.paths, arguments.out)
    settings.check_ffmpeg(options, [target for _, target in pairs])
    from vsfdatrd.encode.encode import encode

    failed = 0
    with (
        interrupt_on_sigterm(),
        progress.choose_reporter(arguments.json) as screen,
        _open_workers(arguments.ray, options, screen) as workers,
    ):
        for number, (source, target) in enumerate(pairs, 1):
            try:
                if len(pairs) > 1:
                    screen.emit("input", f"film {number} of {len(pairs)}", input=source)
                encode(source, target.absolute(), options, workers, screen)
            except Exception as error:  # any kind: the remaining inputs can still be encoded
                screen.stop()
                log.debug("where it happened:", exc_info=True)
                alone = len(pairs) == 1
                if arguments.json or not alone:
                    named = "" if arguments.json else f"{source}: "
                    screen.emit("failed", f"{named}{error_sentence(error)}", input=source)
                if alone:
                    raise
                failed += 1
            except KeyboardInterrupt:
                screen.stop()
                print("vsfdatrd: stopped; run the same command again to continue", file=sys.stderr)
                return 130
    if failed:
        raise FdatrdError(f"{failed} of {len(pairs)} were not encoded; what is done of them is kept")
    return 0


def _print_script(path: Path, settings: "Settings") -> int:
    """Print the script for one input to stdout, and the choices made to stderr."""
    from vsfdatrd.checkpoint import open_checkpoint
    from vsfdatrd.encode.encode import analyze
    from vsfdatrd.encode.progress import Reporter
    from vsfdatrd.weights.catalog import resolve_model

    scale = open_checkpoint(resolve_model(settings.model)).descriptor.scale
    print(analyze(path, None, settings, scale, Reporter()).script, end="")
    return 0


@contextmanager
def _open_workers(ray: str | None, settings: "Settings", screen: "Reporter") -> "Iterator[Workers]":
    """Yield the workers that encode chunks: the devices of this machine, or a Ray cluster."""
    if ray is None:
        from vsfdatrd.encode.local_workers import Devices

        yield Devices(settings.devices)
        return
    from vsfdatrd.encode.ray.scheduler import open_cluster

    with open_cluster(ray, screen.emit) as workers:
        yield workers


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {folder} cannot be made ({error.strerror}); give another folder") from error
