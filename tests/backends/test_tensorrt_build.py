"""Builds of the real TensorRT-RTX on a machine without a GPU, and differences between the two libraries."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.weights import weights_file
from vsfdatrd.backends import reference
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt import builder as tensorrt_build
from vsfdatrd.backends.tensorrt import library as tensorrt_library
from vsfdatrd.backends.tensorrt.library import RTX, TENSORRT, Library, choose_library, parse_target
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands import build as ahead
from vsfdatrd.errors import ArgumentError, EngineBuildError, EngineUnavailable
from vsfdatrd.options import Options, Precision

needs_rtx = pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")


def built(
    model: Path, cache: Path, *targets: str, size: tuple[int, int] = (90, 60), **options: Any
) -> list[ahead.BuiltEngine]:
    return ahead.build_for(Options(model=str(model), cache=cache, **options), *size, targets)


# ---- real builds -------------------------------------------------------------------------------------------------


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16", "mixed", "fp32"])
def test_every_kind_of_gpu_gets_an_engine(tiny_model: Path, tmp_path: Path, precision: str) -> None:
    targets = ("sm86", "8.9", "SM_120") + (("sm75",) if precision in ("fp16", "mixed") else ())
    result = built(tiny_model, tmp_path, *targets, precision=precision)
    assert len({engine.path for engine in result}) == len(targets)
    for engine in result:
        facts = json.loads((engine.path / "facts.json").read_text())
        assert facts["activation_bytes"] > 0
        assert (engine.path / "engine.trt").stat().st_size > 10000
        reference = np.load(engine.path / "reference.npy")
        assert (reference.shape, reference.dtype) == ((3, 120, 180), np.float16)
        assert np.isfinite(reference).all()
    files = [(engine.path / "engine.trt").stat() for engine in result]
    again = built(tiny_model, tmp_path, *targets, precision=precision)
    assert [engine.path for engine in again] == [engine.path for engine in result]
    kept = [(engine.path / "engine.trt").stat() for engine in again]
    assert [(file.st_ino, file.st_mtime_ns) for file in kept] == [(file.st_ino, file.st_mtime_ns) for file in files]


@needs_rtx
@pytest.mark.parametrize("target", ["sm75", "sm89", "sm120", "sm90"])
def test_the_smallest_engine_is_there_at_once(target: str, tmp_path: Path) -> None:
    """Also for a GPU that the library has no name for: what runs on all that it knows. Without one, none is fit."""
    code = (
        "from vsfdatrd.backends.tensorrt.builder import create_logger, build_empty_engine\n"
        "from vsfdatrd.backends.tensorrt.library import RTX\n"
        f"blob, said = build_empty_engine(RTX, [{target!r}]), create_logger(trt := RTX.load())\n"
        "print(len(blob), trt.Runtime(said).get_engine_validity(blob)[0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    size, validity = done.stdout.split()
    assert int(size) > 1000
    assert validity == "INVALID" or list_gpus()


@needs_rtx
def test_fp32_is_not_rounded(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT has TF32 products unless told otherwise, as precise as fp16."""
    configs: list[Any] = []

    class Watched(Library):
        def set_targets(self, trt: Any, config: Any, targets: Sequence[str]) -> None:
            super().set_targets(trt, config, targets)
            configs.append(config)

    def ask(what: str, *, how: dict[str, Any], log: str, graph: str, **_: Any) -> dict[str, Any]:
        watched, folder = Watched(*astuple(RTX)), tmp_path / spec.precision
        folder.mkdir()
        return tensorrt_build.build_engine(watched, Path(graph), folder, ["sm89"], how, Path(log))

    monkeypatch.setattr(tensorrt._standby, "ask", ask)
    monkeypatch.setattr(tensorrt, "_compute_reference", lambda *_: (b"", 0))
    precisions: tuple[Precision, ...] = ("mixed", "fp32")
    for precision in precisions:
        spec = EngineSpec(open_checkpoint(tiny_model), 60, 60, precision)
        tensorrt.build_for(spec, tmp_path, RTX, ["sm89"])
    flags = RTX.load().BuilderFlag
    assert [config.get_flag(flags.TF32) for config in configs] == [True, False]
    assert all(config.get_flag(flags.REQUIRE_USER_ALLOCATION) for config in configs), "CUDA graphs want that"


