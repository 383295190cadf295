"""From a graph to an engine, with either TensorRT. Runs in the engine's process; `tensorrt_rtx` needs no GPU for it."""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsfdatrd.backends.tensorrt.library import Library
from vsfdatrd.errors import EngineBuildError

FILE = "engine.trt"
FACTS = "facts.json"
REFERENCE = "reference.npy"
"""What fp32 makes of `verify.drawing`, as float16: lies beside the engine, so that it can be verified again."""
SKY = "sky.json"
"""How many `accuracy.steps` fp32 leaves of `accuracy.sky` of the engine's width; beside it, too."""


def build(
    library: Library, graph: Path, directory: Path, targets: Sequence[str], how: dict[str, Any], log: Path
) -> dict[str, Any]:
    """Write `FILE` and `FACTS` into a directory. -> the facts: bytes for activations and weights, seconds, targets.

    graph: an ONNX file. targets: kinds of GPU, such as ``sm89``. how: see `Library.tune`; besides, `exact` is true
    where float32 products are to be nothing less. log: a file that everything the library says is written to.
    Raises EngineBuildError, naming that file.
    """
    trt = library.load()
    start = time.monotonic()
    with contextlib.closing(logger(trt, log)) as said:
        try:
            builder = trt.Builder(said)
        except TypeError as error:  # how its bindings say that they got none
            raise EngineBuildError(f"TensorRT does not start: {said.why()}; its full log is {log}") from error
        network = builder.create_network(library.network_flags(trt))
        parser = trt.OnnxParser(network, said)
        if not parser.parse(graph.read_bytes()):
            errors = (parser.get_error(i) for i in range(parser.num_errors))
            told = (": ".join(filter(None, (error.node_operator(), error.desc()))) for error in errors)
            why = "; ".join(dict.fromkeys(told))
            raise EngineBuildError(f"TensorRT does not read the network: {why or said.why()}; its full log is {log}")
        _allow_decomposition(trt, network)
        config = builder.create_builder_config()
        library.aim(trt, config, targets)
        library.reserve(trt, config)
        if how.get("exact"):
            config.clear_flag(trt.BuilderFlag.TF32)  # set by default: float32 products with the 10 bits of fp16
        with library.tune(config, how):
            said.errors.clear()  # such as of timings that were not taken, which are no cause of what follows
            blob = builder.build_serialized_network(network, config)
        if blob is None:
            raise EngineBuildError(f"TensorRT could not build the network: {said.why()}; its full log is {log}")
    (directory / FILE).write_bytes(blob)
    facts = {
        "activation_bytes": said.activation,
        "weights_bytes": said.weights,
        "seconds": round(time.monotonic() - start, 2),
        "targets": list(targets),
    }
    (directory / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    return facts


def smallest(library: Library, targets: Sequence[str]) -> bytes:
    """An engine that does nothing, made in an instant as `build` makes them: to ask whether one runs on a GPU at all.

    Raises EngineBuildError.
    """
    trt = library.load()
    said = logger(trt)
    try:
        builder = trt.Builder(said)
    except TypeError as error:
        raise EngineBuildError(f"TensorRT does not start: {said.why()}") from error
    network = builder.create_network(library.network_flags(trt))
    layer = network.add_identity(network.add_input("input", trt.float32, (1, 1, 8, 8)))
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    library.aim(trt, config, targets)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise EngineBuildError(f"TensorRT could not build a network of one layer: {said.why()}")
    return bytes(blob)


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let attention that has no kernel of its own (one head, say) be built from products: builds fail over it else."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None) if hasattr(trt, "LayerType") else None
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            layer.__class__ = trt.IAttentionInputLayer  # as the bindings have it: layers arrive as their base class
            layer.attention.decomposable = True


def logger(trt: Any, path: Path | None = None) -> Any:
    """An ILogger that remembers errors and sizes, and writes everything to a file if there is one."""

    class Log(trt.ILogger):  # type: ignore[misc]  # its base is known when TensorRT is loaded
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.activation = self.weights = 0
            self._file = path.open("w", encoding="utf-8") if path else None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            name, _, value = message.rpartition(" Memory: ")
            if name == "Total Activation":
                self.activation = int(value.split()[0])
            elif name == "Total Weights":
                self.weights = int(value.split()[0])
            if self._file and not self._file.closed:
                self._file.write(f"{severity.name}: {message}\n")
                self._file.flush()

        def close(self) -> None:
            """Close the file; what is said afterwards is not written."""
            if self._file:
                self._file.close()

        def why(self) -> str:
            """The first error, which is the cause of the others."""
            return self.errors[0].strip().rstrip(".") if self.errors else "it does not say why"

    return Log()
