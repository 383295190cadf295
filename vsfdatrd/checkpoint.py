"""Open a weights file: descriptor, tensors, and the network as a PyTorch module.

`open_checkpoint` reads as little as possible: only the header of an FDAT-RD in .safetensors, without torch. Descriptors
are cached under the SHA-256 of the file (`DescriptorCache`), so opening any other file a second time needs no torch,
either.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vsfdatrd.archs import artcnn as artcnn_config
from vsfdatrd.archs import fdat as fdat_config
from vsfdatrd.archs.descriptor import FDAT, FDAT_RD
from vsfdatrd.archs.descriptor import ModelDescriptor as ModelDescriptor
from vsfdatrd.archs.fdat_rd import META, FdatRdConfig, from_shapes, is_fdat_rd
from vsfdatrd.archs.fdat_shapes import fdat_from_shapes, is_buffer, tensor_shapes
from vsfdatrd.archs.onnx import OnnxConfig, Range
from vsfdatrd.errors import ArgumentError, CheckpointError, TrialError
from vsfdatrd.weights.catalog import resolve
from vsfdatrd.weights.files import Array, Entry, WeightsFile, is_onnx, refuse, require_torch, sha256
from vsfdatrd.weights.format import open_weights
from vsfdatrd.weights.state_dicts import StateDict, find, state_dicts

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)

DAY = 86400.0
"""Seconds for which a network whose trial timed out is not tried again."""


class DescriptorCache(Protocol):
    """Persistent cache of model descriptors, keyed by the SHA-256 of the file."""

    def recall(self, sha256: str) -> Mapping[str, Any] | None:
        """Return the cached descriptor as plain values, or None."""
        ...

    def remember(self, sha256: str, description: Mapping[str, Any]) -> None:
        """Store a descriptor. Should not raise: if storing fails, the file is examined again next time."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file that has been identified and validated. Holds neither an open file nor tensors."""

    path: Path
    description: ModelDescriptor

    def tensors(self) -> dict[str, Array]:
        """Read every tensor from the file.

        Returns:
            Tensors by the network's own names: weights as float32, integer buffers as stored.

        Raises:
            CheckpointError: The file has changed since it was opened, or contains values that are not finite.
        """
        self.check_unchanged()
        file = open_weights(self.path)
        found = find(file.entries, self.description.part)
        if found is None:
            raise refuse(self.path, "was changed while it was in use; run the script again")
        return dict(file.read(own_names(found.names)))

    def network(self) -> "nn.Module":
        """Build the network with its weights as a PyTorch module.

        Returns:
            A new module at every call: float32, on the CPU, in evaluation mode.
            It maps (1, in_channels, H, W) in [0, 1] to (1, out_channels, H·scale, W·scale).

        Raises:
            CheckpointError: As for `tensors`; also for an ONNX file, and if PyTorch is missing.
        """
        if self.description.onnx is not None:
            raise refuse(self.path, "is an ONNX file, which is no PyTorch module; use another engine")
        require_torch(self.path, "can be described without it, but running it as a module")
        import torch

        tensors = self.tensors()
        about = self.description
        network: nn.Module
        if about.config is not None:
            from vsfdatrd.nn.fdat_rd import FdatRd

            network = FdatRd(about.config)
        elif about.artcnn is not None:
            from vsfdatrd.nn.artcnn import ArtCnn

            network = ArtCnn(about.artcnn)
        else:
            from vsfdatrd.nn.spandrel_network import load

            return load(self.path, tensors)
        network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
        return network.eval()

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file has changed since it was opened."""
        if sha256(self.path) != self.description.sha256:
            raise refuse(self.path, "was changed while it was in use; run the script again")


def open_checkpoint(
    path: str | PathLike[str],
    *,
    memory: DescriptorCache | None = None,
    any_channels: bool = False,
    multiple: int | None = None,
    input_range: Range | None = None,
) -> Checkpoint:
    """Identify and validate the network in a weights file.

    Args:
        path: A .safetensors or .pth file of an FDAT-RD, an ArtCNN (also .glsl) or another image network that spandrel
            supports, or an .onnx file.
        memory: Descriptor cache to use; None for no caching.
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
    if is_onnx(path) and (multiple or input_range):
        memory = None  # the cache is keyed by the file, not by these arguments
    description = _recall(memory, digest)
    if description is None or (description.onnx is not None and _moved(path, description.onnx)):
        if memory is not None and (why := _given_up(memory.recall(digest))):
            raise refuse(path, why)
        try:
            description = _describe(path, digest, multiple, input_range)
        except TrialError as error:
            if memory is not None:
                memory.remember(digest, {"given_up": error.why, "at": time.time()})
            raise
        if memory is not None:
            memory.remember(digest, description.to_dict())
    if description.onnx is None and (multiple or input_range):
        what = f"multiple={multiple}" if multiple else f"input_range={input_range}"
        raise ArgumentError(
            f"{what} is for ONNX files that do not say it themselves, and {path.name!r} is none; leave it out"
        )
    channels = (description.in_channels, description.out_channels)
    known = description.artcnn or description.onnx  # checked elsewhere; they may be chroma networks
    if not any_channels and not known and channels not in ((3, 3), (1, 1)):
        raise refuse(
            path,
            f"is a network from {channels[0]} to {channels[1]} channels; only networks from RGB to RGB "
            "(3 to 3), or from luma to luma (1 to 1), can upscale a clip",
        )
    return Checkpoint(path, description)


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
    return open_checkpoint(resolve(model), any_channels=True).network()


