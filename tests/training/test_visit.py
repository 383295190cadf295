"""Requirements for a training of a few minutes on a GPU: ends on time, never waits, writes a small checkpoint."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from models.training import network, train
from models.training.folding import fold
from models.training.pixel_network import PixelNetwork
from models.training.recipe import Recipe
from models.training.state import export, load_slim, save_slim
from models.training.trainer import Deadline, Trainer, compile_blocks
from models.training.validate import KINDS
from vsfdatrd.checkpoint import load_model
from vsfdatrd.nn.fdat_rd import FdatRd, WindowAttention

ROOT = Path(__file__).resolve().parents[2]
VISIT = {
    "variant": "tiny",
    "drop_path": 0.0,
    "batch": 2,
    "pairs": 1,
    "size": 60,
    "warm": 0.0,
    "ramp": 1,
    "ema": 0.5,
    "schedule": "wsd",
    "consistency": 0.1,
    "color": 2.0,
    "color_structure": 0.25,
    "structure": 0.5,
    "flat_colors": 1,
    "sprites": 4,
    "checkpoint": "slim",
    "validate_crops": 1,
    "validate_minutes": 1000,
}


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of an unfolded training, in which attention contributes nothing."""
    torch.manual_seed(2)
    unfolded = PixelNetwork(network.variant_configuration("tiny"))
    torch.nn.init.normal_(unfolded.after, std=0.01)  # at the very first it is zero, and nothing behind it learns
    net = fold(unfolded, network.new_network(Recipe(variant="tiny")))
    file = tmp_path_factory.mktemp("idle") / "weights.safetensors"
    export(file, net.state_dict(), "")
    return file


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("visit") / "visit.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in VISIT.items()))
    return file


def call(recipe: Path, tiles: Path, out: Path, *more: str) -> list[str]:
    return [
        "--recipe",
        str(recipe),
        "--data",
        str(tiles),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--threads",
        "1",
        *more,
    ]


def windows(net: torch.nn.Module) -> list[WindowAttention]:
    return [module for module in net.modules() if isinstance(module, WindowAttention)]


def test_a_visit_ends_on_time_and_attention_has_joined(
    recipe: Path, tiles: Path, idle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    begun = time.monotonic()
    assert train.main(call(recipe, tiles, out, "--start", str(idle), "--deadline", "10")) == 0
    assert time.monotonic() - begun < 10 + 30, "a busy machine may take that much longer for the last step"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["steps"] >= 1
    assert summary["crops"] == 2 * summary["steps"]
    assert set(summary["before"]["psnr"]) == set(summary["after"]["chroma"]) == set(KINDS)

    (before,), (after,) = windows(load_model(idle)), windows(load_model(out / summary["weights"]))
    assert not before.proj.weight.any()
    assert after.proj.weight.any()
    shares = after.rel_pos_bias.detach().softmax(-1)
    assert (shares.diagonal(dim1=1, dim2=2) > 2 / shares.shape[-1]).all(), "windows begin as blurs around each token"

    # Another visit goes on from what came back, whatever it is told to start from.
    capsys.readouterr()
    files = {file.name for file in out.iterdir()}
    assert files == {
        summary["weights"],
        summary["checkpoint"],
        "summary.json",
        "log.jsonl",
        "curve.png",
        "validation.png",
        "validation.npz",
    }
    assert train.main(call(recipe, tiles, out, "--start", str(idle), "--steps", "1")) == 0
    assert f"going on from step {summary['step']}" in capsys.readouterr().err
    assert json.loads((out / "summary.json").read_text())["step"] == summary["step"] + 1


def test_a_plan_follows_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long measuring takes between steps, it begins at 0, never falls, and is over at the deadline."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline(end=200.0)
    seen = [deadline.progress]
    for took, trained in ((10, 10), (30, 0), (40, 40), (20, 20)):
        now += took
        deadline.trained += trained
        seen.append(deadline.progress)
    assert seen == pytest.approx([0, 0.1, 10 / 70, 50 / 70, 1])


def test_the_visit_s_checkpoint_is_small(tmp_path: Path, tiles: Path) -> None:
    """Of medium, the network that is trained there."""
    published = Recipe.read(Path("medium_visit.toml"))
    assert published.checkpoint == "slim"
    assert published.drop_path == 0, "a rate for each block would be a compilation for each"
    net = network.new_network(published)
    file = tmp_path / "checkpoint.safetensors"
    save_slim(file, net.state_dict(), {"recipe": {}, "step": 1})
    assert file.stat().st_size <= 15 * 2**20
    tensors, state = load_slim(file)
    assert state == {"recipe": {}, "step": 1}
    assert tensors.keys() == net.state_dict().keys()


def test_kill_9_at_any_moment_leaves_a_checkpoint_to_go_on_from(
    recipe: Path, tiles: Path, idle: Path, tmp_path: Path
) -> None:
    often = tmp_path / "often.toml"
    often.write_text(recipe.read_text() + "checkpoint_minutes = 0\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "models.training.train", *call(often, tiles, out, "--start", str(idle))]
    process = subprocess.Popen([*command, "--deadline", "600"], cwd=ROOT, stderr=subprocess.DEVNULL)
    checkpoint = out / train.CHECKPOINTS["slim"]
    try:
        until = time.monotonic() + 240
        while not checkpoint.exists() or load_slim(checkpoint)[1]["step"] < 3:  # read while it is being written
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = load_slim(checkpoint)[1]["step"]
    assert train.main(call(often, tiles, out, "--steps", "1")) == 0
    assert load_slim(checkpoint)[1]["step"] == before + 1
    load_model(out / "fdat_rd_tiny_2x.safetensors")


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what a host waits for on a GPU: values read back, and tensors made from Python's numbers."""

    NAMES = ("_local_scalar_dense", "nonzero", "lift_fresh", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__.rstrip("_") in self.NAMES:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_waits_for_nothing(recipe: Path, tiles: Path, one_thread: None) -> None:
    trainer = Trainer(Recipe.read(recipe), tiles, torch.device("cpu"))
    trainer.train_step()  # constants are made once
    with Waits() as waits:
        trainer.train_step()
    assert waits.seen == []
    with Waits() as waits:
        bool(torch.ones(1).sum() > torch.tensor(0.5))
    assert len(waits.seen) == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # the compiler looks at all
def test_blocks_are_compiled_once_for_each_kind(one_thread: None) -> None:
    """Two groups, whose windows lie either way: four kinds among six blocks."""
    config = network.variant_configuration("tiny")
    net = FdatRd(replace(config, groups=2 * config.groups)).train()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return cast(Callable[..., Any], graph.forward)

    compile_blocks(net, backend=backend)
    torch.compiler.reset()
    net(torch.rand(1, 3, 60, 60)).sum().backward()
    net(torch.rand(1, 3, 60, 60)).sum().backward()
    kinds = {
        (block.kind, getattr(block.attn, "window", None)) for group in net.groups for block in cast(Any, group).blocks
    }
    assert len(graphs) == len(kinds) == 4
