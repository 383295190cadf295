"""The trainer as its users run it, with the smallest network."""

import json
import signal
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from models.training import train
from models.training.curve import COLORS, Log
from models.training.data import CropSampler
from models.training.optimize import learning_rate_at
from models.training.recipe import Recipe
from models.training.state import export, load_state, save_state
from models.training.trainer import Trainer, starting_network
from models.training.validate import KINDS, Enlarge, Scores, Validation
from vsfdatrd.checkpoint import load_model, open_checkpoint
from vsfdatrd.nn.fdat_rd import FdatRd

ROOT = Path(__file__).resolve().parents[2]


def recipe_file(folder: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "variant": "tiny",
        "steps": 20,
        "batch": 1,
        "size": 60,
        "ramp": 2,
        "ema": 0.9,
        "validate_crops": 1,
    }
    file = folder / "recipe.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | changes).items()))
    return file


def arguments(recipe: Path, tiles: Path, out: Path, *more: str) -> list[str]:
    return [
        "--recipe",
        str(recipe),
        "--data",
        str(tiles),
        "--out",
        str(out),
        "--threads",
        "1",
        "--device",
        "cpu",
        *more,
    ]


@pytest.fixture(scope="module")
def trained(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of 20 steps, in two calls."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = recipe_file(folder)
    threads = torch.get_num_threads()
    assert train.main(arguments(recipe, tiles, folder, "--steps", "8")) == 0
    assert load_state(folder / train.CHECKPOINTS["full"])["step"] == 8
    assert train.main(arguments(recipe, tiles, folder)) == 0
    torch.set_num_threads(threads)
    return folder


def test_it_reaches_the_end_of_its_plan(trained: Path) -> None:
    state = load_state(trained / train.CHECKPOINTS["full"])
    assert state["step"] == 20
    assert state["skipped"] == 0
    entries = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if "psnr" in e] == [0, 8, 20]
    for measure in ("psnr", "chroma"):
        assert set(entries[0][measure]) == set(KINDS)
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["step"], summary["steps"], summary["crops"], summary["skipped"]) == (20, 12, 12, 0)
    assert summary["after"]["psnr"] == entries[-1]["psnr"]
    for name in ("curve.png", "validation.png"):
        assert (trained / name).read_bytes().startswith(b"\x89PNG")
    assert not list(trained.glob(".*"))


def test_its_weights_open_and_compute(trained: Path) -> None:
    checkpoint = open_checkpoint(trained / "fdat_rd_tiny_2x.safetensors")
    assert checkpoint.descriptor.name == "FDAT-RD"
    assert (checkpoint.descriptor.scale, checkpoint.descriptor.dtype) == (2, "fp16")
    net = checkpoint.network()
    with torch.no_grad():
        output = net(torch.full((1, 3, 33, 47), 0.5))
    assert output.shape == (1, 3, 66, 94)
    assert float(output[..., 20:-20, 20:-20].mean()) == pytest.approx(0.5, abs=0.1)


def test_export_writes_the_averaged_weights(trained: Path, tiles: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert train.main(["--recipe", str(trained / "recipe.toml"), "--out", str(trained), "--export", str(file)]) == 0
    assert file.read_bytes() == (trained / "fdat_rd_tiny_2x.safetensors").read_bytes()
    kept = load_state(trained / train.CHECKPOINTS["full"])["averaged"]
    for name, tensor in load_model(file).state_dict().items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-3, rtol=1e-3)


def test_training_goes_on_from_given_weights(trained: Path, tiles: Path, tiny_model: Path) -> None:
    trainer = Trainer(Recipe.read(trained / "recipe.toml"), tiles, torch.device("cpu"))
    trainer.start_from(starting_network(trained / "fdat_rd_tiny_2x.safetensors", trainer.recipe))
    trainer.train_step()
    assert isinstance(trainer.network, FdatRd)
    assert trainer.network.conv_after.weight.any()
    with pytest.raises(ValueError, match="nothing to start from: it is no FDAT-RD tiny 2x like the recipe's"):
        starting_network(tiny_model, trainer.recipe)


def test_weights_to_start_from_are_read_before_the_crops_are_composed(
    trained: Path, tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, wrong)
    words = ["--recipe", str(trained / "recipe.toml"), "--data", str(tiles), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit, match="2"):
        train.main([*words, "--start", str(wrong)])
    assert "wrong.safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_resuming_is_as_if_never_stopped(tiles: Path, tmp_path: Path, one_thread: None) -> None:
    recipe = Recipe(variant="tiny", steps=20, batch=1, size=60, sprites=4)

    def losses(trainer: Trainer, count: int) -> list[float]:
        return [float(trainer.train_step()[0]) for _ in range(count)]

    whole = Trainer(recipe, tiles, torch.device("cpu"))
    losses(whole, 2)
    whole.save(tmp_path / "checkpoint.pt")
    expected = losses(whole, 2)
    again = Trainer(recipe, tiles, torch.device("cpu"))
    again.resume(tmp_path / "checkpoint.pt")
    assert losses(again, 2) == pytest.approx(expected, rel=1e-4)
    assert again.step == 4


