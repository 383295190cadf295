"""What is measured: groups and their cases."""

import json
from typing import Any

from benchmarks.speed.cases import Case, Extent, Group, groups
from benchmarks.speed.peers import PEERS


def plan(extent: Extent, **given: Any) -> dict[str, Group]:
    usual: dict[str, Any] = {"gpu": False, "backends": [("openvino", ("fp32",))], "peers": tuple(PEERS)}
    result = groups(extent, **usual | given)
    return {group.name: group for group in result}


def test_quick_is_one_group_and_full_has_all() -> None:
    assert list(plan("quick")) == ["headline"]
    assert list(plan("standard")) == ["headline", "models"]
    assert list(plan("full")) == ["headline", "models", "streams", "sizes", "sweep"]
    many = plan("full", gpu=True, backends=[("tensorrt", ("fp16", "fp32")), ("torch", ("fp16",))], clip="clip.mkv")
    assert list(many) == ["headline", "models", "engines", "streams", "sizes", "sweep", "held"]
    assert [(c.backend, c.precision) for c in many["engines"].cases] == [
        ("auto", "auto"),
        ("tensorrt", "fp16"),
        ("tensorrt", "fp32"),
        ("torch", "fp16"),
    ]


def test_sizes_of_the_headline() -> None:
    assert plan("quick")["headline"].cases[0].size == (240, 240)
    assert plan("quick", gpu=True)["headline"].cases[0].size == (720, 540)
    assert plan("full")["headline"].cases[0].size == (720, 540)
    assert plan("quick", size=(120, 90))["headline"].cases[0].size == (120, 90)


def test_cases_of_a_group_can_be_told_apart_and_travel() -> None:
    for group in plan("full", clip="clip.mkv", backends=[("openvino", ("bf16", "fp32"))]).values():
        names = {(case.label, case.model, case.size) for case in group.cases}
        assert len(names) == len(group.cases)
        for case in group.cases:
            assert Case.from_dict(json.loads(json.dumps(case.to_dict()))) == case