@pytest.mark.parametrize("error", [EngineUnavailable("tensorrt_rtx does not load"), KeyboardInterrupt()])
def test_a_build_that_does_not_fail_itself_leaves_no_log(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def ask(what: str, **_: Any) -> None:
        raise error

    monkeypatch.setattr(tensorrt._standby, "ask", ask)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    spec = EngineSpec(open_checkpoint(tiny_model), 60, 60, "fp16")
    (tmp_path / "engine").mkdir()
    with pytest.raises(type(error)):
        tensorrt.build_for(spec, tmp_path / "engine", RTX, ["sm89"])
    assert not list(tmp_path.glob("*.log"))


@needs_rtx
def test_the_reference_is_computed_once_for_all_kinds_of_gpu(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through, counted = reference.compute_reference, []

    def counting(graph: Path, target: Path, sky: Path) -> int:
        counted.append(target)
        return through(graph, target, sky)

    monkeypatch.setattr(reference, "compute_reference", counting)
    result = built(tiny_model, tmp_path, "sm86", "sm89", "sm120")
    assert len(counted) == 1
    assert len({(engine.path / "reference.npy").read_bytes() for engine in result}) == 1
    assert not [file for engine in result for file in engine.path.glob("*.onnx")]
    other = built(tiny_model, tmp_path, "sm89", size=(120, 60))[0]
    assert len(counted) == 2, "another size has another reference"
    assert np.load(other.path / "reference.npy").shape == (3, 120, 240)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "precision", "size"),
    [("sm86", "bf16", (720, 480)), ("sm120", "fp16", (720, 540))],
)
def test_the_shipped_weights_at_the_sizes_of_discs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, precision: str, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(tensorrt, "_compute_reference", lambda *_: (b"", 0))  # takes longer than everything else
    medium, _ = weights_file("medium", tmp_path)  # with all parts at work
    (engine,) = built(medium, tmp_path, target, size=size, precision=precision)
    facts = json.loads((engine.path / "facts.json").read_text())
    assert facts["activation_bytes"] < 500 << 20
    assert facts["seconds"] > 0


@needs_rtx
def test_the_command_line_builds(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vsfdatrd.cli", "build", "--model", str(tiny_model), "--size", "90x60"]
    done = subprocess.run(
        [*command, "--for", "sm89", "--cache", str(tmp_path)], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    assert "tensorrt_rtx" in done.stdout
    assert "sm89" in done.stdout
    for arguments, output in (
        (["--for", "sm61"], "'sm61' is older than TensorRT supports; the oldest is sm75"),
        (["--for", "nine"], "'nine' is not a compute capability"),
        (["--for", "sm75", "--precision", "bf16"], "sm75 (RTX 20) has no engines in bf16"),
        (["--for", "sm89", "--backend", "openvino"], "backend='openvino' has no engines for other GPUs"),
        (["--size", "720"], "'720' is not a size"),
    ):
        done = subprocess.run(
            [*command, *arguments, "--cache", str(tmp_path)], capture_output=True, text=True, timeout=250
        )
        assert done.returncode in (1, 2)
        assert output in done.stderr
        assert "Traceback" not in done.stderr


def test_the_command_line_builds_for_this_machine(tiny_model: Path, tmp_path: Path) -> None:
    result = ahead.build(Options(model=str(tiny_model), backend="openvino", cache=tmp_path), 83, 57)
    assert result.path.parent == tmp_path / "store-1/engines"
    assert result.description.startswith("openvino ")
    assert result.size > 1000


@needs_rtx
def test_weights_beyond_half_precision_are_an_error(
    make_tensors: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    tensors = make_tensors()
    tensors["groups.0.blocks.0.ffn.fc1.weight"][3, 4] = 7e4
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(EngineBuildError, match=r"cannot be computed in fp16: a weight of 7(\.\d+)?e\+04 is"):
        built(tmp_path / "large.safetensors", tmp_path / "cache", "sm89")
    assert not list((tmp_path / "cache").glob("store-1/engines/*"))
    assert built(tmp_path / "large.safetensors", tmp_path / "cache", "sm89", precision="bf16")


# ---- the two libraries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"), [("sm89", "sm89"), ("SM_120", "sm120"), ("8.6", "sm86"), ("12.0", "sm120"), ("75", "sm75")]
)
def test_kinds_of_gpu_are_read_as_people_write_them(text: str, target: str) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "sm", "ada", "sm7", "sm1234", "8,9", "sm70", "6.1"])
def test_what_is_no_kind_of_gpu(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"is not a compute capability|is older than TensorRT supports"):
        parse_target(text)


