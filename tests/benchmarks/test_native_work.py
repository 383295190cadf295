"""What the native kernels do in a frame, and how fast this machine could do it."""

from pathlib import Path

import pytest

from benchmarks import native_work
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.backends.native import backend
from vsfdatrd.checkpoint import open_checkpoint

pytestmark = pytest.mark.skipif(backend.unavailable() is not None, reason="the processor has no AVX2")


def test_all_products_are_counted(tiny_model: Path) -> None:
    checkpoint = open_checkpoint(tiny_model)
    config = checkpoint.descriptor.config
    assert isinstance(config, FdatRdConfig)
    rows = native_work.measure(checkpoint, 60, 60)
    assert {row["kernel"] for row in rows} - set(native_work.WORK) <= {"memorise", "between"}
    assert all(row["seconds"] > 0 for row in rows)
    # convolutions take fewer products; windows and the dictionary's queries are padded
    assert 0.5 < 2 * sum(row["macs"] for row in rows) / config.flops(60, 60) < 1.3
    known = {"macs_per_s": 1e11, "bytes_per_s": 1e10, "kernels": rows}
    assert f"{sum(row['macs'] for row in rows) / 1e9:.2f} GMAC" in native_work.format_table(known).splitlines()[-1]


def test_rates_are_those_of_a_processor() -> None:
    result = native_work.measure_ceilings()
    assert 1e9 < result["macs_per_s"] < 1e13
    assert 1e8 < result["bytes_per_s"] < 1e12