@pytest.mark.parametrize("kind", ["slim", "full"])
def test_resuming_without_the_state_of_random_numbers_draws_other_crops(tiles: Path, tmp_path: Path, kind: str) -> None:
    """A slim checkpoint has none, and that of a GPU means nothing to a CPU."""
    trainer = Trainer(Recipe(variant="tiny", steps=20, batch=1, size=60, sprites=4), tiles, torch.device("cpu"))
    trainer.sample()
    trainer.step = 3
    file = tmp_path / train.CHECKPOINTS[kind]
    if kind == "full":
        save_state(file, trainer.state() | {"device": "cuda"})
    else:
        trainer.save(file)
    again = Trainer(trainer.recipe, tiles, torch.device("cpu"))
    again.resume(file)
    assert again.generator.initial_seed() == trainer.recipe.seed + 3
    assert isinstance(again.pool, CropSampler)
    assert again.pool.chance.getstate() != Random(trainer.recipe.seed).getstate()


def test_a_request_to_end_during_validation_loses_nothing(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps since the last checkpoint are saved."""
    recipe = recipe_file(tmp_path, steps=1000, validate_minutes=0, checkpoint_minutes=1000)
    measure = Validation.measure
    calls: list[Enlarge] = []

    def interrupted(self: Validation, enlarge: Enlarge) -> Scores:
        calls.append(enlarge)
        if len(calls) == 4:  # cubic interpolation, before, and after each step
            signal.raise_signal(signal.SIGTERM)
        return measure(self, enlarge)

    monkeypatch.setattr(Validation, "measure", interrupted)
    out = tmp_path / "out"
    assert train.main(arguments(recipe, tiles, out)) == 0
    logged = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert load_state(out / train.CHECKPOINTS["full"])["step"] == logged[-1] >= 2


def test_the_loss_falls(tiles: Path, one_thread: None) -> None:
    """From weights that were spoilt, on clean pairs of waves and discs."""
    recipe = Recipe(
        variant="tiny",
        steps=60,
        batch=2,
        size=60,
        ramp=3,
        sprites=4,
        clean=1.0,
        laserdisc=0.0,
        lines=0.0,
        warm=0.8,
        learning_rate=3e-3,
    )
    trainer = Trainer(recipe, tiles, torch.device("cpu"))
    assert isinstance(trainer.network, FdatRd)
    with torch.no_grad():
        for parameter in trainer.network.upsampler.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    losses = [float(trainer.train_step()[0]) for _ in range(60)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_loss_that_is_not_finite_changes_nothing(tiles: Path, one_thread: None) -> None:
    trainer = Trainer(Recipe(variant="tiny", steps=9, batch=1, size=60, sprites=4), tiles, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.pool.sample = lambda batch, size: torch.full((batch, 3, size, size), float("nan"))  # type: ignore[method-assign]
    trainer.train_step()
    assert trainer.skipped == 1
    for name, tensor in trainer.network.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_rises_and_falls(schedule: str) -> None:
    recipe = Recipe.from_mapping({"schedule": schedule, "ramp": 10, "learning_rate": 1.0})
    assert learning_rate_at(recipe, 0.0, 0) == pytest.approx(0.1)
    assert learning_rate_at(recipe, 0.01, 50) > 0.99
    assert learning_rate_at(recipe, 1.0, 5000) < 1e-6
    assert (learning_rate_at(recipe, 0.5, 5000) > 0.9) == (schedule == "wsd")


@pytest.mark.parametrize("file", sorted(Path(train.__file__).parent.glob("*.toml")), ids=lambda file: file.stem)
def test_presets_can_be_read(file: Path) -> None:
    recipe = Recipe.read(Path(file.name))
    assert recipe.variant == ("small" if file.stem == "cpu" else file.stem.split("_")[0])
    assert 0 <= recipe.clean + recipe.laserdisc <= 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": 60}, "is nothing a recipe has"),
        ({"size": 50}, "multiple of 60"),
        ({"batch": "8"}, "is no int"),
        ({"texture": 0.5}, "is nothing a recipe has"),
        ({"clean": 0.9}, "more than the whole"),
        ({"digital": 1.5}, "digital 1.5 is no share; choose 0 to 1"),
        ({"depth_per_group": -1}, "is negative"),
        ({"schedule": "flat"}, "is not known"),
        ({"checkpoint": "half"}, "is not known"),
        ({"batch": 3, "pairs": 2}, "more than half"),
        ({"form": "unfolded", "attention": False}, "no attention to leave out"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.from_mapping(values)


def test_a_log_forgets_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    file.write_text('{"step": 1, "minutes": 0.1, "loss": 0.2}\n{"step": 5, "minutes": 0.5, "loss": 0.1}\n{"st')
    log = Log(file, 3)
    log.add({"step": 4, "minutes": 0.4, "loss": 0.15})
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [1, 4]


def test_a_log_continues_with_more_kinds_of_crops(tmp_path: Path) -> None:
    """A training resumes with the validation of today, whose log began with that of an earlier version."""
    log = Log(tmp_path / "log.jsonl", 0)
    for minutes, kinds in ((0, ["clean", "dvd"]), (1, ["clean", "dvd"]), (2, list(KINDS)), (3, list(KINDS))):
        scores = {kind: 30.0 + minutes / 2 + n for n, kind in enumerate(kinds)}
        log.add({"step": minutes, "minutes": minutes, "psnr": scores, "bicubic": dict.fromkeys(kinds, 26.0)})
    log.draw(tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        drawn = {color for _, color in image.convert("RGB").getcolors(1 << 16) or []}
    assert {COLORS[kind] for kind in KINDS} <= drawn


def test_weights_beyond_half_precision_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not finite in half precision"):
        export(tmp_path / "w.safetensors", {"a": torch.tensor([1e9])}, "")
    assert not list(tmp_path.iterdir())
