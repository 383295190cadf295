"""The Python half of ``core.fdatrd``: what the C shim (_native/vsfdatrd.c) calls.

For each ``core.fdatrd.upscale`` call the shim imports this module, calls `bind`, and then calls the function it
received, with the arguments as VapourSynth holds them. Nothing heavy is imported here.
"""

import logging
import os
from inspect import Parameter, signature
from typing import Any

import vapoursynth as vs

from vsfdatrd.errors import PREFIX, FdatrdError, did_you_mean

log = logging.getLogger(__name__)


def bind() -> None:
    """Pass the Python function `upscale` to the plugin.

    The plugin library calls this within a call of ``core.fdatrd.upscale``, on the same thread; nothing else does.
    """
    vs.core.fdatrd.InternalBind(func=upscale)


def upscale(clip: vs.VideoNode, **arguments: Any) -> dict[str, vs.VideoNode | bytes]:
    """Call `vsfdatrd.upscale` on behalf of the shim and report errors as text.

    KeyboardInterrupt and SystemExit are raised; VapourSynth passes them on to the script.

    Args:
        clip: The clip to upscale.
        arguments: The other arguments as VapourSynth passes them: two or more values as a list, a single value by
            itself. Text is str, or bytes if the script passed bytes or the caller is not Python. Arguments that were
            omitted or None are not in the dict.

    Returns:
        ``{"clip": ...}``, or ``{"error": ...}`` with the message for the script.
    """
    try:
        from vsfdatrd.filter import upscale as public_upscale
    except Exception as error:  # a library that fails to load may raise anything
        log.debug("vsfdatrd cannot be imported", exc_info=True)
        return _error_text(
            f"cannot import vsfdatrd: {type(error).__name__}: {error}. Install vsfdatrd with its dependencies into the "
            "Python that VapourSynth runs in (pip install vsfdatrd)."
        )
    parameters_by_name = signature(public_upscale).parameters
    any_name = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters_by_name.values())
    if unknown := [name for name in arguments if name not in parameters_by_name and not any_name]:
        hint = did_you_mean(unknown[0], parameters_by_name) or f". There are {', '.join(parameters_by_name)}."
        return _error_text(f"there is no argument {unknown[0]!r}{hint}")
    try:
        result = public_upscale(clip, **{name: _decode(value) for name, value in arguments.items()})
    except (vs.Error, FdatrdError) as error:
        log.debug("upscale failed", exc_info=True)
        return _error_text(str(error))
    except Exception as error:
        log.error("upscale failed unexpectedly", exc_info=True)
        return _error_text(f"{type(error).__name__}: {error}".removesuffix(": "))
    return {"clip": result}


def _decode(value: Any) -> Any:
    """Decode bytes to str. Bytes that are not UTF-8 survive (surrogateescape), so the result still works as a path."""
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _error_text(text: str) -> dict[str, vs.VideoNode | bytes]:
    text = text if text.startswith(PREFIX) else PREFIX + text
    return {"error": text.encode(errors="backslashreplace")}
