"""GPU code of the PyTorch engine that can be tested without a GPU; tests/gpu has the rest."""

import inspect
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.torch import backend
from vsfdatrd.backends.torch import engine as engine_module
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError


class Memory:
    """Stands for the GPU memory of a slot."""


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each memory in `kept`, whether it was still alive when cached memory was released."""
    seen: list[bool] = []
    monkeypatch.setattr(engine_module, "release_cached_memory", lambda: seen.extend(ref() is not None for ref in kept))
    kept.clear()
    return seen


kept: list["weakref.ref[Memory]"] = []


def memory() -> Memory:
    made = Memory()
    kept.append(weakref.ref(made))
    return made


def test_what_a_failure_had_reserved_is_free_when_it_is_told(
    tiny_model: Path, tmp_path: Path, alive: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(spec: EngineSpec) -> None:
        pool = [memory(), memory()]
        raise RuntimeError(f"out of memory after {len(pool)} lanes")

    monkeypatch.setattr(backend, "_has_gpu", lambda: True)
    monkeypatch.setattr(engine_module, "CudaEngine", full)
    with pytest.raises(EngineError, match=r"for 90×60: out of memory after 2 lanes$"):
        backend.load(EngineSpec(open_checkpoint(tiny_model), 60, 90, "fp16"), tmp_path)
    assert alive == [False, False]


@pytest.mark.parametrize("broken", [False, True])
def test_closing_gives_everything_back_even_after_the_gpu_failed(alive: list[bool], broken: bool) -> None:
    waited = []

    def synchronize() -> None:
        waited.append(True)
        if broken:
            raise RuntimeError("unspecified launch failure")

    engine: Any = object.__new__(engine_module.CudaEngine)
    stream = SimpleNamespace(synchronize=synchronize)
    engine._closed, engine._slots = False, [SimpleNamespace(stream=stream, held=memory()) for _ in range(2)]
    engine.close()
    engine.close()
    assert alive == [False, False]
    assert len(waited) == (1 if broken else 2)
    with pytest.raises(EngineError, match="the engine is closed"):
        engine.submit(0)
    with pytest.raises(EngineError, match="the engine was closed before the frame was collected"):
        engine.collect(0)


def test_convolutions_in_fp32_are_not_rounded_and_others_are_left_alone() -> None:
    from torch.backends import cudnn

    before = cudnn.allow_tf32
    with engine_module.without_tf32("fp32"):
        assert (cudnn.allow_tf32, cudnn.enabled) == (False, True)
    assert cudnn.allow_tf32 == before
    with engine_module.without_tf32("fp16"):
        assert cudnn.allow_tf32 == before


def test_this_pytorch_takes_what_lanes_ask_for() -> None:
    import torch

    inspect.signature(torch.cuda.graph).bind(None, stream=None, capture_error_mode="thread_local")
    inspect.signature(torch.cuda.Event.__new__).bind(None, blocking=True)
    inspect.signature(torch.cuda.Stream.wait_stream).bind(None, None)
