"""TensorRT-RTX, as far as `vsfdatrd.engines` asks for it. An engine is JSON; it repeats every pixel of its input."""

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
    STRONGLY_TYPED = 1


class Network:
    def __init__(self):
        self.shapes, self.precision = {}, ""


class BuilderFlag:
    TF32 = object()


class Config:
    num_compute_capabilities = 0

    def __init__(self):
        self.targets = []

    def set_compute_capability(self, capability, index):
        self.targets.append(capability.name)

    def clear_flag(self, flag):
        assert flag is BuilderFlag.TF32


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return Network()

    def create_builder_config(self):
        return Config()

    def build_serialized_network(self, network, config):
        if settings.fails("build"):
            self.logger.log(ILogger.ERROR, "Error Code 9: the builder has no kernel for that.")
            self.logger.log(ILogger.ERROR, "and one error more")
            return None
        self.logger.log(ILogger.INFO, "Total Activation Memory: 12345 bytes")
        content = {"shapes": network.shapes, "precision": network.precision, "targets": config.targets}
        return json.dumps(content).encode()


class OnnxParser:
    num_errors = 1

    def __init__(self, network, logger):
        self.network = network

    def parse(self, data):
        import onnx

        if settings.fails("parse"):
            return False
        graph = onnx.load_model_from_string(data).graph
        for value in (*graph.input, *graph.output):
            self.network.shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
        kinds = {int(tensor.data_type) for tensor in graph.initializer}
        half = {onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16"}
        self.network.precision = next((name for kind, name in half.items() if kind in kinds), "fp32")
        norms = {node.input[1] for node in graph.node if node.op_type == "LayerNormalization"}
        full = any(t.name in norms and t.data_type == onnx.TensorProto.FLOAT for t in graph.initializer)
        if self.network.precision == "fp16" and full:
            self.network.precision = "mixed"
        return True

    def get_error(self, index):
        class Error:
            def desc(self):
                return "node 7 is a mystery"

            def node_operator(self):
                return "Gelu"

        return Error()


class Cache:
    def __init__(self):
        self.content = b""

    def deserialize(self, content):
        if settings.fails("rejected"):
            return False
        self.content = content
        return True

    def serialize(self):
        return self.content or b"kernels"


class RuntimeConfig:
    def create_runtime_cache(self):
        return Cache()

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class Runtime:
    def __init__(self, logger):
        self.logger = logger

    def get_engine_validity(self, blob):
        if settings.fails("invalid"):
            return EngineValidity.INVALID, 2
        return EngineValidity.VALID, 0

    def deserialize_cuda_engine(self, blob):
        if settings.fails("load"):
            self.logger.log(ILogger.ERROR, "the engine is not for this version.")
            return None
        return Engine(json.loads(bytes(blob)))


class Engine:
    device_memory_size_v2 = 12345

    def __init__(self, content):
        self.content = content

    def get_tensor_shape(self, name):
        return tuple(self.content["shapes"][name])

    def create_runtime_config(self):
        return RuntimeConfig()

    def create_execution_context(self, config=None):
        return Context(self)


class Context:
    frames = 0
    profiler = None

    def __init__(self, engine):
        self.engine = engine
        self.places = {}

    def set_tensor_address(self, name, address):
        self.places[name] = address
        return True

    def execute_async_v3(self, stream):
        stream = runtime._streams[stream]
        shapes, precision = self.engine.content["shapes"], self.engine.content["precision"]
        views = {}
        for name, shape in shapes.items():
            block = runtime._memory[self.places[name]]
            views[name] = np.frombuffer((ctypes.c_char * len(block)).from_buffer(block), np.float32).reshape(shape)
        scale = shapes["output"][2] // shapes["input"][2]

        def kernel():
            type(self).frames += 1
            if settings.fails("crash") and self.frames > 8:
                os._exit(11)
            if settings.fails("launch") and self.frames > 8:
                runtime.fail_from_now_on()
            np.copyto(views["output"], views["input"].repeat(scale, 2).repeat(scale, 3))
            if settings.fails(f"wrong-{precision}"):
                views["output"][...] += 0.02
            if settings.fails("nan"):
                views["output"][0, 0, 0, 0] = np.nan

        stream.put(kernel)
        if self.profiler and not settings.fails("silent"):
            for name, ms in (("conv_1", 1.0), ("attention_2", 3.0), ("conv_3", 1.5)):
                self.profiler.report_layer_time(name, ms)
        return True
