"""The profile: ceiling of the machine, steps of the filter, layers of the engine."""

import time
from pathlib import Path

import pytest

from benchmarks import frame_profile
from benchmarks.ceiling import measure_ceiling, shortest_time
from benchmarks.layers import layers, sum_by_kind
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError


def test_ceiling_is_above_what_a_loop_reaches() -> None:
    result = measure_ceiling(gpu=False)
    assert 1e9 < result.flops < 1e13
    assert 1e9 < result.bandwidth < 1e12
    assert 0.01 < shortest_time(lambda: time.sleep(0.01), lambda: None, times=3) < 2


@pytest.mark.slow
def test_steps_and_layers_of_a_frame(tiny_model: Path) -> None:
    steps = frame_profile.measure_steps(open_checkpoint(tiny_model), 60, 60)
    assert list(steps)[-1] == "the whole filter"
    assert all(seconds > 0 for seconds in steps.values())
    result = layers("openvino", tiny_model, 60, 60)
    assert result == sorted(result, key=lambda layer: -layer[2])
    kinds = sum_by_kind(result)
    assert {"Convolution", "FullyConnected"} <= {kind for kind, _, _ in kinds}
    assert sum(seconds for _, _, seconds in kinds) == pytest.approx(sum(seconds for _, _, seconds in result))
    with pytest.raises(EngineError):
        layers("tensorrt", tiny_model, 60, 60)
