"""Build TensorRT-RTX engines for several GPUs on a machine without one: kernels, memory traffic, activations, seconds.

python -m benchmarks.builds [--quick] [--details] [--model medium] [--target sm89] [--precision fp16] ...

Networks without zero branches have random weights; neither time nor memory depends on their values. With the shipped
weights, branches that add nothing are left out (`vsfdatrd.archs.zero_branches`).
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from benchmarks.report import RESULTS, save
from benchmarks.speed.exports import exported
from benchmarks.speed.peers import in_fp16
from benchmarks.traffic import Traffic, build
from benchmarks.weights import random_artcnn, random_weights, weights_file
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import FdatFamilyConfig, variant_config
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import EngineError
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
PLAIN_PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")
"""Precisions of graphs that are not specialized for TensorRT."""


@dataclass(frozen=True, slots=True)
class Case:
    """One engine to build."""

    model: str
    size: tuple[int, int]
    target: str
    precision: Precision
    graph: str = "deploy"
    """``deploy``: the graph for TensorRT; ``plain``: without its specializations; ``export``: PyTorch's own export.
    ``earlier``: the graph for TensorRT without the form that moves less memory.
    """
    weights: str = "whole"
    """``whole``: random weights without zero branches; ``shipped``: the weights as they are."""

    @property
    def graph_target(self) -> GraphTarget:
        """The target of its graph."""
        if self.graph == "plain":
            return GraphTarget(self.precision)
        target = tensorrt_target(self.precision, sm75=self.target == "sm75")
        return replace(target, maps=False, joined_layers=False) if self.graph == "earlier" else target


type Write = Callable[[Case], "onnx.ModelProto"]
"""Writes a network's graph."""


def measure(case: Case, write: Write) -> tuple[dict[str, Any], Traffic]:
    """Write the graph and build the engine once. Returns a row of results, and the builder's kernels and tensors."""
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


def list_cases(quick: bool) -> list[Case]:
    """The engines to build."""
    found: list[Case] = []
    half: tuple[Precision, ...] = ("fp16", "bf16")
    for weights, model, size, target, precision in itertools.product(
        ("whole", "shipped"), MODELS, SIZES, TARGETS, half
    ):
        if (target, precision) == ("sm75", "bf16") or (quick and (model != "medium" or size != SIZES[0])):
            continue
        if weights == "shipped" and model not in CATALOG:
            continue
        found.append(Case(model, size, target, precision, weights=weights))
    others: tuple[Precision, ...] = ("mixed", "fp32")
    chosen = MODELS[1:2] if quick else MODELS
    found += [Case(model, SIZES[0], "sm89", precision) for model in chosen for precision in others]
    found += [
        Case("medium", SIZES[0], "sm89", precision, graph)
        for graph in ("plain", "export")
        for precision in PLAIN_PRECISIONS
    ]
    for model in () if quick else (*FDATS, *ARTCNNS):
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


def graph_writer(model: str, weights: str, folder: Path) -> Write:
    """Return a function that writes the graphs of a model. folder: cache for exports."""
    if weights == "shipped":
        checkpoint = open_checkpoint(resolve_model(model))
        return lambda case: checkpoint.graph(case.size[1], case.size[0], case.graph_target)
    if model in ARTCNNS:
        artcnn = ARTCNNS[model]
        tensors = random_artcnn(artcnn)
        return lambda case: artcnn_graph(artcnn, tensors, (case.size[1], case.size[0]), case.graph_target)
    config = fdat_config(model)
    values = random_weights(config)

    def write(case: Case) -> "onnx.ModelProto":
        if case.graph == "export":
            return _export(case, folder)
        return fdat_graph(config, values, (case.size[1], case.size[0]), case.graph_target)

    return write


def _export(case: Case, folder: Path) -> "onnx.ModelProto":
    """The network exported by PyTorch, as the users of other plugins build it."""
    import onnx

    file = exported("plain", weights_file(case.model, folder)[0], case.size, folder)
    if case.precision == "fp16":
        half = file.with_suffix(".fp16.onnx")
        in_fp16(file, half)
        file = half
    return onnx.load(file)


def requested_cases(given: argparse.Namespace) -> list[Case]:
    """The engines to build that were asked for."""
    return [
        case
        for case in list_cases(given.quick)
        if all(value in (getattr(given, name) or [value]) for name, value in case_key(case).items())
    ]


def main() -> int:
    """Build everything; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.builds", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="medium at 720×540 only")
    for option in KEY_COLUMNS:
        parser.add_argument(f"--{option}", nargs="+", help="build only these; other results are kept")
    parser.add_argument("--details", action="store_true", help="print kernels and bytes by kind and by part")
    given = parser.parse_args()
    if not RTX.installed:
        raise SystemExit("tensorrt_rtx is not installed; pip install vsfdatrd[rtx]")
    file = RESULTS / "tensorrt_builds.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["rows"] if file.exists() else []
    rows = {tuple(row[name] for name in KEY_COLUMNS): row for row in before}
    order = [tuple(case_key(case).values()) for case in list_cases(quick=False)]
    with tempfile.TemporaryDirectory() as folder:
        writers: dict[tuple[str, str], Write] = {}
        for case in tqdm(requested_cases(given), unit="engine"):
            which = case.model, case.weights
            if which not in writers:
                writers[which] = graph_writer(*which, Path(folder))
            row = _result_row(case, writers[which], given.details)
            rows[tuple(row[name] for name in KEY_COLUMNS)] = row
            found = [rows[name] for name in order if name in rows]
            save("tensorrt_builds", {"library": f"{RTX.module} {RTX.version}", "rows": found}, quiet=True)
    return 0


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
        return row | {"error": str(error).splitlines()[0]}
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
    sys.exit(main())
