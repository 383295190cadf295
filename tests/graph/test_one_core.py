"""OpenVINO compiles and runs the graph on a machine with one core, and with one core to a stream.

With one thread OpenVINO 2026.4 fuses other parts of a graph than with several, and has crashed over it: so a process of
its own, and every order of two blocks.
"""

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from vsfdatrd.graph.fdat import write as fdat_rd_graph

type Make = Callable[..., Any]

KINDS = ("spatial", "channel", "dictionary")
CASES: tuple[dict[str, Any], ...] = (
    *({"groups": (pair,)} for pair in product(KINDS, KINDS)),
    {"groups": (KINDS * 2,) * 2, "embed_dim": 64, "heads": 2, "upsampler": "lda"},
    {"groups": (KINDS,), "upsampler": "dysample", "tail_scale": 4, "unshuffle": 2},
    {"groups": (KINDS,), "upsampler": "pa_up", "tail_scale": 3},
)
RUNNER = """
import sys
import numpy as np
import openvino
from vsfdatrd.backends.openvino.worker import compile_settings

core, folder = openvino.Core(), sys.argv[1]
for i in range(int(sys.argv[2])):
    model = core.read_model(f"{folder}/{i}.onnx")
    x = np.random.default_rng(0).random(list(model.input(0).shape), np.float32)
    results = []
    for streams, threads in ((1, 2), (1, 1), (2, 2)):
        how = compile_settings("fp32", streams) | {"INFERENCE_NUM_THREADS": str(threads)}
        results.append(core.compile_model(model, "CPU", how)(x)[0])
    assert results[0].std() > 0.01
    for result in results[1:]:
        assert np.abs(result - results[0]).max() < 1e-5 * np.abs(results[0]).max()
    print(i, flush=True)
"""


@pytest.fixture
def graphs(make_config: Make, make_tensors: Make, tmp_path: Path) -> Path:
    """A folder with the graph of every case."""
    for i, changes in enumerate(CASES):
        config = make_config(**changes)
        side = config.multiple * (2 if config.unshuffle == 1 else 1)
        model = fdat_rd_graph(config, make_tensors(**changes), (side, side))
        (tmp_path / f"{i}.onnx").write_bytes(model.SerializeToString())
    return tmp_path


def test_one_thread_is_enough(graphs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(graphs), str(len(CASES))], capture_output=True, text=True, timeout=250
    )
    finished = done.stdout.split()
    where = CASES[len(finished)] if len(finished) < len(CASES) else None
    assert done.returncode == 0, f"status {done.returncode} at {where}\n{done.stderr}"
    assert finished == [str(i) for i in range(len(CASES))]
