"""One training: its networks, its state, and one step of it. `train` runs it and writes its files."""

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
from models.training.optimize import optimizers, rate
from models.training.pixel_network import PixelNetwork
from models.training.recipe import Recipe
from models.training.state import load_slim, load_state, save_slim, save_state
from models.training.strengths import Strengths, draw
from models.training.widen import widen
from vsfdatrd.checkpoint import load_model
from vsfdatrd.nn.fdat_rd import Block, FdatRd


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than float32: GPUs, and processors with AVX512_BF16 or AMX."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type == "cuda"


def enlarge(net: FdatRd | PixelNetwork, x: Tensor) -> Tensor:
    """The network as it is trained: its blocks in bf16 where that is faster, what touches pixels in float32.

    bf16 has eight bits, pictures need more; the first convolution and the tail are a small part of the work.
    (B, 3, H, W), sides multiples of the network's -> (B, 3, 2H, 2W) float32.
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
    """`torch.compile` every block by itself: one compilation for each kind of block instead of one for all of them."""
    for module in net.modules():
        if isinstance(module, Block):
            module.compile(dynamic=False, **options)


def new_network(recipe: Recipe) -> FdatRd | PixelNetwork:
    """What the recipe trains, before its first step: it interpolates. Random weights are torch's global generator's."""
    if recipe.form == "whole":
        whole = network.new(recipe)
        return whole if recipe.attention else network.leave_attention_out(whole)
    # Channels last, in which pixels' channels are neighbors: no convolution or linear layer has to move data.
    return PixelNetwork(network.configuration(recipe.variant), recipe.blocks).to(memory_format=torch.channels_last)


def to_fdat_rd(recipe: Recipe, trained: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """FDAT-RD's tensors from those that were trained.

    What an unfolded training leaves out is random, by the recipe's seed, but for its size: as signs alone, most of a
    file takes a tenth of the room in a package.
    """
    if recipe.form == "whole":
        return trained
    unfolded = PixelNetwork(network.configuration(recipe.variant), recipe.blocks)
    unfolded.load_state_dict(trained)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(recipe.seed)
        whole = network.new(recipe)
        for parameter in whole.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.sign() * parameter.abs().mean())
        return fold(unfolded, whole).state_dict()


def from_weights(found: FdatRd, recipe: Recipe) -> FdatRd | PixelNetwork:
    """The recipe's network with the weights of one there is. Raises ValueError if they are of no use for it."""
    config = network.configuration(recipe.variant)
    if recipe.form == "unfolded":
        return widen(unfold(found), config, recipe.blocks)
    if found.config != config:
        raise ValueError(f"it is no FDAT-RD {recipe.variant} 2x like the recipe's")
    if recipe.attention:
        network.let_attention_join(found)
    return found


@dataclass(slots=True)
class Deadline:
    """A plan that ends at a moment, however fast steps are. Training alone counts; compiling and measuring do not."""

    end: float
    """When the last step is to be done, by `time.monotonic`."""
    trained: float = 0.0
    """Seconds of training so far."""

    @property
    def progress(self) -> float:
        """Of what was and what still can be trained, from 0 to 1."""
        left = max(0.0, self.end - time.monotonic())
        return self.trained / (self.trained + left) if left else 1.0


