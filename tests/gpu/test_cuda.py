"""The CUDA engine, of our own kernels, on a real NVIDIA GPU, against the network in float32 on the CPU."""

import numpy as np
import pytest

from tests.engines import run
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.options import Precision

from .conftest import SIDES, Open, assert_disc_frame_agrees

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_kernels")]

BACKEND = "cuda"
"""What the fixture `opened` opens."""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_it_computes_what_the_network_computes(
    opened: Open, medium: Checkpoint, reference: FramePlanes, precision: Precision
) -> None:
    psnr = check_psnr(reference, run(opened(medium, precision=precision), draw_line_art(*SIDES)), precision)
    print(f"{precision}: {psnr:.1f} dB")


def test_a_whole_disc_frame_in_fp16(opened: Open, medium: Checkpoint) -> None:
    """97,200 tokens: sums over the frame neither overflow nor drown."""
    assert_disc_frame_agrees(opened, medium)


def test_frames_in_flight_do_not_meet(opened: Open, medium: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    """And all launches are one CUDA graph."""
    engine = opened(medium, precision="fp16")
    assert "without a CUDA graph" not in capfd.readouterr().err
    pictures = [np.roll(draw_line_art(*SIDES), 31 * i, 2) for i in range(engine.slots)]
    alone = [run(engine, picture) for picture in pictures]
    for slot, picture in enumerate(pictures):
        np.copyto(engine.input(slot), picture)
        engine.submit(slot)
    for slot, expected in enumerate(alone):
        np.testing.assert_array_equal(engine.collect(slot), expected)
