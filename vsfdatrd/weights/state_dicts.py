"""Find the network's state dict in a file: remove wrappers, and skip optimizers, discriminators and other extras.

Names have dots between modules and ``/`` between keys of nested dicts (`torch_file`). A name does not tell which part
of it belongs to a wrapper and which to the network: ``model.0.weight`` is a complete name in ESRGAN, but ``0.weight``
of the ``model`` of a Lightning module. So there are several candidates, best first, which the caller compares with the
known architectures:

    {"params": {...}, "params_ema": {...}}                      BasicSR, traiNNer-redux, neosr
    {"state_dict": {"generator.conv.weight": ...}, ...}         Lightning, MMEditing
    {"epoch": 3, "net_g": {...}, "net_d": {...}, "optimizer": {...}}
    {"module.conv.weight": ..., "n_averaged": ...}              torch.optim.swa_utils.AveragedModel
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from vsfdatrd.weights.files import Entry

MAX_DEPTH = 8
"""Largest nesting depth of wrapper names."""
MAX_COUNT = 200
"""Largest number of candidates considered; a checkpoint with every kind of state has about 20."""
MAX_MIXED = 4
"""Largest number of prefixes at one level that are each tried as a wrapper of only a part of the network."""

_AVERAGED_WORDS = {"ema", "swa", "averaged", "average", "averaging", "avg", "polyak", "shadow"}
"""Words for weights averaged over many training steps, which give better images than those of the last step."""
_NETWORK_WORDS = {
    *("params", "param", "parameters", "weights", "state", "dict", "model", "module", "net", "network"),
    *("netg", "g", "gen", "generator", "student", "sr", "upscaler"),
}
"""Words for the network."""
_EARLIER_WORDS = {"online", "current", "last", "raw", "init", "initial", "start", "previous", "old"}
"""Words for weights that are used only if there are no others: not averaged, or from the start of a training."""
_OTHER_WORDS = {
    *("opt", "scheduler", "schedulers", "sched", "lr", "scaler", "amp", "grad", "grads", "rng", "loops", "callbacks"),
    *("d", "netd", "disc", "discriminator", "discriminators", "critic", "teacher"),
    *("loss", "losses", "criterion", "vgg", "lpips", "dists", "perceptual", "metric", "metrics"),
}
"""Words for everything that is not the network: optimizer, discriminator, losses."""
_COUNTERS = {"n_averaged", "initted", "step", "steps", "num_updates", "decay", "epoch", "iter", "global_step"}
"""Scalars that wrappers store among the tensors of the network."""
_WRAPPER_PREFIX = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""Name components inserted by torch.compile, FSDP, activation checkpointing and DeepSpeed, at any position."""
META_UPSAMPLE = "upsampler.MetaUpsample"
"""Buffer that identifies FDAT and FDAT-RD behind any prefix. It describes their tail: version, index of the upsampler,
scale, and widths.
"""


@dataclass(frozen=True, slots=True)
class StateDict:
    """Tensors that may be a network."""

    part: str
    """Key in the file, such as ``params_ema/`` or ``state_dict/generator.``; empty for the whole file."""
    names: Mapping[str, str]
    """Names as the network has them -> names in the file."""
    averaged: bool
    """Whether the name says that they are averages over training steps (EMA, SWA)."""


def state_dicts(entries: Mapping[str, Entry]) -> list[StateDict]:
    """List the candidate state dicts in a file.

    Args:
        entries: The tensors in the file.

    Returns:
        Candidates, most likely first; averaged weights before others.
    """
    result = sorted(_find_candidates(entries, {name: name for name in entries}), key=lambda item: item[0])
    result = result[:MAX_COUNT]
    plain = [names for rank, _, names in result if rank.not_averaged]
    return [
        StateDict(part, names if rank.not_averaged else _restore_dots(names, plain), not rank.not_averaged)
        for rank, part, names in result
    ]


@dataclass(frozen=True, slots=True, order=True)
class _Rank:
    """Sort key of a candidate; smaller is better."""

    indirect: bool = False
    """Whether all its tensors are in nested dicts."""
    not_averaged: bool = True
    earlier: int = 0
    unknown: int = 0
    """Number of enclosing names that are not known words."""


