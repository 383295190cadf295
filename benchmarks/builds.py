"""Build TensorRT-RTX engines for several GPUs on a machine without one: kernels, memory traffic, activations, seconds.

python -m benchmarks.builds [--details] [--model medium] [--target sm89] [--precision fp16] ...

Networks without zero branches have random weights; neither time nor memory depends on their values. With the shipped
weights, branches that add nothing are left out (`vsfdatrd.archs.zero_branches`).
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.command_line import run
from benchmarks.errors import BenchmarkError
from benchmarks.report import RESULTS, save
from benchmarks.traffic import Traffic, build
from benchmarks.weights import random_artcnn, random_weights
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import FdatFamilyConfig, variant_config
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError, first_line
from vsfdatrd.graph.artcnn import write as artcnn_graph
from vsfdatrd.graph.fdat import write as fdat_graph
from vsfdatrd.graph.target import GraphTarget, tensorrt_target
from vsfdatrd.options import Precision
from vsfdatrd.weights.catalog import CATALOG, resolve_model

if TYPE_CHECKING:
    import onnx

MODELS = ("small", "medium", "large")
FDATS = {
    # name: (embed_dim, heads, groups, blocks of each kind in a group, width of the feed-forward networks)
    "fdat_tiny": (96, 3, 2, 2, 144),
    "fdat_light": (108, 4, 3, 2, 162),
    "fdat_medium": (120, 4, 4, 3, 240),
    "fdat_aligned": (128, 4, 4, 3, 256),
    "fdat_large": (180, 6, 4, 4, 360),
    "fdat_xl": (180, 6, 6, 6, 360),
}
ARTCNNS = {
    "artcnn_c4f16": ArtCnnConfig(16, 4, False, 1, 1, 2),
    "artcnn_c4f32": ArtCnnConfig(32, 4, False, 1, 1, 2),
    "artcnn_r8f64": ArtCnnConfig(64, 8, True, 1, 1, 2),
}
TARGETS = ("sm75", "sm86", "sm89", "sm120")
SIZES = ((720, 540), (720, 480))
KEY_COLUMNS = ("model", "weights", "size", "target", "precision", "graph")
"""Columns that tell the result of one engine from others."""


@dataclass(frozen=True, slots=True)
class Case:
    """One engine to build."""

    model: str
    size: tuple[int, int]
    target: str
    precision: Precision
    graph: str = "deploy"
    """``deploy``: the graph for TensorRT; ``earlier``: without the form that moves less memory."""
    weights: str = "whole"
    """``whole``: random weights without zero branches; ``shipped``: the weights as they are."""

    @property
    def graph_target(self) -> GraphTarget:
        """The target of its graph."""
        target = tensorrt_target(self.precision, sm75=self.target == "sm75")
        return replace(target, maps=False, joined_layers=False) if self.graph == "earlier" else target


type Write = Callable[[Case], "onnx.ModelProto"]
"""Writes a network's graph."""


def measure(case: Case, write: Write) -> tuple[dict[str, Any], Traffic]:
    """Write the graph and build the engine once.

    Args:
        case: The engine.
        write: Writes the graph.

    Returns:
        The fields of a result row, and the builder's kernels and tensors.

    Raises:
        EngineError: TensorRT-RTX does not build it.
    """
    width, height = case.size
    start = time.perf_counter()
    graph = write(case)
    writing = time.perf_counter() - start
    traffic = build(graph, case.target)
    values = width * height * activation_values(case.model)
    return {
        "graph_seconds": round(writing, 2),
        "build_seconds": traffic.build_seconds,
        "activation_bytes": traffic.activation_bytes,
        "activation_bytes_per_channel": round(traffic.activation_bytes / values, 2),
        "engine_bytes": traffic.engine_bytes,
        "kernels": len(traffic.kernels),
        "traffic_bytes": traffic.moved,
        "by_kind": traffic.by_kind(),
        "by_part": traffic.by_part(),
        "estimated_ms": traffic.estimated_ms(),
    }, traffic


def list_cases() -> list[Case]:
    """All engines."""
    found: list[Case] = []
    half: tuple[Precision, ...] = ("fp16", "bf16")
    for weights, model, size, target, precision in itertools.product(
        ("whole", "shipped"), MODELS, SIZES, TARGETS, half
    ):
        if (target, precision) == ("sm75", "bf16") or (weights == "shipped" and model not in CATALOG):
            continue
        found.append(Case(model, size, target, precision, weights=weights))
    others: tuple[Precision, ...] = ("mixed", "fp32")
    found += [Case(model, SIZES[0], "sm89", precision) for model in MODELS for precision in others]
    for model in (*FDATS, *ARTCNNS):
        found += [Case(model, SIZES[0], target, "fp16") for target in TARGETS]
        found += [Case(model, SIZES[0], "sm89", precision) for precision in ("bf16", *others)]
        found += [Case(model, SIZES[0], "sm89", precision, "earlier") for precision in (*half, *others)]
    return found


