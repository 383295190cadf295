"""Export a model for other programs: as an ONNX graph, or as weights in another format and precision.

ONNX files are plain: one input, one output, operator set 20 (23 for bf16), no runtime-specific operators, so that
vs-mlrt's plugins (core.ort, core.ov, core.trt) run them. The target file is written only after verification.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vsfdatrd import __version__
from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands import export_check
from vsfdatrd.commands.export_check import verification_error
from vsfdatrd.commands.export_graph import graph_for_others, smallest_side
from vsfdatrd.errors import TORCH_INSTALL_COMMAND, ArgumentError, CheckpointError, EngineBuildError, EngineUnavailable
from vsfdatrd.options import Precision
from vsfdatrd.system.files import replace_file
from vsfdatrd.weights.catalog import CATALOG, resolve_model

type Format = Literal["onnx", "safetensors", "pth"]
type Array = NDArray[Any]

FORMATS: tuple[Format, ...] = ("onnx", "safetensors", "pth")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
DEFAULT_SIZE = (720, 540)
"""Default frame size of an ONNX graph: width and height in pixels."""
MAX_SIDE = 32768
"""Largest width and height of the frames of an ONNX graph, in pixels."""
MAX_CONSTANT_BYTES = 2**31 - 2**28
"""Limit for size-dependent constants in bytes: the size limit of an ONNX file, minus room for the weights."""

_NOT_REQUESTED = "verification is turned off"


@dataclass(frozen=True, slots=True)
class Exported:
    """An exported file and the result of its verification."""

    path: Path
    format: Format
    precision: Precision
    size: tuple[int, int] | None
    """Frame size of an ONNX graph, width and height in pixels; None for dynamic graphs and for weights."""
    bytes: int
    """Size of the file."""
    verified: str | None
    """How it was verified, phrased to follow "verified"; None if it was not."""
    unverified: str | None
    """Why it was not verified, phrased to follow "not verified:"; None if it was."""
    psnr: float | None = None
    """Lowest PSNR of an ONNX graph's output compared with PyTorch's in fp32, in dB for a peak of 1."""
    difference: float | None = None
    """Largest absolute difference between an ONNX graph's output and PyTorch's, for values in [0, 1]."""


def export(
    model: str | Path,
    target: Path,
    *,
    format: str | None = None,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    precision: Precision = "fp32",
    verify: bool = True,
) -> Exported:
    """Export a model. An existing file is replaced once the new one is complete and verified.

    Args:
        model: Name from the catalog, or path of a weights file.
        target: The file to write.
        format: ``onnx``, ``safetensors`` or ``pth``; None derives it from the target's suffix.
        size: Frame size (width, height) of an ONNX graph in pixels, `DEFAULT_SIZE` if None. The graph reflect-pads
            sizes that are not a multiple of the network's own and crops the result; sides must exceed half that
            multiple.
        dynamic: Write an ONNX graph for frames of any size (over half the multiple) instead; not for traced networks.
        precision: Precision the graph computes in, or the weights are stored in. The input and output of an ONNX graph
            are float32 in every precision, so its clip is RGBS: ``input`` (1, C, H, W) in [0, 1] to ``output``
            (1, C, H·scale, W·scale). ArtCNN graphs are for luma (1 channel) or chroma (3 channels to 2).
        verify: Compare an ONNX graph in ONNX Runtime with PyTorch (a large graph at a smaller size, see
            `Exported.verified`); read weights back. On a CPU, ONNX Runtime computes most fp16 operators internally in
            fp32: results beyond the fp16 range are detected, inaccurate sums that a GPU would compute in fp16 are not.
            It has no bf16 kernels for CPUs, so bf16 files are not verified, which `Exported.unverified` reports.

    Returns:
        The file and the result of its verification.

    Raises:
        ArgumentError: The request is invalid, or the target cannot be written.
        CheckpointError: The weights file cannot be used.
        EngineUnavailable: A library is missing.
        EngineError: The network cannot be written as a graph.
        EngineBuildError: A weight exceeds the range of the precision, or verification failed.
    """
    target = Path(target)
    kind = _choose_format(target, format)
    _check_arguments(kind, size, dynamic, precision)
    if kind == "onnx" and verify and (missing := _missing_packages("onnxruntime", "torch")):
        raise EngineUnavailable(
            f"verifying an ONNX file needs {missing}, not installed here: pip install 'vsfdatrd[export]', "
            "or do without verification (--no-verify)"
        )
    if kind == "pth" and (missing := _missing_packages("torch")):
        raise EngineUnavailable(
            f"writing a .pth file needs {missing}, not installed here: {TORCH_INSTALL_COMMAND}; "
            "or write a .safetensors file"
        )
    checkpoint = open_checkpoint(resolve_model(model), any_channels=kind != "onnx")
    if not checkpoint.descriptor.architecture.has_tensors:
        raise ArgumentError(f"model={str(checkpoint.path)!r} is an ONNX file already; use it as it is")
    provenance = _provenance(model, checkpoint, precision)
    with _replace_target(target, checkpoint.path) as temporary:
        if kind != "onnx":
            return _export_weights(checkpoint, target, temporary, kind, precision, provenance, verify)
        return _export_graph(checkpoint, target, temporary, size, dynamic, precision, provenance, verify)


def _missing_packages(*packages: str) -> str:
    """Return the display names of the packages that are not installed; empty if none is missing."""
    names = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
    return " and ".join(names[package] for package in packages if find_spec(package) is None)


def _choose_format(target: Path, value: str | None) -> Format:
    name = target.suffix.removeprefix(".").lower() if value is None else value.lower()
    if name in FORMATS:
        return name
    if value is None:
        raise ArgumentError(
            f"target={str(target)!r} does not show its format; name it .onnx, .safetensors or .pth, or give format"
        )
    raise ArgumentError(f"format={value!r} is unknown; choose one of {', '.join(FORMATS)}")


def _check_arguments(kind: Format, size: tuple[int, int] | None, dynamic: bool, precision: Precision) -> None:
    if precision not in PRECISIONS:
        raise ArgumentError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
    if kind != "onnx" and (dynamic or size is not None):
        value = "dynamic=True" if dynamic else f"size={_size_text(size)}"
        raise ArgumentError(f"{value} does not apply to weights, which fit every frame; leave it out, or write .onnx")
    if size is None:
        return
    if dynamic:
        raise ArgumentError(f"size={_size_text(size)} contradicts dynamic=True, a graph for any size; give one of them")
    if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in size):
        raise ArgumentError(
            f"size={_size_text(size)} is out of range; give width and height in pixels, each 1 to {MAX_SIDE:,}, "
            f"for example {_size_text(DEFAULT_SIZE)}"
        )


def _size_text(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size or ()))


def _provenance(model: str | Path, checkpoint: Checkpoint, precision: Precision) -> dict[str, str]:
    """Return the provenance metadata for a file. No paths and no dates: the same model gives the same file."""
    value = os.fspath(model)
    return {
        "model": value.lower() if value.lower() in CATALOG else checkpoint.path.name,
        "weights_sha256": checkpoint.descriptor.sha256,
        "scale": str(checkpoint.descriptor.scale),
        "precision": precision,
        "vsfdatrd": __version__,
    }


@contextmanager
def _replace_target(target: Path, source: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces the target when the block ends, or is deleted after an error.

    Raises:
        ArgumentError: The target cannot be written; raised before the block runs if that is known by then.
    """
    try:
        final = Path(os.path.realpath(target))  # replaces the link's target, not the link
        if not final.parent.is_dir():
            raise ArgumentError(
                f"target={str(target)!r} cannot be written: there is no directory {str(final.parent)!r}; create it"
            )
        if final.exists() and not final.is_file():
            raise ArgumentError(f"target={str(target)!r} is a directory or a device; give the path of a file")
        if final.exists() and final.samefile(source):
            raise ArgumentError(f"target={str(target)!r} is the model's own weights file; give the path of another")
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise _write_error(target, error) from error
    try:
        with replace_file(final, suffix="") as temporary:  # the format may differ from the name's suffix
            yield temporary
    except OSError as error:
        raise _write_error(target, error) from error


