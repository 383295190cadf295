"""FDAT of every published size at one frame size: seconds to write its graph, to build engines and the reference they
are compared with, and memory.

python -m benchmarks.fdat [VARIANT ...] [--size 720x540] [--quick]

Weights are random; neither time nor memory depends on them. Needs no GPU. Writes results/fdat_<size>.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.graphs import serialized
from vsfdatrd.backends.tensorrt.backend import needed
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.commands import build as ahead
from vsfdatrd.graph.target import tensorrt
from vsfdatrd.options import Options, Precision
from vsfdatrd.workers.client import Worker

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "num_groups": 2, "depth_per_group": 2, "num_heads": 3, "ffn_expansion_ratio": 1.5},
    "light": {"embed_dim": 108, "num_groups": 3, "depth_per_group": 2, "num_heads": 4, "ffn_expansion_ratio": 1.5},
    "medium": {"embed_dim": 120, "num_groups": 4, "depth_per_group": 3, "num_heads": 4, "ffn_expansion_ratio": 1.5},
    # Not a size of FDAT's authors: it has the 128 channels in heads of 32 of FDAT-RD's `aligned`.
    "aligned": {"embed_dim": 128, "num_groups": 4, "depth_per_group": 3, "num_heads": 4, "ffn_expansion_ratio": 1.5},
    "large": {"embed_dim": 180, "num_groups": 4, "depth_per_group": 4, "num_heads": 6, "ffn_expansion_ratio": 2.0},
    "xl": {"embed_dim": 180, "num_groups": 6, "depth_per_group": 6, "num_heads": 6, "ffn_expansion_ratio": 2.0},
}


CASES: tuple[tuple[str, Precision], ...] = (
    ("sm75", "fp16"),
    ("sm86", "fp16"),
    ("sm89", "fp16"),
    ("sm120", "fp16"),
    ("sm89", "bf16"),
    ("sm89", "mixed"),
    ("sm89", "fp32"),
)


def saved(name: str, folder: Path) -> Checkpoint:
    """Save a variant with random weights and open the file."""
    import torch
    from safetensors.torch import save_file
    from spandrel.architectures.FDAT import FDAT

    torch.manual_seed(0)
    state = FDAT(scale=2, **VARIANTS[name]).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "fdat.safetensors")
    return open_checkpoint(folder / "fdat.safetensors")


def measure(checkpoint: Checkpoint, size: tuple[int, int], target: str, precision: Precision) -> dict[str, Any]:
    """Write the graph and build one engine. size: (width, height)."""
    width, height = size
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        start = time.perf_counter()
        graph = serialized(checkpoint.graph(height, width, tensorrt(precision, turing=target == "sm75")))
        written = time.perf_counter() - start
        (folder / "graph.onnx").write_bytes(graph)
        worker = Worker("vsfdatrd.backends.tensorrt.worker")
        try:
            facts = worker.ask(
                "build",
                library=RTX.module,
                graph=str(folder / "graph.onnx"),
                directory=text,
                targets=[target],
                how={},
                log=str(folder / "log"),
            )
        finally:
            worker.close()
        return {
            "graph_seconds": round(written, 1),
            "build_seconds": facts["seconds"],
            "activation_mib": facts["activation_bytes"] >> 20,
            "engine_mib": (folder / "engine.trt").stat().st_size >> 20,
            "estimated_mib": needed(EngineSpec(checkpoint, height, width, precision)) >> 20,
        }


def whole(checkpoint: Checkpoint, size: tuple[int, int]) -> float:
    """Seconds of `vsfdatrd build --for sm89`, including the reference for checking the engine on its GPU."""
    with tempfile.TemporaryDirectory() as cache:
        (built,) = ahead.build_for(Options(model=str(checkpoint.path), cache=Path(cache)), *size, ["sm89"])
        return round(built.seconds, 1)


def rows(name: str, size: tuple[int, int], quick: bool) -> Iterator[dict[str, Any]]:
    """Yield one result for every GPU type and precision."""
    with tempfile.TemporaryDirectory() as text:
        checkpoint = saved(name, Path(text))
        about = {"variant": name, "parameters": checkpoint.description.parameters}
        for target, precision in CASES:
            usual = (target, precision) == ("sm89", "fp16")
            if quick and not usual:
                continue
            row = about | {"target": target, "precision": precision} | measure(checkpoint, size, target, precision)
            yield row | ({"whole_seconds": whole(checkpoint, size)} if usual else {})


def main() -> None:
    """Measure; see the module docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", choices=[*VARIANTS, []])
    parser.add_argument("--size", default="720x540")
    parser.add_argument("--quick", action="store_true", help="fp16 for the RTX 40 series only")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    file = RESULTS / f"fdat_{given.size}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["rows"] if file.exists() else []
    known = {(row["variant"], row["target"], row["precision"]): row for row in before}
    order = [(name, *case) for name in VARIANTS for case in CASES]
    for name in given.variants or VARIANTS:
        for row in rows(name, (width, height), given.quick):
            known[row["variant"], row["target"], row["precision"]] = row
            print(json.dumps(row), flush=True)
            save(
                f"fdat_{given.size}",
                {"library": f"{RTX.module} {RTX.version}", "rows": [known[case] for case in order if case in known]},
            )


if __name__ == "__main__":
    main()
