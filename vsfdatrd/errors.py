"""The exception hierarchy.

    FdatrdError
    ├── ArgumentError       an argument of upscale() (or of the command line) cannot be used
    ├── ClipError           the clip cannot be upscaled as it is
    │   └── InsufficientMemory         frames are too large for the available memory
    ├── FrameError          one frame failed; the frames around it are unaffected
    ├── CheckpointError     a weights file is missing, damaged, unsafe or not an image network
    │   └── TrialError          the trial run of a network took too long or crashed its library
    ├── EngineError         an engine failed
    │   ├── EngineUnavailable   its library or its device is missing
    │   └── EngineBuildError    it could not be built or did not pass verification
    │       └── PrecisionUnfit      its precision is too coarse for the network
    ├── StoreError          the cache directory cannot be used
    └── EncodeError         an encode cannot start or continue: programs, files, disks

Messages are complete sentences: the value, what is wrong with it, and what to do.
In a script they arrive as ``vapoursynth.Error`` with ``fdatrd.upscale:`` in front.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from vsfdatrd.system.terminal import escape_control

TORCH_INSTALL_COMMAND = "pip install 'vsfdatrd[torch]'"
"""Command that installs PyTorch, for use in messages."""
PREFIX = "fdatrd.upscale: "
"""Prefix of every error message in a script; also defined in _native/vsfdatrd.c."""


class FdatrdError(Exception):
    """Base class of every error this package raises on purpose."""

    def __str__(self) -> str:
        return escape_control(super().__str__())  # messages quote text from files and are printed on terminals


class ArgumentError(FdatrdError, ValueError):
    """An argument cannot be used."""


class ClipError(FdatrdError):
    """The clip cannot be upscaled as it is."""


class InsufficientMemory(ClipError):
    """Frames are too large for the available memory."""

    divide = False
    """Whether upscaling the frame in tiles is worthwhile."""


class FrameError(FdatrdError):
    """One frame failed; the frames around it are unaffected."""


class CheckpointError(FdatrdError):
    """A weights file is missing, damaged, unsafe or not an image network."""


class TrialError(CheckpointError):
    """The trial run of a network took too long or crashed its library.

    Another trial would take as long again.

    Args:
        message: The complete message.
        why: The reason, phrased to continue "the weights file X ...".
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class EngineError(FdatrdError):
    """An engine failed."""


class EngineUnavailable(EngineError):
    """The library or device of an engine is missing."""


class EngineBuildError(EngineError):
    """An engine could not be built or did not pass verification."""


class PrecisionUnfit(EngineBuildError):
    """The precision of an engine is too coarse for its network; building it again would not help."""


class StoreError(FdatrdError):
    """The cache directory cannot be used."""


class EncodeError(FdatrdError, RuntimeError):
    """An encode cannot start or continue; finished chunks are kept."""


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` to append to a message about an unknown name, or "" if no known name is close."""
    near = get_close_matches(name, list(candidates), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def error_sentence(error: Exception) -> str:
    """Return the message for the user for any exception that ended a command."""
    if isinstance(error, FdatrdError):
        return str(error)
    text = " ".join(f"{error}".split()) or "nothing more is known"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror or text
    if type(error).__module__ == "vapoursynth":
        return f"VapourSynth cannot do it: {text.removeprefix(PREFIX)}"
    if isinstance(error, MemoryError):
        return f"memory ran out ({text}); end other programs, or choose a smaller model"
    return (
        f"{type(error).__name__}: {text}. This should not happen: run the same command with --verbose, "
        "and report what it prints"
    )