def _find_candidates(
    entries: Mapping[str, Entry], names: dict[str, str], part: str = "", depth: int = 0, rank: _Rank = _Rank()
) -> Iterator[tuple[_Rank, str, dict[str, str]]]:
    """Yield every candidate among tensors, recursively.

    Args:
        entries: The tensors in the file.
        names: Rest of the name after `part` -> name in the file.
        part: Prefix that has been removed.
        depth: Number of prefixes that have been removed.
        rank: Rank of the enclosing candidate.
    """
    own = _clean_names(entries, names)
    if any(_is_weight(entries[stored]) for stored in own.values()):
        direct = any("/" not in name and _is_weight(entries[stored]) for name, stored in own.items())
        yield replace(rank, indirect=not direct), part, {name.replace("/", "."): stored for name, stored in own.items()}
    if depth == MAX_DEPTH:
        return
    groups: dict[str, dict[str, str]] = {}
    for name, stored in names.items():
        first, separator, remainder = name.partition("/" if "/" in name else ".")  # keys of dicts may contain dots
        if separator:
            groups.setdefault(first + separator, {})[remainder] = stored
    groups = {first: group for first, group in groups.items() if not _is_other_network(first)}
    known = {first for first in groups if not _split_words(first).isdisjoint(_NETWORK_WORDS | _AVERAGED_WORDS)}
    dotted = {first for first in groups if first.endswith(".")}
    mixed = dotted & known
    for first, group in groups.items():
        words, recognized = _split_words(first), first in known
        # A nested dict is always a candidate. A dotted prefix is one only if it is a known word, all names have it, or
        # an FDAT is behind it.
        if first in dotted and not (
            recognized or len(dotted) == 1 or any(name.endswith(META_UPSAMPLE) for name in group)
        ):
            continue
        inner = _Rank(
            not_averaged=rank.not_averaged and words.isdisjoint(_AVERAGED_WORDS),
            earlier=rank.earlier + (not words.isdisjoint(_EARLIER_WORDS)),
            unknown=rank.unknown + (not recognized),
        )
        yield from _find_candidates(entries, group, f"{part}{first}", depth + 1, inner)
        if first not in mixed or len(mixed) > MAX_MIXED:
            continue
        others = {name: stored for name, stored in own.items() if not name.startswith(first)}
        if others and others.keys().isdisjoint(group):  # only a part of the network is wrapped
            yield replace(inner, unknown=inner.unknown + 1), f"{part}{first}*", _clean_names(entries, group) | others


def _clean_names(entries: Mapping[str, Entry], names: Mapping[str, str]) -> dict[str, str]:
    """Names without wrapper components, scalar counters, and nested dicts that are not the network."""
    plain = {
        name: stored
        for name, stored in names.items()
        if not (name in _COUNTERS and entries[stored].count <= 1)
        and not ("/" in name and any(map(_is_other_network, name.split("/")[:-1])))
    }
    shorter = {_WRAPPER_PREFIX.sub("", name): stored for name, stored in plain.items()}
    return shorter if len(shorter) == len(plain) else plain


def _is_weight(entry: Entry) -> bool:
    """Return whether a tensor is a weight matrix or convolution kernel; every network has some."""
    return entry.is_float and len(entry.shape) >= 2


@lru_cache(maxsize=10_000)
def _is_other_network(part: str) -> bool:
    words = _split_words(part)
    return not words.isdisjoint(_OTHER_WORDS) or any(word.startswith("optim") for word in words)


@lru_cache(maxsize=10_000)
def _split_words(part: str) -> frozenset[str]:
    """Split a name into lower-case words: ``netG_ema/`` and ``netGEma/`` -> net, g, ema."""
    separated = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", part)
    return frozenset(word.lower() for word in re.split(r"[^A-Za-z0-9]+", separated) if word)


def _restore_dots(names: dict[str, str], others: Iterable[dict[str, str]]) -> dict[str, str]:
    """Restore names of averaged weights that were saved without dots, as in latent diffusion's LitEma.

    The names are matched with those of the other state dicts in the file. Only trained parameters are averaged there;
    for buffers such as running statistics the last values are used.
    """
    if not any("." in name for name in names):
        for other in others:
            undotted = {name.replace(".", "") for name in other}
            if names.keys() <= undotted and len(undotted) == len(other):
                return {name: names.get(name.replace(".", ""), stored) for name, stored in other.items()}
    return names
