"""The package as it is installed: from a wheel, from a source archive without a C compiler, and editable.

Each goes into a virtual environment of its own, which borrows the dependencies of the one that runs the tests but has
its own VapourSynth: that is where plugins are loaded from. Nothing is downloaded.
"""

import importlib.metadata
import os
import platform
import shutil
import struct
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import vapoursynth as vs
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hatch_build import TARGETS, compile_plugin, platform_tag, system_compiler
from tests.conftest import UNOPTIMIZED
from vsfdatrd import __version__

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "vsfdatrd" / "_native"
MODELS = ROOT / "models"
PLUGIN = "vapoursynth/plugins/vsfdatrd"
ZIG = [sys.executable, "-m", "ziglang", "cc"]
RELEASED = f"{sys.platform}-{platform.machine()}"
"""The name of this machine's wheel among `TARGETS`, if it is there."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="written for POSIX paths")


def run(*command: str | Path, **environment: str) -> str:
    """Run a program outside the checkout and return its output. It must succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=850, cwd=ROOT.anchor, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment where no compiler can be found."""
    return {"CC": "", "PATH": str(tmp_path_factory.mktemp("empty"))}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release wheel for this machine, or one built with its compiler if releases do not cover it."""
    folder = tmp_path_factory.mktemp("wheel")
    # As tests/test_wheels.py compiles it, so that ziglang's cache has it for one of the two.
    target = {"VSFDATRD_TARGET": RELEASED, "CFLAGS": "-Werror"} if RELEASED in TARGETS else {}
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, ROOT, **target)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive."""
    folder = tmp_path_factory.mktemp("sdist")
    # As `python -m build --sdist` does, compressed less: half a minute of the highest level goes into the weights.
    code = (
        "import functools, gzip, sys; gzip.GzipFile = functools.partial(gzip.GzipFile, compresslevel=1); "
        "import hatchling.build; hatchling.build.build_sdist(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


class Environment:
    """A fresh virtual environment with VapourSynth and none of its plugins; the tests' own packages stand behind it."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        self.config = folder / "config"
        source = Path(vs.__file__).parent
        shutil.copytree(source, self.packages / "vapoursynth", ignore=shutil.ignore_patterns("plugins", "__pycache__"))
        metadata = Path(str(importlib.metadata.distribution("vapoursynth").locate_file("")))
        for result in metadata.glob("vapoursynth-*.dist-info"):
            shutil.copytree(result, self.packages / result.name)
        # Behind the environment's own folder, and not read for further .pth files, such as that of an editable install.
        (self.packages / "borrowed.pth").write_text(sysconfig.get_path("purelib"))

    def run(self, *command: str | Path, **environment: str) -> str:
        return run(*command, XDG_CONFIG_HOME=str(self.config), **environment)

    def install(self, *what: str | Path, **environment: str) -> None:
        self.run(
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "--disable-pip-version-check",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--no-build-isolation",
            *what,
            **environment,
        )

    @property
    def plugin_files(self) -> set[str]:
        return {path.name for path in (self.packages / PLUGIN).glob("*")}


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


def where(environment: Environment) -> tuple[Path, Path]:
    """Return the paths of plugin and package for a script that imports only VapourSynth."""
    script = (
        "import vapoursynth as vs; print(vs.core.fdatrd.plugin_path); assert vs.core.fdatrd.upscale.signature\n"
        "import vsfdatrd; print(vsfdatrd.__file__)"
    )
    plugin, package = environment.run(environment.python, "-W", "error", "-c", script).splitlines()
    return Path(plugin), Path(package)


def upscale_in_python_and_vspipe(environment: Environment, folder: Path) -> None:
    """Call the plugin from Python and vspipe, and check the message of an argument error."""
    script = folder / "script.vpy"
    script.write_text(
        "from vapoursynth import core\nclip = core.std.BlankClip(length=1)\n"
        "try:\n    clip.fdatrd.upscale(backend='abacus')\nexcept Exception as error:\n    text = str(error)\n"
        "assert text.startswith('fdatrd.upscale: '), text\nassert 'abacus' in text, text\nclip.set_output()\n"
    )
    environment.run(environment.python, "-W", "error", script)
    environment.run(environment.python, "-m", "vapoursynth", "config")
    assert "Frames: 1" in environment.run(environment.packages / "vapoursynth" / "vspipe", "--info", script)


def needed_compiler() -> list[str]:
    return system_compiler() or ZIG


