"""Every tail of FDAT-RD with our own kernels on a real NVIDIA GPU, against the network in float32 on the CPU.

Not part of a visit to a GPU, which is too short for them.
"""

from pathlib import Path

import pytest
from safetensors.numpy import save_file

from tests.backends.tail_networks import TAILS, calmed, tail_network
from tests.engines import run
from vsfdatrd.archs.upsamplers import Upsampler
from vsfdatrd.backends.accuracy import check_psnr, draw_line_art
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.options import Precision

from .conftest import Open, run_on_cpu

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cuda_kernels")]

BACKEND = "cuda"
"""What the fixture `opened` opens."""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("upsampler", "scale"), TAILS)
def test_it_computes_what_the_network_computes(
    opened: Open, tmp_path: Path, upsampler: Upsampler, scale: int, precision: Precision
) -> None:
    config, tensors = tail_network(upsampler, scale)
    path = tmp_path / "network.safetensors"
    save_file(calmed(config, tensors), path)
    checkpoint, picture = open_checkpoint(path), draw_line_art(60, 90)
    output = run(opened(checkpoint, (60, 90), precision=precision), picture)
    assert check_psnr(run_on_cpu(checkpoint, picture), output, precision) >= 50