def _write_error(target: Path, error: Exception) -> ArgumentError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ArgumentError(f"target={str(target)!r} cannot be written ({reason}); give a path where you may write")


def _export_graph(
    checkpoint: Checkpoint,
    target: Path,
    temporary: Path,
    size: tuple[int, int] | None,
    dynamic: bool,
    precision: Precision,
    provenance: dict[str, str],
    verify: bool,
) -> Exported:
    size = None if dynamic else size or DEFAULT_SIZE
    if size is not None:
        _check_size(checkpoint.descriptor, size)
    shape = None if size is None else size[::-1]
    graph = _serialized_graph(checkpoint, shape, precision, provenance)
    temporary.write_bytes(graph)
    exported = Exported(target, "onnx", precision, size, len(graph), None, _NOT_REQUESTED)
    if not verify:
        return exported
    import onnxruntime

    export_check.check_structure(graph)
    session = export_check.open_session(temporary, precision)
    runtime = f"ONNX Runtime {onnxruntime.__version__}"
    if session is None:
        reason = f"{runtime} cannot compute {precision} on a CPU (its structure was checked)"
        return replace(exported, unverified=reason)
    trials = export_check.trial_sizes(checkpoint.descriptor, shape)
    sizes = " and ".join(f"{width}×{height}" for height, width in trials)
    if shape is not None and trials != [shape]:
        session = export_check.open_session(_serialized_graph(checkpoint, trials[0], precision, provenance), precision)
        sizes += ", with a smaller graph written in the same way"
    psnr, difference = export_check.compare_with_pytorch(checkpoint, session, trials, precision)
    result = f"PSNR {psnr:.1f} dB, largest difference {difference:.1g}"
    verified = f"in {runtime} against PyTorch at {sizes}: {result}"
    return replace(exported, verified=verified, unverified=None, psnr=psnr, difference=difference)


