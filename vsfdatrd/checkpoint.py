"""Open a weights file: descriptor, tensors, and the network as a PyTorch module.

`open_checkpoint` reads as little as possible: only the header of an FDAT-RD in .safetensors, without torch. Descriptors
are cached under the SHA-256 of the file (`DescriptorCache`), so opening any other file a second time needs no torch,
either.
"""

import logging
import time
from collections.abc import Collection, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vsfdatrd.archs.onnx import Range
from vsfdatrd.archs.registry import ARCHITECTURES, restore_descriptor
from vsfdatrd.archs.registry.base import Checkpoint as Checkpoint
from vsfdatrd.archs.registry.base import ModelDescriptor as ModelDescriptor
from vsfdatrd.archs.registry.base import TensorIndex
from vsfdatrd.errors import ArgumentError, CheckpointError, TrialError
from vsfdatrd.options import Options
from vsfdatrd.weights.catalog import resolve_model
from vsfdatrd.weights.files import WeightsFile, refusal, sha256
from vsfdatrd.weights.format import open_weights
from vsfdatrd.weights.state_dicts import StateDict, state_dicts

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

RETRY_SECONDS = 86400.0
"""Seconds for which a network whose trial timed out is not tried again."""


class DescriptorCache(Protocol):
    """Persistent cache of model descriptors, keyed by the SHA-256 of the file."""

    def get(self, sha256: str) -> Mapping[str, Any] | None:
        """Return the cached descriptor as plain values, or None."""

    def put(self, sha256: str, descriptor: Mapping[str, Any]) -> None:
        """Store a descriptor. Should not raise: if storing fails, the file is examined again next time."""


def open_checkpoint(
    path: str | PathLike[str],
    *,
    cache: DescriptorCache | None = None,
    any_channels: bool = False,
    multiple: int | None = None,
    input_range: Range | None = None,
) -> Checkpoint:
    """Identify and validate the network in a weights file.

    Args:
        path: A .safetensors or .pth file of an FDAT-RD, an ArtCNN (also .glsl) or another image network that spandrel
            supports, or an .onnx file.
        cache: Descriptor cache to use; None for no caching.
        any_channels: Also accept networks that do not map RGB to RGB or luma to luma.
        multiple: For an ONNX file that does not state it or states it wrongly: multiple in pixels that both sides of
            the input must have.
        input_range: For an ONNX file, likewise: value of white at the input.

    Returns:
        The checkpoint.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, or not a usable image network. The message is a sentence
            with the path, the reason and what to do.
        ArgumentError: `multiple` or `input_range` is given for a file that is not ONNX.
    """
    path = Path(path)
    digest = sha256(path)
    own = next((architecture for architecture in ARCHITECTURES if architecture.is_own_file(path)), None)
    if multiple or input_range:
        if own is None:
            option = f"multiple={multiple}" if multiple else f"input_range={input_range}"
            raise ArgumentError(
                f"{option} is for ONNX files that do not state it, and {path.name!r} is not one; leave it out"
            )
        cache = None  # the cache is keyed by the file, not by these arguments
    descriptor = _load_cached(cache, digest)
    if descriptor is None or descriptor.architecture.has_changed(path, descriptor.config):
        if cache is not None and (why := _recent_timeout(cache.get(digest))):
            raise refusal(path, why)
        try:
            if own is None:
                descriptor = _describe(path, digest)
            else:
                descriptor = ModelDescriptor(own, *own.describe_file(path, multiple, input_range), sha256=digest)
        except TrialError as error:
            if cache is not None:
                cache.put(digest, {"given_up": error.why, "at": time.time()})
            raise
        if cache is not None:
            cache.put(digest, descriptor.to_dict())
    config = descriptor.config
    channels = (config.in_channels, config.out_channels)
    if not any_channels and not config.accepts_chroma and channels not in ((3, 3), (1, 1)):
        raise refusal(
            path,
            f"is a network from {channels[0]} to {channels[1]} channels; only networks from RGB to RGB "
            "(3 to 3), or from luma to luma (1 to 1), can upscale a clip",
        )
    return Checkpoint(path, descriptor)


def open_requested(options: Options, cache: DescriptorCache) -> Checkpoint:
    """Open the model that the options of `upscale` name; see `open_checkpoint` for the errors.

    Args:
        options: The options.
        cache: Descriptor cache to use.
    """
    return open_checkpoint(
        resolve_model(options.model), cache=cache, multiple=options.multiple, input_range=options.input_range
    )