def activation_values(model: str) -> float:
    """Return the values per pixel in the tensors that the memory of activations is proportional to.

    `vsfdatrd.backends.tensorrt.backend.ACTIVATION_BYTES` has the factors.
    """
    if model in ARTCNNS:
        (moment,) = ARTCNNS[model].peak_values_per_pixel()
        return sum(moment.values())
    config = fdat_config(model)
    return (config.embed_dim if model in FDATS else config.ffn_dim) / config.unshuffle**2


def fdat_config(model: str) -> FdatFamilyConfig:
    """The configuration of an FDAT-RD or FDAT."""
    if model not in FDATS:
        return variant_config(model)
    width, heads, groups, depth, hidden = FDATS[model]
    return FdatConfig(
        embed_dim=width,
        heads=heads,
        groups=(("spatial", "channel") * depth,) * groups,
        ffn_dim=hidden,
        gate_dim=width // 8,
        upsampler="transpose+conv",
        tail_scale=2,
        unshuffle=1,
        window=8,
    )


def graph_writer(model: str, weights: str) -> Write:
    """Return a function that writes the graphs of a model.

    Args:
        model: Its name in `MODELS`, `FDATS` or `ARTCNNS`.
        weights: As in `Case`.
    """
    if weights == "shipped":
        checkpoint = open_checkpoint(resolve_model(model))
        return lambda case: checkpoint.graph(case.size[1], case.size[0], case.graph_target)
    if model in ARTCNNS:
        artcnn = ARTCNNS[model]
        tensors = random_artcnn(artcnn)
        return lambda case: artcnn_graph(artcnn, tensors, (case.size[1], case.size[0]), case.graph_target)
    config = fdat_config(model)
    values = random_weights(config)
    return lambda case: fdat_graph(config, values, (case.size[1], case.size[0]), case.graph_target)


def requested_cases(given: argparse.Namespace) -> list[Case]:
    """The engines to build that were asked for."""
    return [
        case
        for case in list_cases()
        if all(value in (getattr(given, name) or [value]) for name, value in case_key(case).items())
    ]


def main() -> int:
    """Build everything; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__.splitlines()[0])
    for option in KEY_COLUMNS:
        parser.add_argument(f"--{option}", nargs="+", help="build only these; other results are kept")
    parser.add_argument("--details", action="store_true", help="print kernels and bytes by kind and by part")
    given = parser.parse_args()
    if not RTX.installed:
        raise BenchmarkError("tensorrt_rtx is not installed; pip install vsfdatrd[rtx]")
    cases = requested_cases(given)
    if not cases:
        known = "; ".join(f"--{name} {' '.join(sorted(values))}" for name, values in _known_values().items())
        raise BenchmarkError(f"no engine is like that; there are {known}")
    file = RESULTS / "tensorrt_builds.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["rows"] if file.exists() else []
    rows = {tuple(row[name] for name in KEY_COLUMNS): row for row in before}
    order = [tuple(case_key(case).values()) for case in list_cases()]
    writers: dict[tuple[str, str], Write] = {}
    for case in tqdm(cases, unit="engine"):
        which = case.model, case.weights
        if which not in writers:
            writers[which] = graph_writer(*which)
        row = _result_row(case, writers[which], given.details)
        rows[tuple(row[name] for name in KEY_COLUMNS)] = row
        found = [rows[name] for name in order if name in rows]
        save("tensorrt_builds", {"library": f"{RTX.module} {RTX.version}", "rows": found}, quiet=True)
    return 0


def _known_values() -> dict[str, set[str]]:
    """The values of each column over all engines."""
    keys = [case_key(case) for case in list_cases()]
    return {name: {key[name] for key in keys} for name in KEY_COLUMNS}


def case_key(case: Case) -> dict[str, str]:
    """What tells the result of an engine from others."""
    return {name: getattr(case, name) for name in KEY_COLUMNS} | {"size": f"{case.size[0]}x{case.size[1]}"}


def _result_row(case: Case, write: Write, details: bool) -> dict[str, Any]:
    """The result row of one engine."""
    row = case_key(case)
    said = " ".join(row.values())
    try:
        found, traffic = measure(case, write)
    except EngineError as error:  # recorded as a row with the reason; the others continue
        tqdm.write(f"{said}: {error}")
        return row | {"error": first_line(error)}
    tqdm.write(
        f"{said}: {found['build_seconds']:.1f} s, activations {found['activation_bytes'] / 2**20:.0f} MiB, "
        f"engine {found['engine_bytes'] >> 20} MiB, {found['kernels']} kernels, {traffic.moved / 1e9:.2f} GB"
    )
    if details:
        tqdm.write(describe_kernels(traffic))
    return row | found


def describe_kernels(traffic: Traffic) -> str:
    """Tables of an engine's kernels by kind and by part, and the estimate for cards."""
    lines = []
    for name, totals in (("kind", traffic.by_kind()), ("part", traffic.by_part())):
        lines.append(f"  {'by ' + name:16} kernels      GB")
        lines += [f"  {label:16} {count:7} {moved / 1e9:7.2f}" for label, (count, moved) in totals.items()]
    lines.append("  ms per frame, ESTIMATED from memory traffic and launches alone:")
    lines.append("  " + ", ".join(f"{card} {ms}" for card, ms in traffic.estimated_ms().items()))
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
