"""TensorRT-RTX builds every target."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import onnx
import pytest

from tests.fdats import case_id
from tests.graph.running import HALF, Make, count_reduction_parts
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import tensorrt_target
from vsfdatrd.options import Precision
from vsfdatrd.workers.client import Worker

type Build = Callable[[onnx.ModelProto, str], dict[str, Any]]


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Parse and build a graph for a kind of GPU without a GPU, in another process, since TensorRT prints."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    folder = tmp_path_factory.mktemp("rtx")
    worker = Worker("vsfdatrd.backends.tensorrt.worker")

    def ask(model: onnx.ModelProto, target: str) -> dict[str, Any]:
        (folder / "graph.onnx").write_bytes(model.SerializeToString())
        facts: dict[str, Any] = worker.ask(
            "build",
            library="tensorrt_rtx",
            graph=str(folder / "graph.onnx"),
            directory=str(folder),
            targets=[target],
            how={},
            log=str(folder / "log"),
        )
        return facts | {"size": (folder / "engine.trt").stat().st_size}

    yield ask
    worker.close()


BUILDS: tuple[tuple[Precision, str, dict[str, Any]], ...] = (
    *((precision, "sm89", {}) for precision in (*HALF, "fp32")),
    ("fp16", "sm75", {}),
    ("bf16", "sm120", {"embed_dim": 64, "heads": 2, "tail_scale": 4, "unshuffle": 2}),
    *(
        (precision, "sm89", {"upsampler": kind, "tail_scale": 1 + (kind != "conv"), "groups": (("channel",),)})
        for kind in UPSAMPLERS
        for precision in ("fp16", "bf16")
    ),
    *(("bf16", "sm89", {"tail_scale": scale, "groups": (("channel",),)}) for scale in (3, 4)),
)


@pytest.mark.parametrize(
    ("precision", "target", "changes"), BUILDS, ids=[f"{p} {t} {case_id(c)}" for p, t, c in BUILDS]
)
def test_tensorrt_builds_it(
    make_config: Make, make_tensors: Make, build: Build, precision: Precision, target: str, changes: dict[str, Any]
) -> None:
    config = make_config(**changes)
    side = 60 * config.unshuffle
    model = fdat_rd_graph(config, make_tensors(**changes), (side, side), tensorrt_target(precision, target == "sm75"))
    assert min(count_reduction_parts(model)) > 1
    facts = build(model, target)
    assert facts["targets"] == [target]
    assert facts["activation_bytes"] > 0
    assert facts["size"] > 10000
