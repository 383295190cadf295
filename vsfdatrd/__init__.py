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

instructions.apply()  # before any library is loaded that it is for


def __getattr__(name: str) -> Any:
    # Imported when first used, so that the command line and the plugin start without what they do not need.
    if name == "upscale":
        from vsfdatrd.filter import upscale

        return upscale
    if name == "load_model":
        from vsfdatrd.checkpoint import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
