"""core.fdatrd in vspipe, and in programs that are not Python."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import vapoursynth as vs

from hatch_build import system_compiler
from tests.namespace.conftest import STAND_IN


def test_vspipe_needs_no_import(tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        f"{STAND_IN}\nfrom vapoursynth import core\n"
        "core.fdatrd.upscale(core.std.BlankClip(format=0x30080101, width=64, height=48, length=2)).set_output()\n"
    )
    done = subprocess.run(
        [Path(vs.__file__).with_name("vspipe"), "-c", "y4m", script, "-"], capture_output=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    header, frames = done.stdout.split(b"\n", 1)
    assert b"W128 H96" in header
    assert len(frames) == 2 * (len(b"FRAME\n") + 128 * 96 * 3 // 2)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tests/host.c, compiled: a program that is not Python and uses VapourSynth through its C interfaces."""
    folder = tmp_path_factory.mktemp("host")
    source = Path(__file__).parents[1] / "host.c"
    compiler = system_compiler() or [sys.executable, "-m", "ziglang", "cc"]
    vapoursynth = Path(vs.__file__).parent
    options = ["-I", str(vapoursynth / "include"), "-ldl", "-lpthread"]
    subprocess.run([*compiler, source, *options, "-o", folder / "host"], check=True)
    libraries = [vapoursynth / "libvapoursynth.so.4", vapoursynth / "libvsscript.so"]
    script = folder / "script.vpy"
    script.write_text(
        f"{STAND_IN}\nfrom vapoursynth import core\nclip = core.std.BlankClip(width=64, height=48, length=1)\n"
        "for _ in range(10):\n    out = clip.fdatrd.upscale()\nout.set_output()\n"
    )

    def start(mode: str, *arguments: str) -> str:
        command = map(str, [folder / "host", mode, *libraries, script, *arguments])
        done = subprocess.run([*command], capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return start


def test_program_without_python(host: Callable[..., str]) -> None:
    assert host("no-python").startswith("fdatrd.upscale: there is no running Python")


@pytest.mark.parametrize("mode", ["no-environment", "other-thread"])
def test_thread_that_runs_no_script(host: Callable[..., str], mode: str) -> None:
    text = host(mode)
    assert text.startswith("fdatrd.upscale: cannot hand the call over to Python: Error: No environment")
    assert "Call it from a VapourSynth script" in text


def test_a_hundred_script_reloads(host: Callable[..., str]) -> None:
    """In a VSScript host: ten calls and a frame each; memory is compared with what it was half-way."""
    count, width, grown_kib = map(int, host("reload", "100").split())
    assert (count, width) == (100, 128)
    assert grown_kib < 2048
