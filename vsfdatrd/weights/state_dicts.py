"""Which tensors of a file are the network: what training programs wrap around it, keep beside it, and call it.

Names have dots between modules and ``/`` between keys of dicts within dicts (`torch_file`). Nothing says which part of
a name is a wrapper's and which the network's own: ``model.0.weight`` is a whole name in ESRGAN, and ``0.weight`` of the
``model`` of a Lightning module. So there are candidates, the best first, and whoever knows architectures tries
them:

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
"""Names of wrappers around each other."""
MAX_COUNT = 200
"""State dicts that are looked at; a checkpoint with everything there is has some 20."""
MAX_MIXED = 4
"""Prefixes at one place of which each may be in front of a part of the names only."""

_AVERAGED = frozenset({"ema", "swa", "averaged", "average", "averaging", "avg", "polyak", "shadow"})
"""Words for weights averaged over many steps of training, which give better pictures than those of the last step."""
_NETWORKS = frozenset(
    [
        "params",
        "param",
        "parameters",
        "weights",
        "state",
        "dict",
        "model",
        "module",
        "net",
        "network",
        "netg",
        "g",
        "gen",
        "generator",
        "student",
        "sr",
        "upscaler",
    ]
)
"""Words for the network."""
_EARLIER = frozenset({"online", "current", "last", "raw", "init", "initial", "start", "previous", "old"})
"""Words for weights that are not those to use where there are others."""
_OTHERS = frozenset(
    [
        "opt",
        "scheduler",
        "schedulers",
        "sched",
        "lr",
        "scaler",
        "amp",
        "grad",
        "grads",
        "rng",
        "loops",
        "callbacks",
        "d",
        "netd",
        "disc",
        "discriminator",
        "discriminators",
        "critic",
        "loss",
        "losses",
        "criterion",
        "vgg",
        "lpips",
        "dists",
        "perceptual",
        "metric",
        "metrics",
        "teacher",
    ]
)
"""Words for what is beside the network: the optimizer, a network that judges, a loss."""
_COUNTERS = frozenset(
    ["n_averaged", "initted", "step", "steps", "num_updates", "decay", "epoch", "iter", "global_step"]
)
"""Single numbers that wrappers keep among the tensors of the network."""
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""What torch.compile, FSDP, checkpointing of activations and DeepSpeed put into names, wherever they are used."""
META = "upsampler.MetaUpsample"
"""The tensor under which an FDAT and an FDAT-RD are found behind any prefix."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """Tensors that may be a network."""

    part: str
    """Where in the file they are: ``params_ema``, ``state_dict/generator``; empty for all of it."""
    names: Mapping[str, str]
    """The network's names for them -> the file's."""
    averaged: bool
    """Whether they are averages over training's last steps, by what they are called."""


def state_dicts(entries: Mapping[str, Entry]) -> list[StateDict]:
    """Find the state dicts in a file, those that most likely are the network first: averaged ones before others."""
    found = sorted(_below(entries, {name: name for name in entries}), key=lambda item: item[0])
    found = found[:MAX_COUNT]
    plain = [names for rank, _, names in found if rank.not_averaged]
    return [
        StateDict(part, names if rank.not_averaged else _with_dots(names, plain), not rank.not_averaged)
        for rank, part, names in found
    ]


def find(entries: Mapping[str, Entry], part: str) -> StateDict | None:
    """The state dict of this name; None if the file has none."""
    return next((found for found in state_dicts(entries) if found.part == part), None)


@dataclass(frozen=True, slots=True, order=True)
class _Rank:
    """How likely a state dict is the one to use; smaller is better."""

    indirect: bool = False
    """All its tensors are in dicts within it."""
    not_averaged: bool = True
    earlier: int = 0
    unknown: int = 0
    """Names around it that say nothing."""


