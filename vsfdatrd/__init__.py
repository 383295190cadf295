"""vsfdatrd: FDAT-RD super-resolution for VapourSynth.

In a script ``core.fdatrd.upscale(clip)`` needs no import; ``vsfdatrd.upscale`` is the same function, typed.
"""

from typing import TYPE_CHECKING, Any

from vsfdatrd.system import instructions

if TYPE_CHECKING:
    from vsfdatrd.checkpoint import load_model as load_model
    from vsfdatrd.filter import upscale as upscale

__version__ = "0.1.0"
__all__ = ["__version__", "load_model", "upscale"]

instructions.apply_cap()  # must run before the libraries that it configures are loaded


def __getattr__(name: str) -> Any:
    # Imported on first use, so that the command line and the plugin do not load modules they do not need.
    if name == "upscale":
        from vsfdatrd.filter import upscale

        return upscale
    if name == "load_model":
        from vsfdatrd.checkpoint import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
