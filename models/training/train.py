"""Train a network for a number of minutes, or continue an earlier training.

    python -m models.training.train --recipe medium.toml --data tiles.zip --out runs/medium --minutes 9 [--compile]
    python -m models.training.train --recipe medium_visit.toml --data tiles.zip --out DIR --start FILE --deadline 440

The folder ``--out`` contains the checkpoint (written once a minute, or as often as the recipe says), the averaged
weights ``fdat_rd_<variant>_2x.safetensors`` (fp16, as the package reads them), ``summary.json``, ``log.jsonl``,
``curve.png`` and ``validation.png``. Files are written under a temporary name and renamed, so a killed training loses
only what came after the last checkpoint. Needs the extra ``train``.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from models.training.curve import Log
from models.training.recipe import Recipe
from models.training.state import export, load_slim, load_state, write
from models.training.trainer import Deadline, Trainer, starting_network, to_fdat_rd
from models.training.validate import Scores, Validation
from vsfdatrd.errors import CheckpointError

BEGUN = time.monotonic()
"""Approximate start time of the process, from which ``--deadline`` counts."""
CHECKPOINTS = {"full": "checkpoint.pt", "slim": "checkpoint.safetensors"}
"""Names of checkpoint files by the recipe's `checkpoint`."""
BANK = "bank.npy"
LOG_SECONDS = 5.0


