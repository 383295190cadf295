"""Keys of cached engines, field by field: moving or renaming code must not make users build their engines again.

Where one of these changes on purpose (a new graph, another way of building), every user's engine of that kind is built
once more: say so in CHANGELOG.md.
"""

from pathlib import Path
from typing import Any

import pytest

from vsfdatrd.archs.onnx import OnnxConfig
from vsfdatrd.archs.registry import ARCHITECTURES
from vsfdatrd.backends import selection
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.cache.manifest import Key
from vsfdatrd.checkpoint import open_checkpoint

SMALL = Path(__file__).resolve().parents[2] / "models" / "fdat_rd_small_2x.safetensors"
KEYS = {
    "native": ("5", "any", "int16", "native 1.0", "a device", ""),
    "openvino": ("8", "240x240", "fp32", "openvino 1.0", "a device", "streams=auto"),
    "torch": ("network 2", "240x240", "fp32", "torch 1.0", "a device", ""),
    "cuda": ("2", "any", "fp16", "cuda 1.0", "a device", ""),
    "tensorrt": ("8.5", "240x240", "fp16", "tensorrt 1.0", "a device", ""),
}


class KeyRecorder:
    """A cache that records the first requested key and builds nothing."""

    key: Key | None = None

    def state(self, key: Key) -> None:
        return None

    def open(self, key: Key, *_: Any) -> None:
        self.key = key
        raise LookupError


@pytest.mark.parametrize("name", KEYS)
def test_keys_are_fixed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = selection.import_backend(name)
    monkeypatch.setattr(module, "version", lambda device: "1.0")
    monkeypatch.setattr(module, "device_name", lambda spec: "a device")
    monkeypatch.setattr(module, "memory_estimate", lambda spec: (0, 1))
    checkpoint = open_checkpoint(SMALL)
    graph, shape, precision, engine, device, options = KEYS[name]
    recorder = KeyRecorder()
    spec = EngineSpec(checkpoint, 240, 240, precision, (0,), None)  # type: ignore[arg-type]
    with pytest.raises(LookupError):
        selection._open_cached(name, module, spec, recorder)  # type: ignore[arg-type]
    assert recorder.key == Key(checkpoint.descriptor.sha256, graph, shape, precision, engine, device, options)


def test_graphs_of_every_architecture_keep_their_identity() -> None:
    ends = {"input": "in", "layout": "NCHW", "output": "out", "output_layout": "NHWC", "range": "255", "style": "s"}
    file = OnnxConfig(**ends, external="a=b", scale=4, multiple=2, largest=5)  # type: ignore[arg-type]
    result = {known.name: known.graph_identity(file) for known in ARCHITECTURES}  # only ONNX files look at it
    assert result == {
        "FDAT-RD": "",
        "FDAT": "",
        "ArtCNN": "foreign 4",
        "spandrel": "foreign 4",
        "ONNX": "foreign 4 82c23ee405ad7e23af043638b5d3e3fc",
    }
