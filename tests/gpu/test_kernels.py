"""The CUDA engine, of our own kernels, on a real NVIDIA GPU, against the network in float32 on the CPU."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import compare, drawing
from vsfdatrd.backends.base import Engine, FramePlanes, SlotPool
from vsfdatrd.backends.cuda import backend as cuda
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.options import Options, Precision

from .conftest import SIDES, on_cpu

pytestmark = pytest.mark.gpu

type Open = Callable[..., Engine]


@pytest.fixture(autouse=True, scope="module")
def _kernels() -> None:
    if reason := cuda.unavailable():
        pytest.skip(reason)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens engines, and closes them."""
    pools: list[SlotPool] = []

    def opener(checkpoint: Checkpoint, sides: tuple[int, int] = SIDES, **options: object) -> Engine:
        asked = Options(model=str(checkpoint.path), backend="cuda", **options)  # type: ignore[arg-type]
        pools.append(selection.open_engine(checkpoint, *sides, asked, EngineCache(tmp_path / "cache")))
        return pools[-1].engine

    yield opener
    for pool in pools:
        pool.engine.close()


def run(engine: Engine, picture: FramePlanes, slot: int = 0) -> FramePlanes:
    np.copyto(engine.input(slot), picture)
    engine.submit(slot)
    return engine.collect(slot).copy()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_computes_what_the_network_computes(
    opened: Open, medium: Checkpoint, reference: FramePlanes, precision: Precision
) -> None:
    psnr = compare(reference, run(opened(medium, precision=precision), drawing(*SIDES)), precision)
    print(f"{precision}: {psnr:.1f} dB")


def test_a_whole_disc_frame_in_fp16(opened: Open, medium: Checkpoint) -> None:
    """97,200 tokens: sums over the frame neither overflow nor drown."""
    picture = drawing(540, 720)
    assert compare(on_cpu(medium, picture), run(opened(medium, (540, 720), precision="fp16"), picture), "fp16") >= 50


def test_frames_in_flight_do_not_meet(opened: Open, medium: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    """And all launches are one CUDA graph."""
    engine = opened(medium, precision="fp16")
    assert "without a CUDA graph" not in capfd.readouterr().err
    pictures = [np.roll(drawing(*SIDES), 31 * i, 2) for i in range(engine.slots)]
    alone = [run(engine, picture) for picture in pictures]
    for slot, picture in enumerate(pictures):
        np.copyto(engine.input(slot), picture)
        engine.submit(slot)
    for slot, expected in enumerate(alone):
        np.testing.assert_array_equal(engine.collect(slot), expected)
