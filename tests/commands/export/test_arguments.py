"""Valid and invalid arguments of an export; errors come before any work and any heavy import."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.export.conftest import assert_refused
from vsfdatrd.commands import export as module
from vsfdatrd.commands.export import export
from vsfdatrd.errors import ArgumentError, CheckpointError, EngineUnavailable

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("x.bin", {}, r"x.bin' does not show its format; name it .onnx, .safetensors or .pth, or give format"),
        ("x", {}, "does not show its format"),
        ("x.onnx", {"format": "engine"}, "format='engine' is unknown; choose one of onnx, safetensors, pth"),
        ("x.onnx", {"precision": "int8"}, "precision='int8' is unknown; choose one of fp32, fp16, bf16"),
        ("x.onnx", {"precision": "mixed"}, "precision='mixed' is unknown"),
        ("x.pth", {"size": (720, 540)}, "size=720x540 does not apply to weights, .*; leave it out, or write .onnx"),
        ("x.pth", {"dynamic": True}, "dynamic=True does not apply to weights"),
        ("x.onnx", {"dynamic": True, "size": (60, 30)}, "size=60x30 contradicts dynamic=True, .*; give one of them"),
        ("x.onnx", {"size": (0, 30)}, "size=0x30 is out of range; give width and height in pixels, each 1 to 32,768"),
        ("x.onnx", {"size": (60, 10**20)}, "is out of range; .* for example 720x540"),
        ("x.onnx", {"size": (60.5, 30)}, "size=60.5x30 is out of range"),
        ("x.onnx", {"size": (15, 60)}, "size=15x60 is too small: .* multiples of 30, which takes 16 .*; give 16x60 or"),
        ("x.onnx", {"size": (60, 15)}, "size=60x15 is too small: .*; give 60x16 or larger"),
    ],
)
def test_what_cannot_be_asked_for(
    tiny_model: Path, target: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    assert_refused(ArgumentError, message, target.with_name(name), tiny_model, **arguments)


def test_the_smallest_size(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target, size=(16, 16)).verified is not None
    with pytest.raises(ArgumentError, match="too small"):
        export(tiny_model, target, size=(16, 15))


def test_models_that_are_not_there(target: Path, tmp_path: Path) -> None:
    assert_refused(ArgumentError, "model='medum' is neither .*; did you mean 'medium'", target, "medum")
    assert_refused(CheckpointError, "does not exist; check the path", target, tmp_path / "none.safetensors")


def test_without_onnxruntime(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxruntime" else 1)
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_checkpoint", None)  # it is said before any work
        assert_refused(
            EngineUnavailable,
            r"needs ONNX Runtime, .*: pip install 'vsfdatrd\[export\]', or .* \(--no-verify\)",
            target,
            tiny_model,
        )
    done = export(tiny_model, target, verify=False)
    assert (done.verified, done.unverified, done.psnr) == (None, "verification is turned off", None)
    assert export(tiny_model, target.with_suffix(".pth")).verified is not None


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "openvino", "vapoursynth", "ml_dtypes")
    code = f"import sys, vsfdatrd.commands.export; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
