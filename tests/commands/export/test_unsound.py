"""Exports that fail verification are deleted and leave existing files unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import save_file

from tests.commands.export.conftest import Array, Make, assert_refused
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE
from vsfdatrd.backends import accuracy
from vsfdatrd.commands import export as module
from vsfdatrd.commands.export import export
from vsfdatrd.errors import EngineBuildError
from vsfdatrd.options import Precision

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_that_fails_the_comparison(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    def compare(reference: Array, candidate: Array, what: str) -> float:
        raise EngineBuildError(f"the {what} engine agrees with fp32 to 12.3 dB only, 50 are needed.")

    monkeypatch.setattr(accuracy, "check_psnr", compare)
    assert_refused(
        EngineBuildError,
        rf"not kept: the exported {precision} engine agrees .* 12\.3 dB only, 50 are needed; choose",
        target,
        tiny_model,
        size=(60, 30),
        precision=precision,
    )
    assert export(tiny_model, target, size=(60, 30), precision=precision, verify=False).verified is None


@pytest.mark.parametrize("arguments", [{"size": (60, 30)}, {"size": (720, 540)}, {"dynamic": True}], ids=str)
def test_a_wrong_graph(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    """A network that is another by less than anyone could see is refused in fp32."""
    from vsfdatrd.graph import fdat

    write = fdat.write

    def wrong(config: Any, tensors: dict[str, Array], *rest: Any) -> onnx.ModelProto:
        return write(config, tensors | {"conv_after.weight": tensors["conv_after.weight"] * np.float32(1.0005)}, *rest)

    monkeypatch.setattr(fdat, "write", wrong)
    assert_refused(
        EngineBuildError,
        "its values differ by up to .* from PyTorch's, .* are allowed; choose another",
        target,
        tiny_model,
        **arguments,
    )


def test_a_graph_of_another_size(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = module._serialized_graph
    monkeypatch.setattr(module, "_serialized_graph", lambda a, shape, b, c: write(a, (30, 30), b, c))
    assert_refused(
        EngineBuildError, "not kept: ONNX Runtime does not run it .*; choose", target, tiny_model, size=(60, 30)
    )


def test_a_graph_that_crops_elsewhere(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vsfdatrd.graph.builder import Writer

    crop = Writer.crop
    monkeypatch.setattr(Writer, "crop", lambda g, x, axis, height, width: crop(g, x, axis, height - 1, width))
    assert_refused(EngineBuildError, "not kept: onnx rejects it .*output.*; choose", target, tiny_model, size=(61, 47))


def test_sums_beyond_fp16(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    """A real failure: weights that fit and values that do not."""
    tensors = make_tensors()
    tensors["conv_first.weight"] *= 6e4
    tensors["conv_first.bias"][:] = 6e4
    tensors["upsampler.0.weight"] /= 3e5
    save_file(tensors, model := tmp_path / "large.safetensors")
    assert_refused(
        EngineBuildError,
        "the exported fp16 engine's output has .* values that are not finite; choose another",
        target,
        model,
        size=(30, 30),
        precision="fp16",
    )
    assert export(model, target, size=(30, 30)).verified is not None


@pytest.mark.parametrize("suffix", ["onnx", "safetensors", "pth"])
def test_weights_beyond_fp16(make_tensors: Make, tmp_path: Path, target: Path, suffix: str) -> None:
    tensors = make_tensors()
    tensors["conv_after.weight"][0, 0, 0, 0] = -1e5
    save_file(tensors, model := tmp_path / "large.safetensors")
    assert_refused(
        EngineBuildError,
        r"large.safetensors' cannot be written in fp16: a weight of 1e\+05 .*range.*bf16 or fp32",
        target.with_suffix(f".{suffix}"),
        model,
        precision="fp16",
    )
    export(model, target.with_suffix(f".{suffix}"), precision="bf16", verify=suffix != "onnx")


def test_weights_beyond_bf16(make_tensors: Make, tmp_path: Path, target: Path) -> None:
    tensors = make_tensors()
    tensors["conv_after.weight"][0, 0, 0, 0] = np.finfo(np.float32).max
    save_file(tensors, model := tmp_path / "large.safetensors")
    assert_refused(
        EngineBuildError,
        r"in bf16: a weight of 3.4e\+38 in 'conv_after.weight' is beyond .*; write it in fp32",
        target.with_suffix(".pth"),
        model,
        precision="bf16",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"conv_after.weight": t["conv_after.weight"] * 2}, "its tensor 'conv_after.weight' has other v"),
        (lambda t: t | {"conv_first.bias": t["conv_first.bias"].astype(np.float16)}, "conv_first.bias' has other val"),
        (lambda t: {n: v for n, v in t.items() if n != "conv_after.weight"}, "it cannot be read back .*incomplete"),
        (lambda t: {f"x.{n}": v for n, v in t.items()} | {"y": t[META_UPSAMPLE]}, None),  # a prefix is no difference
    ],
)
def test_weights_that_do_not_read_back(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any], message: str | None
) -> None:
    write = module._to_safetensors
    monkeypatch.setattr(module, "_to_safetensors", lambda tensors, about: write(change(tensors), about))
    target = target.with_suffix(".safetensors")
    if message is None:
        export(tiny_model, target)
        return
    assert_refused(EngineBuildError, f"was not kept: .*{message}", target, tiny_model)
    export(tiny_model, target, verify=False)


def test_weights_in_another_precision_than_they_should_be(
    tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module._to_safetensors
    wide = {np.dtype(np.float16): np.float32}
    monkeypatch.setattr(
        module,
        "_to_safetensors",
        lambda tensors, about: write({n: v.astype(wide.get(v.dtype, v.dtype)) for n, v in tensors.items()}, about),
    )
    assert_refused(
        EngineBuildError,
        "it is identified as FDAT-RD 2x in fp32",
        target.with_suffix(".safetensors"),
        tiny_model,
        precision="fp16",
    )


def test_interrupted(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "draw_line_art", stop)
    target.write_bytes(b"what was there")
    with pytest.raises(KeyboardInterrupt):
        export(tiny_model, target, size=(30, 30))
    assert target.read_bytes() == b"what was there"
