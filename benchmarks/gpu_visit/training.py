"""The training of a visit: starts from the shipped weights, adds attention, ends at a deadline."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.pack import CHECKPOINT, START, TILES, VALIDATION, recipe_file, recipe_for
from benchmarks.gpu_visit.record import Skipped
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device
from models.training import train
from models.training.trainer import new_network
from vsfdatrd.checkpoint import open_checkpoint

OUT, SECONDS = "GPU_VISIT_OUT", "GPU_VISIT_SECONDS"
"""Environment variables: the folder of the visit's files, and the seconds that the part has."""
ENDING = 6.0
"""Seconds for the part's own start and end."""


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Train, and record the training's log whenever it writes its weights."""
    if not TILES.exists():
        raise Skipped("no training pack was carried")
    folder = Path(os.environ[OUT], "training")
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--recipe", recipe_file(sizes, folder), "--data", TILES, "--validation", VALIDATION, "--out", folder]
    arguments += [
        "--start",
        start_file(sizes, folder),
        "--deadline",
        float(os.environ[SECONDS]) - ENDING,
        "--device",
        device().type,
    ]
    if CHECKPOINT.exists():
        arguments += ["--resume", CHECKPOINT]
    if device().type == "cuda":
        arguments += ["--compile"]
    ended = threading.Event()

    def follow() -> None:
        seen = ""
        while not ended.wait(1):
            text = _summary(folder)
            if text != seen:
                seen = text
                record({"training": json.loads(text)})

    follower = threading.Thread(target=follow)
    follower.start()
    try:
        status = train.main([str(argument) for argument in arguments])
    finally:
        ended.set()
        follower.join()
        if text := _summary(folder):
            record({"training": json.loads(text) | count_active_attention(folder)})
    if status:
        raise RuntimeError(f"the training ended with status {status}")


def start_file(sizes: Sizes, folder: Path) -> Path:
    """Return the initial weights: medium's, or in a rehearsal those of a tiny network with inactive attention."""
    if not sizes.small:
        return START
    recipe = replace(recipe_for(sizes), form="unfolded", blocks=1)
    file = folder / ".start.safetensors"
    train.export_weights(file, recipe, new_network(recipe).state_dict(), 0)
    return file


def _summary(folder: Path) -> str:
    file = folder / "summary.json"
    return file.read_text(encoding="utf-8") if file.exists() else ""


def count_active_attention(folder: Path) -> dict[str, Any]:
    """Count the blocks of the written weights in which attention contributes (its projection is not zero)."""
    (file,) = folder.glob("fdat_rd_*_2x.safetensors")
    tensors = open_checkpoint(file).tensors()
    projections = [values for name, values in tensors.items() if name.endswith("attn.proj.weight")]
    return {"attention": {"blocks": len(projections), "at_work": sum(bool(values.any()) for values in projections)}}
