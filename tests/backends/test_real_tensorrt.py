"""Our code and the fake GPU against the real TensorRT-RTX, on a machine without a GPU."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.tensorrt.builder import ENGINE_FILE, build_engine, create_logger
from vsfdatrd.backends.tensorrt.library import RTX, Library
from vsfdatrd.backends.tensorrt.worker import _check_validity
from vsfdatrd.errors import EngineBuildError, EngineError

from .apis import SURFACE, Use, differences, find, script, takes, uses

pytestmark = pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
without_gpu = pytest.mark.skipif(bool(list_gpus()), reason="there is a GPU, which tests/gpu is for")

# What names in our functions stand for.
ROOTS: dict[tuple[str, str], dict[str, str]] = {
    ("tensorrt/library.py", "network_flags"): {"trt": ""},
    ("tensorrt/library.py", "set_targets"): {"trt": "", "config": "IBuilderConfig"},
    ("tensorrt/library.py", "require_user_allocation"): {"trt": "", "config": "IBuilderConfig"},
    ("tensorrt/library.py", "build_settings"): {"config": "IBuilderConfig", "cache": "ITimingCache"},
    ("tensorrt/library.py", "create_context"): {
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "cache": "IRuntimeCache",
        "strategies": "CudaGraphStrategy",
    },
    ("tensorrt/library.py", "runtime_cache_bytes"): {"owners[1]": "IRuntimeCache"},
    ("tensorrt/library.py", "can_capture"): {"context": "IExecutionContext"},
    ("tensorrt/builder.py", "_create_builder"): {"trt": ""},
    ("tensorrt/builder.py", "_build"): {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
    },
    ("tensorrt/builder.py", "build_empty_engine"): {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "layer": "ILayer",
        "config": "IBuilderConfig",
    },
    ("tensorrt/builder.py", "_allow_decomposition"): {
        "trt": "",
        "network": "INetworkDefinition",
        "layer": "IAttentionInputLayer",
        "layer.attention": "IAttention",
    },
    ("tensorrt/builder.py", "create_logger"): {"trt": "", "severity": "ILogger.ERROR"},
    ("tensorrt/worker.py", "_check_validity"): {"trt": "", "runtime": "Runtime"},
    ("tensorrt/worker.py", "do_refusal_reason"): {"trt": ""},
    ("tensorrt/worker.py", "_create_context"): {"context": "IExecutionContext"},
}
DEVICE = {"trt": "", "self._runtime": "Runtime", "self._engine": "ICudaEngine", "self._context": "IExecutionContext"}
# Asked for by name, or read through a name of their own.
BESIDES = [
    Use(name, None, "by name")
    for name in (
        "LayerType.ATTENTION_INPUT",
        "IAttentionInputLayer.attention",
        "EngineInvalidityDiagnostics.__members__",
        "ComputeCapability.SM75",
        "ComputeCapability.SM86",
        "ComputeCapability.SM89",
        "ComputeCapability.SM120",
    )
]


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return RTX.load()


def ours() -> Iterator[Use]:
    for (file, function), roots in ROOTS.items():
        result = list(uses(file, roots, function))
        assert result, f"{function} asks for nothing of {roots}"
        yield from result
    yield from uses("tensorrt/worker.py", DEVICE)
    yield from BESIDES


def unfit(use: Use, library: ModuleType) -> str | None:
    """Describe what is wrong with our use of a name; None if nothing is."""
    try:
        result = find(library, use.name)
    except AttributeError:
        return f"{use.where}: {use.name} is not there"
    made = getattr(result, "__init__", None) if isinstance(result, type) else result
    if use.arguments is None or takes(made, use.arguments):
        return None
    return f"{use.where}: {use.name} does not take {use.arguments}"


def test_what_we_call_is_there_and_takes_what_we_give(trt: ModuleType) -> None:
    result = list(ours())
    assert len(result) > 50
    assert {"IExecutionContext.execute_async_v3", "Runtime.get_engine_validity"} <= {use.name for use in result}
    assert not list(filter(None, (unfit(use, trt) for use in result)))


def test_a_name_or_an_argument_that_is_not_there_is_noticed(trt: ModuleType) -> None:
    assert "is not there" in (unfit(Use("IExecutionContext.execute_async_v4", 1, "here"), trt) or "")
    assert "does not take 2" in (unfit(Use("IExecutionContext.execute_async_v3", 2, "here"), trt) or "")
    assert "does not take 0" in (unfit(Use("Runtime", 0, "here"), trt) or "")


def test_the_fake_is_like_it(trt: ModuleType) -> None:
    fake = script(SURFACE % "tensorrt_rtx", fake=True)
    assert {"Runtime.get_engine_validity", "IExecutionContext.set_tensor_address"} <= fake.keys()
    assert not differences(fake, trt)
    assert differences({"Runtime.get_engine_validity": [0, 0], "EngineValidity.VALID": 3}, trt) == [
        "Runtime.get_engine_validity takes [(1, 1)], not [0, 0]",
        "EngineValidity.VALID is 0, not 3",
    ]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real engine of a network that doubles."""
    folder = tmp_path_factory.mktemp("doubling")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("input", "output")]
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    graph = helper.make_graph([helper.make_node("Mul", ["input", "two"], ["output"])], "g", ends[:1], ends[1:], [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "graph.onnx")
    facts = build_engine(RTX, folder / "graph.onnx", folder, ["sm89"], {}, folder / "log")
    assert json.loads((folder / "facts.json").read_text()) == facts
    assert "Total Weights Memory: " in (folder / "log").read_text(), "sizes are read from sentences that are not said"
    return (folder / ENGINE_FILE).read_bytes()


@without_gpu
def test_what_it_says_of_engines_arrives(trt: ModuleType, engine: bytes) -> None:
    log = create_logger(trt)
    runtime = trt.Runtime(log)
    validity, diagnostics = runtime.get_engine_validity(engine)
    assert (validity, type(diagnostics)) == (trt.EngineValidity.INVALID, int)
    with pytest.raises(EngineError, match=r"the engine cannot run on this GPU: .*CUDA driver version is insufficient"):
        _check_validity(trt, runtime, engine, log)
    with pytest.raises(EngineError, match=r"the engine cannot run on this GPU: malformed engine$"):
        _check_validity(trt, runtime, b"no engine" * 100, log)
    assert runtime.deserialize_cuda_engine(engine) is None
    assert any("deserializeCudaEngine" in error for error in log.errors)


def test_it_is_told_to_reserve_its_memory(trt: ModuleType) -> None:
    log = create_logger(trt)
    config = trt.Builder(log).create_builder_config()
    assert not config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    RTX.require_user_allocation(trt, config)
    assert config.get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_a_file_that_is_no_graph_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineBuildError, match=r"TensorRT does not read the network: [^:;]+.*; its full log is"):
        build_engine(RTX, tmp_path / "graph.onnx", tmp_path, ["sm89"], {}, tmp_path / "log")


def test_bindings_that_give_nothing_are_a_sentence(trt: ModuleType, tmp_path: Path) -> None:
    """As those of both libraries do where the library cannot start: a TypeError, after words in the log."""

    def builder(log: Any) -> None:
        log.log(trt.ILogger.ERROR, "no CUDA here.")
        raise TypeError("factory function returned nullptr")

    class Broken(Library):
        def load(self) -> ModuleType:
            module = ModuleType("broken")
            vars(module).update(vars(trt) | {"Builder": builder})
            return module

    (tmp_path / "graph.onnx").write_bytes(b"")
    with pytest.raises(EngineBuildError, match="TensorRT does not start: no CUDA here; its full log is"):
        build_engine(
            Broken("broken", "rtx", portable=True), tmp_path / "graph.onnx", tmp_path, [], {}, tmp_path / "log"
        )


def test_shapes_are_numbers(trt: ModuleType) -> None:
    assert [int(side) for side in trt.Dims((1, 3, 540, 720))] == [1, 3, 540, 720]