def test_wheel_holds_the_package_the_plugin_and_the_weights(wheel: Path) -> None:
    tag = TARGETS[RELEASED].tag if RELEASED in TARGETS else platform_tag()
    assert wheel.name == f"vsfdatrd-{__version__}-py3-none-{tag}.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"vsfdatrd-{__version__}.dist-info/METADATA").decode()
        entry_points = archive.read(f"vsfdatrd-{__version__}.dist-info/entry_points.txt").decode()
        manifest = archive.read(f"{PLUGIN}/manifest.vs").decode()
    assert manifest.splitlines() == ["[VapourSynth Manifest V1]", "vsfdatrd"]
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "vsfdatrd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and NATIVE not in path.parents
    }
    models = {f"vsfdatrd/models/{path.name}" for pattern in ("*.safetensors", "*.md") for path in MODELS.glob(pattern)}
    plugin = {f"{PLUGIN}/manifest.vs", f"{PLUGIN}/vsfdatrd{'.dylib' if sys.platform == 'darwin' else '.so'}"}
    assert {name for name in names if ".dist-info/" not in name} == expected | models | plugin
    assert "License-Expression: MIT" in metadata
    assert "Requires-Python: >=3.12" in metadata
    assert "vsfdatrd = vsfdatrd.cli:main" in entry_points


def test_wheel_installs_and_loads(wheel: Path, environment: Environment, tmp_path: Path) -> None:
    environment.install(wheel)
    plugin, package = where(environment)
    assert plugin.parent == environment.packages / PLUGIN
    assert package.parent == environment.packages / "vsfdatrd"
    upscale_in_python_and_vspipe(environment, tmp_path)
    assert __version__ in environment.run(environment.bin / "vsfdatrd", "--version")
    environment.run(sys.executable, "-m", "pip", "--python", environment.python, "uninstall", "--yes", "vsfdatrd")
    assert not (environment.packages / PLUGIN).exists(), "nothing stays behind"


@pytest.mark.usefixtures("unoptimized")
def test_checkout_installs_editable(environment: Environment, tmp_path: Path) -> None:
    environment.install("--editable", ROOT)
    plugin, package = where(environment)
    assert plugin.parent == environment.packages / PLUGIN
    assert package.parent == ROOT / "vsfdatrd"
    upscale_in_python_and_vspipe(environment, tmp_path)


@pytest.mark.slow
def test_source_archive_installs_without_a_compiler(
    sdist: Path, environment: Environment, no_compiler: dict[str, str], tmp_path: Path
) -> None:
    """ziglang, which the hook asks for then, compiles the plugin."""
    environment.install(sdist, **no_compiler, CFLAGS=UNOPTIMIZED)
    plugin, package = where(environment)
    assert plugin.parent == environment.packages / PLUGIN
    assert package.parent == environment.packages / "vsfdatrd"
    upscale_in_python_and_vspipe(environment, tmp_path)


def test_source_archive_is_complete_and_small(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        members = {member.name.split("/", 1)[1]: member.size for member in archive if member.isfile()}
    assert {"pyproject.toml", "README.md", "PKG-INFO", "tests/host.c", "tests/test_packaging.py"} <= members.keys()
    native = {path.relative_to(ROOT).as_posix() for path in NATIVE.glob("*.*")}
    assert native <= members.keys()
    assert {f"models/{path.name}" for path in MODELS.glob("*.safetensors")} <= members.keys()
    assert not [name for name in members if "__pycache__" in name or name.startswith((".venv", "demo", "typings"))]
    weights = sum(size for name, size in members.items() if name.endswith(".safetensors"))
    assert sum(members.values()) - weights < 8e6


def installed_by(extra: str) -> set[str]:
    """The packages that ``pip install 'vsfdatrd[extra]'`` installs here; extra: "" for none."""
    found: set[tuple[str, str]] = set()
    left = [("vsfdatrd", extra)]
    while left:
        package = left.pop()
        found.add(package)
        name, of = package
        requirements = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        for needed in requirements:
            if needed.marker is None or needed.marker.evaluate({"extra": of}):
                wanted = {(canonicalize_name(needed.name), one) for one in ("", *needed.extras)}
                left += wanted - found
    return {name for name, _ in found}


def test_what_setup_installs_side_by_side_shares_nothing() -> None:
    """Two pips at a time must not write the same package."""
    before, torch, tools = (installed_by(extra) for extra in ("encode", "torch", "tools"))
    assert {"torch", "numpy"} <= torch
    assert {"pytest", "ray"} <= tools
    assert torch & tools <= before
    assert torch | tools <= installed_by("dev")


def test_ziglang_is_a_build_dependency_only_where_there_is_no_compiler(
    no_compiler: dict[str, str], tmp_path: Path
) -> None:
    ask = "import hatchling.build as b; print(b.get_requires_for_build_wheel())"

    def requires(**environment: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", ask],
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    assert "ziglang" in requires(**no_compiler)
    for name in ("cc", "gcc", "clang"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch(mode=0o755)
        assert "ziglang" not in requires(CC="", PATH=str(folder))
    assert "ziglang" not in requires(**no_compiler | {"CC": "tcc -m64"})


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("CC", "/no/such/compiler -m64", "cannot start the C compiler '/no/such/compiler'"),
        ("CC", "false", "compiling the VapourSynth plugin failed with status 1"),
        ("CFLAGS", "-O0 -include /no/such/file", "CFLAGS='-O0 -include /no/such/file' may be wrong, too"),
    ],
)
def test_failing_compiler_ends_the_build_in_a_sentence(tmp_path: Path, variable: str, value: str, words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, ROOT],
        capture_output=True,
        text=True,
        env=os.environ | {variable: value},
        timeout=250,
    )
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())
    assert words in done.stderr
    assert "Set CC to a working C compiler" in done.stderr
    assert 'hatch_build.py", line' not in done.stderr, "a sentence, no traceback"


