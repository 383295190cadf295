"""The functions of the plugin `core.fdatrd` as VapourSynth has loaded it, which may be older than these modules."""

from collections.abc import Callable
from typing import Any, cast

import vapoursynth as vs

from vsfdatrd.errors import EngineUnavailable


def function(name: str) -> Callable[..., Any]:
    """Return a function of the plugin.

    Args:
        name: Its name in ``core.fdatrd``.

    Raises:
        EngineUnavailable: The plugin is not loaded, or is of another version of vsfdatrd and lacks the function.
    """
    try:
        return cast(Callable[..., Any], getattr(vs.core.fdatrd, name))
    except AttributeError as error:
        raise EngineUnavailable(_advice(str(error))) from error


def path() -> str:
    """Return the path of the plugin's library.

    Raises:
        EngineUnavailable: The plugin is not loaded.
    """
    try:
        return str(vs.core.fdatrd.plugin_path)
    except AttributeError as error:
        raise EngineUnavailable(_advice(str(error))) from error


def _advice(reason: str) -> str:
    if not hasattr(vs.core, "fdatrd"):
        return "VapourSynth does not load the plugin (core.fdatrd is missing); install vsfdatrd again"
    plugin = getattr(vs.core.fdatrd, "plugin_path", "core.fdatrd")
    return f"the plugin {plugin} does not belong to this version of vsfdatrd ({reason}); install vsfdatrd again"
