"""Compare our calls of binary libraries (CUDA, TensorRT) with the functions and arguments that the libraries have."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ENGINES = Path(__file__).resolve().parents[2] / "vsfdatrd/backends"
FAKE = Path(__file__).parent / "fake_gpu"

type Counts = tuple[int, int]
"""The fewest and the most arguments a function takes, itself apart."""


@dataclass(frozen=True)
class Use:
    """A name of a library that one of our modules reads."""

    name: str
    """As the library has it, with dots."""
    arguments: int | None
    """How many it is called with; None where it is not called."""
    where: str


def uses(file: str, roots: Mapping[str, str], function: str | None = None) -> Iterator[Use]:
    """What a module of `vsfdatrd.backends` reads from a library.

    roots: expressions of ours -> what they are in the library ("" for the library itself). function: look there only.
    """
    tree: ast.AST = ast.parse((ENGINES / file).read_text(encoding="utf-8"))
    if function:
        (tree,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or id(node) in inner:
            continue
        text = ast.unparse(node)
        root = max((root for root in roots if text.startswith(f"{root}.")), key=len, default=None)
        if root is None or "__" in text:
            continue
        call = calls.get(id(node))
        name = ".".join(filter(None, (roots[root], text.removeprefix(f"{root}."))))
        yield Use(name, len(call.args) if call else None, f"{file}:{node.lineno}")


def find(library: Any, name: str) -> Any:
    """Look up a dotted name in a library. Raises AttributeError if it does not exist."""
    result = library
    for part in name.split("."):
        result = getattr(result, part)
    return result


def counts(function: Any) -> list[Counts]:
    """Return the numbers of arguments that each overload of a C function accepts.

    The first lines of its docstring list the overloads.
    """
    result = []
    for line in (function.__doc__ or "").splitlines() if callable(function) else ():
        signature = re.fullmatch(r"(?:\d+\. )?\w+\((.*)\)(?: -> .*)?", line)
        if signature and signature[1] != "*args, **kwargs":
            parameters = [part for part in _split(signature[1]) if not part.startswith("self")]
            result.append((sum("=" not in part for part in parameters), len(parameters)))
    return result


def _split(parameters: str) -> list[str]:
    """Split at commas outside brackets."""
    depth, parts = 0, [""]
    for letter in parameters:
        depth += (letter in "([<") - (letter in ")]>")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def takes(function: Any, arguments: int) -> bool:
    """Return whether a C function accepts this number of arguments."""
    return any(fewest <= arguments <= most for fewest, most in counts(function))


def script(code: str, fake: bool) -> Any:
    """Run a script in another process, with or without the fake GPU, and parse the last line of its output as JSON."""
    path = {"PYTHONPATH": str(FAKE)} if fake else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SURFACE = f"""
import importlib, json, sys
sys.path.append({str(Path(__file__).resolve().parents[2])!r})
from tests.backends.apis import surface
print(json.dumps(surface(importlib.import_module(%r))))
"""


def surface(module: ModuleType) -> dict[str, Any]:
    """Everything public that a module of the fake GPU defines: functions as `Counts`, numbers, members of enums."""
    result: dict[str, Any] = {}
    for name, value in vars(module).items():
        if not name.startswith("_"):
            _add(result, name, value, module.__name__)
    return result


def _add(result: dict[str, Any], name: str, value: Any, module: str) -> None:
    if isinstance(value, int):
        result[name] = int(value)
    elif inspect.isfunction(value) and value.__module__ == module:
        parameters = [p for p in inspect.signature(value).parameters.values() if p.name != "self"]
        result[name] = (sum(p.default is p.empty for p in parameters), len(parameters))
    elif inspect.isclass(value) and value.__module__ == module:
        members = getattr(value, "__members__", None) or vars(value)
        for part, inside in members.items():
            if not part.startswith("_"):
                _add(result, f"{name}.{part}", inside, module)


def differences(fake: Mapping[str, Any], real: ModuleType) -> list[str]:
    """List differences between the fake and the real library: missing names, other numbers, unaccepted arguments."""
    wrong = []
    for name, ours in fake.items():
        try:
            theirs = find(real, name)
        except AttributeError:
            wrong.append(f"{name} is not there")
            continue
        if isinstance(ours, int) and not isinstance(theirs, property) and int(theirs) != ours:
            wrong.append(f"{name} is {int(theirs)}, not {ours}")
        if isinstance(ours, list) and not any(few <= ours[0] and ours[1] <= most for few, most in counts(theirs)):
            wrong.append(f"{name} takes {counts(theirs)}, not {ours}")
    return wrong
