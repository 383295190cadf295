"""Run the tests of the plugin's C code with the sanitizers of gcc or clang: ``make sanitize``.

AddressSanitizer finds accesses outside of arrays, UndefinedBehaviorSanitizer overflows and misaligned pointers. Python
itself is not compiled with them, so their libraries are loaded in front of it, and leaks, of which Python has some, are
not reported.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import vapoursynth

import hatch_build
from tests.backends.amx_model import FLAGS
from vsfdatrd.backends.native import kernels

TESTS = (
    "tests/backends/test_amx.py",
    "tests/backends/test_native_kernels.py",
    "tests/backends/test_native_products.py",
    "tests/test_inference.py",
    "tests/video/test_chroma_filter.py",
    "tests/video/test_clamp.py",
)
SANITIZE = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")


def main() -> int:
    """Compile a copy of the plugin with the sanitizers, and run `TESTS` on it with each set of instructions.

    Returns:
        The exit status: 0 if all tests passed and the sanitizers found nothing.
    """
    compiler = hatch_build.system_compiler()
    if compiler is None or sys.platform != "linux":
        print("the sanitizers need gcc or clang on Linux (on Debian: apt install gcc)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-sanitizers-") as folder:
        # VapourSynth loads the plugins that lie beside its own library: a copy of it has the sanitized plugin.
        package, copy = Path(vapoursynth.__file__).parent, Path(folder, "vapoursynth")
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("ov", "ort"))
        for libraries_of_wheel in package.parent.glob("*.libs"):  # which plugins look for beside the package
            Path(folder, libraries_of_wheel.name).symlink_to(libraries_of_wheel)
        plugin = next(copy.glob("plugins/vsfdatrd/vsfdatrd.*"))
        files = Path("vsfdatrd", "_native").glob("*.c")
        hatch_build.compile_plugin(files, plugin, compiler, options=SANITIZE)
        libraries = [
            subprocess.check_output([*compiler, f"-print-file-name={name}"], text=True).strip()
            for name in ("libasan.so", "libubsan.so")
        ]
        environment = os.environ | {
            "PYTHONPATH": folder,
            "LD_PRELOAD": ":".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            FLAGS: shlex.join(SANITIZE),  # the model of AMX is compiled by its tests
        }
        for limit in ("avx2", "amx") if kernels.has_vnni() else ("avx2",):
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "--capture=sys", "-p", "no:cacheprovider", *TESTS],
                env=environment | {"FDATRD_MAX_ISA": limit},
                check=False,
            )
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