@pytest.mark.parametrize(
    ("capability", "both", "requested"),
    [
        ((8, 9), True, RTX),
        ((12, 0), True, RTX),
        ((7, 5), True, RTX),
        (None, True, RTX),
        ((9, 0), True, TENSORRT),
        ((8, 0), True, TENSORRT),
        ((10, 0), True, TENSORRT),
        ((9, 0), False, RTX),
    ],
)
def test_data_center_cards_prefer_their_own_library(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None, both: bool, requested: object
) -> None:
    there = {"tensorrt_rtx"} | ({"tensorrt"} if both else set())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace() if name in there else None)
    assert choose_library(capability) is requested
    there.clear()
    assert choose_library(capability) is None


def test_a_library_that_is_not_there() -> None:
    missing = tensorrt_library.Library("tensorrt_of_tomorrow", "rtx", portable=True)
    assert not missing.installed
    with pytest.raises(EngineUnavailable, match=r"tensorrt_of_tomorrow is not installed; pip install vsfdatrd\[rtx\]"):
        _ = missing.version
    with pytest.raises(EngineUnavailable, match="does not load"):
        missing.load()


class Config:
    """As both libraries' builder configurations are."""

    def __init__(self) -> None:
        self.builder_optimization_level = 3
        self.num_compute_capabilities = 0
        self.capabilities: list[int] = []
        self.timings = b""

    def set_compute_capability(self, capability: int, index: int) -> bool:
        self.capabilities.append(capability)
        return True

    def create_timing_cache(self, content: bytes) -> "Config | None":
        if content == b"damaged":
            return None
        self.timings = content
        return self

    def set_timing_cache(self, cache: object, ignore_mismatch: bool) -> bool:
        assert cache is self
        assert not ignore_mismatch, "timings of another GPU are none"
        return self.timings != b"of another GPU"

    def serialize(self) -> bytes:
        return self.timings + b"+"


def test_only_the_classic_library_is_tuned(tmp_path: Path) -> None:
    how = {"level": 5, "timings": str(tmp_path / "state/classic.timings")}
    for expected in (b"+", b"++"):
        config = Config()
        with TENSORRT.build_settings(config, how):
            assert config.builder_optimization_level == 5
        assert (tmp_path / "state/classic.timings").read_bytes() == expected
    config = Config()
    with RTX.build_settings(config, how):
        assert config.builder_optimization_level == 3
    assert (tmp_path / "state/classic.timings").read_bytes() == b"++"


@pytest.mark.parametrize("content", [b"damaged", b"of another GPU"])
def test_timings_that_are_not_taken_are_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "classic.timings"
    path.write_bytes(content)
    with TENSORRT.build_settings(Config(), {"timings": str(path)}):
        pass
    assert path.read_bytes() == b"+"


def test_only_the_portable_library_reserves_and_can_be_asked_for_graphs() -> None:
    asked: list[object] = []
    config = SimpleNamespace(set_flag=asked.append)
    trt = SimpleNamespace(BuilderFlag=SimpleNamespace(REQUIRE_USER_ALLOCATION="memory"))
    context = SimpleNamespace(is_stream_capturable=lambda stream: stream == 7)
    for library in (RTX, TENSORRT):
        library.require_user_allocation(trt, config)
    assert asked == ["memory"]
    assert [RTX.can_capture(context, stream) for stream in (7, 8)] == [True, False]
    assert TENSORRT.can_capture(object(), 8)


def test_only_the_portable_library_is_aimed() -> None:
    trt = SimpleNamespace(
        ComputeCapability=SimpleNamespace(SM86=86, SM89=89),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    for library, targets, expected in (
        (RTX, ["sm89"], [89]),
        (RTX, ["sm86", "sm89"], [86, 89]),
        (RTX, ["sm90"], []),
        (TENSORRT, ["sm89"], []),
    ):
        config = Config()
        library.set_targets(trt, config, targets)
        assert config.capabilities == expected
        assert config.num_compute_capabilities == len(expected)
    assert TENSORRT.network_flags(trt) == 2
    assert RTX.network_flags(trt) == 0
    assert TENSORRT.network_flags(SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())) == 0


def test_what_an_engine_is_for() -> None:
    assert RTX.target_name((8, 9), "NVIDIA GeForce RTX 4090") == "sm89"
    assert TENSORRT.target_name((9, 0), "NVIDIA H200") == "sm90 NVIDIA H200"
