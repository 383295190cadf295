"""From a weights file to what is known of its network, its tensors, and the network itself.

`open_checkpoint` reads no more than it must: of an FDAT-RD in .safetensors the header, without torch. What it found
is cached under the file's SHA-256 (`DescriptorCache`), so a second start with any other file needs no torch either.
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
"""Seconds for which a network that took too long is not tried again."""


class DescriptorCache(Protocol):
    """Where descriptions are kept from one run to the next, by the file's SHA-256."""

    def recall(self, sha256: str) -> Mapping[str, Any] | None:
        """What was remembered, or None."""
        ...

    def remember(self, sha256: str, description: Mapping[str, Any]) -> None:
        """Keep it. Should not raise: what cannot be kept is found out again."""
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file that has been looked at. Holds neither the file nor its tensors."""

    path: Path
    description: ModelDescriptor

    def tensors(self) -> dict[str, Array]:
        """Every tensor by the network's own name for it, freshly read: weights as float32, integer buffers as stored.

        Raises CheckpointError if the file has changed since it was opened, or holds values that are not finite.
        """
        self.check_unchanged()
        file = open_weights(self.path)
        found = find(file.entries, self.description.part)
        if found is None:
            raise refuse(self.path, "was changed while it was in use; run the script again")
        return dict(file.read(own_names(found.names)))

    def network(self) -> "nn.Module":
        """The network with its weights, float32, on the CPU, in evaluation mode; a new one at every call.

        (1, in_channels, H, W) in [0, 1] -> (1, out_channels, H·scale, W·scale).
        Raises CheckpointError as `tensors` does.
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
        """Raises CheckpointError if the file is another than when it was opened."""
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
    """Look at a weights file: which network it holds, and whether it is sound.

    path: a .safetensors or .pth file of an FDAT-RD, an ArtCNN (also as .glsl), or of another image network
        that spandrel knows.
    memory: where to look first, and to keep what was found.
    any_channels: also accept networks that cannot take RGB and give RGB.
    multiple, input_range: of an ONNX file, what its sizes must be multiples of, and white in its numbers, where it is
        wrong about them or does not say.

    Raises CheckpointError, a sentence with the path, the reason and a cure, for a file that is missing, damaged,
    unsafe, or no image network that can be used here.
    """
    path = Path(path)
    digest = sha256(path)
    if is_onnx(path) and (multiple or input_range):
        memory = None  # which knows of files, not of what is said of them
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
    known = description.artcnn or description.onnx  # which are looked at by themselves, and may be for chroma
    if not any_channels and not known and channels not in ((3, 3), (1, 1)):
        raise refuse(
            path, f"is a network from {channels[0]} to {channels[1]} channels; only networks from RGB to RGB "
            "(3 to 3), or from luma to luma (1 to 1), can upscale a clip"
        )  # fmt: skip
    return Checkpoint(path, description)


def load_model(model: str | PathLike[str]) -> "nn.Module":
    """The network in a weights file as a PyTorch module: float32, on the CPU, in evaluation mode. Needs PyTorch.

    model: a name from the catalog, or the path of a weights file.

    Hyper-parameters are found from the tensors. An FDAT-RD comes as `vsfdatrd.nn.fdat_rd.FdatRd` and can be trained
    further; other architectures come ready for inference alone. (1, 3, H, W) in [0, 1] -> (1, 3, H·scale, W·scale).

    Raises CheckpointError as `open_checkpoint` does.
    """
    return open_checkpoint(resolve(model), any_channels=True).network()


def own_names(names: Mapping[str, str]) -> dict[str, str]:
    """Names of tensors as the network has them here -> their names in the file. names: as a `StateDict` has them."""
    artcnn = artcnn_config.own_names(names)
    return dict(names) if artcnn is None else {own: names[name] for own, name in artcnn.items()}


