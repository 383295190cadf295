"""The tables of our CUDA kernels in docs/gpu_internals.md."""

import pytest

from benchmarks import kernels
from vsfdatrd.archs.fdat_rd import variant_config
from vsfdatrd.kernels import manifest


def test_the_page_has_the_tables() -> None:
    """Run `python -m benchmarks.kernels` after compiling the kernels."""
    [result] = kernels.MARKS.findall(kernels.PAGE.read_text(encoding="utf-8"))
    assert result == kernels.text()


def test_all_kernels_are_counted() -> None:
    needs = kernels.needs(variant_config("medium"))
    shown = "\n".join(kernels.table_of_kernels() + kernels.table_of_tails())
    assert all(f"`{name}`" in shown for name, _, _ in manifest.load().kernels)
    # 8 blocks of each kind: 4, 5 and 4 kernels, and the two of the feed-forward network in all of them
    assert sum(need.launches for need in needs.values()) == 8 * (4 + 5 + 4) + 24 * 2 + 4 + 4


def test_bytes_and_operations_of_a_tail() -> None:
    """One convolution of 128 channels to three planes, for which 16 columns are computed."""
    [(name, need)] = kernels.needs_of_tail(variant_config("medium", scale=1, unshuffle_mod=False), 30, 60)
    assert name == "conv_pixel_shuffle"
    matrix = 9 * 128 * 16
    assert need == kernels.Need(1, 1800 * (2 * 128 + 12) + 2 * matrix, 2 * 1800 * matrix)


def test_a_floor_is_the_larger_of_two_times() -> None:
    assert kernels.Need(1, 10**9, 10**9).floor("RTX 4090") == pytest.approx(10**9 / 1.008e12)
    assert kernels.Need(1, 10**3, 10**12).floor("RTX 4090") == pytest.approx(1 / 165.2)


def test_it_takes_no_arguments() -> None:
    with pytest.raises(SystemExit, match="no arguments"):
        kernels.main(["--help-me"])