def load_model(model: str | PathLike[str]) -> "nn.Module":
    """Load the network in a weights file as a PyTorch module. Needs PyTorch.

    Hyper-parameters are derived from the tensors. An FDAT-RD is returned as `vsfdatrd.nn.fdat_rd.FdatRd` and can be
    trained further; other architectures are for inference only.

    Args:
        model: Name from the catalog, or path of a weights file.

    Returns:
        The module: float32, on the CPU, in evaluation mode. It maps (1, 3, H, W) in [0, 1] to (1, 3, H·scale, W·scale).

    Raises:
        CheckpointError: As for `open_checkpoint`.
    """
    return open_checkpoint(resolve_model(model), any_channels=True).network()


def _recent_timeout(plain: Mapping[str, Any] | None) -> str | None:
    """Return why the trial of a network failed, if that was within the last day; otherwise None.

    The text completes "the weights file X ...".
    """
    if plain is None or not isinstance(at := plain.get("at"), float) or not 0 <= time.time() - at < RETRY_SECONDS:
        return None
    return str(plain.get("given_up"))[:500]


def _load_cached(cache: DescriptorCache | None, digest: str) -> ModelDescriptor | None:
    if cache is None or (plain := cache.get(digest)) is None:
        return None
    try:
        descriptor = restore_descriptor(plain)
    except ValueError:  # written by another version
        return None
    return descriptor if descriptor.sha256 == digest else None


def _describe(path: Path, digest: str) -> ModelDescriptor:
    """Describe a file by its tensors."""
    file = open_weights(path, [architecture.open_own_format for architecture in ARCHITECTURES])
    if not any(entry.is_float for entry in file.entries.values()):
        raise refusal(path, "holds no weights; give a file saved from a trained network")
    candidates = state_dicts(file.entries)
    for with_torch in (False, True):
        wrong: CheckpointError | None = None
        for candidate in candidates:
            try:
                descriptor = _identify(path, file, candidate, digest, with_torch)
            except CheckpointError as error:
                wrong = wrong or error
                continue
            if descriptor is not None:
                _log_assumptions(path, candidate, candidates)
                return descriptor
        if wrong is not None:
            raise wrong
    some = ", ".join(sorted(next(iter(candidates)).names if candidates else file.entries)[:3])
    raise refusal(
        path,
        f"is not a known image network (its tensors are {some}, ...); "
        "give the weights of an FDAT-RD or of an architecture spandrel supports",
    )


def _identify(
    path: Path, file: WeightsFile, candidate: StateDict, digest: str, with_torch: bool
) -> ModelDescriptor | None:
    """Describe a state dict if it belongs to an architecture whose `needs_torch` equals `with_torch`; None otherwise.

    Raises:
        CheckpointError: It belongs to such an architecture, but its tensors are inconsistent.
    """
    as_stored = TensorIndex(path, file, candidate.names)
    for architecture in ARCHITECTURES:
        if architecture.needs_torch != with_torch:
            continue
        names = architecture.canonical_names(candidate.names)
        tensors = as_stored if names is candidate.names else TensorIndex(path, file, names)
        if architecture.detect(tensors):
            config = architecture.configure(tensors)
            dtype = "+".join(sorted({entry.dtype for entry in tensors.trained_entries.values() if entry.is_float}))
            parameters = architecture.parameters(config, tensors)
            return ModelDescriptor(architecture, config, parameters, dtype, digest, candidate.part)
    return None


def _log_assumptions(path: Path, chosen: StateDict, candidates: Collection[StateDict]) -> None:
    """Log which weights are used if a file contains several sets."""
    equivalents = [
        other for other in candidates if other.names.keys() == chosen.names.keys() and other.part != chosen.part
    ]
    if not equivalents:
        return
    others = ", ".join(repr(other.part) for other in equivalents[:3])
    if chosen.averaged:
        log.info("%s: the averaged weights %r are used; it also has %s", path.name, chosen.part, others)
    elif any(other.averaged for other in equivalents):
        log.warning("%s: the weights %r are used, as the averaged ones (%s) do not fit", path.name, chosen.part, others)
    else:
        log.info("%s: the weights %r are used; it also has %s", path.name, chosen.part, others)