def own_names(names: Mapping[str, str]) -> dict[str, str]:
    """Map the tensor names used by the network here to the names in the file.

    Args:
        names: Names as in `StateDict.names`.

    Returns:
        Network's name -> name in the file.
    """
    artcnn = artcnn_config.own_names(names)
    return dict(names) if artcnn is None else {own: names[name] for own, name in artcnn.items()}


def _given_up(plain: Mapping[str, Any] | None) -> str | None:
    """Reason why the trial of a network failed within the last day, completing "the weights file X ..."; otherwise
    None.
    """
    if plain is None or not isinstance(at := plain.get("at"), float) or not 0 <= time.time() - at < DAY:
        return None
    return str(plain.get("given_up"))[:500]


def _recall(memory: DescriptorCache | None, digest: str) -> ModelDescriptor | None:
    if memory is None or (plain := memory.recall(digest)) is None:
        return None
    try:
        description = ModelDescriptor.from_dict(plain)
    except ValueError:  # written by another version
        return None
    return description if description.sha256 == digest else None


def _moved(path: Path, ends: OnnxConfig) -> bool:
    """Return whether external data of an ONNX file has changed since the file was described."""
    if not ends.external:
        return False
    from vsfdatrd.archs.onnx_checks import changed

    return changed(path, ends)


def _describe(path: Path, digest: str, multiple: int | None, input_range: Range | None) -> ModelDescriptor:
    if is_onnx(path):
        return _probed(path, digest, multiple, input_range)
    file = open_weights(path)
    if not any(entry.is_float for entry in file.entries.values()):
        raise refuse(path, "holds no weights; give a file saved from a trained network")
    candidates = state_dicts(file.entries)
    found: ModelDescriptor | None = None
    wrong: CheckpointError | None = None
    for candidate in candidates:
        try:
            found = _written(path, file, candidate, digest)
        except CheckpointError as error:
            wrong = wrong or error
        if found is not None:
            _tell(path, candidate, candidates)
            return found
    if wrong is not None:
        raise wrong
    require_torch(path, "is not an FDAT-RD; telling what it is")
    return _of_spandrel(path, file, candidates, digest)


