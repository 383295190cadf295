"""Clamping, copying and checking planes in one pass: every bit pattern, shape, stride and compiler option."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from ctypes import c_int64
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from hatch_build import system_compiler
from vsfdatrd.errors import EngineUnavailable
from vsfdatrd.video import clamp
from vsfdatrd.video.clamp import Plane, WorstValue, clamp_add, clamp_copy

SOURCE = Path(clamp.__file__).parents[1] / "_native" / "clamp.c"
ZIG = [sys.executable, "-m", "ziglang", "cc"]


def strided(shape: tuple[int, int], padding: int = 0, offset: int = 0) -> Plane:
    """A plane of sevens with rows `padding` floats apart, starting at any float of a SIMD vector."""
    height, width = shape
    memory = np.full(offset + height * (width + padding), 7, np.float32)
    return memory[offset:].reshape(height, width + padding)[:, :width]


def any_bits(shape: tuple[int, int], seed: int = 0) -> Plane:
    """Floats of any bit pattern but infinities and NaN: subnormal, negative zero, huge."""
    bits = np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] = 0x80000000
    return bits.view(np.float32)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ctypes.CDLL]:
    """The C file compiled with given options, by ziglang (which is clang) if they begin with "zig"; once each."""

    @cache
    def library(options: str) -> ctypes.CDLL:
        folder = tmp_path_factory.mktemp("clamp")
        compiler = ZIG if options.startswith("zig ") else system_compiler() or ZIG
        flags = options.removeprefix("zig ").split()
        subprocess.run([*compiler, "-c", "-fPIC", *flags, SOURCE, "-o", folder / "clamp.o"], check=True)
        # Linked without the flags: with -ffast-math, gcc adds a function that makes the thread which loads the library
        # flush subnormal numbers to zero from then on, and later tests of the same process fail.
        subprocess.run([*compiler, "-shared", folder / "clamp.o", "-o", folder / "clamp.so"], check=True)
        result = ctypes.CDLL(str(folder / "clamp.so"))
        assert sys.float_info.min / 2, "subnormal numbers must stay"
        return result

    return library


@pytest.fixture(params=["installed", "-O0", "-O3 -ffast-math", "zig -O3 -ffast-math"])
def compiled(
    request: pytest.FixtureRequest, libraries: Callable[[str], ctypes.CDLL], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The functions of the plugin, and compiled again with fast-math options, which assume that there is no NaN."""
    if request.param == "installed":
        return

    def function(name: str) -> Callable[..., int]:
        result = libraries(request.param)[name]
        result.restype = c_int64
        return result

    monkeypatch.setattr(clamp, "_function", function)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("padding", [0, 1, 13])
def test_every_width_is_copied_and_nothing_beside_it(padding: int) -> None:
    for width in (*range(1, 20), 70):
        source, target = strided((3, width), padding), strided((3, width), padding + 2, offset=padding % 4)
        source[:] = any_bits((3, width), seed=width)
        assert clamp_copy(source, target) == WorstValue.FINITE
        np.testing.assert_array_equal(target, np.clip(source, 0, 1))
        assert target.base is not None
        beside = np.asarray(target.base).reshape(-1)
        assert np.count_nonzero(beside == 7) == beside.size - target.size, "what lies between rows is left alone"


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("value", "worst"),
    [
        (np.nan, WorstValue.NAN),
        (-np.nan, WorstValue.NAN),
        (np.uint32(0x7F800001).view(np.float32), WorstValue.NAN),
        (np.inf, WorstValue.INFINITE),
        (-np.inf, WorstValue.INFINITE),
        (np.finfo(np.float32).max, WorstValue.FINITE),
        (-np.finfo(np.float32).max, WorstValue.FINITE),
        (1e-45, WorstValue.FINITE),
    ],
)
def test_one_value_anywhere_is_found(value: float, worst: WorstValue) -> None:
    for place in [(0, 0), (1, 3), (2, 4), (2, 6), (0, 6)]:  # also in the last columns, which fill no vector
        source, target = np.full((3, 7), 0.5, np.float32), strided((3, 7))
        source[place] = value
        assert clamp_copy(source, target) == worst
        expected = source.copy()
        expected[place] = target[place] if np.isnan(value) else np.clip(value, 0, 1)
        np.testing.assert_array_equal(target, expected)
        assert 0 <= target[place] <= 1
        total = np.ones((3, 7), np.float32)
        assert clamp_add(source, total, np.ones((3, 1), np.float32), np.ones((1, 7), np.float32)) == worst
        np.testing.assert_array_equal(total, expected + 1)


def test_nan_outweighs_infinity() -> None:
    source = np.array([[np.nan, 0, 0, 0, 0, np.inf]], np.float32)
    for turned in (source, source[:, ::-1].copy()):
        assert clamp_copy(turned, strided((1, 6))) == WorstValue.NAN


@pytest.mark.usefixtures("compiled")
def test_weighted_tiles_are_added() -> None:
    random = np.random.default_rng(1)
    for width in (1, 4, 6, 70):
        source = random.uniform(-0.5, 1.5, (5, width)).astype(np.float32)
        target, before = strided((5, width), padding=3), random.random((5, width), np.float32)
        target[:] = before
        rows, columns = random.random((5, 1), np.float32), random.random((1, width), np.float32)
        assert clamp_add(source, target, rows, columns) == WorstValue.FINITE
        expected = before + np.clip(source, 0, 1) * rows * columns
        np.testing.assert_allclose(target, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("form", [vs.GRAYS, vs.RGBS, vs.YUV444PS])
@pytest.mark.parametrize("width", [64, 70])
def test_planes_of_vapoursynth_frames(form: vs.PresetVideoFormat, width: int) -> None:
    frame = vs.core.create_video_frame(vs.core.get_video_format(form), width, 30)
    for i in range(frame.format.num_planes):
        source = any_bits((30, width), seed=i)
        assert clamp_copy(source, np.asarray(frame[i])) == WorstValue.FINITE
        np.testing.assert_array_equal(np.asarray(frame[i]), np.clip(source, 0, 1))


def test_arrays_that_are_no_planes_are_refused() -> None:
    plane = np.zeros((4, 6), np.float32)
    pairs = [
        (plane, np.zeros((4, 5), np.float32)),
        (plane.astype(np.float64), plane),
        (plane[:, ::2], np.zeros((4, 3), np.float32)),
        (plane[0], plane[1]),
        (plane, np.broadcast_to(np.float32(0), (4, 6))),
        (plane, plane.T.copy().T),
    ]
    for source, target in pairs:
        with pytest.raises(ValueError, match="plane"):
            clamp_copy(source, target)
    with pytest.raises(ValueError, match="weights"):
        clamp_add(plane, plane.copy(), np.ones((4, 1), np.float32), np.ones((6, 1), np.float32))


def test_a_plugin_of_another_version_is_a_sentence() -> None:
    with pytest.raises(EngineUnavailable, match=r"not belong to this version of vsfdatrd .*; install vsfdatrd again"):
        clamp._function("fdatrd_not_there")


@pytest.mark.parametrize(
    "target", ["x86_64-windows-gnu", "x86_64-macos", "aarch64-macos", "aarch64-linux-gnu", "arm-linux-gnueabihf"]
)
def test_it_compiles_for_every_kind_of_machine(target: str, tmp_path: Path) -> None:
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([*ZIG, "-target", target, *strict, "-c", str(SOURCE), "-o", str(tmp_path / "clamp.o")], check=True)
