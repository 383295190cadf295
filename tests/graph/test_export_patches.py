"""Replacements for functions that the exporter lacks give the same results."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch.nn import functional

pytest.importorskip("spandrel")

from benchmarks.architectures import save_network
from vsfdatrd.archs.registry.base import trace_checkpoint
from vsfdatrd.commands.export import export
from vsfdatrd.errors import EngineError
from vsfdatrd.graph.export_patches import ComplexPair, ExportPatches

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]
NORMS = (None, "backward", "ortho", "forward")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (5, 4), (1, 7), (3, 1)])
def test_transforms_there_and_back(height: int, width: int, norm: Any) -> None:
    x, gain = torch.randn(2, 3, height, width), torch.randn(3, 1, width // 2 + 1)
    waves = torch.fft.rfft2(x, norm=norm)
    expected = torch.fft.irfft2(waves * gain + waves * waves, s=(height, width), norm=norm)
    with ExportPatches():
        result: Any = torch.fft.rfft2(x, norm=norm)
        assert isinstance(result, ComplexPair)
        assert result.shape == waves.shape
        torch.testing.assert_close(torch.complex(result.real, result.imag), waves, atol=1e-5, rtol=1e-5)
        # gain first: PyTorch itself is given one of these
        mul: Any = torch.mul
        back = torch.fft.irfft2(mul(gain, result) + result * result, s=(height, width), norm=norm)
    torch.testing.assert_close(back, expected, atol=1e-4, rtol=1e-4)


def test_the_width_of_an_inverse_is_even_unless_said_otherwise() -> None:
    x = torch.randn(1, 4, 6)
    with ExportPatches():
        torch.testing.assert_close(torch.fft.irfft2(torch.fft.rfft2(x)), x, atol=1e-5, rtol=1e-5)


def test_what_is_not_known_is_an_error_and_not_another_number() -> None:
    x = torch.randn(1, 4, 6)
    with ExportPatches():
        waves = torch.fft.rfft2(x)
        for transform, given, to in (
            (torch.fft.rfft2, x, {"dim": (0, 1)}),
            (torch.fft.rfft2, x, {"s": (4, 4)}),
            (torch.fft.irfft2, waves, {"s": (4, 9)}),
        ):
            with pytest.raises(ValueError, match="has no graph"):
                transform(given, **to)
        with pytest.raises(TypeError, match="an inverse transform of Tensor cannot be written as a graph"):
            torch.fft.irfft2(x)
        with pytest.raises(TypeError):
            torch.exp(waves)


def test_sorting_in_a_graph_keeps_the_order_of_equals(tmp_path: Path) -> None:
    """ATD sorts places by their kind; ONNX Runtime does it as PyTorch, to a ten-thousandth of the result's spread."""
    checkpoint = save_network("ATD", tmp_path)
    exported = export(checkpoint.path, tmp_path / "atd.onnx", size=(64, 48))
    assert exported.verified is not None
    assert "TopK" in {node.op_type for node in onnx.load(tmp_path / "atd.onnx").graph.node}


def test_a_network_of_patches_is_left_to_pytorch(tmp_path: Path) -> None:
    """IPT's graph would have so many transformers as the frame has batches of patches."""
    checkpoint = save_network("IPT", tmp_path)
    with pytest.raises(
        EngineError, match=r"IPT.safetensors \(IPT\) cannot be written as a graph: it computes overlapping"
    ):
        trace_checkpoint(checkpoint, 48, 64)
    maps = torch.rand(1, 4, 6)
    with ExportPatches():
        torch.testing.assert_close(functional.fold(maps, (4, 6), 2, stride=2).sum(), maps.sum())
