"""Build hook: compile the plugin, put it where VapourSynth loads plugins from, and pack the weights that ship.

The plugin needs only VapourSynth4.h, which the ``vapoursynth`` wheel carries. The compiler is ``$CC``, else cc, gcc or
clang from PATH (not on Windows), else ``ziglang``, which is asked for as a build dependency only where it is needed.

``$VSFDATRD_TARGET`` builds a wheel for another kind of machine with ``ziglang``: a name from `TARGETS`. `make wheels`
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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "vsfdatrd"
PLUGIN_DIR = f"vapoursynth/plugins/{NAME}"
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
FLAGS = ("-shared", "-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden")
MODEL_FILES = ("*.safetensors", "*.md")


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine that a wheel is built for."""

    system: str
    """As sys.platform names it."""
    tag: str
    """The platform part of the wheel's name."""
    zig: str
    """The machine as ziglang names it, with the oldest C library or system the plugin runs on."""

    @property
    def compiler(self) -> list[str]:
        """The start of a command that compiles for this machine."""
        return [sys.executable, "-m", "ziglang", "cc", "-target", self.zig]


TARGETS = {
    "linux-x86_64": Target("linux", "manylinux_2_17_x86_64", "x86_64-linux-gnu.2.17"),
    "linux-aarch64": Target("linux", "manylinux_2_17_aarch64", "aarch64-linux-gnu.2.17"),
    "windows-x86_64": Target("win32", "win_amd64", "x86_64-windows-gnu"),
    "macos-arm64": Target("darwin", "macosx_11_0_arm64", "aarch64-macos.11.0"),
}
"""Every wheel that a release has, by the name that ``$VSFDATRD_TARGET`` takes."""


class PluginHook(BuildHookInterface[Any]):
    """hatchling's custom hook: runs for wheels and for editable installs."""

    def dependencies(self) -> list[str]:
        """Build requirements beyond pyproject.toml's: a compiler, where the machine has none."""
        return [] if system_compiler() and not named_target() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the plugin and add it, its manifest and the weights to the wheel."""
        self.folder = tempfile.TemporaryDirectory(prefix=f"{NAME}-")
        target = named_target()
        system = target.system if target else sys.platform
        library = Path(self.folder.name, NAME + SUFFIXES.get(system, ".so"))
        manifest = Path(self.folder.name, "manifest.vs")
        sources = Path(self.root, "vsfdatrd", "_native")
        command = compile_command(sources, library, target.compiler if target else None, system)
        self.app.display_info("building the VapourSynth plugin: " + shlex.join(command))
        compile_plugin(command)
        manifest.write_text(f"[VapourSynth Manifest V1]\n{NAME}\n", encoding="utf-8", newline="\n")
        # Not everything beside the library belongs to it: the Windows linker also writes an import library.
        plugin = {str(path): f"{PLUGIN_DIR}/{path.name}" for path in (library, manifest)}

        build_data["pure_python"] = False
        # Bound to the operating system and processor, not to a Python version.
        build_data["tag"] = f"py3-none-{target.tag if target else platform_tag()}"
        if version == "editable":
            # An editable wheel reads a map of its own. The weights stay in the checkout, where catalog.py finds them.
            build_data["force_include_editable"].update(plugin)
        else:
            models = Path(self.root, "models")
            weights = sorted(path for pattern in MODEL_FILES for path in models.glob(pattern))
            build_data["force_include"].update(plugin | {str(path): f"{NAME}/models/{path.name}" for path in weights})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled; the wheel holds a copy."""
        self.folder.cleanup()


def named_target() -> Target | None:
    """The machine that ``$VSFDATRD_TARGET`` names; None if it is not set. Ends the build if there is no such target."""
    name = os.environ.get("VSFDATRD_TARGET")
    if name and name not in TARGETS:
        raise SystemExit(f"vsfdatrd: VSFDATRD_TARGET={name!r} is not a target; choose one of {', '.join(TARGETS)}.")
    return TARGETS[name] if name else None


def platform_tag() -> str:
    """The platform part of a wheel's name for this machine. A compiler on a Mac compiles for its own processor only."""
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return tag.replace("universal2", platform.machine())


def system_compiler() -> list[str] | None:
    """The C compiler of this machine as the start of a command, or None where ziglang has to do."""
    if cc := os.environ.get("CC"):
        return shlex.split(cc, posix=os.name == "posix")
    # A clang found on Windows targets MSVC and needs its libraries; ziglang needs nothing.
    names = () if sys.platform == "win32" else ("cc", "gcc", "clang")
    return next(([path] for name in names if (path := shutil.which(name))), None)


def compile_command(
    sources: Path, library: Path, compiler: Sequence[str] | None = None, system: str = sys.platform
) -> list[str]:
    """The command that compiles every C file of a folder into one plugin for a system (as sys.platform names it)."""
    import vapoursynth

    compiler = compiler or system_compiler() or [sys.executable, "-m", "ziglang", "cc"]
    position = [] if system == "win32" else ["-fPIC"]
    include = vapoursynth.get_include()  # type: ignore[attr-defined] # the stubs that vsstubs writes leave it out
    files = [str(path) for path in sorted(sources.glob("*.c"))]
    return [*compiler, *FLAGS, *position, "-I", include, *files, "-o", str(library)]


def compile_plugin(command: list[str]) -> None:
    """Run the compiler. Ends the build with its output and one sentence when that fails."""
    advice = "Set CC to a working C compiler, or unset it and install one (on Debian: apt install gcc)."
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
