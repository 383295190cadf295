"""The network on pixels, and the FDAT-RD it folds into."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from models.training import network, train, widen
from models.training.crop_cache import CropCache
from models.training.data import CropSampler
from models.training.folding import fold, fold_kernel, unfold
from models.training.pixel_network import (
    FOLD,
    PixelBlock,
    PixelGroup,
    PixelNetwork,
    TokenNorm,
    to_pixels,
    to_tokens,
)
from models.training.recipe import Recipe
from models.training.state import load_slim, load_state
from models.training.trainer import Trainer, starting_network, to_fdat_rd
from tests.training.reach import untouched
from vsfdatrd.archs.fdat_rd import FdatRdConfig, variant_config
from vsfdatrd.checkpoint import load_model
from vsfdatrd.nn.fdat_rd import FdatRd

UNFOLDED = Recipe(
    variant="tiny",
    form="unfolded",
    optimizer="muon",
    steps=12,
    batch=1,
    size=60,
    ramp=2,
    ema=0.5,
    sprites=4,
    validate_crops=1,
)


def restless(unfolded: PixelNetwork) -> PixelNetwork:
    """With no weight left at zero or one."""
    with torch.no_grad():
        for parameter in unfolded.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unfolded.eval()


def block_of(group: torch.nn.Module, number: int = 0) -> PixelBlock:
    """One block of a group on pixels."""
    return cast(PixelBlock, cast(PixelGroup, group).blocks[number])


@pytest.mark.parametrize(("name", "blocks"), [("tiny", 1), ("tiny", 2), ("small", 6), ("medium", 3), ("large", 1)])
def test_folded_it_computes_the_same_to_the_border(one_thread: None, name: str, blocks: int) -> None:
    config = network.variant_configuration(name)
    unfolded = restless(PixelNetwork(config, blocks))
    assert all(len(cast(PixelGroup, group).blocks) == blocks for group in unfolded.groups)
    folded = fold(unfolded, FdatRd(config)).eval()
    picture = torch.rand(1, 3, 60, 120)
    with torch.no_grad():
        expected = unfolded(picture)
        torch.testing.assert_close(folded(picture), expected, atol=2e-5 * float(expected.std()), rtol=1e-4)


def test_it_begins_as_interpolation(one_thread: None) -> None:
    unfolded = PixelNetwork(variant_config("small")).eval()
    with torch.no_grad():
        unfolded.gather.weight[24:] = 0  # what is to learn starts small, not at nothing
        enlarged = unfolded(torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(1)))
        expected = network.new_network(Recipe(variant="small")).eval()(
            torch.rand(1, 3, 60, 60, generator=torch.Generator().manual_seed(1))
        )
    torch.testing.assert_close(enlarged[..., 8:-8, 8:-8], expected[..., 8:-8, 8:-8])


@pytest.mark.parametrize(("name", "blocks"), [("tiny", 1), ("tiny", 3), ("large", 2)])
def test_unfolding_gives_back_what_was_folded(name: str, blocks: int) -> None:
    config = network.variant_configuration(name)
    unfolded = restless(PixelNetwork(config, blocks))
    again = unfold(fold(unfolded, FdatRd(config)))
    for (of, parameter), expected in zip(again.named_parameters(), unfolded.parameters(), strict=True):
        assert torch.equal(parameter, expected), of


def test_what_was_trained_on_does_not_unfold() -> None:
    config = network.variant_configuration("tiny")
    folded = fold(PixelNetwork(config), FdatRd(config))
    with torch.no_grad():
        folded.conv_after.weight[1, 2, 1, 1] += 0.25
    with pytest.raises(ValueError, match="not those of an unfolded network"):
        unfold(folded)


def test_a_wider_network_begins_where_the_narrow_one_stands(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = restless(PixelNetwork(variant_config("medium")))
    picture = torch.rand(1, 3, 60, 60)
    monkeypatch.setattr(widen, "NOISE", 0.0)
    for group in narrow.groups:  # norms compute something else, so here they stay out of it
        block_of(group).ffn.fc2.data.zero_()
    wide = widen.widen(narrow, variant_config("large")).eval()
    with torch.no_grad():
        torch.testing.assert_close(wide(picture), narrow(picture), atol=1e-4, rtol=1e-4)
    monkeypatch.undo()
    noisy = widen.widen(narrow, variant_config("large"))
    copies = cast(PixelGroup, noisy.groups[0]).conv[32:]
    assert (copies != cast(PixelGroup, wide.groups[0]).conv[32:]).any(1).all(), "copies that are alike stay so"
    with pytest.raises(ValueError, match=r"can only be widened: .* \(48, 96, 96, 6, 1\) .* \(32, 64, 64, 4, 1\)"):
        widen.widen(wide, variant_config("medium"))


def test_feed_forward_networks_are_widened_too(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """On doubled channels norms have the same mean and spread."""
    config = network.variant_configuration("tiny")
    narrow = restless(PixelNetwork(config))
    monkeypatch.setattr(widen, "NOISE", 0.0)
    wide = widen.widen(narrow, replace(config, embed_dim=96, ffn_dim=96)).eval()
    picture = torch.rand(1, 3, 60, 60)
    with torch.no_grad():
        torch.testing.assert_close(wide(picture), narrow(picture), atol=1e-4, rtol=1e-4)


def test_more_blocks_begin_where_fewer_stand(one_thread: None) -> None:
    config = network.variant_configuration("tiny")
    shallow = restless(PixelNetwork(config))
    deep = widen.widen(shallow, config, blocks=3).eval()
    picture = torch.rand(1, 3, 60, 60)
    with torch.no_grad():
        assert torch.equal(deep(picture), shallow(picture))
    assert block_of(deep.groups[0], 2).ffn.fc1.any(), "what adds nothing yet must be able to learn"
    with pytest.raises(ValueError, match=r"can only be widened: .* \(12, 12, 24, 1, 3\) .* \(12, 12, 24, 1, 2\)"):
        widen.widen(deep, config, blocks=2)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_folded_kernel_is_the_same_convolution(size: int) -> None:
    kernel, x = torch.randn(4, 3, size, size), torch.randn(2, 3, 8, 10)
    expected = F.pixel_unshuffle(F.conv2d(x, kernel, padding=size // 2), FOLD)
    # PixelUnshuffle has a channel's places beside each other; here the places come first.
    folded = fold_kernel(kernel).permute(2, 0, 1, 5, 3, 4, 6, 7).flatten(0, 2).flatten(1, 3)
    torch.testing.assert_close(F.conv2d(F.pixel_unshuffle(x, FOLD), folded, padding=1), expected)


def test_the_norm_is_that_of_tokens() -> None:
    norm, x = TokenNorm(6), 3 * torch.randn(2, 6, 8, 10) + 1
    tokens = F.pixel_unshuffle(x, FOLD)
    expected = F.pixel_shuffle(F.layer_norm(tokens.movedim(1, -1), (24,)).movedim(-1, 1), FOLD)
    torch.testing.assert_close(to_pixels(norm(to_tokens(x))), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(to_pixels(to_tokens(x)), x)


def test_the_rest_of_a_folded_network_can_learn(one_thread: None) -> None:
    net = fold(
        PixelNetwork(network.variant_configuration("tiny")), network.new_network(Recipe(variant="tiny", drop_path=0.0))
    )
    assert untouched(net) == []


def test_finished_weights_can_learn_and_pack_well() -> None:
    recipe = replace(UNFOLDED, variant="small", drop_path=0.0)
    tensors = to_fdat_rd(recipe, restless(PixelNetwork(network.variant_configuration("small"))).state_dict())
    net = network.new_network(recipe)
    net.load_state_dict(tensors)
    assert untouched(net) == []
    half = b"".join(t.half().numpy().tobytes() for t in tensors.values() if t.is_floating_point())
    assert len(zlib.compress(half, 6)) < 0.2 * len(half)


def test_groups_without_the_blocks_that_are_not_trained_compute_the_same(one_thread: None) -> None:
    long = replace(UNFOLDED, variant="small", blocks=3)
    short = replace(long, depth_per_group=1)
    trained = restless(PixelNetwork(network.configuration(long), 3)).state_dict()
    picture = torch.rand(1, 3, 60, 60)
    outputs = []
    for recipe, count in ((long, 6), (short, 3)):
        net = network.new_network(recipe)
        assert [len(kinds) for kinds in net.config.groups] == [count] * 4
        net.load_state_dict(to_fdat_rd(recipe, trained))
        with torch.no_grad():
            outputs.append(net.eval()(picture))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize(
    "config",
    [
        variant_config("small", unshuffle_mod=False),
        variant_config("small", scale=4),
        replace(variant_config("small"), embed_dim=36),
    ],
)
def test_another_network_does_not_unfold(config: FdatRdConfig) -> None:
    with pytest.raises(ValueError, match="only a network of 2x"):
        PixelNetwork(config)


def test_a_training_writes_weights_of_fdat_rd_and_goes_on(one_thread: None, tiles: Path, tmp_path: Path) -> None:
    trainer = Trainer(UNFOLDED, tiles, torch.device("cpu"))
    for _ in range(3):
        trainer.train_step()
    assert trainer.skipped == 0
    file = tmp_path / "weights.safetensors"
    train.export_weights(file, UNFOLDED, trainer.averaged.state_dict(), 3)
    first = file.read_bytes()
    train.export_weights(file, UNFOLDED, trainer.averaged.state_dict(), 3)
    assert file.read_bytes() == first  # what was not trained is random, but the same
    net, picture = load_model(file).eval(), torch.rand(1, 3, 60, 60)
    with torch.no_grad():
        torch.testing.assert_close(net(picture), trainer.output(picture), atol=5e-3, rtol=0)  # fp16
    # The whole network takes it from there.
    whole = Trainer(replace(UNFOLDED, form="whole", optimizer="adamw"), tiles, torch.device("cpu"))
    whole.start_from(starting_network(file, whole.recipe))
    value, _ = whole.train_step()
    assert value.isfinite()
    again = Trainer(UNFOLDED, tiles, torch.device("cpu"))
    again.start_from(starting_network(file, again.recipe))
    with torch.no_grad():
        torch.testing.assert_close(again.output(picture), trainer.output(picture), atol=5e-3, rtol=0)
    trainer.save(tmp_path / "checkpoint.safetensors")
    with pytest.raises(ValueError, match=r"is of tiny, unfolded, 1 blocks a group, the recipe of tiny, whole"):
        whole.resume(tmp_path / "checkpoint.safetensors")


def test_its_loss_falls(one_thread: None, tiles: Path) -> None:
    """From weights that were spoilt, on clean pairs of waves and discs."""
    recipe = replace(UNFOLDED, steps=60, batch=2, learning_rate=3e-3, ramp=3, clean=1.0, laserdisc=0.0, lines=0.0)
    trainer = Trainer(recipe, tiles, torch.device("cpu"))
    restless(cast(PixelNetwork, trainer.network)).train()
    losses = [float(trainer.train_step()[0]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.4 * sum(losses[:10])


@pytest.mark.parametrize("form", ["unfolded", "whole"])
def test_flat_colors_come_back(one_thread: None, tiles: Path, form: str) -> None:
    """Shown alone, they drive out a shift and a pattern that were put into the last bias and kernel."""
    recipe = Recipe.from_mapping(
        {
            "variant": "tiny",
            "form": form,
            "steps": 30,
            "batch": 1,
            "size": 60,
            "ramp": 2,
            "ema": 0.5,
            "warm": 0.0,
            "sprites": 4,
            "learning_rate": 5e-5,
            "flat_colors": 4,
            "pixel": 0.0,
            "gradient": 0.0,
            "frequency": 0.0,
        }
    )
    trainer = Trainer(recipe, tiles, torch.device("cpu"))
    color = torch.tensor([0.5, 0.3, 0.8]).view(1, 3, 1, 1)

    def error() -> float:
        with torch.no_grad():
            return float((trainer.output(color.expand(-1, -1, 60, 60)) - color)[..., 56:64, 56:64].abs().max())

    net = trainer.network
    tail = cast(torch.nn.ConvTranspose2d, net.gather if isinstance(net, PixelNetwork) else net.upsampler[2])
    with torch.no_grad():
        tail.weight.mul_(1 + 0.03 * torch.rand_like(tail.weight))
        trainer.averaged.load_state_dict(trainer.network.state_dict())
    before = error()
    for _ in range(30):
        trainer.train_step()
    assert error() < 0.4 * before


def test_resuming_an_unfolded_training(one_thread: None, tiles: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    values = {
        "variant": "tiny",
        "form": "unfolded",
        "optimizer": "muon",
        "steps": 4,
        "batch": 1,
        "size": 60,
        "bank": 20,
        "sprites": 4,
        "validate_crops": 1,
    }
    recipe.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    out = tmp_path / "run"
    arguments = ["--recipe", str(recipe), "--data", str(tiles), "--out", str(out), "--threads", "1", "--device", "cpu"]
    assert train.main([*arguments, "--steps", "2"]) == 0
    bank = (out / train.BANK).stat()
    assert train.main(arguments) == 0
    assert load_state(out / train.CHECKPOINTS["full"])["step"] == 4
    assert (out / train.BANK).stat().st_mtime_ns == bank.st_mtime_ns, "the crops were composed again"
    load_model(out / "fdat_rd_tiny_2x.safetensors")


def test_the_committed_trunk_can_be_resumed() -> None:
    """By the recipe that made it."""
    folder = Path(train.__file__).parent
    recipe = Recipe.read(folder / "medium_trunk.toml")
    tensors, state = load_slim(folder / "trunk.safetensors")
    saved = Recipe.from_mapping(state["recipe"])
    assert (saved.variant, saved.form, saved.blocks) == (recipe.variant, recipe.form, recipe.blocks)
    PixelNetwork(network.variant_configuration(recipe.variant), recipe.blocks).load_state_dict(tensors)
    assert 0 < state["step"] < recipe.steps
    assert (folder / "trunk.safetensors").stat().st_size < 2_000_000


def test_the_whole_network_is_taught_without_attention(one_thread: None, tiles: Path, tmp_path: Path) -> None:
    """From an unfolded training's weights; attention stays as it is, in the weights that are written too."""
    start = tmp_path / "weights.safetensors"
    unfolded = restless(PixelNetwork(network.variant_configuration("tiny")))
    train.export_weights(start, UNFOLDED, unfolded.state_dict(), 0)
    recipe = Recipe.from_mapping(
        {
            "variant": "tiny",
            "attention": False,
            "steps": 9,
            "batch": 2,
            "pairs": 1,
            "consistency": 0.1,
            "size": 60,
            "drop_path": 0.0,
            "ema": 0.0,
            "sprites": 4,
            "ramp": 1,
        }
    )
    trainer = Trainer(recipe, tiles, torch.device("cpu"))
    trainer.start_from(starting_network(start, trainer.recipe))
    for _ in range(2):
        trainer.train_step()
    assert trainer.skipped == 0
    train.export_weights(tmp_path / "after.safetensors", recipe, trainer.averaged.state_dict(), 2)
    before, after = (load_model(file).state_dict() for file in (start, tmp_path / "after.safetensors"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"groups.0.blocks.0.conv.0.weight", "groups.0.blocks.1.ffn.fc2.weight", "upsampler.0.weight"} <= changed
    assert not any("attn" in name or "inter" in name for name in changed)


def test_a_bank_shows_what_was_composed(tiles: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    pool = CropSampler.open(tiles, Recipe(variant="tiny", sprites=4), torch.Generator().manual_seed(3))
    bank = CropCache.open(tmp_path / "bank.npy", lambda: pool, 20, 120)
    again = CropCache.open(tmp_path / "bank.npy", lambda: pool, 20, 120)
    assert torch.equal(bank.crops, again.crops)
    assert list(tmp_path.iterdir()) == [tmp_path / "bank.npy"]
    for count, size in ((21, 120), (20, 124)):
        with pytest.raises(
            ValueError, match=f"bank.npy has 20 crops of 120 pixels, and the recipe needs {count} of {size}"
        ):
            CropCache.open(tmp_path / "bank.npy", lambda: pool, count, size)
    views = bank.sample(8, 120)  # as large as the crops: nothing but mirrored, turned, recolored
    assert views.shape == (8, 3, 120, 120)
    known = {tuple(sorted(crop.float().mean((1, 2)).tolist())) for crop in bank.crops}
    for view in views:
        means = sorted((255 * view.mean((1, 2))).tolist())
        assert min(max(abs(a - b) for a, b in zip(means, one, strict=True)) for one in known) < 0.01
    assert bank.sample(3, 60).shape == (3, 3, 60, 60)
