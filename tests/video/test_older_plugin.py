"""A plugin library that is older than the Python modules: a sentence, not an AttributeError."""

from types import SimpleNamespace
from typing import Any

import pytest
import vapoursynth as vs

from vsfdatrd.backends.native import backend, kernels
from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.video import plugin

CURRENT = "cpu_supported", "cpu_avx512", "cpu_vnni", "cpu_amx_int8"


class OldLibrary:
    """A library that has only these functions."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getitem__(self, name: str) -> Any:
        if name.removeprefix("fdatrd_") in self.names:
            return lambda: 1
        raise AttributeError(f"undefined symbol: {name}")


def test_a_function_that_the_plugin_lacks() -> None:
    assert callable(plugin.fdatrd_function("ReuseFrames"))
    with pytest.raises(EngineUnavailable, match=r"the plugin .+ does not belong to .*InNobody.*; install"):
        plugin.fdatrd_function("InNobody")


def test_a_plugin_that_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "vs", SimpleNamespace(core=SimpleNamespace()))
    for missing in (plugin.plugin_path, lambda: plugin.fdatrd_function("PerFrame")):
        with pytest.raises(EngineUnavailable, match=r"core\.fdatrd is missing\); install vsfdatrd again"):
            missing()


@pytest.mark.parametrize("missing", CURRENT)
def test_a_library_without_the_question(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = OldLibrary(*(name for name in CURRENT if name != missing))
    monkeypatch.setattr(kernels, "load_library", lambda: old)
    message = f"do not belong to this version of vsfdatrd (undefined symbol: fdatrd_{missing}); install vsfdatrd again"
    assert message in (backend.unavailable() or "")
    assert not backend.is_preferred_to_openvino()


def test_a_library_without_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "load_library", lambda: OldLibrary(*CURRENT))
    kernels.has_vnni.cache_clear()
    kernels.c_function.cache_clear()
    try:
        with pytest.raises(EngineUnavailable, match="install vsfdatrd again"):
            kernels.c_function("newest_layer")
        with pytest.raises(EngineUnavailable, match="install vsfdatrd again"):
            kernels.scratch_bytes(1, 1, 1, 1)
    finally:
        kernels.has_vnni.cache_clear()


def test_every_function_that_is_asked_for_is_there() -> None:
    for name in ("PerFrame", "ReuseFrames", "ChromaFilter"):
        assert getattr(vs.core.fdatrd, name) is not None
