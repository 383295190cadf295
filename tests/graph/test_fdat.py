"""The graph that is written from an FDAT's weights computes what spandrel's module computes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

pytest.importorskip("spandrel")

from tests.fdats import BODIES, TAILS, case_id, fdat, run_spandrel
from tests.graph.emulation import emulate
from tests.graph.running import rms_error, run_onnxruntime
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as engine
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.graph.fdat import write as fdat_rd_graph
from vsfdatrd.graph.target import OPENVINO, GraphTarget, tensorrt_target
from vsfdatrd.options import Precision

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]

FORMS = (
    GraphTarget(split_reductions=True),
    GraphTarget(head_multiple=8),
    GraphTarget(attention=True, split_reductions=True, head_multiple=8),
    GraphTarget(split_reductions=True, sm75=True, head_multiple=8),
    GraphTarget(attention=True, split_reductions=True, maps=True, head_multiple=8),
)


def noise(height: int, width: int) -> Any:
    return np.random.default_rng(height * 1000 + width).random((1, 3, height, width), np.float32)


def off(out: Any, expected: Any) -> float:
    """The largest difference, as a part of the standard deviation."""
    assert out.shape == expected.shape
    assert expected.std() > 0.05, "an output that does not vary compares nothing"
    return float(np.abs(out - expected).max() / expected.std())


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    """An FDAT whose heads have 27 channels, in windows of 8."""
    return fdat(tmp_path / "small.safetensors", embed_dim=54)


@pytest.mark.parametrize("changes", [*TAILS, *BODIES], ids=case_id)
def test_it_is_what_spandrel_computes(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = fdat(tmp_path / "fdat.safetensors", **changes)
    u = checkpoint.descriptor.size.multiple_of
    for height, width in ((40, 48), (20 * u, 13 * u)):  # the second is no multiple of the windows
        x = noise(height, width)
        model = checkpoint.graph(height, width)
        onnx.checker.check_model(model, full_check=True)
        assert off(run_onnxruntime(model, x), run_spandrel(checkpoint, x)) < 3e-5


@pytest.mark.parametrize("size", [(40, 56), (33, 45), (17, 29)], ids=str)
@pytest.mark.parametrize(
    "form",
    FORMS,
    ids=lambda form: f"{form.attention} {form.split_reductions} {form.sm75} {form.head_multiple} {form.maps}",
)
def test_every_target_computes_the_same(small: Checkpoint, form: GraphTarget, size: tuple[int, int]) -> None:
    """17 × 29 tokens are divided by nothing that would make parts."""
    x = noise(*size)
    assert off(run_onnxruntime(small.graph(*size, form), x), run_spandrel(small, x)) < 3e-5


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 4e-3), ("mixed", 4e-3), ("bf16", 4e-2)])
@pytest.mark.parametrize("size", [(32, 48), (37, 43)], ids=str)
def test_half_precision(small: Checkpoint, precision: Precision, bound: float, size: tuple[int, int]) -> None:
    x = noise(*size)
    run = emulate(small.graph(*size, tensorrt_target(precision)), x)
    assert run.first_bad is None
    assert 1e-5 < rms_error(run.output, run_spandrel(small, x)) < bound


@pytest.mark.parametrize("changes", [{}, {"unshuffle_mod": True, "window_size": 7}], ids=case_id)
def test_a_graph_for_any_size(tmp_path: Path, changes: dict[str, Any]) -> None:
    checkpoint = fdat(tmp_path / "fdat.safetensors", **changes)
    config = checkpoint.descriptor.config
    assert isinstance(config, FdatConfig)
    model = fdat_rd_graph(config, checkpoint.tensors(), None)
    for height, width in ((40, 48), (27, 35)):
        x = noise(height, width)
        assert off(run_onnxruntime(model, x), run_spandrel(checkpoint, x)) < 3e-5


def test_heads_are_filled_up_for_tensorrt_alone(small: Checkpoint) -> None:
    """54 channels are two heads of 27, or of 32."""
    for target, width in ((tensorrt_target("fp16"), 64), (tensorrt_target("fp32"), 54), (OPENVINO, 54)):
        shapes = [tuple(constant.dims) for constant in small.graph(16, 16, target).graph.initializer]
        biases = [shape for shape in shapes if len(shape) == 4 and shape[2:] == (64, 64)]
        assert len(biases) == 2
        assert (shapes.count((54, 64)) > 0) == (width == 64)


def test_large_takes_seconds_and_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = fdat(
        tmp_path / "large.safetensors", embed_dim=180, num_groups=4, depth_per_group=4, num_heads=6, window_size=8
    )
    monkeypatch.setattr(Checkpoint, "network", None)
    spent, model = [], onnx.ModelProto()
    for _ in range(2):  # the machine may be busy once
        start = time.process_time()
        model = checkpoint.graph(540, 720, tensorrt_target("fp16"))
        spent.append(time.process_time() - start)
    assert min(spent) < 6
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 3, 1080, 1440]
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_a_weight_beyond_half_precision_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from vsfdatrd.checkpoint import open_checkpoint

    tensors = load_file(fdat(tmp_path / "fdat.safetensors").path)
    tensors["groups.0.blocks.1.ffn.fc1.weight"][1, 2] = 1e5
    save_file(tensors, tmp_path / "large.safetensors")
    checkpoint = open_checkpoint(tmp_path / "large.safetensors")
    with pytest.raises(OverflowError, match="beyond the range of float16"):
        checkpoint.graph(16, 16, tensorrt_target("fp16"))
    checkpoint.graph(16, 16, tensorrt_target("bf16"))


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(
    ("precision", "target", "size"),
    [
        *((precision, "sm89", (104, 152)) for precision in ("fp16", "mixed", "bf16", "fp32")),
        ("fp16", "sm75", (104, 152)),
        ("fp16", "sm120", (101, 149)),  # windows over the edge, tokens in no parts
        ("fp16", "sm75", (101, 149)),
    ],
)
def test_tensorrt_builds_it(
    small: Checkpoint,
    tmp_path: Path,
    precision: Precision,
    target: str,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = EngineSpec(small, *size, precision)
    facts = engine.build_for(spec, tmp_path, RTX, [target])
    assert facts["targets"] == [target]
    estimate = engine.needed_bytes(spec)
    monkeypatch.setattr("vsfdatrd.backends.memory.activation_bytes", lambda *_: 0)
    estimate -= engine.needed_bytes(spec)
    assert 0.5 * facts["activation_bytes"] < estimate < 3 * facts["activation_bytes"]
    assert np.load(tmp_path / "reference.npy").shape == (3, 2 * size[0], 2 * size[1])
    engine.shutdown()
