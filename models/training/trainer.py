"""The state of a training and one training step. `train` runs the steps and writes the files."""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from models.training import loss, network
from models.training.crop_cache import CropCache
from models.training.data import CropSampler, flat_colors
from models.training.degrade import add_noise, degrade
from models.training.folding import fold, unfold
from models.training.optimize import create_optimizers, learning_rate_at
from models.training.pixel_network import PixelNetwork
from models.training.recipe import Recipe
from models.training.state import load_slim, load_state, save_slim, save_state
from models.training.strengths import Strengths, draw_strengths
from models.training.widen import widen
from vsfdatrd.checkpoint import load_model
from vsfdatrd.nn.fdat_rd import Block, FdatRd


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 faster than float32: GPUs, and CPUs with AVX512_BF16 or AMX."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type == "cuda"


def enlarge(net: FdatRd | PixelNetwork, x: Tensor) -> Tensor:
    """Run the network as in training: blocks in bf16 where that is faster, layers that touch pixels in float32.

    bf16 has a mantissa of eight bits, which is too coarse for pictures; the first convolution and the tail are a small
    part of the work.

    Args:
        net: The network.
        x: (B, 3, H, W); sides are multiples of the network's own multiple.

    Returns:
        (B, 3, 2H, 2W) float32.
    """
    lower = torch.autocast(x.device.type, torch.bfloat16, enabled=has_bf16(x.device))
    if isinstance(net, PixelNetwork):
        shallow = net.first(x)
        with lower:
            deep = net.inner(shallow)
        return net.tail(deep.float() + shallow)
    first: Tensor = net.conv_first(x)
    deep = first
    with lower:
        for group in net.groups:
            deep = group(deep)
        deep = net.conv_after(deep)
    return cast(Tensor, net.upsampler(deep.float() + first))


def compile_blocks(net: FdatRd, **options: Any) -> None:
    """Compile every block by itself with `torch.compile`.

    That takes one compilation per kind of block instead of one for all blocks.
    """
    for module in net.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, **options)


def new_network(recipe: Recipe) -> FdatRd | PixelNetwork:
    """Create the network that a recipe trains. Before its first step it interpolates.

    Random weights are drawn from torch's global generator.
    """
    if recipe.form == "whole":
        whole = network.new_network(recipe)
        return whole if recipe.attention else network.leave_attention_out(whole)
    # Channels last, in which pixels' channels are neighbors: no convolution or linear layer has to move data.
    return PixelNetwork(network.configuration(recipe), recipe.blocks).to(memory_format=torch.channels_last)


