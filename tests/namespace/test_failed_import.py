"""If the Python part cannot be imported, the script gets the reason."""

import sys
from pathlib import Path

import pytest
import vapoursynth as vs

from tests.namespace.conftest import run, upscale


def test_failed_import_of_the_filter_says_why(clip: vs.VideoNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vsfdatrd.filter", None)
    with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: cannot import vsfdatrd: ModuleNotFoundError: .*Install"):
        upscale(clip)


def test_library_that_does_not_load_says_why(clip: vs.VideoNode, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "vsfdatrd.filter":
                raise OSError("libtbb.so.12: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "vsfdatrd.filter", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: cannot import vsfdatrd: OSError: libtbb\.so\.12: .*Install"):
        upscale(clip)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("raise ModuleNotFoundError(\"No module named 'numpy'\")", "ModuleNotFoundError: No module named 'numpy'. "),
        ("raise ValueError", "ValueError. "),
        ("class Mute(Exception):\n    def __str__(self): raise TypeError('no')\nraise Mute", "Mute. "),
        ("raise RuntimeError('ö' * 5000)", "RuntimeError: öö"),
        ("raise RuntimeError('x' + 'ö' * 5000)", "RuntimeError: xö"),
        ("raise RuntimeError('€' * 5000)", "RuntimeError: €€"),
        ("raise RuntimeError('x😀' * 5000)", "RuntimeError: x😀x"),
    ],
)
def test_failed_import_of_the_package_says_why(tmp_path: Path, broken: str, text: str) -> None:
    """The shim alone has to find the words, from Python's C functions."""
    (tmp_path / "vsfdatrd").mkdir()
    (tmp_path / "vsfdatrd" / "__init__.py").write_text(broken)
    script = f"""
import gc, sys
sys.path.insert(0, {str(tmp_path)!r})
import vapoursynth as vs
clip = vs.core.std.BlankClip(length=1)
def text():
    try:
        clip.fdatrd.upscale()
    except vs.Error as error:
        return str(error)
def exceptions():
    gc.collect()
    return sum(isinstance(thing, Exception) for thing in gc.get_objects())
before = exceptions()
(text,) = {{text() for _ in range(100)}}
print(exceptions() - before)
print(text)
"""
    left_over, output = run(script, PYTHONIOENCODING="utf-8").splitlines()
    assert output.startswith("fdatrd.upscale: cannot import vsfdatrd: " + text)
    assert output.endswith("(pip install vsfdatrd).")
    assert "\\" not in output, "cut between characters, not within one"
    assert int(left_over) == 0