def checkpoint_in(folder: Path, recipe: Recipe) -> Path | None:
    """Return the checkpoint to continue from, the recipe's own kind first; None if the folder has none."""
    files = [folder / CHECKPOINTS[kind] for kind in sorted(CHECKPOINTS, key=lambda kind: kind != recipe.checkpoint)]
    return next((file for file in files if file.exists()), None)


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Yield a list that becomes non-empty when the process is asked to end (SIGINT, SIGTERM)."""
    asked: list[int] = []
    old = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def weights_file(folder: Path, recipe: Recipe) -> Path:
    """Return the path of the averaged weights."""
    return folder / f"fdat_rd_{recipe.variant}_2x.safetensors"


def export_weights(file: Path, recipe: Recipe, averaged: Mapping[str, Tensor], step: int) -> None:
    """Write averaged weights as the package reads them."""
    export(file, to_fdat_rd(recipe, averaged), f"FDAT-RD {recipe.variant} 2x after {step} steps")


def run(
    trainer: Trainer, validation: Validation, folder: Path, *, minutes: float = 0, steps: int = 0, deadline: float = 0
) -> None:
    """Train until the schedule is done, for a number of minutes or steps (0: no limit), or until asked to end.

    Args:
        trainer: The training.
        validation: The pairs to measure with.
        folder: Folder of the files.
        minutes: Minutes to train.
        steps: Steps to train.
        deadline: Time at which the process must have ended, on the clock `time.monotonic`; the schedule then ends with
            it. 0 leaves the end to the recipe.
    """
    recipe, log = trainer.recipe, Log(folder / "log.jsonl", trainer.step)
    summary: dict[str, Any] = {
        "weights": weights_file(folder, recipe).name,
        "checkpoint": CHECKPOINTS[recipe.checkpoint],
    }
    summary |= {"batch": recipe.batch, "size": recipe.size, "bicubic": validation.baseline._asdict()}

    def save() -> None:
        trainer.save(folder / CHECKPOINTS[recipe.checkpoint])
        export_weights(weights_file(folder, recipe), recipe, trainer.averaged.state_dict(), trainer.step)
        done = trainer.step - first
        summary.update(
            step=trainer.step,
            steps=done,
            crops=done * recipe.batch,
            seconds=round(trained, 2),
            seconds_per_step=round(trained / done, 4) if done else None,
            skipped=trainer.skipped,
            memory_gib=round(memory_in_use(trainer.device) / 2**30, 2),
        )
        write(folder / "summary.json", lambda opened: opened.write(json.dumps(summary, indent=1).encode()))

    def measure(name: str) -> Scores:
        scores = validation.measure(trainer.output)
        summary[name] = scores._asdict()
        log.add(
            {
                "step": trainer.step,
                "minutes": round(trainer.minutes, 4),
                **scores._asdict(),
                "bicubic": validation.baseline.psnr,
                "skipped": trainer.skipped,
            }
        )
        validation.picture(trainer.output, folder / "validation.png")
        log.draw(folder / "curve.png")
        return scores

    begun, first, trained = time.monotonic(), trainer.step, 0.0
    losses: list[Tensor] = []
    stepping = 0.0
    shown: dict[str, str] = {}
    with (
        stop_requests() as asked,
        tqdm(
            total=100,
            unit="%",
            initial=round(100 * trainer.progress, 2),
            file=sys.stderr,
            bar_format="{l_bar}{bar}| {elapsed} {postfix}",
        ) as bar,
    ):
        if trainer.step == 0 or deadline:
            measure("before")
            save()
        closing = time.monotonic() - begun  # what the same takes at the end
        summary["compile_s"] = round(trainer.warm_up(), 2)
        if deadline:
            trainer.deadline = Deadline(deadline - 1.5 * closing - 1)
        saved = measured = logged = last = time.monotonic()
        ends = trainer.progress >= 1
        while not ends:
            value, learning_rate = trainer.train_step()
            losses.append(value)
            now = time.monotonic()
            spent, last = now - last, now
            stepping, trained = stepping + spent, trained + spent
            trainer.minutes += spent / 60
            if trainer.deadline:
                trainer.deadline.trained = trained
            ends = bool(asked) or trainer.progress >= 1
            ends |= bool(minutes and now - begun >= 60 * minutes) or bool(steps and trainer.step - first >= steps)
            ends |= trainer.deadline is not None and now + spent > trainer.deadline.end
            if now - logged >= LOG_SECONDS or ends:
                mean = float(torch.stack(losses).mean())
                log.add(
                    {
                        "step": trainer.step,
                        "minutes": round(trainer.minutes, 4),
                        "loss": mean,
                        "rate": learning_rate,
                        "seconds_per_step": round(stepping / len(losses), 4),
                    }
                )
                shown |= {"step": str(trainer.step), "loss": f"{mean:.4f}", "rate": f"{learning_rate:.1e}"}
                logged, losses, stepping = now, [], 0.0
            # Not shortly before a deadline, which measures at its own end.
            has_time = trainer.deadline is None or now + closing < trainer.deadline.end
            if ends or (has_time and now - measured >= 60 * recipe.validate_minutes):
                shown["dB"] = "/".join(f"{score:.2f}" for score in measure("after").psnr.values())
                measured = last = time.monotonic()
            if now - saved >= 60 * recipe.checkpoint_minutes or ends:
                save()
                saved = last = time.monotonic()
            bar.n = round(100 * trainer.progress, 2)
            bar.set_postfix(shown)


def memory_in_use(device: torch.device) -> int:
    """Return the memory in use in bytes: the GPU's peak so far, or this process's at present."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see the docstring of the module."""
    began = BEGUN if arguments is None else time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m models.training.train", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", type=Path, required=True, help="a TOML file, or the name of one beside this program"
    )
    parser.add_argument("--data", type=Path, help="what models.training.pack wrote")
    parser.add_argument(
        "--out", type=Path, required=True, help="the training's folder; one that has a checkpoint goes on"
    )
    parser.add_argument(
        "--minutes", type=float, default=0, help="end this call after so long (the plan is the recipe's)"
    )
    parser.add_argument("--steps", type=int, default=0, help="end this call after so many steps")
    parser.add_argument(
        "--deadline", type=float, default=0, help="be done so many seconds after the start; the plan ends then too"
    )
    parser.add_argument("--start", type=Path, help="weights to begin with, where there is no checkpoint")
    parser.add_argument("--resume", type=Path, help="a checkpoint to go on from, where the folder has none")
    parser.add_argument("--bank", type=Path, help=f"the recipe's crops, composed if there are none ({BANK} in --out)")
    parser.add_argument("--validation", type=Path, help="what to measure with, composed if there is none")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the checkpoint's averaged weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 leaves it to PyTorch")
    a = parser.parse_args(arguments)
    recipe = Recipe.read(a.recipe)
    checkpoint = checkpoint_in(a.out, recipe) or a.resume
    if a.export:
        if checkpoint is None:
            parser.error(f"{a.out} holds no checkpoint to export")
        tensors, state = averaged_weights(checkpoint)
        export_weights(a.export, Recipe.from_mapping(state["recipe"]), tensors, state["step"])
        return 0
    if a.data is None:
        parser.error("--data is needed to train")
    start = None
    if a.start and checkpoint is None:  # before the crops are composed, which takes minutes
        try:
            start = starting_network(a.start, recipe)
        except (CheckpointError, ValueError) as error:
            parser.error(str(error))
    if a.threads:
        torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(a.device)
    trainer = Trainer(recipe, a.data, device, compiled=a.compile, bank=a.bank or a.out / BANK)
    if checkpoint:
        trainer.resume(checkpoint)
        print(f"going on from step {trainer.step}, minute {trainer.minutes:.1f}", file=sys.stderr)
    elif start:
        trainer.start_from(start)
    validation = Validation.open(a.validation or a.out / "validation.npz", a.data, recipe, device)
    deadline = began + a.deadline if a.deadline else 0
    run(trainer, validation, a.out, minutes=a.minutes, steps=a.steps, deadline=deadline)
    return 0


def averaged_weights(checkpoint: Path) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Return the averaged weights of a checkpoint, and its other contents."""
    if checkpoint.suffix != ".pt":
        return load_slim(checkpoint)
    state = load_state(checkpoint)
    return state["averaged"], state


if __name__ == "__main__":
    sys.exit(main())
