"""Build hook: compile the C shim and put it where VapourSynth autoloads plugins, and pack the weights that ship.

The shim needs only VapourSynth4.h, which the ``vapoursynth`` wheel carries. The compiler is ``$CC``, else cc, gcc or
clang from PATH (not on Windows), else ``ziglang``, which is asked for as a build dependency only where it is needed.
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
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "vsfdatrd"
PLUGIN_DIR = f"vapoursynth/plugins/{NAME}"
SUFFIXES = {"win32": ".dll", "darwin": ".dylib"}
FLAGS = ("-shared", "-std=c11", "-O2", "-Wall", "-Wextra", "-fvisibility=hidden")
MODEL_FILES = ("*.safetensors", "*.md")


class PluginHook(BuildHookInterface[Any]):
    """hatchling's custom hook: runs for wheels and for editable installs."""

    def dependencies(self) -> list[str]:
        """Build requirements beyond pyproject.toml's: a compiler, where the machine has none."""
        return [] if system_compiler() else ["ziglang"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the plugin and add it, its manifest and the weights to the wheel."""
        self.folder = tempfile.TemporaryDirectory(prefix=f"{NAME}-")
        library = Path(self.folder.name, NAME + SUFFIXES.get(sys.platform, ".so"))
        manifest = Path(self.folder.name, "manifest.vs")
        command = compile_command(Path(self.root, "vsfdatrd", "_native"), library)
        self.app.display_info("building the VapourSynth plugin: " + shlex.join(command))
        compile_plugin(command)
        manifest.write_text(f"[VapourSynth Manifest V1]\n{NAME}\n", encoding="utf-8", newline="\n")
        plugin = {str(path): f"{PLUGIN_DIR}/{path.name}" for path in (library, manifest)}

        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform_tag()}"  # bound to the operating system, not to a Python version
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


def platform_tag() -> str:
    """The platform part of the wheel's name. What a compiler makes on a Mac is for the one kind of processor it has."""
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
