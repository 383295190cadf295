"""The package's layers: imports run downwards only and without cycles, and new files go into folders."""

import ast
import re
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "vsfdatrd"
LAYERS = (
    {"cli", "commands", "encode", "compare"},
    {"filter", "_plugin", "__init__"},
    {"inference", "style_input"},
    {"backends"},
    {"video"},
    {"checkpoint"},
    {"archs.registry"},
    {"graph"},
    {"nn"},
    {"archs", "options"},
    {"cache", "weights", "kernels"},
    {"workers", "system", "errors"},
)
"""Folders and files of the package, top to bottom. What is in one layer may import each other, without circles."""
FLAT = set(["__init__", "_plugin", "checkpoint", "cli", "errors", "filter", "inference", "options", "style_input"])
"""Python files that lie in no folder."""


@cache
def modules() -> dict[str, Path]:
    """Every module by its name below ``vsfdatrd``, with dots; a package by its folder's name."""
    result = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        result[".".join(parts if parts == ("__init__",) or parts[-1] != "__init__" else parts[:-1])] = path
    return result


@cache
def imports() -> dict[str, set[str]]:
    """What every module imports of the package, inside functions too."""
    result: dict[str, set[str]] = {}
    for module, path in modules().items():
        names = result.setdefault(module, set())
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] != "vsfdatrd":
                continue
            base = (node.module or "").removeprefix("vsfdatrd").lstrip(".")
            for alias in node.names:
                name = f"{base}.{alias.name}" if base else alias.name
                names.add(name if name in modules() else base or "__init__")
    return result


def layer(module: str) -> int:
    """The number of a module's layer; 0 is the top."""
    parts = module.split(".")
    known = {name: number for number, names in enumerate(LAYERS) for name in names}
    return next(known[name] for n in (2, 1) if (name := ".".join(parts[:n])) in known)


def test_every_file_has_a_place() -> None:
    known = {name.split(".")[0] for name in set().union(*LAYERS)}
    assert {module.split(".")[0] for module in modules()} == known
    assert {path.stem for path in PACKAGE.glob("*.py")} == FLAT


def test_imports_run_downwards() -> None:
    upward = [
        f"{module} -> {name}"
        for module, names in imports().items()
        for name in names
        # Everybody may ask for the version.
        if layer(name) < layer(module) and name != "__init__"
    ]
    assert upward == []


def test_only_the_registry_knows_kinds_of_networks() -> None:
    """Others ask a network's `NetworkConfig` and `Architecture`; two backends are for one architecture."""
    kinds = {f"archs.{name}" for name in ("artcnn", "artcnn_glsl", "fdat", "fdat_rd", "fdat_shapes", "zero_branches")}
    kinds |= {module for module in modules() if module.startswith("archs.registry.")} - {"archs.registry.base"}
    who = ("archs", "nn", "graph", "backends.native", "backends.cuda", "backends.weights_file")
    curious = {module for module, names in imports().items() if names & kinds and not module.startswith(who)}
    assert curious == set()


def test_no_backend_needs_another() -> None:
    """What several need lies in `backends` itself or in `backends.gpu`."""
    folders = {path.parent.name for path in PACKAGE.glob("backends/*/backend.py")}
    assert {"cuda", "native", "openvino", "tensorrt"} <= folders
    for module, names in imports().items():
        parts = module.split(".")
        if parts[0] == "backends" and len(parts) > 2:
            others = {name for name in names if name.split(".")[:2][-1] in folders - {parts[1]}}
            assert not {name for name in others if name.startswith("backends.")}, module


def test_kernels_are_compiled_before_they_are_installed() -> None:
    """At run time there is only their manifest, as Triton is a tool of development."""
    own = {"kernels", "kernels.manifest"}
    users = {module for module, names in imports().items() for name in names if name.startswith("kernels.")}
    for module in users - {module for module in users if module.startswith("kernels.")}:
        assert {name for name in imports()[module] if name.startswith("kernels")} <= own, module
    triton = re.compile(r"^\s*(import|from) triton", re.MULTILINE)
    importers = {module for module, path in modules().items() if triton.search(path.read_text(encoding="utf-8"))}
    assert {module.split(".")[0] for module in importers} <= {"kernels"}


def test_nothing_imports_itself_by_way_of_others() -> None:
    order: list[str] = []
    open_now: list[str] = []

    def visit(module: str) -> None:
        assert module not in open_now, " -> ".join([*open_now[open_now.index(module) :], module])
        if module in order:
            return
        open_now.append(module)
        for name in sorted(imports()[module] - {"__init__"}):
            visit(name)
        open_now.pop()
        order.append(module)

    for module in sorted(modules()):
        visit(module)


def test_the_formatter_skips_nothing() -> None:
    root = PACKAGE.parent
    marks = re.compile(r"#\s*fmt:\s*(skip|off)")
    files = [path for name in ("vsfdatrd", "tests", "benchmarks", "models") for path in (root / name).rglob("*.py")]
    assert [path.name for path in files if marks.search(path.read_text(encoding="utf-8"))] == []
