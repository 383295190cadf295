"""Kernels for Intel AMX whose instructions are replaced by a model in C: they run on any processor that has AVX2."""

import ctypes
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hatch_build
from vsfdatrd.backends.native import kernels

NATIVE = Path(hatch_build.__file__).parent / "vsfdatrd" / "_native"
HEADER = Path(__file__).with_suffix(".h")
FLAGS = "FDATRD_MODEL_FLAGS"
"""Environment variable with more flags of the compiler, which the sanitizers set."""

INSTRUCTIONS = {
    "ldtilecfg",
    "tilerelease",
    "tilezero tmm0",
    "tileloadd tmm4",
    "tilestored tmm3",
    "tdpbssd tmm0,tmm4,tmm6",
    "tdpbsud tmm1,tmm4,tmm7",
    "tdpbusd tmm2,tmm5,tmm6",
    "tdpbuud tmm3,tmm5,tmm7",
}
"""What kernels for AMX contain: tiles 0 to 3 are sums, 4 and 5 high and low bytes of tokens, 6 and 7 of weights."""


class ModelLibrary:
    """The plugin's library, with the functions fdatrd_amx_* of another one, on a processor that seems to have AMX."""

    def __init__(self, model: Path, vnni: bool) -> None:
        self.model, self.plugin, self.vnni = ctypes.CDLL(str(model)), kernels.load_library(), vnni
        self.permitted = 1

    def __getitem__(self, name: str) -> Any:
        if name.startswith("fdatrd_amx_"):
            return self.model[name]
        if name in ("fdatrd_cpu_amx_int8", "fdatrd_cpu_request_amx"):
            return lambda: 1 if name == "fdatrd_cpu_amx_int8" else self.permitted
        return self.plugin[name]

    @property
    def products(self) -> int:
        """Number of products of tiles until now."""
        return ctypes.c_int64.in_dll(self.model, "fdatrd_model_products").value


def compile_model(folder: Path, vnni: bool) -> Path:
    """Compile amx_*.c with the model.

    Args:
        folder: Folder to write to.
        vnni: Whether the rest of the kernels uses AVX-512 with VNNI, as on processors that have AMX; else AVX2.
    """
    library = folder / f"amx_model_{'vnni' if vnni else 'avx2'}.so"
    options = [f'-DFDATRD_AMX_MODEL="{HEADER}"', *(["-DFDATRD_VNNI"] if vnni else [])]
    options += shlex.split(os.environ.get(FLAGS, ""))
    hatch_build.compile_plugin(NATIVE.glob("amx_*.c"), library, options=options)
    return library


def disassembly(library: Path) -> str | None:
    """Return a library's machine code as text, in Intel's notation; None without an objdump that knows AMX.

    Args:
        library: A shared library for Linux.
    """
    objdump = shutil.which("objdump")
    if objdump is None:
        return None
    command = [objdump, "-d", "-M", "intel", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return text if "tileloadd" in text else None


def missing_instructions(text: str) -> set[str]:
    """Return those of `INSTRUCTIONS` that machine code lacks.

    Args:
        text: The code; see `disassembly`.
    """
    code = re.sub(r"tilestored \[[^]]*\],", "tilestored ", text)
    return {name for name in INSTRUCTIONS if not re.search(rf"\t{name}\b", code)}
