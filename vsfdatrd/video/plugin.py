"""The functions of the plugin ``core.fdatrd`` as VapourSynth has loaded it, which may be older than these modules."""

from collections.abc import Callable
from typing import Any, cast

import vapoursynth as vs

from vsfdatrd.errors import EngineUnavailable


def fdatrd_function(name: str) -> Callable[..., Any]:
    """Return a function of ``core.fdatrd``.

    Args:
        name: Its name.

    Raises:
        EngineUnavailable: The plugin is not loaded, or is of another version of vsfdatrd and lacks the function.
    """
    return cast(Callable[..., Any], _attribute(name))


def plugin_path() -> str:
    """Return the path of the plugin's library.

    Raises:
        EngineUnavailable: The plugin is not loaded.
    """
    return str(_attribute("plugin_path"))


def _attribute(name: str) -> Any:
    try:
        plugin = vs.core.fdatrd
    except AttributeError as error:
        raise EngineUnavailable(
            "VapourSynth does not load the plugin (core.fdatrd is missing); install vsfdatrd again"
        ) from error
    try:
        return getattr(plugin, name)
    except AttributeError as error:
        path = getattr(plugin, "plugin_path", "core.fdatrd")
        raise EngineUnavailable(
            f"the plugin {path} does not belong to this version of vsfdatrd ({error}); install vsfdatrd again"
        ) from error
