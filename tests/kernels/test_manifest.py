"""The compiled kernels: complete, up to date with their sources, small, and within the limits of every GPU."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from vsfdatrd.kernels import manifest
from vsfdatrd.kernels.manifest import CompiledKernel

KERNELS = list(manifest.load().kernels.values())
SHARED = 99 * 1024
"""Shared memory that a block can have on GeForce 30, 40 and 50."""
REGISTERS = 65536
"""Registers of a multiprocessor."""


def test_the_ptx_is_what_the_manifest_says() -> None:
    assert len(manifest.load().kernels) == len(KERNELS) == 6 * 27
    for kernel in KERNELS:
        text = manifest.read_ptx(kernel)
        assert hashlib.sha256(text).hexdigest() == kernel.sha256
        assert text.count(b".visible .entry") == 1
        assert f".visible .entry {kernel.entry}(".encode() in text
        assert f".target {manifest.load().target}\n".encode() in text
        # Two null pointers follow the arguments
        assert text.count(b".param .") == len(kernel.parameters) + 2
        assert b".loc" not in text
        assert b"/" + Path(__file__).parts[1].encode() + b"/" not in text, "a path of the machine that compiled it"


def test_every_network_has_the_same_kernels() -> None:
    found = manifest.load()
    names = {kernel.kernel for kernel in KERNELS}
    assert {key for key in found.kernels} == {
        (n, c, p) for n in names for c in (96, 128, 192) for p in ("fp16", "bf16")
    }
    assert found.of_network(128, "fp16")
    assert not found.of_network(64, "fp16")
    assert not found.of_network(128, "fp32")


def test_all_files_are_small_and_used() -> None:
    files = {path.name: path.stat().st_size for path in manifest.FOLDER.iterdir()}
    assert set(files) == {kernel.archive for kernel in KERNELS} | {manifest.FILE}
    assert sum(files.values()) < 2_000_000


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.kernel}-{kernel.channels}-{kernel.precision}")
def test_it_fits_every_card(kernel: CompiledKernel) -> None:
    assert not any(kernel.spills.values()), kernel.spills
    assert kernel.shared <= SHARED
    assert max(kernel.registers.values()) * kernel.threads <= REGISTERS


def test_the_manifest_is_up_to_date() -> None:
    """Run `python -m vsfdatrd.kernels.compile` after a change of the kernels or their tiles."""
    pytest.importorskip("triton")
    from vsfdatrd.kernels import catalog
    from vsfdatrd.kernels.compile import describe, hash_sources

    assert manifest.load().sources == hash_sources()
    variants = [each for c in catalog.CHANNELS for p in catalog.PRECISIONS for each in catalog.variants(c, p)]
    assert len(variants) == len(KERNELS)
    for variant in variants:
        kernel = manifest.load().kernels[variant.kernel, variant.channels, variant.precision]
        expected = describe(variant)
        assert {name: getattr(kernel, name) for name in expected} == expected | {"parameters": kernel.parameters}
        assert [list(each) for each in kernel.parameters] == expected["parameters"]


@pytest.mark.parametrize(
    "name",
    [
        "sum_products_conv_last",
        "refine_dictionary",
        "ffn_smix_fc2",
        "channel_attention_matrix",
        "conv_maps",
        "dysample",
    ],
)
def test_compiling_again_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    if triton.__version__ != manifest.load().triton:
        pytest.skip("another version of Triton")
    from vsfdatrd.kernels import catalog
    from vsfdatrd.kernels.compile import compile_variant

    for variable in ("TRITON_DISABLE_LINE_INFO", "TRITON_DEFAULT_FP_FUSION"):  # set when compiling, and undone here
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variant = next(each for each in catalog.variants(128, "fp16") if each.kernel == name)
    kernel = manifest.load().kernels[name, 128, "fp16"]
    ptx, shared = compile_variant(variant)
    assert hashlib.sha256(ptx).hexdigest() == kernel.sha256
    assert shared == kernel.shared


@pytest.mark.parametrize("name", ["window_attention", "ffn_smix_fc2", "conv_pixel_shuffle", "lda_attention"])
def test_ptxas_says_what_the_manifest_does(name: str) -> None:
    pytest.importorskip("triton")
    from vsfdatrd.kernels.compile import ARCHITECTURES, count_registers

    kernel = manifest.load().kernels[name, 128, "fp16"]
    try:
        found = {each: count_registers(manifest.read_ptx(kernel), each) for each in ARCHITECTURES}
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no ptxas that knows these architectures: {error}")
    assert {name: spills for name, (_, spills) in found.items()} == dict.fromkeys(ARCHITECTURES, 0)
    assert {name: registers for name, (registers, _) in found.items()} == kernel.registers