def _check_size(model: ModelDescriptor, size: tuple[int, int]) -> None:
    """Raise ArgumentError for frames that are too small for the network or too large for an ONNX file."""
    width, height = size
    padded_height, padded_width = model.size.padded(height, width)
    if padded_height >= 2 * height or padded_width >= 2 * width:
        smallest = smallest_side(model)
        w, h = (max(smallest, max(size) if model.size.square else side) for side in size)
        requirement = (
            f"{padded_width}×{padded_height}"
            if model.size.minimum or model.size.square
            else f"multiples of {model.size.multiple_of}"
        )
        raise ArgumentError(
            f"size={_size_text(size)} is too small: frames are mirrored up to {requirement}, which takes "
            f"{smallest} pixels a side; give {_size_text((w, h))} or larger"
        )
    if model.config.constant_bytes(height, width) > MAX_CONSTANT_BYTES:
        raise ArgumentError(
            f"size={_size_text(size)} is too large for this network, whose table of sampling positions would exceed "
            "the 2 GB that an ONNX file may have; give a smaller size and upscale in tiles"
        )


def _serialized_graph(
    checkpoint: Checkpoint, shape: tuple[int, int] | None, precision: Precision, provenance: dict[str, str]
) -> bytes:
    """Return the serialized graph for frames of shape (height, width), or of any size if None."""
    import onnx

    from vsfdatrd.backends.graphs import serialize

    try:
        model = graph_for_others(checkpoint, shape, precision)
    except OverflowError as error:
        raise _too_large_error(checkpoint, precision, str(error)) from error
    except ValueError as error:
        if shape is not None:
            raise
        raise ArgumentError(
            f"dynamic=True is not possible with model={str(checkpoint.path)!r}: {error}; give the size instead, for "
            f"example {_size_text(DEFAULT_SIZE)}"
        ) from error
    model.producer_version = __version__
    onnx.helper.set_model_props(model, provenance)
    return serialize(model)


