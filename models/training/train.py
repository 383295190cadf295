"""Trains a network for some minutes, and goes on from where it was when called again.

    python -m models.training.train --recipe medium.toml --data tiles.zip --out runs/medium --minutes 9 [--compile]

In the folder `--out` lie `checkpoint.pt` (everything, once a minute), `fdat_rd_<variant>_2x.safetensors` (the averaged
weights, fp16, as the package reads them), `log.jsonl`, `curve.png` and `validation.png`. A training that is killed
loses at most the last minute. Needs the extra `train`.
"""

import argparse
import copy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.training import loss, network
from models.training.bank import Bank
from models.training.curve import Log
from models.training.data import Pool, flat_colours
from models.training.degrade import degrade, noisy
from models.training.folding import fold, unfold
from models.training.optimise import optimisers, rate
from models.training.recipe import Recipe
from models.training.state import export, load_state, save_state
from models.training.strengths import draw
from models.training.unfolded import Unfolded
from models.training.validate import Validation
from models.training.widen import widen
from vsfdatrd.checkpoint import load_model
from vsfdatrd.nn.fdat_rd import FdatRd

CHECKPOINT = "checkpoint.pt"
BANK = "bank.npy"
FLAT = 36
"""Side of a flat crop in pixels: in its middle an unfolded network sees no border."""
LOG_SECONDS = 5.0


def enlarge(net: FdatRd | Unfolded, x: Tensor) -> Tensor:
    """The network as it is trained: on CUDA the blocks in bf16, what touches pixels in float32.

    bf16 has eight bits, pictures need more; the first convolution and the tail are a small part of the work. An
    unfolded network is all pixels.
    (B, 3, H, W), sides multiples of the network's -> (B, 3, 2H, 2W) float32.
    """
    if isinstance(net, Unfolded):
        return cast(Tensor, net(x))
    first: Tensor = net.conv_first(x)
    deep = first
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type == "cuda"):
        for group in net.groups:
            deep = group(deep)
        deep = net.conv_after(deep)
    return cast(Tensor, net.upsampler(deep.float() + first))


def begin(recipe: Recipe) -> FdatRd | Unfolded:
    """What the recipe trains, before its first step: it interpolates. Random weights are torch's global generator's."""
    if recipe.form == "whole":
        return network.new(recipe)
    # Channels last, in which pixels' channels are neighbours: no convolution or linear layer has to move data.
    return Unfolded(network.configuration(recipe.variant), recipe.blocks).to(memory_format=torch.channels_last)


def finished(recipe: Recipe, trained: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """FDAT-RD's tensors from those that were trained.

    What an unfolded training leaves out is random, by the recipe's seed, but for its size: as signs alone, most of a
    file takes a tenth of the room in a package.
    """
    if recipe.form == "whole":
        return trained
    unfolded = Unfolded(network.configuration(recipe.variant), recipe.blocks)
    unfolded.load_state_dict(trained)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        whole = network.new(recipe)
        for parameter in whole.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.sign() * parameter.abs().mean())
        return fold(unfolded, whole).state_dict()


def started(found: FdatRd, recipe: Recipe) -> FdatRd | Unfolded:
    """The recipe's network with the weights of one there is. Raises ValueError if they are of no use for it."""
    config = network.configuration(recipe.variant)
    if recipe.form == "unfolded":
        return widen(unfold(found), config, recipe.blocks)
    if found.config != config:
        raise ValueError(f"it is no FDAT-RD {recipe.variant} 2x like the recipe's")
    return found


