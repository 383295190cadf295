"""Memory estimates of TensorRT engines compared with every engine built by the benchmark."""

import json
from typing import Any

import pytest

from benchmarks.builds import ARTCNNS, fdat_config
from benchmarks.report import RESULTS
from vsfdatrd.backends import memory
from vsfdatrd.backends.tensorrt.backend import ACTIVATION_BYTES, MAP_ACTIVATION_BYTES

ROWS: list[dict[str, Any]] = [
    row
    for row in json.loads((RESULTS / "tensorrt_builds.json").read_text(encoding="utf-8"))["result"]["rows"]
    if row["graph"] == "deploy" and row["weights"] == "whole"
]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row['model']} {row['size']} {row['target']} {row['precision']}"
)
def test_estimates_hold_the_engines_that_were_built(row: dict[str, Any]) -> None:
    kinds = ACTIVATION_BYTES if row["target"] == "sm75" else ACTIVATION_BYTES | MAP_ACTIVATION_BYTES
    config = ARTCNNS.get(row["model"]) or fdat_config(row["model"])
    width, height = map(int, row["size"].split("x"))
    estimate = memory.activation_bytes(config, {kind: rates[row["precision"]] for kind, rates in kinds.items()})
    # One rate serves all ArtCNNs, of which the smallest take the most.
    assert 1 <= estimate * width * height / row["activation_bytes"] <= (2.5 if row["model"] in ARTCNNS else 1.25)
