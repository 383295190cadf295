"""Everything that can go wrong, as one tree.

    FdatrdError
    ├── ArgumentError       an argument of upscale() (or of the command line) that cannot be used
    ├── ClipError           a clip that cannot be upscaled as it is
    │   └── InsufficientMemory         frames too large for the memory there is
    ├── FrameError          one frame that failed; the frames around it are unaffected
    ├── CheckpointError     a weights file that is missing, damaged, unsafe or not an image network
    │   └── TrialError          a network that took too long, or crashed its library, when it was tried
    ├── EngineError         an engine that failed
    │   ├── EngineUnavailable   its library or its device is not there
    │   └── EngineBuildError    it could not be built or did not pass verification
    │       └── PrecisionUnfit      its precision is too coarse for the network
    ├── StoreError          the cache directory cannot be used
    └── EncodeError         an encode that cannot begin or go on: programs, files, disks

Messages are whole sentences: the value that was given, what is wrong with it, and what to do.
In a script they arrive as ``vapoursynth.Error`` with ``fdatrd.upscale:`` in front.
"""

from vsfdatrd.system.terminal import printable

TORCH_PIP = "pip install 'vsfdatrd[torch]'"
"""Installs PyTorch; for messages."""
PREFIX = "fdatrd.upscale: "
"""What every error of a script starts with; _native/vsfdatrd.c has it too."""


class FdatrdError(Exception):
    """Base of every error this package raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())  # messages repeat names and words out of files, and reach terminals


class ArgumentError(FdatrdError, ValueError):
    """An argument that cannot be used."""


class ClipError(FdatrdError):
    """A clip that cannot be upscaled as it is."""


class InsufficientMemory(ClipError):
    """Frames too large for the memory there is."""

    divide = False
    """Whether they are worth sending in parts."""


class FrameError(FdatrdError):
    """One frame that failed; the frames around it are unaffected."""


class CheckpointError(FdatrdError):
    """A weights file that is missing, damaged, unsafe or not an image network."""


class TrialError(CheckpointError):
    """A network that was given up when it was tried: it took too long, or crashed its library.

    why: continues "the weights file X ...". Trying it again takes as long again.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


class EngineError(FdatrdError):
    """An engine that failed."""


class EngineUnavailable(EngineError):
    """An engine whose library or device is not there."""


class EngineBuildError(EngineError):
    """An engine that could not be built or did not pass verification."""


class PrecisionUnfit(EngineBuildError):
    """An engine in a precision that is too coarse for its network, as it would be if it were built again."""


class StoreError(FdatrdError):
    """A cache directory that cannot be used."""


class EncodeError(FdatrdError, RuntimeError):
    """An encode that cannot begin or go on; what was done so far is kept."""


def sentence(error: Exception) -> str:
    """Return what to tell a user of any error that ended a command."""
    if isinstance(error, FdatrdError):
        return str(error)
    text = " ".join(f"{error}".split()) or "nothing more is known"
    if type(error).__module__ == "vapoursynth":
        return f"VapourSynth cannot do it: {text.removeprefix(PREFIX)}"
    if isinstance(error, MemoryError):
        return f"memory ran out ({text}); end other programs, or choose a smaller model"
    return (
        f"{type(error).__name__}: {text}. This should not happen: run the same command with --verbose, "
        "and report what it prints"
    )
