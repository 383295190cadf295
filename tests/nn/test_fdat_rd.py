"""The network gives the results of the published one, and can be trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from tests.reference import FIXTURES
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, VARIANTS, config_from_shapes
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.nn.fdat_rd import DropPath, FdatRd, WindowAttention, build
from vsfdatrd.nn.upsamplers import build_upsampler

type Make = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("one_thread")

TAILS = [(kind, scale) for kind in UPSAMPLERS for scale in (1, 2, 3, 4) if kind != "conv" or scale == 1]


def _network(make_tensors: Make, make_config: Make, seed: int = 0, drop_path: float = 0, **changes: Any) -> FdatRd:
    network = FdatRd(make_config(**changes), drop_path=drop_path)
    tensors = make_tensors(seed, **changes)
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    return network.eval()


def _run(network: FdatRd, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.as_tensor(network(x))


def test_all_fixtures_are_listed(shared: Path) -> None:
    assert set(json.loads((shared / "fixtures/index.json").read_text())) == {f"fdatrd_{name}" for name in FIXTURES}


@pytest.mark.parametrize("name", FIXTURES)
def test_reproduces_the_published_network(shared: Path, name: str) -> None:
    facts = json.loads((shared / "fixtures/index.json").read_text())[f"fdatrd_{name}"]
    state = load_file(shared / f"fixtures/fdatrd_{name}.safetensors")
    config = config_from_shapes(
        {key: tuple(tensor.shape) for key, tensor in state.items()}, state[META_UPSAMPLE].tolist()
    )
    network = FdatRd(config).eval()
    network.load_state_dict(state)
    with np.load(shared / f"fixtures/fdatrd_{name}.npz") as pictures:
        for height, width in facts["sizes"]:
            expected = torch.from_numpy(pictures[f"out_{height}x{width}"])
            out = _run(network, torch.from_numpy(pictures[f"in_{height}x{width}"]))
            assert out.shape == expected.shape
            assert (out - expected).abs().max().item() <= 1e-4 * facts["out_std"], (height, width)


@pytest.mark.parametrize(("upsampler", "scale"), TAILS)
def test_every_tail_enlarges_and_learns(make_config: Make, upsampler: str, scale: int) -> None:
    network = FdatRd(make_config(upsampler=upsampler, tail_scale=scale, groups=(("channel", "dictionary"),)))
    out = network(torch.rand(1, 3, 30, 29))
    assert out.shape == (1, 3, 30 * scale, 29 * scale)
    torch.autograd.backward(out.square().mean())
    for name, parameter in network.named_parameters():
        if ".inter.cg." in name:  # stored in channel blocks too, where it is not used
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_scales_with_unshuffle(make_tensors: Make, make_config: Make, unshuffle: int) -> None:
    network = _network(make_tensors, make_config, tail_scale=4, unshuffle=unshuffle)
    assert network.scale == 4 // unshuffle
    out = _run(network, torch.rand(1, 3, 50, 61))
    assert out.shape == (1, 3, 50 * network.scale, 61 * network.scale)


@pytest.mark.parametrize("kind", [kind for kind in UPSAMPLERS if kind not in ("conv", "pixelshuffledirect")])
def test_tails_refuse_scales_they_cannot_have(kind: str) -> None:
    if kind in ("dysample", "lda"):
        with pytest.raises(ValueError, match="needs a multiple of"):
            build_upsampler(kind, 2, 6, 3, 6)  # type: ignore[arg-type]
    else:
        with pytest.raises(ValueError, match="cannot enlarge 5 times"):
            build_upsampler(kind, 5, 32, 3, 32)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("height", "width", "mode"),
    [
        (30, 30, None),
        (31, 45, "reflect"),
        (16, 30, "reflect"),
        (16, 16, "reflect"),
        (15, 30, "replicate"),
        (31, 15, "replicate"),
        (8, 8, "replicate"),
        (1, 1, "replicate"),
        (8, 100, "replicate"),
    ],
)
def test_padding(make_tensors: Make, make_config: Make, height: int, width: int, mode: str | None) -> None:
    network = _network(make_tensors, make_config)
    x = torch.rand(1, 3, height, width)
    bottom, right = -height % 30, -width % 30
    padded = F.pad(x, (0, right, 0, bottom), mode) if mode else x
    out = _run(network, x)
    assert out.shape == (1, 3, 2 * height, 2 * width)
    torch.testing.assert_close(out, _run(network, padded)[..., : 2 * height, : 2 * width], rtol=0, atol=1e-6)
    if mode == "replicate" and height > 1:  # the other mode would not even be possible
        with pytest.raises(RuntimeError):
            F.pad(x, (0, right, 0, bottom), "reflect")


def test_windows_turn_through_all_groups(make_config: Make) -> None:
    network = FdatRd(make_config(groups=(("spatial",), ("channel", "spatial"), ("spatial", "dictionary"))))
    windows = [module.window for module in network.modules() if isinstance(module, WindowAttention)]
    assert windows == [(10, 30), (30, 10), (10, 30)]


def test_windows_do_not_see_each_other() -> None:
    attention = WindowAttention(32, 1, (10, 30))
    x = torch.rand(1, 1200, 32)  # 20 × 60: four windows
    y = x.clone().view(1, 20, 60, 32)
    y[:, :10, :30] += 1
    with torch.inference_mode():
        changed = (attention(x, (20, 60)) - attention(y.view(1, 1200, 32), (20, 60))).abs().view(20, 60, 32).amax(-1)
    assert (changed[:10, :30] > 1e-6).all()
    assert changed[10:].max() < 1e-6
    assert changed[:, 30:].max() < 1e-6


def test_batch_is_frames_on_their_own(make_tensors: Make, make_config: Make) -> None:
    network = _network(make_tensors, make_config)
    x = torch.rand(2, 3, 30, 60)
    torch.testing.assert_close(_run(network, x), torch.cat([_run(network, x[:1]), _run(network, x[1:])]))


def test_half_precisions_stay_near(make_tensors: Make, make_config: Make) -> None:
    x = torch.rand(1, 3, 60, 60)
    expected = _run(_network(make_tensors, make_config), x)
    for dtype, tolerance in ((torch.bfloat16, 0.03), (torch.float16, 0.004)):
        out = _run(_network(make_tensors, make_config).to(dtype), x.to(dtype)).float()
        assert (out - expected).std() < tolerance * expected.std()


def test_channel_attention_does_not_overflow_in_fp16(make_tensors: Make, make_config: Make) -> None:
    network = _network(make_tensors, make_config, groups=(("channel",),), dict_tokens=0)
    with torch.no_grad():  # squares of the keys add up to far more than fp16 can hold
        network.get_parameter("groups.0.blocks.0.attn.qkv.weight").mul_(30)
    x = torch.rand(1, 3, 120, 120)
    expected = _run(network, x)
    out = _run(network.half(), x.half()).float()
    assert torch.isfinite(out).all()
    assert (out - expected).std() < 0.02 * expected.std()


def test_drop_path_drops_branches_of_samples_and_keeps_the_mean() -> None:
    layer = DropPath(0.25)
    x = torch.ones(4000, 3, 2)
    out = layer(x)
    kept = out[:, 0, 0]
    assert torch.equal(out, kept.view(-1, 1, 1).expand_as(out))
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert layer.eval()(x) is x
    assert DropPath(0).train()(x) is x


def test_drop_path_rises_and_acts_in_training_alone(make_tensors: Make, make_config: Make) -> None:
    groups = (("spatial", "channel"), ("dictionary",))
    network = _network(make_tensors, make_config, drop_path=0.6, groups=groups)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0, 0.3, 0.6])
    x = torch.rand(1, 3, 30, 30)
    without = _network(make_tensors, make_config, groups=groups)
    assert torch.equal(_run(network, x), _run(without, x))
    network.train()
    outputs = {round(float(_run(network, x).sum()), 3) for _ in range(12)}
    assert len(outputs) > 1


def test_recomputing_blocks_changes_no_gradient(make_tensors: Make, make_config: Make) -> None:
    x = torch.rand(1, 3, 30, 30)
    gradients = []
    for use_checkpoint in (False, True):
        network = FdatRd(make_config(), drop_path=0.5, use_checkpoint=use_checkpoint)
        tensors = make_tensors()
        network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
        torch.manual_seed(5)  # the same branches are dropped, in the second pass as well
        torch.autograd.backward(network(x).square().mean())
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_few_steps_of_training_lower_the_loss(make_config: Make) -> None:
    network = FdatRd(make_config(groups=(("spatial", "channel", "dictionary"),)), drop_path=0.1).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    x = torch.rand(1, 3, 30, 30)
    target = F.interpolate(x, scale_factor=2, mode="bilinear")
    losses = []
    for _ in range(15):
        loss = F.l1_loss(network(x), target)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variants_can_be_built(name: str) -> None:
    network = build(name)
    rates = [module.rate for module in network.modules() if isinstance(module, DropPath)]
    assert max(rates) == pytest.approx(0.15 if name == "large" else 0.1)
    assert network.scale == 2
    assert network.config.unshuffle == 2
