"""Fixtures of the tests on a GPU: the GPU, networks, and their results on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.weights import weights_file
from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import Engine, FramePlanes, SlotPool
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.options import Options

if TYPE_CHECKING:
    import vapoursynth as vs

SIDES = (240, 300)

type Open = Callable[..., Engine]


@pytest.fixture(autouse=True, scope="session")
def _gpu() -> None:
    if not list_gpus():
        pytest.skip("there is no NVIDIA GPU here, or no driver for it")


@pytest.fixture(autouse=True, scope="session")
def _nobodys_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Use the catalog's models, without the user's aliases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FDATRD_MODELS", str(tmp_path_factory.mktemp("models") / "models.toml"))
        yield


@pytest.fixture(scope="session")
def medium(_nobodys_models: None, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The shipped weights with all branches active."""
    return open_checkpoint(weights_file("medium", tmp_path_factory.mktemp("medium"))[0])


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens engines of the test module's `BACKEND`, and closes them."""
    pools: list[SlotPool] = []

    def opener(checkpoint: Checkpoint, sides: tuple[int, int] = SIDES, **options: object) -> Engine:
        arguments = Options(model=str(checkpoint.path), backend=request.module.BACKEND, **options)  # type: ignore[arg-type]
        pools.append(selection.open_engine(checkpoint, *sides, arguments, EngineCache(tmp_path / "cache")))
        return pools[-1].engine

    yield opener
    for pool in pools:
        pool.engine.close()


@pytest.fixture(scope="module")
def cuda_kernels() -> None:
    """Skips tests if `backend="cuda"` does not run on this GPU."""
    from vsfdatrd.backends.cuda import backend as cuda

    if reason := cuda.unavailable():
        pytest.skip(reason)


def panned_clip(length: int) -> "vs.VideoNode":
    """RGBS clip of the drawing, 83×57, moved by five pixels a frame. Skips the test without VapourSynth."""
    pytest.importorskip("vapoursynth")
    import vapoursynth as vs

    blank = vs.core.std.BlankClip(width=83, height=57, format=vs.RGBS, length=length)

    def draw(n: int, f: "vs.VideoFrame | list[vs.VideoFrame]") -> "vs.VideoFrame":
        out = (f[0] if isinstance(f, list) else f).copy()
        for i, plane in enumerate(panned_picture(n)):
            np.copyto(np.asarray(out[i]), plane)
        return out

    return vs.core.std.ModifyFrame(blank, blank, draw)


def panned_picture(n: int) -> FramePlanes:
    """Frame n of `panned_clip`, (3, 57, 83)."""
    return np.roll(draw_line_art(57, 83), 5 * n, 2)


def run_on_cpu(checkpoint: Checkpoint, picture: FramePlanes) -> FramePlanes:
    """Run the network on a picture (3, H, W) in float32 on the CPU."""
    import torch

    with torch.inference_mode():
        result: FramePlanes = checkpoint.network()(torch.from_numpy(picture.copy())[None])[0].numpy()
    return result


def assert_disc_frame_agrees(opened: Open, checkpoint: Checkpoint) -> None:
    """Assert that an engine in fp16 agrees with the CPU for a whole frame of 720×540."""
    from tests.engines import run

    picture = draw_line_art(540, 720)
    result = run(opened(checkpoint, (540, 720), precision="fp16"), picture)
    assert check_psnr(run_on_cpu(checkpoint, picture), result, "fp16") >= 50


@pytest.fixture(scope="session")
def reference(medium: Checkpoint) -> FramePlanes:
    """The output of the shipped network for the drawing, computed on the CPU."""
    return run_on_cpu(medium, draw_line_art(*SIDES))
