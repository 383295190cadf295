"""Simulation of TensorRT-RTX, as far as `vsfdatrd.backends` uses it. An engine is JSON and repeats every pixel."""

import ctypes
import json
import os
from enum import IntEnum

import fake_gpu_settings as settings
import numpy as np
from cuda.bindings import runtime

print("TensorRT says hello on stdout, as libraries do", flush=True)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = IntEnum(
        "Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0
    )


class IProfiler:
    pass


class ComputeCapability(IntEnum):
    SM75, SM80, SM86, SM89, SM120 = 75, 80, 86, 89, 120


class EngineValidity(IntEnum):
    VALID, SUBOPTIMAL, INVALID = 0, 1, 2


class EngineInvalidityDiagnostics(IntEnum):
    VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER = 1, 2, 4


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 0


float32 = "float32"


class ILayer:
    def get_output(self, index):
        return "tensor"


class INetworkDefinition:
    def __init__(self):
        self._shapes, self._precision = {}, ""

    def add_input(self, name, dtype, shape):
        return "tensor"

    def add_identity(self, input):
        return ILayer()

    def mark_output(self, tensor):
        assert tensor == "tensor"


class BuilderFlag(IntEnum):
    TF32, REQUIRE_USER_ALLOCATION = 6, 28


class IBuilderConfig:
    num_compute_capabilities = 0

    def __init__(self):
        self._targets, self._flags = [], {BuilderFlag.TF32}

    def set_compute_capability(self, compute_capability, index):
        self._targets.append(compute_capability.name)
        return True

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.remove(flag)


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags=0):
        return INetworkDefinition()

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        if settings.fails("build") and network._shapes:
            self.logger.log(ILogger.ERROR, "Error Code 9: the builder has no kernel for that.")
            self.logger.log(ILogger.ERROR, "and one error more")
            return None
        self.logger.log(ILogger.INFO, "Total Activation Memory: 12345 bytes")
        if network._shapes:
            print("TensorRT builds an engine", flush=True)
        content = {
            "shapes": network._shapes,
            "precision": network._precision,
            "targets": config._targets,
            "static": BuilderFlag.REQUIRE_USER_ALLOCATION in config._flags,
        }
        return json.dumps(content).encode()


class OnnxParser:
    num_errors = 1

    def __init__(self, network, logger):
        self._network = network

    def parse(self, model, path=None):
        import onnx

        if settings.fails("parse"):
            return False
        graph = onnx.load_model_from_string(model).graph
        for value in (*graph.input, *graph.output):
            self._network._shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
        kinds = {int(tensor.data_type) for tensor in graph.initializer}
        half = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
        self._network._precision = next((name for kind, name in half.items() if kind in kinds), "fp32")
        norms = {node.input[1] for node in graph.node if node.op_type == "LayerNormalization"}
        full = any(t.name in norms and t.data_type == onnx.TensorProto.FLOAT for t in graph.initializer)
        if self._network._precision == "fp16" and full:
            self._network._precision = "mixed"
        return True

    def get_error(self, index):
        class Error:
            def desc(self):
                return "node 7 is a mystery"

            def node_operator(self):
                return "Gelu"

        return Error()


class IRuntimeCache:
    def __init__(self):
        self._content = b""

    def deserialize(self, blob):
        if settings.fails("rejected"):
            return False
        self._content = blob
        return True

    def serialize(self):
        if settings.fails("uncached"):
            return None
        return self._content or b"kernels"


class CudaGraphStrategy(IntEnum):
    DISABLED, WHOLE_GRAPH_CAPTURE = 0, 1


class IRuntimeConfig:
    cuda_graph_strategy = CudaGraphStrategy.DISABLED

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return not settings.fails("nocache")


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def get_engine_validity(self, buffer):
        if settings.fails("invalid"):
            return EngineValidity.INVALID, 2
        if settings.fails("unreadable"):
            self.logger.log(ILogger.INTERNAL_ERROR, "the GPU's properties cannot be read.")
            return EngineValidity.INVALID, 0
        return EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, serialized_engine):
        if settings.fails("load"):
            self.logger.log(ILogger.ERROR, "the engine is not for this version.")
            return None
        return ICudaEngine(json.loads(bytes(serialized_engine)), self.logger)


class ICudaEngine:
    device_memory_size_v2 = settings.ACTIVATIONS

    def __init__(self, content, logger):
        self._content, self._logger = content, logger

    def get_tensor_shape(self, name):
        return tuple(self._content["shapes"][name])

    def create_runtime_config(self):
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config=None):
        short = runtime._free() < self.device_memory_size_v2
        if short or (settings.fails("second") and runtime._contexts[runtime._device()]):
            self._logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory (no further information).")
            return None
        return IExecutionContext(self, runtime_config.cuda_graph_strategy if runtime_config else 0)


class IExecutionContext:
    profiler = None

    def __init__(self, engine, own_graph):
        self._engine, self._places, self._frames, self._own_graph = engine, {}, 0, own_graph
        self._device = runtime._device()
        runtime._contexts[self._device] += 1

    def __del__(self):
        runtime._contexts[self._device] -= 1

    def set_tensor_address(self, name, memory):
        self._places[name] = memory
        return not settings.fails("address")

    def is_stream_capturable(self, stream):
        return self._engine._content["static"] and not settings.fails("dynamic")

    def execute_async_v3(self, stream_handle):
        stream = runtime._streams[stream_handle]
        shapes, precision = self._engine._content["shapes"], self._engine._content["precision"]
        views = {}
        for name, shape in shapes.items():
            _, block = runtime._memory[self._places[name]]
            views[name] = np.frombuffer((ctypes.c_char * len(block)).from_buffer(block), np.float32).reshape(shape)
        scale = shapes["output"][2] // shapes["input"][2]
        replayed = stream.captured is not None

        def kernel():
            self._frames += 1
            if settings.fails("crash") and self._frames > 8:
                os._exit(11)
            if settings.fails("launch") and self._frames > 8:
                runtime._fail_from_now_on()
            if settings.MILLISECONDS is not None and views["output"].nbytes > settings.MOST_MOVED:
                return
            np.copyto(views["output"], views["input"].repeat(scale, 2).repeat(scale, 3))
            if (
                settings.fails(f"wrong-{precision}")
                or (replayed and settings.fails("replay"))
                or (self._own_graph and settings.fails("own-replay"))
            ):
                views["output"][...] += 0.02
            if settings.fails("nan"):
                views["output"][0, 0, 0, 0] = np.nan

        stream.put(kernel, "kernels", (settings.MILLISECONDS or 0) / 1000)
        if self.profiler and not settings.fails("silent"):
            for name, ms in (("conv_1", 1.0), ("attention_2", 3.0), ("conv_3", 1.5)):
                self.profiler.report_layer_time(name, ms)
        return True
