"""Small networks of many architectures: OpenVINO gives what spandrel's own forward gives."""

from pathlib import Path

import pytest

pytest.importorskip("spandrel")

from benchmarks.architectures import NETWORKS, compare_with_spandrel, format_table, save_network
from vsfdatrd.archs.registry.base import ModelDescriptor

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning")]


@pytest.mark.parametrize(
    ("name", "scale", "multiple"),
    [
        ("Compact", 2, 1),
        ("ESRGAN", 4, 1),
        ("ESRGAN 2x", 2, 1),
        ("SPAN", 2, 1),
        ("SwinIR", 2, 1),
        ("HAT", 2, 1),
        ("DAT", 2, 1),
        ("RealCUGAN 3x", 3, 1),
        ("RealPLKSR", 2, 1),
        ("SAFMN", 2, 8),
        ("NAFNet", 1, 1),
        ("MoSR", 2, 1),
        ("RCAN", 2, 1),
        ("DRUNet", 1, 8),
        ("CRAFT", 2, 16),
        ("FFTformer", 1, 32),
    ],
)
def test_openvino_gives_what_spandrel_gives(tmp_path: Path, name: str, scale: int, multiple: int) -> None:
    checkpoint = save_network(name, tmp_path)
    about: ModelDescriptor = checkpoint.descriptor
    assert (about.scale, about.size.multiple_of, about.planes) == (scale, multiple, "rgb")
    (tmp_path / "engine").mkdir()
    result, deviation = compare_with_spandrel(checkpoint, tmp_path / "engine")
    assert deviation > 1e-3, "the network gives nothing, so nothing was compared"
    assert result <= 1e-4


def test_the_table_says_what_was_found() -> None:
    done = {
        "name": "A",
        "loads": "yes",
        "scale": 2,
        "multiple": 8,
        "minimum": 16,
        "square": True,
        "openvino": "yes",
        "difference": 2.5e-7,
        "fp16": "yes",
        "mixed": "no kernel",
        "fp32": "yes",
    }
    untraced = done | {"name": "B", "openvino": "X (B) cannot be written as a graph: no sort"}
    del untraced["difference"]
    text = format_table([done, untraced, {"name": "C", "loads": "it is | odd"}])
    assert "| A | yes | 2× | multiples of 8, 16 at least, square | 2e-07 | fp16, fp32 |" in text
    assert "| no: no sort |" in text
    assert "| C | no: it is / odd | | | | |" in text
    assert len(NETWORKS) > 30
