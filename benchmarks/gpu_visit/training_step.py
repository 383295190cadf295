"""Profile a step of the training: seconds and memory of each phase, with the recipe of the visit."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_visit.pack import TILES, recipe_values
from benchmarks.gpu_visit.record import Skipped
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device, synchronize
from models.training.recipe import Recipe
from models.training.trainer import Trainer
from vsfdatrd.errors import first_line


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Every batch size; one that does not fit into memory is a row that says so."""
    if not TILES.exists():
        raise Skipped("no training pack was carried")
    rows: list[dict[str, Any]] = []
    for batch in sizes.batches:
        recipe = Recipe.from_mapping(recipe_values(sizes) | {"batch": batch, "pairs": 0})
        trainer = Trainer(recipe, TILES, device(), compiled=device().type == "cuda")
        try:
            result = measure_phases(trainer, sizes.steps)
        except torch.OutOfMemoryError as error:
            result = {"error": first_line(error)}
        rows.append({"batch": batch, "size": recipe.size} | result)
        record({"training_steps": rows})
        del trainer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def measure_phases(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Milliseconds of each phase of a step with a wait after it, of a whole step without, and the memory they take."""
    compiling = trainer.warm_up()
    for _ in range(2):
        trainer.train_step()
    spent: defaultdict[str, list[float]] = defaultdict(list)

    def timed[T](name: str, phase: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = phase()
        synchronize()
        spent[name].append(1000 * (time.perf_counter() - start))
        return result

    synchronize()
    for _ in range(steps):
        truth, strengths = timed("sample", trainer.sample)
        degraded = timed("degrade", partial(trainer.degrade, truth, strengths))
        value = timed("forward and loss", partial(trainer.loss, degraded, truth))
        timed("backward", partial(trainer.backward, value))
        timed("update", partial(trainer.update, value))
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    synchronize()
    whole = 1000 * (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {
        "compile_s": round(compiling, 1),
        "phase_ms": {name: round(statistics.median(values), 2) for name, values in spent.items()},
        "step_ms": round(whole, 2),
        "memory_gib": peak and round(peak, 2),
    }
