"""Which tensors of a training program's checkpoint are the network, and which of two sets of weights is used."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.weights.checkpoint.conftest import Tensors
from vsfdatrd.checkpoint import load_model, open_checkpoint
from vsfdatrd.weights.files import Entry
from vsfdatrd.weights.state_dicts import state_dicts

pytest.importorskip("spandrel")

type State = dict[str, torch.Tensor]
type Tree = dict[Any, Any]


def _weights(seed: int) -> State:
    """Tensors of a network that spandrel knows, with names such as ``body.0.weight``, which many architectures use."""
    from spandrel.architectures.Compact.__arch.SRVGG import SRVGGNetCompact

    torch.manual_seed(seed)
    network = SRVGGNetCompact(num_feat=8, num_conv=1, upscale=2)  # type: ignore[no-untyped-call]
    return dict(network.state_dict())


LAST, BEST = _weights(1), _weights(0)
OPTIMIZER = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(8, 3, 3, 3)}}, "param_groups": [{"lr": 1}]}
JUDGE = {"conv.weight": torch.zeros(4, 3, 3, 3), "conv.bias": torch.zeros(4)}
REST: Tree = {"epoch": 3, "iter": 500, "optimizer": OPTIMIZER, "lr_schedulers": [{"last_epoch": 3}], "best": 31.5}


def _behind(prefix: str, state: Mapping[str, Any]) -> State:
    return {prefix + name: value for name, value in state.items()}


def _half(prefix: str) -> State:
    """Only the first layer is wrapped."""
    return {(prefix if name.startswith("body.0.") else "") + name: value for name, value in BEST.items()}


def _tree(state: State) -> Tree:
    """``body.0.weight`` as body -> 0 -> weight."""
    tree: Tree = {}
    for name, value in state.items():
        *path, last = name.split(".")
        place = tree
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


ALONE: dict[str, Tree | list[Tree]] = {
    "plain": BEST,
    "with numbers": BEST | {"n_averaged": torch.tensor(3)},
    **{
        key: {key: BEST, **REST}
        for key in (
            "params",
            "state_dict",
            "model",
            "model_state_dict",
            "net",
            "net_g",
            "netG",
            "generator",
            "gen",
            "G",
            "g_ema",
            "net_g_ema",
            "ema",
            "module",
            "network",
            "student",
            "weights_of_my_network",
            "model.state_dict",
        )
    },
    "gan": {"generator": BEST, "discriminator": JUDGE},
    "gan of capitals": {"G": BEST, "D": JUDGE, "G_optim": OPTIMIZER, "D_optim": OPTIMIZER},
    "optimizer first": {"optimizer": OPTIMIZER, "opt_d": OPTIMIZER, "net_d": JUDGE, "net_g": BEST},
    "nested": {"checkpoint": {"model": {"state_dict": BEST}, **REST}},
    "nested, unknown": {"a": {"b": {"c": BEST}}},
    "dicts of tensors": _tree(BEST),
    **{
        prefix: {"state_dict": _behind(prefix, BEST), **REST}
        for prefix in (
            "module.",
            "model.",
            "generator.",
            "net_g.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "my_net.",
            "model.net.",
            "model.generator.module.",
            "_forward_module.model.",
            "_fsdp_wrapped_module.",
        )
    },
    "lightning gan": {"state_dict": _behind("generator.", BEST) | _behind("discriminator.", JUDGE), **REST},
    "lightning loss": {"state_dict": _behind("upscaling.", BEST) | _behind("perceptual_loss.vgg.", JUDGE), **REST},
    "averaged model": _behind("module.", BEST) | {"n_averaged": torch.tensor(9)},
    "averaged compiled": _behind("module._orig_mod.", BEST) | {"n_averaged": torch.tensor(9)},
    "half wrapped": _half("module."),
    "half wrapped in a dict": {"params": _half("model.")},
    "half compiled": {"params": _half("_orig_mod.")},
    "checkpointed layer": {
        "params": {name.replace("body.0.", "body.0._checkpoint_wrapped_module."): value for name, value in BEST.items()}
    },
    "deepspeed": {"module": BEST, "optimizer": OPTIMIZER, "ds_config": {"fp16": {"enabled": False}}},
    "beside a loss": {"model": BEST, "loss": {"net.conv.weight": torch.zeros(3, 3)}, "losses": torch.zeros(4, 4)},
    "list": [BEST, OPTIMIZER],
}

BOTH: dict[str, Tree] = {
    "basicsr": {"params": LAST, "params_ema": BEST},
    "neosr": {"params": LAST, "params-ema": BEST},
    "timm": {"state_dict": LAST, "state_dict_ema": BEST, **REST},
    "srgan": {"epoch": 1, "state_dict": LAST, "ema_state_dict": BEST, "optimizer": OPTIMIZER},
    "model": {"model": LAST, "model_ema": BEST},
    "yolo": {"model": LAST, "ema": BEST, "updates": 5},
    "gan": {"net_g": LAST, "net_g_ema": BEST, "net_d": JUDGE},
    "stylegan": {"g": LAST, "d": JUDGE, "g_ema": BEST, "g_optim": OPTIMIZER},
    "camel": {"netG": LAST, "netGEma": BEST, "netD": JUDGE},
    "swa": {"model": LAST, "swa_model": _behind("module.", BEST) | {"n_averaged": torch.tensor(2)}},
    "averaged model": {"model": LAST, "averaged_model": BEST},
    "averaged inside": {"model": {"state_dict": LAST, "ema": {"state_dict": BEST}}},
    "lightning prefixes": {"state_dict": _behind("net.", LAST) | _behind("net_ema.", BEST), **REST},
    "mmediting": {
        "meta": {},
        "state_dict": _behind("generator.", LAST)
        | _behind("generator_ema.", BEST)
        | _behind("discriminator.", JUDGE)
        | {"step_counter": torch.tensor(2)},
    },
    "mmengine": {"state_dict": LAST, "ema_state_dict": _behind("module.", BEST) | {"steps": torch.tensor(1)}},
    "ema-pytorch": _behind("online_model.", LAST)
    | _behind("ema_model.", BEST)
    | {"initted": torch.tensor(True), "step": torch.tensor(9)},
    "weight averaging": {"current_model_state": LAST, "state_dict": BEST},
    "latent diffusion": {
        "state_dict": _behind("model.", LAST)
        | _behind("model_ema.", {name.replace(".", ""): value for name, value in BEST.items()})
        | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(7)}
    },
    "flat": _behind("params.", LAST) | _behind("params_ema.", BEST),
}


def _is_best(path: Path, name: str) -> None:
    result = open_checkpoint(path).tensors()
    assert result.keys() == BEST.keys(), name
    assert all(np.array_equal(result[key], value.numpy()) for key, value in BEST.items()), name


@pytest.mark.parametrize("name", ALONE)
def test_the_network_is_found(tmp_path: Path, name: str) -> None:
    torch.save(ALONE[name], path := tmp_path / "a.pth")
    _is_best(path, name)


@pytest.mark.parametrize("name", BOTH)
def test_averaged_weights_are_used_in_whatever_order_they_come(tmp_path: Path, name: str) -> None:
    for order in (BOTH[name], dict(reversed(BOTH[name].items()))):
        torch.save(order, path := tmp_path / "a.pth")
        _is_best(path, name)


def test_what_is_used_is_logged_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"params": LAST, "params_ema": BEST}, path := tmp_path / "a.pth")
    with caplog.at_level(logging.INFO):
        checkpoint = open_checkpoint(path)
    assert "a.pth: the averaged weights 'params_ema/' are used; it also has 'params/'" in caplog.text
    assert checkpoint.descriptor.part == "params_ema/"
    caplog.clear()
    broken = {name: value for name, value in BEST.items() if name != "body.0.bias"}
    torch.save({"params": LAST, "params_ema": broken}, path)
    state = load_model(path).state_dict()
    assert torch.equal(state["model.body.0.bias"], LAST["body.0.bias"])


def test_an_fdat_rd_without_spandrel(tmp_path: Path, state: Tensors, tensors: Tensors) -> None:
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    judge = {name: value for name, value in list(other.items())[:3]}
    trees: list[Tree] = [
        {"state_dict": _behind("generator.", other) | _behind("generator_ema.", state)},
        {"state_dict": _behind("some.attribute.", state) | _behind("another.", judge)},
        {"G_A": state, "G_B": other},
        {"net_g_ema": state, "net_g": other, "net_d": judge},
    ]
    for number, tree in enumerate(trees):
        torch.save(tree, path := tmp_path / "a.pth")
        result = open_checkpoint(path).tensors()
        assert all(np.array_equal(result[name], values) for name, values in tensors.items()), number


def test_names_of_a_network_are_left_alone() -> None:
    entries = {name: Entry("fp32", (3, 3)) for name in ("model.0.weight", "model.1.weight")}
    first, second = state_dicts(entries)
    assert (first.part, first.names) == ("", {name: name for name in entries})
    assert (second.part, set(second.names)) == ("model.", {"0.weight", "1.weight"})
    assert state_dicts({}) == []
    assert state_dicts({"a": Entry("int64", (3, 3)), "b": Entry("fp32", (3,))}) == []


def test_many_parts_do_not_take_long() -> None:
    names = [f"model.state_dict.net.{i}/{j}/module.conv.weight" for i in range(60) for j in range(60)]
    assert len(state_dicts({name: Entry("fp32", (3, 3)) for name in names})) <= 200
