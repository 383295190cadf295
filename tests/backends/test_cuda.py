"""The CUDA backend without its process: which machines and networks it supports, its memory, and what it remembers."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from tests.backends.cuda_network import FIELDS
from tests.conftest import tiny_tensors
from vsfdatrd.archs.fdat_rd import variant_config
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.backends import selection
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.cuda import backend as cuda
from vsfdatrd.backends.gpu.devices import Gpu
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineUnavailable, InsufficientMemory
from vsfdatrd.kernels import manifest


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the GPUs of the machine."""

    def setter(*result: Gpu) -> None:
        monkeypatch.setattr("vsfdatrd.backends.gpu.devices.list_gpus", lambda: result)

    return setter


def test_machines_that_cannot_run_it(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cuda_model: Path
) -> None:
    gpus()
    assert cuda.unavailable() == "there is no NVIDIA GPU here, or no driver for it"
    with pytest.raises(EngineUnavailable, match=r"backend='cuda' cannot be used here: there is no NVIDIA GPU"):
        selection.usable_backends("cuda", open_checkpoint(cuda_model))
    new, old = Gpu("RTX 4090", (8, 9)), Gpu("RTX 2080", (7, 5))
    gpus(new, old)
    assert cuda.unavailable((0,)) is None
    message = "RTX 2080 has compute capability 7.5, and the CUDA kernels need 8.0 or later"
    assert cuda.unavailable((0, 1)) == message
    manifest.load.cache_clear()
    monkeypatch.setattr(manifest, "FOLDER", Path("/nowhere"))
    assert cuda.unavailable() == "this installation lacks the compiled CUDA kernels; install vsfdatrd again"


def test_auto_does_not_take_it(gpus: Callable[..., None], cuda_model: Path) -> None:
    """It has never run on a GPU."""
    gpus(Gpu("RTX 4090", (8, 9)))
    names = [name for name, _ in selection.usable_backends("auto", open_checkpoint(cuda_model))]
    assert "cuda" not in names
    assert [name for name, _ in selection.usable_backends("cuda", open_checkpoint(cuda_model))] == ["cuda"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"embed_dim": 64, "heads": 2, "ffn_dim": 128}, "it has 64 channels, and there are kernels for 96, 128, 192"),
        ({"gate_dim": 40}, "its gates have 40 channels, and 32 are the most"),
    ],
)
def test_networks_that_it_cannot_run(
    gpus: Callable[..., None], tmp_path: Path, changes: dict[str, Any], message: str | None
) -> None:
    gpus(Gpu("RTX 4090", (8, 9)))
    path = tmp_path / "network.safetensors"
    save_file(tiny_tensors(**(FIELDS | changes)), path)
    checkpoint = open_checkpoint(path)
    assert cuda.unsupported_reason(checkpoint.descriptor) == message
    if message:
        with pytest.raises(
            EngineUnavailable,
            match=r"backend='cuda' cannot run 'network.safetensors': i.*; leave it out, or give tensorrt",
        ):
            selection.usable_backends("cuda", checkpoint)


@pytest.mark.parametrize("width", [60, 120])
def test_what_was_verified_is_not_verified_again(
    gpus: Callable[..., None], monkeypatch: pytest.MonkeyPatch, cuda_model: Path, tmp_path: Path, width: int
) -> None:
    gpus(Gpu("RTX 4090", (8, 9)))
    monkeypatch.setattr(cuda, "list_gpus", lambda: (Gpu("RTX 4090", (8, 9)),))
    (tmp_path / "verified.json").write_text('{"RTX 4090, driver 590, 60×60": 61.5}')
    known = {"contexts": 2, "fps": [10.0, 15.0]}
    (tmp_path / "contexts.json").write_text(json.dumps({"RTX 4090, driver 590, 60×60": known}))
    asked = []

    def ask(request: str, **arguments: Any) -> Any:
        asked.append(request)
        if request != "load":
            return 70.0
        assert (arguments["contexts"], arguments["rates"]) == ((2, [10.0, 15.0]) if width == 60 else (None, None))
        shapes = {"input": [3, 60, width], "output": [3, 120, 2 * width]}
        return shapes | {"slots": 3, "contexts": 2, "measured": None if width == 60 else [10.04, 15]}

    standby = SimpleNamespace(ask=ask, describe=lambda: {"driver": "590"}, detach=lambda: None)
    monkeypatch.setattr(cuda, "_standby", standby)
    monkeypatch.setattr(cuda, "RemoteEngine", lambda *_: None)
    cuda.load(EngineSpec(open_checkpoint(cuda_model), 60, width, "fp16", state=tmp_path), tmp_path)
    assert asked == (["load"] if width == 60 else ["load", "verify"])
    assert f"RTX 4090, driver 590, {width}×60" in json.loads((tmp_path / "verified.json").read_text())
    assert json.loads((tmp_path / "contexts.json").read_text())[f"RTX 4090, driver 590, {width}×60"] == known


def test_every_published_variant_has_kernels(cuda_model: Path) -> None:
    """With every tail, at every scale, with pixel unshuffle and without."""
    about = open_checkpoint(cuda_model).descriptor
    for name, scale, unshuffle in product(("small", "medium", "large"), (1, 2, 3, 4), (False, True)):
        for upsampler in UPSAMPLERS:
            if upsampler != "conv" or (scale == 1 and not unshuffle):
                config = variant_config(name, scale=scale, unshuffle_mod=unshuffle, upsampler=upsampler)
                assert cuda.unsupported_reason(replace(about, config=config)) is None


def test_memory_is_estimated_and_frames_beyond_32_bits_are_divided(
    cuda_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda._standby, "ask", lambda request, devices: [1 << 30 for _ in devices])
    spec = EngineSpec(open_checkpoint(cuda_model), 540, 720, "fp16", (0, 1))
    needed, free = cuda.memory_estimate(spec)
    assert free == 1 << 30
    few, _ = cuda.memory_estimate(replace(spec, streams=1))
    assert needed - few == 2 * 12 * 5 * 540 * 720
    tokens = 540 * 720 // 4
    assert needed > cuda.PROCESS_BYTES + tokens * 96 * (4 + 2 * 6)
    with pytest.raises(InsufficientMemory, match="a frame of 8400×6000 pixels") as caught:
        cuda.memory_estimate(replace(spec, height=6000, width=8400))
    assert caught.value.divide
