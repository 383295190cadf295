"""What the commands have in common: types of arguments, and errors as sentences."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import NoReturn

from benchmarks import report
from benchmarks.errors import BenchmarkError
from vsfdatrd.cli import parse_size as frame_size
from vsfdatrd.errors import FdatrdError, error_sentence

__all__ = ["frame_size", "positive_float", "positive_int", "result_name", "run"]


def positive_int(text: str) -> int:
    """Parse a whole number of at least 1.

    Args:
        text: The argument.

    Raises:
        argparse.ArgumentTypeError: It is another text.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def positive_float(text: str) -> float:
    """Parse a number above 0.

    Args:
        text: The argument.

    Raises:
        argparse.ArgumentTypeError: It is another text.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def result_name(text: str) -> str:
    """Check the name of a result before anything is measured, which takes minutes.

    Args:
        text: A name in benchmarks/results, or an absolute path; with or without ``.json``.

    Returns:
        The name without ``.json``.

    Raises:
        argparse.ArgumentTypeError: The folder of the file does not exist.
    """
    name = text.removesuffix(".json")
    folder = (report.RESULTS / name).parent
    if not name or not folder.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a name for a result, because {folder} is not a folder")
    return name


def run(main: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its status; what a user can mend is one sentence on stderr and status 1.

    Args:
        main: The command.
    """
    try:
        sys.exit(main())
    except BenchmarkError as error:
        sys.exit(str(error))
    except Exception as error:
        # VapourSynth's errors are those of the plugin and its arguments; GPU machines may lack its package.
        if isinstance(error, FdatrdError) or type(error).__module__ == "vapoursynth":
            sys.exit(error_sentence(error))
        raise
