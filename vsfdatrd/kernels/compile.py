"""Compile the kernels ahead of time, without a GPU: `python -m vsfdatrd.kernels.compile`.

It writes the compressed PTX of all kernels and the manifest to `ptx/`, which takes minutes. The same sources and
version of Triton give the same bytes.
"""

import argparse
import ast
import hashlib
import json
import lzma
import multiprocessing
import os
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vsfdatrd.kernels.manifest import FILE, FOLDER

if TYPE_CHECKING:
    from vsfdatrd.kernels.catalog import Variant

CAPABILITY = 80
"""Compute capability of the PTX, times ten. Drivers can compile the PTX for this capability and all later ones."""
PTX_VERSION = 80
"""Version of PTX, times ten. Drivers from 525 on support it."""
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_120a")
"""Architectures for which ptxas reports registers: A100, GeForce 30, GeForce 40, H100 and GeForce 50."""
NOT_SOURCES = ("__init__.py", "catalog.py", "compile.py", "manifest.py")
"""Files in this folder that contain no kernels."""


def main() -> None:
    """Compile all kernels, and write their PTX and the manifest."""
    import triton

    from vsfdatrd.kernels.catalog import CHANNELS, PRECISIONS

    parser = argparse.ArgumentParser(prog="python -m vsfdatrd.kernels.compile", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    options = parser.parse_args()
    folder: Path = options.out
    folder.mkdir(parents=True, exist_ok=True)
    networks = [(channels, precision) for channels in CHANNELS for precision in PRECISIONS]
    entries: list[dict[str, Any]] = []
    # Processes are spawned, not forked, because Triton's compiler has threads.
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        for (channels, precision), compiled in zip(networks, pool.map(_compile_network, networks), strict=True):
            archive, offset = f"{channels}_{precision}.xz", 0
            for entry, ptx in compiled:
                entries.append(entry | {"archive": archive, "offset": offset, "length": len(ptx)})
                offset += len(ptx)
            text = b"".join(ptx for _, ptx in compiled)
            (folder / archive).write_bytes(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    manifest = {
        "triton": triton.__version__,
        "target": f"sm_{CAPABILITY}",
        "ptx_version": PTX_VERSION,
        "sources": hash_sources(),
        "kernels": entries,
    }
    (folder / FILE).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8", newline="\n")


def _compile_network(network: tuple[int, str]) -> list[tuple[dict[str, Any], bytes]]:
    """Compile the kernels for (channels, precision). Returns the manifest entry and the PTX of each kernel."""
    from vsfdatrd.kernels.catalog import variants

    results = []
    for variant in variants(*network):
        ptx, shared = compile_variant(variant)
        registers, spills = {}, {}
        for architecture in ARCHITECTURES:
            registers[architecture], spills[architecture] = count_registers(ptx, architecture)
        entry = describe(variant) | {
            "shared": shared,
            "registers": registers,
            "spills": spills,
            "sha256": hashlib.sha256(ptx).hexdigest(),
        }
        results.append((entry, ptx))
    return results


def describe(variant: "Variant") -> dict[str, Any]:
    """Return the manifest entry of a variant without the results of compiling it."""
    return {
        "kernel": variant.kernel,
        "channels": variant.channels,
        "precision": variant.precision,
        "entry": variant.kernel,
        "parameters": [list(each) for each in variant.signature.items()],
        "constants": variant.constants,
        "warps": variant.warps,
        "stages": variant.stages,
    }


def compile_variant(variant: "Variant") -> tuple[bytes, int]:
    """Compile a kernel.

    Args:
        variant: The kernel.

    Returns:
        Its PTX, and the dynamic shared memory of a block in bytes.
    """
    # Without this, the PTX contains the paths of the sources.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    # Without this, Triton 3.9 warns, although the option below has the same effect.
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vsfdatrd.kernels.catalog import MULTIPLES

    names = variant.function.arg_names
    types = {name: "constexpr" if name in variant.constants else variant.signature[name] for name in names}
    multiples = [i for i, name in enumerate(names) if types[name].startswith("*") or name in MULTIPLES]
    aligned = {(i,): [["tt.divisibility", 16]] for i in multiples}
    source = ASTSource(variant.function, types, variant.constants, aligned)
    options = {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "ptx_version": PTX_VERSION,
        "enable_fp_fusion": True,
    }
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    return compiled.asm["ptx"].encode("ascii"), compiled.metadata.shared


def count_registers(ptx: bytes, architecture: str) -> tuple[int, int]:
    """Compile a kernel for an architecture with ptxas and return how many registers it uses.

    Args:
        ptx: The kernel.
        architecture: Name of the architecture, such as ``sm_89``.

    Returns:
        Registers per thread, and bytes of spilled registers.
    """
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_bytes(ptx)
        command = [knobs.nvidia.ptxas.path, "-v", f"-arch={architecture}", str(path), "-o", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    output = done.stdout + done.stderr
    registers, spills = re.search(r"Used (\d+) registers", output), re.search(r"(\d+) bytes spill stores", output)
    if not registers or not spills:
        raise RuntimeError(f"ptxas does not report registers: {output}")
    return int(registers[1]), int(spills[1])


def hash_sources() -> str:
    """Return the SHA-256 of the kernels' sources without comments and docstrings, which do not change their PTX."""
    digest = hashlib.sha256()
    sources = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name not in NOT_SOURCES)
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node) is not None:
                del node.body[0]
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