def _common(
    file: WeightsFile, candidate: StateDict, digest: str
) -> tuple[dict[str, str], dict[str, Entry], Callable[..., ModelDescriptor]]:
    """Names and entries of a candidate, and `ModelDescriptor` with all fields bound that do not depend on the
    architecture.
    """
    names = own_names(candidate.names)
    entries = {name: file.entries[stored] for name, stored in names.items()}
    kinds = {entry.dtype for name, entry in entries.items() if entry.is_float and not is_buffer(name)}
    common = partial(ModelDescriptor, dtype="+".join(sorted(kinds)), sha256=digest, part=candidate.part)
    return names, entries, common


def _tell(path: Path, chosen: StateDict, candidates: Collection[StateDict]) -> None:
    """Log which weights are used if a file contains several sets."""
    same = [other for other in candidates if other.names.keys() == chosen.names.keys() and other.part != chosen.part]
    if not same:
        return
    others = ", ".join(repr(other.part) for other in same[:3])
    if chosen.averaged:
        log.info("%s: the averaged weights %r are used; it also has %s", path.name, chosen.part, others)
    elif any(other.averaged for other in same):
        log.warning("%s: the weights %r are used, as the averaged ones (%s) do not fit", path.name, chosen.part, others)
    else:
        log.info("%s: the weights %r are used; it also has %s", path.name, chosen.part, others)


def _written(path: Path, file: WeightsFile, candidate: StateDict, digest: str) -> ModelDescriptor | None:
    """Describe a state dict of an FDAT-RD, ArtCNN or FDAT; None if it is another network.

    Raises:
        CheckpointError: It is one of these networks, but its tensors are inconsistent.
    """
    names, entries, common = _common(file, candidate, digest)
    if is_fdat_rd(entries):
        config = _configuration(path, file, names, entries)
        return common(
            architecture=FDAT_RD,
            scale=config.scale,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            multiple=config.multiple,
            minimum=0,
            parameters=sum(entry.count for name, entry in entries.items() if not is_buffer(name)),
            config=config,
        )
    if artcnn_config.own_names(entries) is not None:
        artcnn = _artcnn(path, entries)
        return common(
            architecture=artcnn.name,
            scale=artcnn.scale,
            in_channels=artcnn.in_channels,
            out_channels=artcnn.out_channels,
            multiple=1,
            minimum=0,
            parameters=sum(entry.count for entry in entries.values()),
            artcnn=artcnn,
        )
    if (fdat := _fdat(file, names, entries)) is not None:
        return common(
            architecture=FDAT,
            scale=fdat.scale,
            in_channels=fdat.in_channels,
            out_channels=fdat.out_channels,
            multiple=fdat.multiple,
            minimum=0,
            parameters=sum(entry.count for name, entry in entries.items() if not is_buffer(name)),
            largest=fdat.largest,
            fdat=fdat,
        )
    return None


def _of_spandrel(path: Path, file: WeightsFile, candidates: Collection[StateDict], digest: str) -> ModelDescriptor:
    """Describe the first candidate that spandrel recognizes and that runs."""
    from vsfdatrd.nn.spandrel_network import is_known, load

    wrong: CheckpointError | None = None
    shapes = {name: entry.shape for name, entry in file.entries.items()}
    for candidate in candidates:
        names, _, common = _common(file, candidate, digest)
        if not is_known(path, {name: shapes[stored] for name, stored in names.items()}):
            continue
        try:
            network = load(path, dict(file.read(names)))
        except CheckpointError as error:
            wrong = wrong or error
            continue
        channels = network.channels
        try:
            largest = network.largest() if channels in ((3, 3), (1, 1)) else 0
        except Exception as error:  # architectures raise errors of any type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
            wrong = wrong or refuse(path, f"is {network.architecture}, which does not run with these weights: {reason}")
            continue
        _tell(path, candidate, candidates)
        return common(
            architecture=network.architecture,
            scale=network.scale,
            in_channels=channels[0],
            out_channels=channels[1],
            largest=largest,
            multiple=network.multiple,
            minimum=network.minimum,
            square=network.square,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
        )
    if wrong is not None:
        raise wrong
    some = ", ".join(sorted(next(iter(candidates)).names if candidates else file.entries)[:3])
    raise refuse(
        path,
        f"is no image network that is known here (its tensors are {some}, ...); "
        "give the weights of an FDAT-RD or of an architecture spandrel supports",
    )


