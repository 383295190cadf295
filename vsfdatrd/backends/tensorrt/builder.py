"""Build an engine from a graph with either TensorRT library.

Runs in the worker process. `tensorrt_rtx` needs no GPU for it.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vsfdatrd.backends.tensorrt.library import Library
from vsfdatrd.errors import EngineBuildError

ENGINE_FILE = "engine.trt"
FACTS_FILE = "facts.json"
REFERENCE_FILE = "reference.npy"
"""File with the fp32 output for `accuracy.draw_line_art` as float16, stored with the engine for later verification."""
SKY_LEVELS_FILE = "sky.json"
"""File with `accuracy.count_levels` of `accuracy.draw_sky` in fp32 for the engine's width, also stored with the engine.
"""


def build_engine(
    library: Library, graph: Path, directory: Path, targets: Sequence[str], settings: dict[str, Any], log: Path
) -> dict[str, Any]:
    """Write `ENGINE_FILE` and `FACTS_FILE` into a directory.

    Args:
        library: The TensorRT to use.
        graph: An ONNX file.
        directory: The directory.
        targets: Kinds of GPU, such as ``sm89``.
        settings: See `Library.build_settings`; in addition, ``exact`` is true if TF32 must not be used for float32
            products, and ``detailed`` if `log` shall list every kernel with its tensors (TensorRT-RTX only).
        log: File to which all messages of the library are written.

    Returns:
        The facts: bytes of activations and of weights, seconds of the build, targets.

    Raises:
        EngineBuildError: The build failed; the message names `log`.
    """
    trt = library.load()
    start = time.monotonic()
    with contextlib.closing(create_logger(trt, log)) as trt_log:
        try:
            blob = _build(trt, trt_log, library, graph, targets, settings)
        except EngineBuildError as error:
            raise EngineBuildError(f"{error}; its full log is {log}") from error
    (directory / ENGINE_FILE).write_bytes(blob)
    facts = {
        "activation_bytes": trt_log.activation,
        "weights_bytes": trt_log.weights,
        "seconds": round(time.monotonic() - start, 2),
        "targets": list(targets),
    }
    (directory / FACTS_FILE).write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _build(
    trt: Any, trt_log: Any, library: Library, graph: Path, targets: Sequence[str], settings: dict[str, Any]
) -> Any:
    """Return the serialized engine of a graph; see `build_engine`."""
    builder = _create_builder(trt, trt_log)
    network = builder.create_network(library.network_flags(trt))
    parser = trt.OnnxParser(network, trt_log)
    if not parser.parse(graph.read_bytes()):
        errors = (parser.get_error(i) for i in range(parser.num_errors))
        messages = (": ".join(filter(None, (error.node_operator(), error.desc()))) for error in errors)
        reason = "; ".join(dict.fromkeys(messages))
        raise EngineBuildError(f"TensorRT does not read the network: {reason or trt_log.why()}")
    _allow_decomposition(trt, network)
    config = builder.create_builder_config()
    library.set_targets(trt, config, targets)
    library.require_user_allocation(trt, config)
    if settings.get("exact"):
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default; has the 10-bit mantissa of fp16
    if settings.get("detailed"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    with library.build_settings(config, settings):
        trt_log.errors.clear()  # such as those about a rejected timing cache, which cannot cause the build to fail
        blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise EngineBuildError(f"TensorRT could not build the network: {trt_log.why()}")
    return blob


def build_empty_engine(library: Library, targets: Sequence[str]) -> bytes:
    """Build an engine that does nothing, to ask whether a GPU could run one built with the settings of `build_engine`.

    Takes an instant.

    Args:
        library: The TensorRT to use.
        targets: Kinds of GPU, such as ``sm89``.

    Raises:
        EngineBuildError: The build failed.
    """
    trt = library.load()
    trt_log = create_logger(trt)
    builder = _create_builder(trt, trt_log)
    network = builder.create_network(library.network_flags(trt))
    layer = network.add_identity(network.add_input("input", trt.float32, (1, 1, 8, 8)))
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    library.set_targets(trt, config, targets)
    blob = builder.build_serialized_network(network, config)
    if blob is None:
        raise EngineBuildError(f"TensorRT could not build a network of one layer: {trt_log.why()}")
    return bytes(blob)


def _create_builder(trt: Any, trt_log: Any) -> Any:
    try:
        return trt.Builder(trt_log)
    except TypeError as error:  # the bindings raise it if creating the object failed
        raise EngineBuildError(f"TensorRT does not start: {trt_log.why()}") from error


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Allow attention without a fused kernel (with one head, for example) to be built from matrix products."""
    kind = getattr(trt.LayerType, "ATTENTION_INPUT", None) if hasattr(trt, "LayerType") else None
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:  # a build fails without this if there is no fused kernel
            layer.__class__ = trt.IAttentionInputLayer  # downcast, since get_layer returns the base class
            layer.attention.decomposable = True


def create_logger(trt: Any, path: Path | None = None) -> Any:
    """Create an ILogger that records errors and sizes, and optionally writes all messages to a file.

    Args:
        trt: The module.
        path: The file; None for none.
    """

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
            """Close the file; later messages are not written."""
            if self._file:
                self._file.close()

        def why(self) -> str:
            """Return the first error, which is the cause of the others."""
            return self.errors[0].strip().rstrip(".") if self.errors else "it does not say why"

    return Log()
