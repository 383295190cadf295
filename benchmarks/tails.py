"""Compare the memory of the seven upsampling tails of FDAT-RD and FDAT with its estimate.

python -m benchmarks.tails [--sizes 120x120 240x240] [--tails lda ...]

A case is a network of one group with `medium`'s widths, which holds a little less at a time than `medium`, on one
engine, one frame in flight, in a separate process. For TensorRT-RTX the builder reports it, without a GPU. Weights are
random; memory does not depend on them. Writes results/tails_memory.json.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import cast

import psutil
from safetensors.numpy import save_file

from benchmarks.command_line import frame_size, run
from benchmarks.report import RESULTS, save
from benchmarks.speed.meter import peak_of_process
from benchmarks.weights import random_tensors
from vsfdatrd.archs.fdat import FdatConfig
from vsfdatrd.archs.fdat_rd import FdatFamilyConfig, variant_config
from vsfdatrd.archs.registry import ARCHITECTURES
from vsfdatrd.archs.registry.base import ModelDescriptor
from vsfdatrd.archs.upsamplers import UPSAMPLERS, Upsampler
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.selection import import_backend
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.options import Precision

PATIENCE = 500
ENGINES = ("openvino fp32", "torch fp32", "tensorrt fp16", "tensorrt fp32")
NETWORKS = ("fdat_rd", "fdat_rd 2x", "fdat")
"""FDAT-RD with a tail of 4x, as in published networks that unshuffle pixels; one of 2x; and an FDAT."""


def network(name: str, tail: Upsampler) -> FdatFamilyConfig:
    """Return the configuration of a network of one group that doubles frames.

    Args:
        name: One of `NETWORKS`.
        tail: Its upsampler.
    """
    if name == "fdat":
        return FdatConfig(
            embed_dim=120,
            heads=4,
            groups=(("spatial", "channel"),),
            window=8,
            ffn_dim=180,
            gate_dim=15,
            upsampler=tail,
            tail_scale=2,
            unshuffle=1,
        )
    config = variant_config("medium", upsampler=tail, unshuffle_mod=name == "fdat_rd")
    return replace(config, groups=config.groups[:1])


def estimated(engine: str, config: FdatFamilyConfig, height: int, width: int) -> int:
    """Return the estimated bytes of one frame, without the process and the weights."""
    architecture = next(known for known in ARCHITECTURES if isinstance(config, known.config))
    about = ModelDescriptor(architecture, config, 0, "fp32", "")
    spec = _engine_spec(engine, Checkpoint(Path(), about), height, width)
    nothing = replace(spec, height=0, width=0)
    if engine.startswith("tensorrt"):
        from vsfdatrd.backends.tensorrt import backend as tensorrt

        frames = 12 * spec.height * spec.width * (1 + config.scale**2)
        return tensorrt.needed_bytes(spec) - tensorrt.needed_bytes(nothing) - frames
    module = import_backend(engine.split()[0])
    return module.memory_estimate(spec)[0] - module.memory_estimate(nothing)[0]


def _engine_spec(engine: str, checkpoint: Checkpoint, height: int, width: int) -> EngineSpec:
    about = checkpoint.descriptor
    tall, wide = about.size.padded(height, width)
    return EngineSpec(checkpoint, tall, wide, cast(Precision, engine.split()[1]), streams=1)


def _measured(engine: str, config: FdatFamilyConfig, height: int, width: int) -> int:
    """Measure the bytes of one frame, without the process and the weights."""
    with tempfile.TemporaryDirectory() as text:
        path = Path(text, "network.safetensors")
        save_file(random_tensors(config), path)
        spec = _engine_spec(engine, open_checkpoint(path), height, width)
        (Path(text) / "engine").mkdir()
        measure = _built if engine.startswith("tensorrt") else _run
        return measure(engine, spec, Path(text) / "engine")


def _run(name: str, spec: EngineSpec, directory: Path) -> int:
    module = import_backend(name.split()[0])
    module.build(spec, directory)
    engine = module.load(spec, directory)
    process = psutil.Process().children()[-1] if name.startswith("openvino") else psutil.Process()
    before = int(process.memory_info().rss)
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", encoding="utf-8")  # reset the peak
    engine.submit(0)
    engine.collect(0)
    peak = peak_of_process(process.pid)
    engine.close()
    return peak - before


def _built(_: str, spec: EngineSpec, directory: Path) -> int:
    from vsfdatrd.backends.tensorrt import backend as tensorrt
    from vsfdatrd.backends.tensorrt.library import RTX

    return int(tensorrt.build_for(spec, directory, RTX, ["sm89"])["activation_bytes"])


def _cases(given: argparse.Namespace) -> Iterator[list[str]]:
    for engine, name, tail, size in product(given.engines, NETWORKS, given.tails, given.sizes):
        if not engine.startswith("tensorrt") or size == given.sizes[-1]:
            yield [engine, name, tail, f"{size[0]}x{size[1]}"]


def main() -> int:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tails", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--engines", nargs="+", metavar="ENGINE", choices=ENGINES, default=ENGINES, help=", ".join(ENGINES)
    )
    parser.add_argument(
        "--tails",
        nargs="+",
        metavar="TAIL",
        choices=UPSAMPLERS[1:],
        default=UPSAMPLERS[1:],
        help=", ".join(UPSAMPLERS[1:]),
    )
    parser.add_argument("--sizes", nargs="+", type=frame_size, default=[(120, 120), (240, 240)])
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        logging.disable()
        engine, name, tail, size = given.one
        width, height = frame_size(size)
        print(_measured(engine, network(name, tail), height, width))
        return 0
    file = RESULTS / "tails_memory.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["rows"] if file.exists() else []
    rows = {tuple(row["case"]): row for row in before}
    for case in _cases(given):
        engine, name, tail, size = case
        command = [sys.executable, "-m", "benchmarks.tails", "--one", *case]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired:
            print(*case, f"not measured: it takes over {PATIENCE} seconds", flush=True)
            continue
        if done.returncode:
            print(*case, "not measured:", (done.stderr.strip().splitlines() or ["it does not say why"])[-1], flush=True)
            continue
        config, (width, height) = network(name, cast(Upsampler, tail)), frame_size(size)
        taken = int(done.stdout.splitlines()[-1])
        rows[tuple(case)] = {"case": case, "bytes": taken}
        expected = estimated(engine, config, height, width)
        print(*case, f"{taken >> 20} MiB, estimated {expected >> 20} MiB", flush=True)
        save("tails_memory", {"rows": list(rows.values())}, quiet=True)
    return 0


if __name__ == "__main__":
    run(main)