def _probed(path: Path, digest: str, multiple: int | None, input_range: Range | None) -> ModelDescriptor:
    """Describe an ONNX file by running it in a separate process."""
    from vsfdatrd.archs.onnx_probe import (
        probe,  # starts a backend's worker process, the only way to find out
    )

    found = probe(path, multiple, input_range)
    plain = {field.name: found.get(field.name, field.default) for field in fields(ModelDescriptor)}
    return ModelDescriptor.from_dict(plain | {"architecture": "ONNX", "sha256": digest})


def _configuration(
    path: Path, file: WeightsFile, names: Mapping[str, str], entries: Mapping[str, Entry]
) -> FdatRdConfig:
    """Configuration of an FDAT-RD, after comparing the name and shape of every tensor with it."""
    again = "download it again, or save the whole state dict"
    for name, entry in entries.items():
        if not entry.count:
            raise refuse(path, f"is damaged: its tensor {name!r} of shape {entry.shape} holds nothing; {again}")
    (_, meta), *_ = file.read({META: names[META]})
    try:
        config = from_shapes({name: entry.shape for name, entry in entries.items()}, _whole(meta))
        expected = tensor_shapes(config)
    except (CheckpointError, ValueError, ArithmeticError) as error:
        raise refuse(path, f"cannot be used: {error}; {again}") from error
    if missing := expected.keys() - entries.keys():
        raise refuse(path, f"is an incomplete FDAT-RD: it lacks {_some(missing)}; {again}")
    if extra := entries.keys() - expected.keys():
        raise refuse(path, f"is no FDAT-RD that is known here: it also has {_some(extra)}; {again}")
    for name, shape in expected.items():
        if entries[name].shape != shape:
            raise refuse(
                path,
                f"contradicts itself: its tensor {name!r} has shape {entries[name].shape} where the others "
                f"ask for {shape}; {again}",
            )
        if not entries[name].is_float and name != META:
            raise refuse(path, f"stores {name!r} as {entries[name].dtype}; convert it to fp16, bf16 or fp32")
    return config


def _fdat(file: WeightsFile, names: Mapping[str, str], entries: Mapping[str, Entry]) -> fdat_config.FdatConfig | None:
    """Configuration of an FDAT; None if it is not an FDAT, or not as spandrel builds it."""
    if not fdat_config.is_fdat(entries) or not all(entry.is_float for name, entry in entries.items() if name != META):
        return None
    (_, meta), *_ = file.read({META: names[META]})
    try:
        return fdat_from_shapes({name: entry.shape for name, entry in entries.items()}, _whole(meta))
    except ValueError:
        return None


def _artcnn(path: Path, entries: Mapping[str, Entry]) -> artcnn_config.ArtCnnConfig:
    """Configuration of an ArtCNN. Raises CheckpointError if its tensors are inconsistent."""
    for name, entry in entries.items():
        if not entry.is_float:
            raise refuse(path, f"stores {name!r} as {entry.dtype}; convert it to fp16, bf16 or fp32")
    try:
        return artcnn_config.from_shapes({name: entry.shape for name, entry in entries.items()})
    except CheckpointError as error:
        raise refuse(path, f"cannot be used: {error}; download it again, or save it again from training") from error


def _whole(meta: Array) -> list[int]:
    """Values of the `MetaUpsample` buffer as integers; some converters cast it to a floating-point type with the
    weights.
    """
    if meta.ndim != 1 or (meta != np.floor(meta)).any() or (meta < 0).any():
        raise ValueError(f"its {META} holds no list of whole numbers")
    return [int(value) for value in meta]


def _some(names: Collection[str]) -> str:
    first = repr(min(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more tensors"