def _too_large_error(checkpoint: Checkpoint, precision: Precision, reason: str) -> EngineBuildError:
    others = "bf16 or fp32" if precision == "fp16" else "fp32"
    return EngineBuildError(
        f"model={str(checkpoint.path)!r} cannot be written in {precision}: {reason}; write it in {others}"
    )


def _export_weights(
    checkpoint: Checkpoint,
    target: Path,
    temporary: Path,
    kind: Literal["safetensors", "pth"],
    precision: Precision,
    provenance: dict[str, str],
    verify: bool,
) -> Exported:
    rounded = {name: _convert_values(checkpoint, name, v, precision) for name, v in checkpoint.tensors().items()}
    data = _to_safetensors(rounded, provenance) if kind == "safetensors" else _to_pth(rounded)
    temporary.write_bytes(data)
    if verify:
        _verify_weights_file(temporary, checkpoint, rounded, precision)
    verified, unverified = ("by reading it back", None) if verify else (None, _NOT_REQUESTED)
    return Exported(target, kind, precision, None, len(data), verified, unverified)


def _convert_values(checkpoint: Checkpoint, name: str, values: Array, precision: Precision) -> Array:
    """Convert floating-point values to the precision; return others, such as indices, unchanged."""
    import ml_dtypes

    if values.dtype.kind != "f":
        return values
    types: dict[Precision, Any] = {"fp32": np.float32, "fp16": np.float16, "bf16": ml_dtypes.bfloat16}
    with np.errstate(over="ignore"):
        result: Array = values.astype(types[precision])
    if np.isinf(result.astype(np.float32)).any():
        largest = float(np.abs(values).max())
        raise _too_large_error(checkpoint, precision, f"a weight of {largest:.3g} in {name!r} is beyond its range")
    return result


def _to_safetensors(tensors: Mapping[str, Array], provenance: dict[str, str]) -> bytes:
    from safetensors.numpy import save

    # A single metadata entry, since the library writes several in random order.
    return save(dict(tensors), {"vsfdatrd": json.dumps(provenance)})


def _to_pth(tensors: Mapping[str, Array]) -> bytes:
    """Serialize as training programs do, under ``params_ema``; `torch.load(..., weights_only=True)` reads it."""
    from io import BytesIO

    import torch

    state = {
        # torch.from_numpy does not accept ml_dtypes' bfloat16
        name: torch.from_numpy(v.astype(np.float32)).bfloat16() if v.dtype.name == "bfloat16" else torch.from_numpy(v)
        for name, v in tensors.items()
    }
    buffer = BytesIO()  # torch.save to a file would write its name into the archive
    torch.save({"params_ema": state}, buffer)
    return buffer.getvalue()


def _verify_weights_file(path: Path, source: Checkpoint, tensors: Mapping[str, Array], precision: Precision) -> None:
    """Raise EngineBuildError unless the file holds these tensors and is detected as the same network."""
    try:
        reopened = open_checkpoint(path, any_channels=True)
        stored = reopened.tensors()
    except CheckpointError as error:
        raise verification_error(f"it cannot be read back ({error})") from error
    if stored.keys() != tensors.keys():
        name = min(stored.keys() ^ tensors.keys())
        raise verification_error(f"it does not have the same tensors ({name!r})")
    for name, values in tensors.items():
        is_half = values.dtype.itemsize == 2 and stored[name].dtype.kind == "f"
        expected = values.astype(np.float32) if is_half else values
        if stored[name].dtype != expected.dtype or not np.array_equal(stored[name], expected):
            raise verification_error(f"its tensor {name!r} has other values")
    before, after = source.descriptor, reopened.descriptor
    if replace(before, sha256=after.sha256, dtype=precision, part=after.part) != after:
        raise verification_error(f"it is identified as {after.name} {after.scale}x in {after.dtype}")