def _below(
    entries: Mapping[str, Entry], names: dict[str, str], part: str = "", depth: int = 0, rank: _Rank = _Rank()
) -> Iterator[tuple[_Rank, str, dict[str, str]]]:
    """Every state dict among tensors. names: what is left of a name behind `part` -> the name in the file."""
    own = _cleaned(entries, names)
    if any(_is_weight(entries[stored]) for stored in own.values()):
        direct = any("/" not in name and _is_weight(entries[stored]) for name, stored in own.items())
        yield replace(rank, indirect=not direct), part, {name.replace("/", "."): stored for name, stored in own.items()}
    if depth == MAX_DEPTH:
        return
    groups: dict[str, dict[str, str]] = {}
    for name, stored in names.items():
        if separator := _boundary(name):
            first, _, left = name.partition(separator)
            groups.setdefault(first + separator, {})[left] = stored
    groups = {first: group for first, group in groups.items() if not _is_other(first)}
    dotted = sum(first.endswith(".") for first in groups)
    mixed = sum(first.endswith(".") and not _words(first).isdisjoint(_NETWORKS | _AVERAGED) for first in groups)
    for first, group in groups.items():
        words = _words(first)
        known = not words.isdisjoint(_NETWORKS | _AVERAGED)
        # A dict in a dict is a part by itself; a name with dots is only where it says so, or all have it in front.
        if first.endswith(".") and not (known or dotted == 1 or any(name.endswith(META) for name in group)):
            continue
        inner = _Rank(
            not_averaged=rank.not_averaged and words.isdisjoint(_AVERAGED),
            earlier=rank.earlier + (not words.isdisjoint(_EARLIER)),
            unknown=rank.unknown + (not known),
        )
        yield from _below(entries, group, f"{part}{first}", depth + 1, inner)
        if not (first.endswith(".") and known and mixed <= MAX_MIXED):
            continue
        others = {name: stored for name, stored in own.items() if not name.startswith(first)}
        if others and others.keys().isdisjoint(group):  # only a part of the network was wrapped
            yield replace(inner, unknown=inner.unknown + 1), f"{part}{first}*", _cleaned(entries, group) | others


def _boundary(name: str) -> str:
    """What ends the first part of a name; a key of a dict may have dots in it."""
    return "/" if "/" in name else "." if "." in name else ""


def _cleaned(entries: Mapping[str, Entry], names: Mapping[str, str]) -> dict[str, str]:
    """Names without what wrappers put into them, without single numbers that count something, and without what lies
    under other words in dicts beside the network."""
    plain = {
        name: stored
        for name, stored in names.items()
        if not (name in _COUNTERS and entries[stored].count <= 1)
        and not ("/" in name and any(map(_is_other, name.split("/")[:-1])))
    }
    shorter = {_WRAPPER.sub("", name): stored for name, stored in plain.items()}
    return shorter if len(shorter) == len(plain) else plain


def _is_weight(entry: Entry) -> bool:
    """Whether a tensor is a convolution's, a product's or the like: every network has some."""
    return entry.is_float and len(entry.shape) >= 2


@lru_cache(maxsize=10_000)
def _is_other(part: str) -> bool:
    words = _words(part)
    return not words.isdisjoint(_OTHERS) or any(word.startswith("optim") for word in words)


@lru_cache(maxsize=10_000)
def _words(part: str) -> frozenset[str]:
    """``netG_ema/`` and ``netGEma/`` -> net, g, ema."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", part)
    return frozenset(word.lower() for word in re.split(r"[^A-Za-z0-9]+", apart) if word)


def _with_dots(names: dict[str, str], others: Iterable[dict[str, str]]) -> dict[str, str]:
    """Names of averages that lost their dots, as in latent diffusion's LitEma, by those of the weights beside them.

    Only what is trained is averaged there; running statistics are the last ones.
    """
    if not any("." in name for name in names):
        for other in others:
            undotted = {name.replace(".", "") for name in other}
            if names.keys() <= undotted and len(undotted) == len(other):
                return {name: names.get(name.replace(".", ""), stored) for name, stored in other.items()}
    return names