def test_flags_with_an_open_quote_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-DNAME='a")
    with pytest.raises(SystemExit, match=r"CFLAGS=\"-DNAME='a\" cannot be split into options: No closing quotation"):
        compile_plugin([], tmp_path / "plugin.so")


def test_compiler_says_nothing_about_our_code(tmp_path: Path) -> None:
    options = ["-Werror", "-Wpedantic"]
    compile_plugin(NATIVE.glob("*.c"), tmp_path / "plugin.so", needed_compiler(), options=options)
    assert (tmp_path / "plugin.so").read_bytes()[:4] in (b"\x7fELF", b"\xcf\xfa\xed\xfe")


@pytest.mark.slow
def test_the_plugin_for_windows_needs_nothing_but_windows(tmp_path: Path) -> None:
    """A DLL that exports the entry point and imports only what every Windows has: no python3.dll, no VapourSynth."""
    target = TARGETS["windows-x86_64"]
    library = tmp_path / "vsfdatrd.dll"
    # As tests/test_wheels.py compiles it, so that ziglang's cache has it for one of the two.
    compile_plugin(NATIVE.glob("*.c"), library, target.compiler, target.system, ["-Werror"])
    exports, imports = portable_executable(library.read_bytes())
    assert "VapourSynthPluginInit2" in exports
    crt = {f"api-ms-win-crt-{part}-l1-1-0.dll" for part in ("environment", "heap", "string")}
    assert set(imports) == {"kernel32.dll"} | crt
    # what mingw-w64's start-up code would bring, which is not linked (_native/windows_start.c)
    assert has_thread_local_storage(library.read_bytes())


def has_thread_local_storage(data: bytes) -> bool:
    """Whether the header of a DLL says where its thread-local variables are; Windows copies them for every thread."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    address, size = struct.unpack_from("<II", data, header + 24 + 112 + 9 * 8)
    return bool(address and size == 40)  # of an IMAGE_TLS_DIRECTORY64


def portable_executable(data: bytes) -> tuple[list[str], list[str]]:
    """The names that a 64-bit DLL exports, and the libraries it imports from (lower case)."""
    (header,) = struct.unpack_from("<I", data, 0x3C)
    assert data[:2] == b"MZ"
    assert data[header : header + 4] == b"PE\0\0"
    machine, sections, optional_size = struct.unpack_from("<HH12xH", data, header + 4)
    (flags,) = struct.unpack_from("<H", data, header + 22)
    assert machine == 0x8664, "x86-64"
    assert flags & 0x2000, "a DLL"
    optional = header + 24
    (export_at,) = struct.unpack_from("<I", data, optional + 112)
    (import_at,) = struct.unpack_from("<I", data, optional + 120)
    table = [struct.unpack_from("<IIII", data, optional + optional_size + 40 * i + 8) for i in range(sections)]

    def offset(address: int) -> int:
        for size, start, raw_size, raw in table:
            if start <= address < start + max(size, raw_size):
                return int(address - start + raw)
        raise AssertionError(f"address {address:#x} is in no section")

    def text(address: int) -> str:
        start = offset(address)
        return data[start : data.index(b"\0", start)].decode()

    (count, names_at) = struct.unpack_from("<I4xI", data, offset(export_at) + 24)
    names = struct.unpack_from(f"<{count}I", data, offset(names_at))
    imports = []
    entry = offset(import_at)
    while name := struct.unpack_from("<12xI", data, entry)[0]:
        imports.append(text(name).lower())
        entry += 20
    return [text(name) for name in names], imports