def to_fdat_rd(recipe: Recipe, trained: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of an FDAT-RD that computes what the trained network computes.

    Weights that an unfolded training does not have are random signs (from the recipe's seed) times the mean magnitude
    of their tensor: compressed in a package, they take a tenth of the space of ordinary random numbers.
    """
    if recipe.form == "whole":
        return trained
    unfolded = PixelNetwork(network.configuration(recipe), recipe.blocks)
    unfolded.load_state_dict(trained)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        whole = network.new_network(recipe)
        for parameter in whole.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.sign() * parameter.abs().mean())
        return fold(unfolded, whole).state_dict()


def starting_network(weights: Path, recipe: Recipe) -> FdatRd | PixelNetwork:
    """Create the network that a recipe trains, with the weights of a file.

    An unfolded training accepts the weights of an unfolded one, also of a narrower network. A training of the whole
    network also accepts a file with fewer blocks in its groups, if its attention is not trained. Attention that
    contributed nothing starts to learn then (`network.let_attention_join`).

    Raises:
        CheckpointError: The file cannot be read.
        ValueError: It is of another network.
    """
    found = load_model(weights)
    if not isinstance(found, FdatRd):
        raise ValueError(f"{weights} is no FDAT-RD")
    config = network.configuration(recipe)
    try:
        if recipe.form == "unfolded":
            return widen(unfold(found), config, recipe.blocks)
    except ValueError as error:
        raise ValueError(f"{weights} is nothing to start from: {error}") from error
    if found.config != config:
        try:
            found = network.deepen(found, config)
        except ValueError as error:
            raise ValueError(
                f"{weights} is nothing to start from: it is no FDAT-RD {recipe.variant} 2x like the recipe's: {error}"
            ) from error
    if recipe.attention:
        network.let_attention_join(found)
    return found


@dataclass(slots=True)
class Deadline:
    """A schedule that ends after a given time, however fast steps are.

    Only training counts, not compilation or validation.
    """

    end: float
    """Time by which the last step must be done, on the clock `time.monotonic`."""
    trained: float = 0.0
    """Seconds of training so far."""

    @property
    def progress(self) -> float:
        """Progress from 0 to 1: time trained, divided by that time plus the time that is left."""
        left = max(0.0, self.end - time.monotonic())
        return self.trained / (self.trained + left) if left else 1.0


class Trainer:
    """The state of a training, and one step of it."""

    def __init__(
        self, recipe: Recipe, tiles: Path, device: torch.device, *, compiled: bool = False, bank: Path | None = None
    ) -> None:
        """Create the network, its optimizers and its data.

        Args:
            recipe: All numbers of the training.
            tiles: The packed tiles.
            device: The device that trains.
            compiled: Whether to compile the network with `torch.compile`.
            bank: File of crops composed in advance, if the recipe has them.
        """
        self.recipe, self.device = recipe, device
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.pool: CropSampler | CropCache
        if recipe.bank:
            if bank is None:
                raise ValueError("the recipe has a bank of crops, which needs a file to be in")
            self.pool = CropCache.open(
                bank, lambda: CropSampler.open(tiles, recipe, self.generator), recipe.bank, 4 * recipe.size
            )
        else:
            self.pool = CropSampler.open(tiles, recipe, self.generator)
        self.network = new_network(recipe).to(device).train()
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizers = create_optimizers(self.network, recipe)
        self.compiled = compiled
        self.deep: Callable[[FdatRd | PixelNetwork, Tensor], Tensor] = enlarge
        if compiled and isinstance(self.network, FdatRd):
            compile_blocks(self.network)
        elif compiled:
            self.deep = torch.compile(enlarge, dynamic=False)
        self.step, self.minutes = 0, 0.0
        self.deadline: Deadline | None = None
        self.joined = -1
        """Step at which all layers began to learn; -1 before."""
        self.resumed = 0
        """Step from which the optimizers' moments count: the learning rate is warmed up again from there."""
        self.left_out = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def progress(self) -> float:
        """Progress of the schedule, from 0 to 1."""
        return self.deadline.progress if self.deadline else self.recipe.progress(self.step, self.minutes)

    @property
    def skipped(self) -> int:
        """Number of steps that were skipped because the loss or gradient was not finite."""
        return int(self.left_out)

    def start_from(self, start: nn.Module) -> None:
        """Copy the weights of `starting_network`. All layers learn from the first step on."""
        for net in (self.network, self.averaged):
            net.load_state_dict(start.state_dict())
        self.joined = 0

    # A step, by its phases.

    def sample(self) -> tuple[Tensor, Strengths]:
        """Draw a batch: ground truth (B, 3, 2H, 2W) and the strengths of its degradation.

        The last `pairs` crops repeat the first.
        """
        recipe = self.recipe
        single = recipe.batch - recipe.pairs
        truth = self.pool.sample(single, 2 * recipe.size)
        strengths = draw_strengths(
            single, self.generator, clean=recipe.clean, laserdisc=recipe.laserdisc, digital=recipe.digital
        )
        if recipe.pairs:
            order = torch.arange(recipe.batch, device=self.device) % single
            truth, strengths = truth.to(self.device)[order], strengths.repeated(order)
        return truth.to(self.device), strengths

    def degrade(self, truth: Tensor, strengths: Strengths) -> Tensor:
        """Degrade a batch: (B, 3, 2H, 2W) -> (B, 3, H, W)."""
        degraded = degrade(truth, strengths, self.generator)
        if self.recipe.clean_noise:
            degraded = add_noise(degraded, strengths.clean, self.recipe.clean_noise, self.generator)
        return degraded

    def loss(self, degraded: Tensor, truth: Tensor) -> Tensor:
        """Compute the loss of a batch, plus the loss of additional crops of flat color."""
        recipe, net = self.recipe, self.network
        if isinstance(net, FdatRd) and self._is_warming_up():
            return loss.total(network.run_without_blocks(net, degraded).float(), truth, recipe)
        colors = flat_colors(recipe.flat_colors, self.generator)
        # All of one size, so that there is one network to compile.
        shown = torch.cat([degraded, colors.expand(-1, -1, *degraded.shape[2:])])
        if isinstance(net, PixelNetwork):
            shown = shown.contiguous(memory_format=torch.channels_last)
        both = self.deep(net, shown).float()
        output = both[: recipe.batch]
        value = loss.total(output, truth, recipe)
        if recipe.flat_colors:
            value = value + loss.flat(both[recipe.batch :], colors)
        if recipe.pairs and recipe.consistency:
            apart = loss.charbonnier(output[: recipe.pairs] - output[-recipe.pairs :])
            value = value + recipe.consistency * recipe.pairs / recipe.batch * apart
        return value

    def backward(self, value: Tensor) -> None:
        """Compute the gradient of a loss."""
        self.network.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]

    def update(self, value: Tensor) -> float:
        """Update the weights, unless the loss or gradient is not finite; return the learning rate.

        Does not synchronize with the device: the fused optimizer skips the step by itself.
        """
        since = self.step - max(0, self.joined, self.resumed)
        learning_rate = learning_rate_at(self.recipe, self.progress, since)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        unusable = ~(value.detach() + norm).isfinite()
        fused = all(optimizer.defaults.get("fused") for optimizer in self.optimizers)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            if fused:
                optimizer.found_inf = unusable.float()  # type: ignore[attr-defined]
        if fused or not bool(unusable):
            for optimizer in self.optimizers:
                optimizer.step()
            self._average()
        self.left_out += unusable
        self.step += 1
        return learning_rate

    def train_step(self) -> tuple[Tensor, float]:
        """Train on one batch; return the loss, a scalar on the device, and the learning rate."""
        if self.joined < 0 and not self._is_warming_up():
            self.joined = self.step
        truth, strengths = self.sample()
        value = self.loss(self.degrade(truth, strengths), truth)
        self.backward(value)
        return value.detach(), self.update(value)

    def warm_up(self) -> float:
        """Run one batch without learning from it, so that everything is compiled; return the seconds it took."""
        begun = time.monotonic()
        if self.compiled:
            truth, strengths = self.sample()
            value = self.loss(self.degrade(truth, strengths), truth)
            self.backward(value)
            float(value)
        return time.monotonic() - begun

    def _is_warming_up(self) -> bool:
        """Return whether only the outer layers of a whole network learn so far."""
        return self.recipe.form == "whole" and self.joined < 0 and self.progress < self.recipe.warm

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)

    def output(self, x: Tensor) -> Tensor:
        """Run the averaged network; on CPUs in float32."""
        return cast(Tensor, self.averaged(x)) if x.device.type == "cpu" else enlarge(self.averaged, x)

    # What is kept.

    def _place(self) -> dict[str, Any]:
        return {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "minutes": self.minutes,
            "joined": self.joined,
            "skipped": self.skipped,
        }

    def state(self) -> dict[str, Any]:
        """Return everything that `save_state` stores."""
        return {
            **self._place(),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "chance": self.pool.chance.getstate() if isinstance(self.pool, CropSampler) else None,
            "device": self.device.type,
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def save(self, file: Path) -> None:
        """Write a checkpoint: full or slim, by the file's suffix."""
        if file.suffix == ".pt":
            save_state(file, self.state())
        else:
            save_slim(file, self.averaged.state_dict(), self._place())

    def resume(self, file: Path) -> None:
        """Restore what `save` wrote.

        Raises:
            ValueError: It is of another network.
        """
        if file.suffix != ".pt":
            tensors, state = load_slim(file)
            self._resume_place(state)
            for net in (self.network, self.averaged):
                net.load_state_dict(tensors)
            self.resumed = self.step
            return
        state = load_state(file)
        self._resume_place(state)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        saved = state.get("optimizers", state.get("optimisers"))  # spelled the second way by earlier trainings
        for optimizer, kept in zip(self.optimizers, saved or (), strict=True):
            optimizer.load_state_dict(kept)
        torch.set_rng_state(state["random"])
        if isinstance(self.pool, CropSampler) and state["chance"]:
            version, numbers, gauss = state["chance"]
            self.pool.chance.setstate((version, tuple(numbers), gauss))
        if state["device"] == self.device.type:  # random numbers of one device mean nothing to another
            self.generator.set_state(state["generator"])
            if state["cuda"] is not None:
                torch.cuda.set_rng_state(state["cuda"], self.device)

    def _resume_place(self, state: Mapping[str, Any]) -> None:
        theirs, ours = (
            f"{r['variant']}, {r['form']}, {r.get('blocks', 1)} blocks a group"
            for r in (state["recipe"], asdict(self.recipe))
        )
        if theirs != ours:
            raise ValueError(f"the checkpoint is of {theirs}, the recipe of {ours}")
        self.step, self.minutes, self.joined = state["step"], state["minutes"], state["joined"]
        self.left_out.fill_(state["skipped"])
        # Not the same crops again, where the state of random numbers is not kept or is that of another device.
        seed = self.recipe.seed + self.step
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        if isinstance(self.pool, CropSampler):
            self.pool.chance.seed(seed)