def _given_up(plain: Mapping[str, Any] | None) -> str | None:
    """Why a file's network was given up within the last day, to continue "the weights file X ..."; else None."""
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
    """Whether weights beside an ONNX file have changed since it was described."""
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
    """A candidate's names, entries, and a `ModelDescriptor` without what its architecture tells."""
    names = own_names(candidate.names)
    entries = {name: file.entries[stored] for name, stored in names.items()}
    kinds = {entry.dtype for name, entry in entries.items() if entry.is_float and not is_buffer(name)}
    common = partial(ModelDescriptor, dtype="+".join(sorted(kinds)), sha256=digest, part=candidate.part)
    return names, entries, common


def _tell(path: Path, chosen: StateDict, candidates: Collection[StateDict]) -> None:
    """Log which weights of a file are used where it has several sets of them."""
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
    """What a state dict is, if it is a network that is known here; None if it is another.

    Raises CheckpointError if it is one of ours that does not fit together.
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
    """What a network is that spandrel knows, the first of the candidates that it does."""
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
        except Exception as error:  # every architecture fails in its own way
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
        path, f"is no image network that is known here (its tensors are {some}, ...); "
        "give the weights of an FDAT-RD or of an architecture spandrel supports"
    )  # fmt: skip


def _probed(path: Path, digest: str, multiple: int | None, input_range: Range | None) -> ModelDescriptor:
    """A network that is a graph already: tried in a process of its own."""
    from vsfdatrd.archs.onnx_probe import (
        probe,  # an engine's process, which is above this file, but nothing else can tell
    )

    found = probe(path, multiple, input_range)
    plain = {field.name: found.get(field.name, field.default) for field in fields(ModelDescriptor)}
    return ModelDescriptor.from_dict(plain | {"architecture": "ONNX", "sha256": digest})


def _configuration(
    path: Path, file: WeightsFile, names: Mapping[str, str], entries: Mapping[str, Entry]
) -> FdatRdConfig:
    """An FDAT-RD's configuration, after every tensor's name and shape was held against it."""
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
                path, f"contradicts itself: its tensor {name!r} has shape {entries[name].shape} where the others "
                f"ask for {shape}; {again}"
            )  # fmt: skip
        if not entries[name].is_float and name != META:
            raise refuse(path, f"stores {name!r} as {entries[name].dtype}; convert it to fp16, bf16 or fp32")
    return config


def _fdat(file: WeightsFile, names: Mapping[str, str], entries: Mapping[str, Entry]) -> fdat_config.FdatConfig | None:
    """An FDAT's configuration; None for what is none, or another one than spandrel builds."""
    if not fdat_config.is_fdat(entries) or not all(entry.is_float for name, entry in entries.items() if name != META):
        return None
    (_, meta), *_ = file.read({META: names[META]})
    try:
        return fdat_from_shapes({name: entry.shape for name, entry in entries.items()}, _whole(meta))
    except ValueError:
        return None


def _artcnn(path: Path, entries: Mapping[str, Entry]) -> artcnn_config.ArtCnnConfig:
    """An ArtCNN's configuration. Raises CheckpointError if its tensors do not fit together."""
    for name, entry in entries.items():
        if not entry.is_float:
            raise refuse(path, f"stores {name!r} as {entry.dtype}; convert it to fp16, bf16 or fp32")
    try:
        return artcnn_config.from_shapes({name: entry.shape for name, entry in entries.items()})
    except CheckpointError as error:
        raise refuse(path, f"cannot be used: {error}; download it again, or save it again from training") from error


def _whole(meta: Array) -> list[int]:
    """The numbers of `MetaUpsample`, which some converters turn into fractions' types with the weights."""
    if meta.ndim != 1 or (meta != np.floor(meta)).any() or (meta < 0).any():
        raise ValueError(f"its {META} holds no list of whole numbers")
    return [int(value) for value in meta]


def _some(names: Collection[str]) -> str:
    first = repr(min(names))
    return first if len(names) == 1 else f"{first} and {len(names) - 1} more tensors"
