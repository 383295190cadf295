"""Arguments as scripts and VapourSynth pass them, and what is said of wrong ones."""

from pathlib import Path
from typing import Any

import pytest

from vsfdatrd.errors import ArgumentError
from vsfdatrd.options import Options


def test_defaults() -> None:
    assert Options.parse() == Options()


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"device": 1}, "device", (1,)),
        ({"device": [0, 1]}, "device", (0, 1)),
        ({"tile": 360}, "tile", (360, 360)),
        ({"tile": [360]}, "tile", (360, 360)),
        ({"tile": [360, 270]}, "tile", (360, 270)),
        ({"backend": "OpenVINO"}, "backend", "openvino"),
        ({"precision": "BF16"}, "precision", "bf16"),
        ({"format": 805830659}, "format", "805830659"),
        ({"format": "YUV420P10"}, "format", "YUV420P10"),
        ({"matrix": 1}, "matrix", "1"),
        ({"model": Path("a/b.pth")}, "model", str(Path("a/b.pth"))),
        ({"cache": "engines"}, "cache", Path("engines")),
        ({"chroma_filter": "Luma_Guided"}, "chroma_filter", "luma_guided"),
        ({"reuse": "exact"}, "reuse", 0.0),
        ({"reuse": "Off"}, "reuse", None),
        ({"reuse": 0.01}, "reuse", 0.01),
        ({"reuse": "0.01"}, "reuse", 0.01),
    ],
)
def test_accepted(given: dict[str, Any], field: str, expected: object) -> None:
    assert getattr(Options.parse(**given), field) == expected


def test_enum_members_are_taken_by_number() -> None:
    vs = pytest.importorskip("vapoursynth")
    assert Options.parse(format=vs.YUV420P10).format == str(int(vs.YUV420P10))
    assert Options.parse(matrix=vs.MATRIX_BT709).matrix == "1"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"model": ""}, 'model="" names nothing'),
        ({"backend": "openvina"}, "backend='openvina' is unknown; did you mean 'openvino'? Choose one of auto, "),
        ({"backend": "cuda"}, "backend='cuda' is unknown"),
        (
            {"chroma_filter": "guided"},
            "chroma_filter='guided' is unknown; did you mean 'luma_guided'? Choose one of none",
        ),
        ({"precision": "int8"}, "precision='int8' is unknown"),
        ({"device": []}, "device=[] is not a list of GPU numbers"),
        ({"device": [-1]}, "device=[-1] is not a list"),
        ({"device": [0, 0]}, "device=[0, 0] is not a list"),
        ({"streams": 0}, "streams=0 is out of range; give 1 to"),
        ({"streams": 1000}, "streams=1000 is out of range"),
        ({"tile": []}, "tile=[] is not a size"),
        ({"tile": [1, 2, 3]}, "tile=[1, 2, 3] is not a size"),
        ({"tile": [8, 360]}, "tile=[8, 360] is too small"),
        ({"reuse": "never"}, 'reuse=\'never\' is unknown; give "exact", "off" or a number from 0 to 0.1'),
        ({"reuse": 0.5}, "reuse=0.5 is unknown"),
        ({"reuse": -1}, "reuse=-1 is unknown"),
        ({"reuse": float("nan")}, "reuse=nan is unknown"),
    ],
)
def test_refused_with_value_and_cure(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Options.parse(**given)
    assert sentence in str(caught.value)
