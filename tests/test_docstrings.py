"""Docstrings refer to what exists: ``Raises:`` to exceptions, ``Args:`` to parameters, single backticks to names."""

import ast
import builtins
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vsfdatrd", "benchmarks", "models/training", "tests")
OUTSIDE = {*dir(builtins), *sys.stdlib_module_names, "vs", "vapoursynth", "av", "ray", "torch", "triton"}
"""Built-in names, the standard library's modules, and libraries that docstrings name without importing them."""


@dataclass
class Docstring:
    """A docstring of a module, class or function, or the string below an attribute."""

    text: str
    line: int
    parameters: set[str]
    """Those of the function, or of the class's constructor and the fields of the class."""

    def described(self, section: str) -> list[str]:
        """Return the names that a section describes: lines indented by exactly four spaces, up to the colon."""
        found = re.search(rf"^{section}:\n((?: {{4}}.*\n|\n)*)", self.text + "\n", re.MULTILINE)
        lines = re.findall(r"^ {4}(\S[^:\n]*)", found[1] if found else "", re.MULTILINE)
        return [name for line in lines for name in line.split(", ")]


class Module:
    """The names in a Python file."""

    def __init__(self, source: str) -> None:
        tree = ast.parse(source)
        self.imports: set[str] = set()
        self.variables: set[str] = set()
        """Parameters, and variables of functions."""
        self.classes: list[ast.ClassDef] = []
        self.docstrings: list[Docstring] = []
        self.defined = definitions(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                self.docstrings += docstrings(node)
            match node:
                case ast.Import() | ast.ImportFrom():
                    self.imports |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
                case ast.ClassDef():
                    self.classes.append(node)
                case ast.arg(name) | ast.Name(name, ast.Store()):
                    self.variables.add(name)
        self.names = self.imports | self.variables | self.defined


def docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[Docstring]:
    """Yield the docstrings directly in a file, class or function."""
    for statement in node.body:
        match statement:
            case ast.Expr(ast.Constant(str(text))):
                yield Docstring(inspect.cleandoc(text), statement.lineno, parameters(node))


def definitions(tree: ast.Module | ast.ClassDef) -> set[str]:
    """Return what a module or class defines: functions, classes, constants and attributes, also in classes within."""
    found = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name) | ast.ClassDef(name) | ast.Attribute(attr=name, ctx=ast.Store()):
                found.add(name)
        if isinstance(node, ast.Module | ast.ClassDef):
            found |= {name for statement in node.body for name in assigned(statement)}
    return found


def assigned(statement: ast.stmt) -> set[str]:
    """Return the names to which a statement assigns."""
    if not isinstance(statement, ast.Assign | ast.AnnAssign | ast.TypeAlias):
        return set()
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def parameters(node: ast.AST) -> set[str]:
    """Return the parameters of a function, or of a class's constructor and the fields of the class."""
    match node:
        case ast.FunctionDef():
            return {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
        case ast.ClassDef():
            constructor = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
            return set().union(*(parameters(each) for each in constructor), *(assigned(each) for each in node.body))
    return set()


@cache
def repository() -> dict[str, Module]:
    """Every Python file by its path."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): Module(path.read_text(encoding="utf-8")) for path in paths}


@cache
def contents() -> dict[str, set[str]]:
    """Map the name of every class, file and folder to the names it contains; equal names share one entry."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, module in repository().items():
        parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
        found[parts[-1]] |= module.names | {"py"}  # docstrings may refer to a file, too: `module.py`
        for folder, name in pairwise(parts):
            found[folder].add(name)
        for each in module.classes:
            found[each.name] |= definitions(each)
    return dict(found)


@cache
def defined_anywhere() -> set[str]:
    """Every class, function, constant, attribute and module of the repository."""
    return set(contents()).union(*(module.defined for module in repository().values()))


def undefined_exceptions(module: Module) -> list[str]:
    """List the names under ``Raises:`` that are neither built in, nor in errors.py, nor in the module itself."""
    known = module.names | OUTSIDE | repository()["vsfdatrd/errors.py"].defined
    return [
        f"line {docstring.line}: {name}"
        for docstring in module.docstrings
        for name in docstring.described("Raises")
        if name.split(".")[0] not in known
    ]


def undefined_parameters(module: Module) -> list[str]:
    """List the names under ``Args:`` that are not parameters."""
    return [
        f"line {docstring.line}: {name}"
        for docstring in module.docstrings
        for name in docstring.described("Args")
        if name.lstrip("*") not in docstring.parameters
    ]


def undefined_names(module: Module) -> list[str]:
    """List the names in single backticks, with or without dots, that are not defined anywhere."""

    def exists(reference: str) -> bool:
        first, *rest = reference.split(".")
        if first in OUTSIDE or (first in module.imports and first not in contents()):
            return True  # what other libraries define is not known here
        if not rest:
            return first in module.names or first in defined_anywhere()
        *_, owner, last = reference.split(".")
        return last in contents().get(owner, ()) or (first in module.names and last in defined_anywhere())

    return [
        f"line {docstring.line}: {reference}"
        for docstring in module.docstrings
        for reference in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", docstring.text)
        if not exists(reference)
    ]


@pytest.mark.parametrize("check", [undefined_exceptions, undefined_parameters, undefined_names])
def test_docstrings_refer_to_what_exists(check: Callable[[Module], list[str]]) -> None:
    assert [f"{path} {found}" for path, module in repository().items() for found in check(module)] == []


SAMPLE = '''
class Reader:
    """Reads a file. See `Reader.no_method`, `no_name`, `encode.chunk.NoClass` and ``anything``; `self.depth` is an int.

    Args:
        path: The file, or its
            folder: both are possible.
        mode: How.
    """

    def __init__(self, path):
        self.depth = 8

    def read(self, *names):
        """Read something.

        Args:
            *names: What.
            **rest: More.

        Raises:
            OSError, NoError: It cannot be read.
            vs.Error: Never.
        """
'''


def test_stale_names_are_found() -> None:
    module = Module(SAMPLE)
    assert undefined_exceptions(module) == ["line 15: NoError"]
    assert undefined_parameters(module) == ["line 3: mode", "line 15: **rest"]
    assert undefined_names(module) == ["line 3: Reader.no_method", "line 3: no_name", "line 3: encode.chunk.NoClass"]
