"""FDAT of every published size at one frame size: seconds to trace it and to build a TensorRT-RTX engine, and memory.

python -m benchmarks.fdat [VARIANT ...] [--size 720x540]

Weights are random; neither time nor memory depends on them. Needs no GPU. Writes results/fdat_<size>.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS, save
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.engines.base import Job
from vsfdatrd.engines.process import Worker
from vsfdatrd.engines.tensorrt import needed
from vsfdatrd.engines.tensorrt_library import RTX
from vsfdatrd.graph.dialect import tensorrt
from vsfdatrd.graph.of_checkpoint import graph_of, serialized
from vsfdatrd.options import Precision

VARIANTS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 96, "num_groups": 2, "depth_per_group": 2, "num_heads": 3, "ffn_expansion_ratio": 1.5},
    "light": {"embed_dim": 108, "num_groups": 3, "depth_per_group": 2, "num_heads": 4, "ffn_expansion_ratio": 1.5},
    "medium": {"embed_dim": 120, "num_groups": 4, "depth_per_group": 3, "num_heads": 4, "ffn_expansion_ratio": 1.5},
    "large": {"embed_dim": 180, "num_groups": 4, "depth_per_group": 4, "num_heads": 6, "ffn_expansion_ratio": 2.0},
    "xl": {"embed_dim": 180, "num_groups": 6, "depth_per_group": 6, "num_heads": 6, "ffn_expansion_ratio": 2.0},
}


def measure(name: str, width: int, height: int) -> dict[str, Any]:
    """Trace one variant, and build it in fp16."""
    import torch
    from safetensors.torch import save_file
    from spandrel.architectures.FDAT import FDAT

    precision: Precision = "fp16"
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        torch.manual_seed(0)
        state = FDAT(scale=2, **VARIANTS[name]).state_dict()
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, folder / "fdat.safetensors")
        checkpoint = open_checkpoint(folder / "fdat.safetensors")
        start = time.perf_counter()
        graph = graph_of(checkpoint, height, width, tensorrt(precision))
        traced = time.perf_counter() - start
        (folder / "graph.onnx").write_bytes(serialized(graph))
        worker = Worker("vsfdatrd.engines.tensorrt_process")
        try:
            facts = worker.ask(
                "build", library=RTX.module, graph=str(folder / "graph.onnx"), directory=text, targets=["sm89"], how={},
                log=str(folder / "log"),
            )  # fmt: skip
        finally:
            worker.close()
        return {
            "variant": name,
            "parameters": checkpoint.description.parameters,
            "trace_seconds": round(traced, 1),
            "build_seconds": facts["seconds"],
            "activation_mib": facts["activation_bytes"] >> 20,
            "engine_mib": (folder / "engine.trt").stat().st_size >> 20,
            "estimated_mib": needed(Job(checkpoint, height, width, precision)) >> 20,
        }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", choices=[*VARIANTS, []])
    parser.add_argument("--size", default="720x540")
    given = parser.parse_args()
    width, height = map(int, given.size.split("x"))
    file = RESULTS / f"fdat_{given.size}.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["variants"] if file.exists() else []
    known = {found["variant"]: found for found in before}
    for name in given.variants or VARIANTS:
        known[name] = measure(name, width, height)
        print(json.dumps(known[name]), flush=True)
        save(f"fdat_{given.size}", {"variants": [known[name] for name in VARIANTS if name in known]})


if __name__ == "__main__":
    main()