class Trainer:
    """A training's state, and one step of it."""

    def __init__(
        self, recipe: Recipe, tiles: Path, device: torch.device, *, compiled: bool = False, bank: Path | None = None
    ) -> None:
        """bank: the file of the recipe's crops, if it has them composed beforehand."""
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
        self.optimizers = optimizers(self.network, recipe)
        self.compiled = compiled
        self.deep: Callable[[FdatRd | PixelNetwork, Tensor], Tensor] = enlarge
        if compiled and isinstance(self.network, FdatRd):
            compile_blocks(self.network)
        elif compiled:
            self.deep = torch.compile(enlarge, dynamic=False)
        self.step, self.minutes = 0, 0.0
        self.deadline: Deadline | None = None
        self.joined = -1
        """Step at which the whole network joined; -1 is not yet."""
        self.resumed = 0
        """Step from which on the optimizers' moments are kept: the learning rate rises again from there."""
        self.left_out = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def progress(self) -> float:
        """Of the plan, from 0 to 1."""
        return self.deadline.progress if self.deadline else self.recipe.progress(self.step, self.minutes)

    @property
    def skipped(self) -> int:
        """Steps left out because their loss or gradient was not finite."""
        return int(self.left_out)

    def start_from(self, weights: Path, minutes: float) -> None:
        """Take weights from a file and the schedule from a minute of the plan; the whole network learns at once.

        An unfolded training takes those of an unfolded one, narrower ones too. In a whole one attention that added
        nothing joins (`network.let_attention_join`).
        Raises CheckpointError for a file that cannot be read, ValueError for another network's.
        """
        found = load_model(weights)
        if not isinstance(found, FdatRd):
            raise ValueError(f"{weights} is no FDAT-RD")
        try:
            start = from_weights(found, self.recipe)
        except ValueError as error:
            raise ValueError(f"{weights} is nothing to start from: {error}") from error
        for net in (self.network, self.averaged):
            net.load_state_dict(start.state_dict())
        self.minutes, self.joined = minutes, 0

    # A step, by its phases.

    def sample(self) -> tuple[Tensor, Strengths]:
        """What is to be restored, (B, 3, 2H, 2W), and what happens to it. The last `pairs` are the first again."""
        recipe = self.recipe
        single = recipe.batch - recipe.pairs
        truth = self.pool.sample(single, 2 * recipe.size)
        strengths = draw(single, self.generator, clean=recipe.clean, laserdisc=recipe.laserdisc)
        if recipe.pairs:
            order = torch.arange(recipe.batch, device=self.device) % single
            truth, strengths = truth.to(self.device)[order], strengths.repeated(order)
        return truth.to(self.device), strengths

    def degrade(self, truth: Tensor, strengths: Strengths) -> Tensor:
        """(B, 3, 2H, 2W) -> (B, 3, H, W)."""
        degraded = degrade(truth, strengths, self.generator)
        if self.recipe.clean_noise:
            degraded = add_noise(degraded, strengths.clean, self.recipe.clean_noise, self.generator)
        return degraded

    def loss(self, degraded: Tensor, truth: Tensor) -> Tensor:
        """Of a batch and its truth, and of the flat colors shown besides."""
        recipe, net = self.recipe, self.network
        if isinstance(net, FdatRd) and self._is_warming_up():
            return loss.total(network.shallow(net, degraded).float(), truth, recipe)
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
        """The loss's gradient."""
        self.network.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]

    def update(self, value: Tensor) -> float:
        """Change the weights, unless loss or gradient is not finite; returns the learning rate.

        Nothing waits for the device here: the fused optimizer leaves the step out by itself.
        """
        since = self.step - max(0, self.joined, self.resumed)
        learning_rate = rate(self.recipe, self.progress, since)
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
        """One batch: (the loss as a scalar on the device, the learning rate)."""
        if self.joined < 0 and not self._is_warming_up():
            self.joined = self.step
        truth, strengths = self.sample()
        value = self.loss(self.degrade(truth, strengths), truth)
        self.backward(value)
        return value.detach(), self.update(value)

    def warm_up(self) -> float:
        """Compile what is compiled, with one batch from which nothing is learned; returns the seconds it took."""
        begun = time.monotonic()
        if self.compiled:
            truth, strengths = self.sample()
            value = self.loss(self.degrade(truth, strengths), truth)
            self.backward(value)
            float(value)
        return time.monotonic() - begun

    def _is_warming_up(self) -> bool:
        """Whether the outer layers of a whole network still learn alone."""
        return self.recipe.form == "whole" and self.joined < 0 and self.progress < self.recipe.warm

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), 1 - decay)

    def output(self, x: Tensor) -> Tensor:
        """The averaged network's; on processors in float32."""
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
        """Everything, for `save_state`."""
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
        """Write a checkpoint: by the file's suffix a full or a slim one."""
        if file.suffix == ".pt":
            save_state(file, self.state())
        else:
            save_slim(file, self.averaged.state_dict(), self._place())

    def resume(self, file: Path) -> None:
        """Take up what `save` wrote. Raises ValueError if it was another network's."""
        if file.suffix != ".pt":
            tensors, state = load_slim(file)
            self._resume_place(state)
            for net in (self.network, self.averaged):
                net.load_state_dict(tensors)
            self.resumed = self.step
            torch.manual_seed(self.recipe.seed + self.step)  # not the same crops again
            self.generator.manual_seed(self.recipe.seed + self.step)
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
