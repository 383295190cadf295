"""Arguments in all forms that scripts and VapourSynth pass, and error messages for wrong ones."""

import ast
import inspect
import re
import sys
from dataclasses import FrozenInstanceError, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vsfdatrd.errors import ArgumentError
from vsfdatrd.options import Options

ROOT = Path(__file__).resolve().parents[1]
SHIM = ROOT / "vsfdatrd" / "_native" / "vsfdatrd.c"
USAGE = ROOT / "docs" / "usage.md"


@pytest.fixture(scope="module")
def parameters() -> dict[str, inspect.Parameter]:
    """The options as `upscale` takes them: its arguments except the pictures."""
    pytest.importorskip("vapoursynth")
    from vsfdatrd.filter import upscale

    result = dict(inspect.signature(upscale).parameters)
    return {name: result[name] for name in result if name not in ("clip", "style")}


def test_the_function_takes_every_option_with_its_default(parameters: dict[str, inspect.Parameter]) -> None:
    given = {field.name: field.default for field in fields(Options)}
    assert {name: parameter.default for name, parameter in parameters.items()} == given
    assert list(parameters) == list(given)
    assert all(field.kw_only for field in fields(Options))


def test_every_option_is_described(parameters: dict[str, inspect.Parameter]) -> None:
    (options,) = (
        node
        for node in ast.parse(inspect.getsource(sys.modules[Options.__module__])).body
        if isinstance(node, ast.ClassDef) and node.name == "Options"
    )
    described = [
        field.target.id
        for field, text in pairwise(options.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    ]
    assert described == list(parameters)


def test_the_plugin_takes_every_option_by_its_type(parameters: dict[str, inspect.Parameter]) -> None:
    (text,) = re.findall(r"#define UPSCALE_ARGS[\s\\]*((?:\"[^\"]*\"[\s\\]*)+)", SHIM.read_text(encoding="utf-8"))
    *declared, rest = "".join(re.findall(r'"([^"]*)"', text)).split(";")

    def kind(annotation: str) -> str:
        numbers = "Sequence[int]" in annotation or "Iterable[int]" in annotation
        return "int[]" if numbers else "data" if "str" in annotation else "int"

    expected = {name: kind(str(parameter.annotation)) for name, parameter in parameters.items()}
    assert declared == ["clip:vnode", *(f"{name}:{kind}:opt" for name, kind in expected.items())]
    assert rest == "any"  # style


def test_the_documentation_lists_every_option_with_its_default(parameters: dict[str, inspect.Parameter]) -> None:
    table = USAGE.read_text(encoding="utf-8").split("| argument |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]
    listed = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == {"clip", "style", *parameters}
    for name, parameter in parameters.items():
        literal = re.fullmatch("`(.+)`", listed[name])
        if parameter.default is None:  # in words: what happens without it
            assert not literal, name
        else:
            assert literal, name
            assert getattr(Options(**{name: ast.literal_eval(literal[1])}), name) == getattr(Options(), name)


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"device": 1}, "device", (1,)),
        ({"device": [0, 1]}, "device", (0, 1)),
        ({"tile": 360}, "tile", (360, 360)),
        ({"tile": [360]}, "tile", (360, 360)),
        ({"tile": [360, 270]}, "tile", (360, 270)),
        ({"tile": 32}, "tile", (32, 32)),
        ({"streams": 1}, "streams", 1),
        ({"streams": 32}, "streams", 32),
        ({"multiple": 1}, "multiple", 1),
        ({"multiple": 512}, "multiple", 512),
        ({"backend": "OpenVINO"}, "backend", "openvino"),
        ({"precision": "BF16"}, "precision", "bf16"),
        ({"format": 805830659}, "format", "805830659"),
        ({"format": "YUV420P10"}, "format", "YUV420P10"),
        ({"matrix": 1}, "matrix", "1"),
        ({"matrix": None}, "matrix", "auto"),
        ({"model": Path("a/b.pth")}, "model", str(Path("a/b.pth"))),
        ({"cache": "engines"}, "cache", Path("engines")),
        ({"chroma_filter": "Luma_Guided"}, "chroma_filter", "luma_guided"),
        ({"reuse": "exact"}, "reuse", 0.0),
        ({"reuse": "Off"}, "reuse", None),
        ({"reuse": 0.01}, "reuse", 0.01),
        ({"reuse": "0.01"}, "reuse", 0.01),
        ({"cache": ""}, "cache", None),
        ({"reuse": 0}, "reuse", 0.0),
        ({"reuse": 0.1}, "reuse", 0.1),
    ],
)
def test_accepted(given: dict[str, Any], field: str, expected: Any) -> None:
    options = Options(**given)
    assert getattr(options, field) == expected
    assert replace(options, model="x") == replace(Options(**{field: expected}), model="x")  # normal forms stay
    with pytest.raises(FrozenInstanceError):
        options.model = "small"  # type: ignore[misc]


def test_enum_members_are_taken_by_number() -> None:
    vs = pytest.importorskip("vapoursynth")
    assert Options(format=vs.YUV420P10).format == str(int(vs.YUV420P10))
    assert Options(matrix=vs.MATRIX_BT709).matrix == "1"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": ""}, 'model="" is empty'),
        ({"backend": "openvina"}, "backend='openvina' is unknown; did you mean 'openvino'? Choose one of auto, "),
        ({"backend": "vulkan"}, "backend='vulkan' is unknown"),
        (
            {"chroma_filter": "guided"},
            "chroma_filter='guided' is unknown; did you mean 'luma_guided'? Choose one of none",
        ),
        ({"precision": "int8"}, "precision='int8' is unknown"),
        ({"device": []}, "device=[] is not a list of GPU numbers"),
        ({"device": [-1]}, "device=[-1] is not a list"),
        ({"device": [0, 0]}, "device=[0, 0] is not a list"),
        ({"streams": 0}, "streams=0 is out of range; give 1 to"),
        ({"streams": 33}, "streams=33 is out of range"),
        ({"tile": []}, "tile=[] is not a size"),
        ({"tile": [1, 2, 3]}, "tile=[1, 2, 3] is not a size"),
        ({"tile": [31, 360]}, "tile=[31, 360] is too small"),
        ({"tile": [360, 31]}, "tile=[360, 31] is too small"),
        ({"multiple": 0}, "multiple=0 is out of range; give the number, 1 to 512"),
        ({"multiple": 513}, "multiple=513 is out of range"),
        ({"reuse": "never"}, 'reuse=\'never\' is unknown; give "exact", "off" or a number from 0 to 0.1'),
        ({"reuse": 0.11}, "reuse=0.11 is unknown"),
        ({"reuse": -1}, "reuse=-1 is unknown"),
        ({"reuse": float("nan")}, "reuse=nan is unknown"),
    ],
)
def test_refused_with_value_and_cure(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Options(**given)
    assert sentence in str(caught.value)