class Trainer:
    """A training's state, and one step of it."""

    def __init__(
        self, recipe: Recipe, tiles: Path, device: torch.device, *, compiled: bool = False, folder: Path | None = None
    ) -> None:
        """folder: where the recipe's bank of crops is kept, if it has one."""
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.pool: Pool | Bank = Pool.open(tiles, recipe, self.generator)
        if recipe.bank:
            if folder is None:
                raise ValueError("the recipe has a bank of crops, which needs a folder to be in")
            self.pool = Bank.open(folder / BANK, self.pool, recipe.bank, 4 * recipe.size)
        self.network = begin(recipe).to(device).train()
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimisers = optimisers(self.network, recipe, fused=device.type == "cuda")
        self.deep: Callable[[FdatRd | Unfolded, Tensor], Tensor] = torch.compile(enlarge) if compiled else enlarge
        self.step, self.minutes = 0, 0.0
        self.joined = -1
        """Step at which the whole network joined; -1 is not yet."""
        self.skipped = 0
        """Steps left out because their loss or gradient was not finite."""

    @property
    def progress(self) -> float:
        """Of the plan, from 0 to 1."""
        return self.recipe.progress(self.step, self.minutes)

    def start_from(self, weights: Path, minutes: float) -> None:
        """Take weights from a file and the schedule from a minute of the plan; the whole network learns at once.

        An unfolded training takes those of an unfolded one, narrower ones too.
        Raises CheckpointError for a file that cannot be read, ValueError for another network's.
        """
        found = load_model(weights)
        if not isinstance(found, FdatRd):
            raise ValueError(f"{weights} is no FDAT-RD")
        try:
            start = started(found, self.recipe)
        except ValueError as error:
            raise ValueError(f"{weights} is nothing to start from: {error}") from error
        for net in (self.network, self.averaged):
            net.load_state_dict(start.state_dict())
        self.minutes, self.joined = minutes, 0

    def train_step(self) -> tuple[Tensor, float]:
        """One batch: (the loss as a scalar on the device, the learning rate)."""
        recipe = self.recipe
        net = self.network
        warm = isinstance(net, FdatRd) and self.joined < 0 and self.progress < recipe.warm
        if not warm and self.joined < 0:
            self.joined = self.step
        learning_rate = rate(recipe, self.progress, self.step - max(0, self.joined))
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate
        truth = self.pool.sample(recipe.batch, 2 * recipe.size)
        shares = draw(recipe.batch, self.generator, clean=recipe.clean, laserdisc=recipe.laserdisc)
        degraded = degrade(truth, shares, self.generator)
        if recipe.clean_noise:
            degraded = noisy(degraded, shares.clean, recipe.clean_noise, self.generator)
        if warm and isinstance(net, FdatRd):
            value = loss.total(network.shallow(net, degraded).float(), truth, recipe)
        else:
            value = self._loss(degraded, truth)
        net.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        self.step += 1
        if bool((value + norm).isfinite()):
            for optimiser in self.optimisers:
                optimiser.step()
            self._average()
        else:
            self.skipped += 1
        return value.detach(), learning_rate

    def _loss(self, degraded: Tensor, truth: Tensor) -> Tensor:
        """Of a batch (B, 3, H, W) and its truth (B, 3, 2H, 2W), and of the flat colours shown besides."""
        recipe, net = self.recipe, self.network
        if not recipe.flat_colours:
            return loss.total(self.deep(net, degraded).float(), truth, recipe)
        colours = flat_colours(recipe.flat_colours, self.generator)
        if isinstance(net, Unfolded):
            output = self.deep(net, degraded).float()
            flat = self.deep(net, colours.expand(-1, -1, FLAT, FLAT).contiguous()).float()
        else:  # of one size, so that there is one network to compile
            both = self.deep(net, torch.cat([degraded, colours.expand(-1, -1, *degraded.shape[2:])])).float()
            output, flat = both[: recipe.batch], both[recipe.batch :]
        return loss.total(output, truth, recipe) + loss.flat(flat, colours)

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)

    def output(self, x: Tensor) -> Tensor:
        """The averaged network's."""
        return enlarge(self.averaged, x)

    def state(self) -> dict[str, Any]:
        """Everything, for `save_state`."""
        return {
            "recipe": asdict(self.recipe), "step": self.step, "minutes": self.minutes, "joined": self.joined,
            "skipped": self.skipped, "network": self.network.state_dict(), "averaged": self.averaged.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "generator": self.generator.get_state(), "random": torch.get_rng_state(), "device": self.device.type,
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises ValueError if it was another network's."""
        theirs, ours = (
            f"{r['variant']}, {r['form']}, {r.get('blocks', 1)} blocks a group"
            for r in (state["recipe"], asdict(self.recipe))
        )
        if theirs != ours:
            raise ValueError(f"the checkpoint is of {theirs}, the recipe of {ours}")
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.step, self.minutes = state["step"], state["minutes"]
        self.joined, self.skipped = state["joined"], state["skipped"]
        torch.set_rng_state(state["random"])
        if state["device"] == self.device.type:  # random numbers of one device mean nothing to another
            self.generator.set_state(state["generator"])
            if state["cuda"] is not None:
                torch.cuda.set_rng_state(state["cuda"], self.device)


@contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that is no longer empty once the process was asked to end (SIGINT, SIGTERM)."""
    asked: list[int] = []
    old = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def weights_file(folder: Path, recipe: Recipe) -> Path:
    """Where a training puts the averaged weights."""
    return folder / f"fdat_rd_{recipe.variant}_2x.safetensors"


def export_weights(file: Path, recipe: Recipe, averaged: Mapping[str, Tensor], step: int) -> None:
    """Averaged weights as the package reads them."""
    export(file, finished(recipe, averaged), f"FDAT-RD {recipe.variant} 2x after {step} steps")


def run(trainer: Trainer, validation: Validation, folder: Path, *, minutes: float, steps: int) -> None:
    """Train until the plan is done, or for so many minutes or steps (0: no limit), or until asked to end."""
    recipe, log = trainer.recipe, Log(folder / "log.jsonl", trainer.step)

    def save() -> None:
        save_state(folder / CHECKPOINT, trainer.state())
        export_weights(weights_file(folder, recipe), recipe, trainer.averaged.state_dict(), trainer.step)

    def measure() -> dict[str, float]:
        scores = validation.measure(trainer.output)
        log.add({
            "step": trainer.step, "minutes": round(trainer.minutes, 4), "psnr": scores,
            "bicubic": validation.baseline, "skipped": trainer.skipped,
        })  # fmt: skip
        validation.picture(trainer.output, folder / "validation.png")
        log.draw(folder / "curve.png")
        return scores

    begun, first = time.monotonic(), trainer.step
    saved = measured = logged = last = begun
    losses: list[Tensor] = []
    stepping = 0.0
    shown: dict[str, str] = {}
    with (
        stopping() as asked,
        tqdm(total=100, unit="%", initial=round(100 * trainer.progress, 2), file=sys.stderr,
             bar_format="{l_bar}{bar}| {elapsed} {postfix}") as bar,
    ):  # fmt: skip
        if trainer.step == 0:
            measure()  # what it starts from
        while trainer.progress < 1 and not asked:
            started = time.monotonic()
            value, learning_rate = trainer.train_step()
            losses.append(value)
            now = time.monotonic()
            stepping += now - started
            trainer.minutes += (now - last) / 60
            last = now
            limit = (minutes and now - begun >= 60 * minutes) or (steps and trainer.step - first >= steps)
            ends = bool(limit) or trainer.progress >= 1 or bool(asked)
            if now - logged >= LOG_SECONDS or ends:
                mean = float(torch.stack(losses).mean())
                log.add({
                    "step": trainer.step, "minutes": round(trainer.minutes, 4), "loss": mean,
                    "rate": learning_rate, "seconds_per_step": round(stepping / len(losses), 4),
                })  # fmt: skip
                shown |= {"step": str(trainer.step), "loss": f"{mean:.4f}", "rate": f"{learning_rate:.1e}"}
                logged, losses, stepping = now, [], 0.0
            if now - measured >= 60 * recipe.validate_minutes or ends:
                shown["dB"] = "/".join(f"{score:.2f}" for score in measure().values())
                measured = time.monotonic()
            if now - saved >= 60 * recipe.checkpoint_minutes or ends:
                save()
                saved = time.monotonic()
            bar.n = round(100 * trainer.progress, 2)
            bar.set_postfix(shown)
            if ends:
                break


def main(arguments: list[str] | None = None) -> int:
    """Train; see the module's docstring."""
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
    parser.add_argument("--start", type=Path, help="weights to begin with, where there is no checkpoint")
    parser.add_argument("--at", type=float, default=0, help="with --start: the minute of the plan to begin at")
    parser.add_argument("--export", type=Path, metavar="FILE", help="only write the checkpoint's averaged weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0, help="of the processor; 0 leaves it to PyTorch")
    a = parser.parse_args(arguments)
    recipe = Recipe.read(a.recipe)
    checkpoint = a.out / CHECKPOINT
    if a.export:
        state = load_state(checkpoint)
        export_weights(a.export, Recipe.from_mapping(state["recipe"]), state["averaged"], state["step"])
        return 0
    if a.data is None:
        parser.error("--data is needed to train")
    if a.threads:
        torch.set_num_threads(a.threads)
    a.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(a.device)
    trainer = Trainer(recipe, a.data, device, compiled=a.compile, folder=a.out)
    if checkpoint.exists():
        trainer.resume(load_state(checkpoint))
        print(f"going on from step {trainer.step}, minute {trainer.minutes:.1f}", file=sys.stderr)
    elif a.start:
        trainer.start_from(a.start, a.at)
    run(trainer, Validation(a.data, recipe, device), a.out, minutes=a.minutes, steps=a.steps)
    return 0


if __name__ == "__main__":
    sys.exit(main())
