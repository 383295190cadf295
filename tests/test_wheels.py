"""Wheels for every kind of machine: what the plugin inside is, and what a folder of finished wheels holds.

`make wheels` names that folder in ``$DIST``; without it the plugin alone is compiled for each target.
"""

import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hatch_build import SUFFIXES, TARGETS, compile_plugin
from tests.backends.amx_model import disassembly, missing_instructions
from vsfdatrd import __version__

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "vsfdatrd" / "_native"
PLUGIN = "vapoursynth/plugins/vsfdatrd"
EM_X86_64, EM_AARCH64 = 62, 183
MACHINES = {
    "linux-x86_64": ("ELF", EM_X86_64),
    "linux-aarch64": ("ELF", EM_AARCH64),
    "windows-x86_64": ("PE", 0x8664),
    "macos-arm64": ("Mach-O", 0x0100000C),
}
"""Format of the plugin and the number by which it names its processor."""


def machine(library: bytes) -> tuple[str, int]:
    """The format of a shared library, and the processor its header names."""
    if library[:4] == b"\x7fELF":
        return "ELF", struct.unpack_from("<H", library, 18)[0]
    if library[:4] == b"\xcf\xfa\xed\xfe":
        return "Mach-O", struct.unpack_from("<I", library, 4)[0]
    assert library[:2] == b"MZ"
    (header,) = struct.unpack_from("<I", library, 0x3C)
    return "PE", struct.unpack_from("<H", library, header + 4)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_the_plugin_compiles_without_a_warning(name: str, tmp_path: Path) -> None:
    """The first time, ziglang compiles the target's C library, which takes up to two minutes; then a second."""
    target = TARGETS[name]
    library = tmp_path / f"vsfdatrd{SUFFIXES.get(target.system, '.so')}"
    compile_plugin(NATIVE.glob("*.c"), library, target.compiler, target.system, ["-Werror"])
    data = library.read_bytes()
    assert machine(data) == MACHINES[name]
    assert b"VapourSynthPluginInit2" in data
    assert (b"fdatrd_amx_feed_forward" in data) is (name == "linux-x86_64")
    if name == "linux-x86_64" and (code := disassembly(library)):
        assert missing_instructions(code) == set()


def test_an_unknown_target_ends_the_build_in_a_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    environment = os.environ | {"VSFDATRD_TARGET": "beos"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=250)
    assert done.returncode
    assert "VSFDATRD_TARGET='beos' is not a target; choose one of linux-x86_64, " in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def dist() -> Path:
    """The folder of finished wheels."""
    if "DIST" not in os.environ:
        pytest.skip("$DIST names no folder of wheels (make wheels)")
    return Path(os.environ["DIST"])


@pytest.mark.parametrize("name", TARGETS)
def test_a_finished_wheel_is_for_its_machine(name: str, dist: Path) -> None:
    target = TARGETS[name]
    wheel = dist / f"vsfdatrd-{__version__}-py3-none-{target.tag}.whl"
    with zipfile.ZipFile(wheel) as archive:
        members = {info.filename: info.file_size for info in archive.infolist()}
        plugins = [member for member in members if member.startswith(f"{PLUGIN}/")]
        library = f"{PLUGIN}/vsfdatrd{SUFFIXES.get(target.system, '.so')}"
        assert sorted(plugins) == [f"{PLUGIN}/manifest.vs", library]
        assert machine(archive.read(library)) == MACHINES[name]
        tags = archive.read(f"vsfdatrd-{__version__}.dist-info/WHEEL").decode()
    assert f"Tag: py3-none-{target.tag}\n" in tags
    assert "Root-Is-Purelib: false" in tags
    weights = {f"vsfdatrd/models/{path.name}" for path in (ROOT / "models").glob("*.safetensors")}
    assert weights <= members.keys()
    assert not [member for member in members if "/_native/" in member or "__pycache__" in member]


@pytest.mark.parametrize("name", [name for name in TARGETS if name.startswith("linux")])
def test_a_finished_wheel_needs_no_newer_linux_than_its_tag(name: str, dist: Path) -> None:
    wheel = dist / f"vsfdatrd-{__version__}-py3-none-{TARGETS[name].tag}.whl"
    command = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250).stdout
    words = " ".join(shown.split())
    policy = words.split("consistent with the following platform tag: ", 1)[1].split('"')[1]
    assert policy.startswith(("manylinux_2_5_", "manylinux_2_12_", "manylinux_2_17_")), words
    assert policy.endswith(name.removeprefix("linux-"))
