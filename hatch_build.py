"""Build hook: compile the plugin, install it in VapourSynth's plugin folder, and include the shipped weights.

The plugin needs only VapourSynth4.h, which the ``vapoursynth`` wheel contains. The compiler is ``$CC``, else cc, gcc or
clang from PATH (not on Windows), else ``ziglang``, which is a build dependency only if it is needed. ``$CFLAGS`` are
further options of the compiler.

``$VSFDATRD_TARGET``, a name from `TARGETS`, cross-compiles a wheel for another platform with ``ziglang``. `make wheels`
builds all of them.
"""

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "vsfdatrd"
PLUGIN_DIR = f"vapoursynth/plugins/{NAME}"
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden")
WINDOWS_START = "-DFDATRD_WINDOWS_START"
"""Option of the C compiler that includes `_native/windows_start.c`, which replaces mingw-w64's start-up code."""
WINDOWS_LIBRARIES = ("kernel32", *(f"api-ms-win-crt-{part}-l1-1-0" for part in ("environment", "heap", "string")))
"""Libraries of Windows that the plugin uses; they are named because mingw-w64 is not linked."""
MODEL_FILES = ("*.safetensors", "*.md")


@dataclass(frozen=True, slots=True)
class Target:
    """A platform that a wheel is built for."""

    system: str
    """The value of sys.platform."""
    tag: str
    """The platform tag of the wheel's name."""
    zig: str
    """The target triple for ziglang, with the oldest C library or operating system that the plugin supports."""

    @property
    def compiler(self) -> list[str]:
        """Compiler command prefix for this platform."""
        return [sys.executable, "-m", "ziglang", "cc", "-target", self.zig]


TARGETS = {
    "linux-x86_64": Target("linux", "manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17"),
    "linux-aarch64": Target("linux", "manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17"),
    "windows-x86_64": Target("win32", "win_amd64", "x86_64-windows-gnu"),
    "macos-arm64": Target("darwin", "macosx_11_0_arm64", "aarch64-macos.11.0"),
}
"""The wheels of a release, by the value of ``$VSFDATRD_TARGET``."""


class PluginHook(BuildHookInterface[Any]):
    """hatchling's custom hook, which runs for wheels and editable installs."""

    def dependencies(self) -> list[str]:
        """Return build requirements beyond pyproject.toml's: a compiler, if none is installed."""
        return [] if system_compiler() and not named_target() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the plugin and add it, its manifest and the weights to the wheel."""
        self.folder = tempfile.TemporaryDirectory(prefix=f"{NAME}-")
        target = named_target()
        system = target.system if target else sys.platform
        library = Path(self.folder.name, NAME + SUFFIXES.get(system, ".so"))
        manifest = Path(self.folder.name, "manifest.vs")
        sources = Path(self.root, "vsfdatrd", "_native")
        self.app.display_info("building the VapourSynth plugin")
        compile_plugin(sources.glob("*.c"), library, target.compiler if target else None, system)
        manifest.write_text(f"[VapourSynth Manifest V1]\n{NAME}\n", encoding="utf-8", newline="\n")
        # List the files explicitly: the Windows linker also writes an import library to this folder.
        plugin = {str(path): f"{PLUGIN_DIR}/{path.name}" for path in (library, manifest)}

        build_data["pure_python"] = False
        # Bound to the operating system and processor, not to a Python version.
        build_data["tag"] = f"py3-none-{target.tag if target else platform_tag()}"
        if version == "editable":
            # Editable wheels use a separate map. The weights stay in the checkout, where catalog.py finds them.
            build_data["force_include_editable"].update(plugin)
        else:
            models = Path(self.root, "models")
            weights = sorted(path for pattern in MODEL_FILES for path in models.glob(pattern))
            build_data["force_include"].update(plugin | {str(path): f"{NAME}/models/{path.name}" for path in weights})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the compiled files; the wheel contains a copy."""
        self.folder.cleanup()


def named_target() -> Target | None:
    """Return the target that ``$VSFDATRD_TARGET`` names; None if it is not set.

    Raises:
        SystemExit: There is no such target.
    """
    name = os.environ.get("VSFDATRD_TARGET")
    if name and name not in TARGETS:
        raise SystemExit(f"vsfdatrd: VSFDATRD_TARGET={name!r} is not a target; choose one of {', '.join(TARGETS)}.")
    return TARGETS[name] if name else None


def platform_tag() -> str:
    """Return the platform tag for this machine. On macOS the compiler targets its own CPU only, not universal2."""
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return tag.replace("universal2", platform.machine())


def system_compiler() -> list[str] | None:
    """Return the command prefix of the installed C compiler, or None if ziglang is needed."""
    if cc := os.environ.get("CC"):
        return shlex.split(cc, posix=os.name == "posix")
    # A clang found on Windows targets MSVC and needs its libraries; ziglang needs nothing.
    names = () if sys.platform == "win32" else ("cc", "gcc", "clang")
    return next(([path] for name in names if (path := shutil.which(name))), None)


def compile_plugin(
    files: Iterable[Path],
    library: Path,
    compiler: Sequence[str] | None = None,
    system: str = sys.platform,
    options: Sequence[str] = (),
) -> None:
    """Compile C files, as many at a time as there are CPUs, and link them into one plugin.

    Args:
        files: The C files.
        library: The library to write.
        compiler: Compiler command prefix; None for the installed compiler or ziglang.
        system: The target's value of sys.platform.
        options: Options of the compiler besides `FLAGS` and ``$CFLAGS``.

    Raises:
        SystemExit: ``$CFLAGS`` has an open quote, or the compiler cannot be started or failed; its output is on stderr.
    """
    import vapoursynth

    compiler = compiler or system_compiler() or [sys.executable, "-m", "ziglang", "cc"]
    include = vapoursynth.get_include()  # type: ignore[attr-defined] # the stubs that vsstubs writes leave it out
    flags = os.environ.get("CFLAGS", "")
    try:
        given = shlex.split(flags, posix=os.name == "posix")
    except ValueError as error:
        raise SystemExit(f"vsfdatrd: CFLAGS={flags!r} cannot be split into options: {error}.") from None
    command = [*compiler, *FLAGS, *([] if system == "win32" else ["-fPIC"]), "-I", include, *given, *options]
    link = ["-shared"]
    if system == "win32" and "ziglang" in compiler:
        command.append(WINDOWS_START)
        link += ["-nostdlib", *(f"-l{name}" for name in WINDOWS_LIBRARIES), "-lcompiler_rt"]
    with tempfile.TemporaryDirectory(prefix=f"{NAME}-") as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = {file: str(Path(folder, f"{file.stem}.o")) for file in sorted(files)}
        calls = [pool.submit(_compile, [*command, "-c", str(file), "-o", to]) for file, to in objects.items()]
        try:
            for call in calls:
                call.result()
        finally:  # after a failure, or Ctrl-C, no further file is compiled
            pool.shutdown(cancel_futures=True)
        _compile([*command, *objects.values(), *link, "-o", str(library)])


def _compile(command: Sequence[str]) -> None:
    advice = "Set CC to a working C compiler, or unset it and install one (on Debian: apt install gcc)."
    if flags := os.environ.get("CFLAGS"):
        advice += f" CFLAGS={flags!r} may be wrong, too."
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise SystemExit(f"vsfdatrd: cannot start the C compiler {command[0]!r}: {error}. {advice}") from None
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(
            f"vsfdatrd: compiling the VapourSynth plugin failed with status {done.returncode} "
            f"({shlex.join(command)}); the compiler's own words are above. {advice}"
        )
