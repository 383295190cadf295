from dataclasses import replace

import pytest
import torch

from models.training import loss, network
from models.training.folding import fold
from models.training.pixel_network import PixelNetwork
from models.training.recipe import Recipe
from tests.training.reach import untouched
from vsfdatrd.archs.fdat_rd import variant_config
from vsfdatrd.compare.metrics import ssim
from vsfdatrd.nn.fdat_rd import Block, FdatRd, WindowAttention


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_an_untrained_network_interpolates(one_thread: None, name: str) -> None:
    """Against cubic interpolation as a matrix; the network has zeros beyond the border, so not there."""
    picture = torch.rand(1, 3, 60, 60)
    up = torch.zeros(120, 60)
    for pixel in range(2, 57):
        up[2 * pixel : 2 * pixel + 2, pixel - 2 : pixel + 4] = network.cubic_taps()
    with torch.no_grad():
        enlarged = network.new_network(Recipe(variant=name)).eval()(picture)
    inside = slice(8, -8)
    torch.testing.assert_close(enlarged[..., inside, inside], (up @ picture @ up.T)[..., inside, inside])


def test_its_first_steps_reach_every_weight(one_thread: None) -> None:
    net = network.new_network(Recipe(variant="tiny", drop_path=0.0))
    assert untouched(net) == []


def test_blocks_that_a_file_lacks_contribute_nothing_at_first(one_thread: None) -> None:
    config = network.variant_configuration("tiny")
    shallow = fold(PixelNetwork(config), network.new_network(Recipe(variant="tiny", drop_path=0.0))).eval()
    shallow.conv_after.weight.data.normal_(0, 0.1)
    deeper = replace(config, groups=(config.groups[0] * 2,))
    deep = network.deepen(shallow, deeper).eval()
    assert deep.config == deeper
    picture = torch.rand(1, 3, 60, 60)
    with torch.no_grad():
        assert torch.equal(deep(picture), shallow(picture))
    blocks = [module for module in deep.modules() if isinstance(module, Block)]
    assert len(blocks) == 6
    assert all(block.ffn.fc1.weight.any() for block in blocks), "they must be able to learn"
    with pytest.raises(ValueError, match="differ in more than the number of blocks"):
        network.deepen(deep, config)
    next(module for module in shallow.modules() if isinstance(module, WindowAttention)).proj.weight.data[0, 0] = 1
    with pytest.raises(ValueError, match="the windows of its trained attention would turn"):
        network.deepen(shallow, deeper)


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="only a network of 2x"):
        network.interpolate(FdatRd(variant_config("small", scale=4)))


def test_the_loss_is_least_at_the_truth() -> None:
    torch.manual_seed(0)
    recipe = Recipe(structure=0.5, color=2.0, color_structure=0.25)
    truth = torch.rand(2, 3, 48, 48)
    near, far = truth + 0.01 * torch.randn_like(truth), truth + 0.1 * torch.randn_like(truth)
    values = [float(loss.total(output, truth, recipe)) for output in (truth, near, far)]
    assert values == sorted(values)
    assert values[0] < 4e-3


def test_structure_is_that_of_ssim() -> None:
    """And so it minds noise on a calm picture more than on a busy one."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.rand(1, 1, 40, 44, generator=generator).expand(-1, 3, -1, -1)
    output = (truth + 0.1 * torch.randn(1, 1, 40, 44, generator=generator)).clamp(0, 1)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # our window is 9 pixels, the other's 11
    expected = 1 - ssim(truth[0, 0].double().numpy(), output[0, 0].double().numpy())
    assert float(loss.structure(output[inner], truth[inner], scales=1)) == pytest.approx(expected, rel=0.02)
    gray, noise = torch.full_like(truth, 0.5), 0.02 * torch.randn(1, 1, 40, 44, generator=generator)
    assert loss.structure(gray + noise, gray) > 2 * loss.structure(truth + noise, truth)


def test_color_terms_see_color_alone() -> None:
    """Color that bled over a line; a change of gray is nothing to them."""
    generator = torch.Generator().manual_seed(1)
    truth = 0.3 + 0.4 * torch.rand(2, 3, 48, 48, generator=generator).round()
    gray = (truth + 0.1 * torch.rand(2, 1, 48, 48, generator=generator)).clamp(0, 1)
    blur = torch.nn.functional.avg_pool2d(truth, (1, 9), 1, (0, 4), count_include_pad=False)
    luma = torch.tensor(loss.YCC[0]).view(3, 1, 1)
    bled = blur + ((truth - blur) * luma).sum(1, keepdim=True)
    for of_gray, of_bled in (
        (loss.color(gray - truth), loss.color(bled - truth)),
        (loss.color_structure(gray, truth), loss.color_structure(bled, truth)),
    ):
        assert float(of_gray) < 2e-3
        assert float(of_bled) > 20 * float(of_gray)
    assert float(loss.structure(bled, truth)) < 1e-3


def test_windows_join_as_gaussians(one_thread: None) -> None:
    """Idle windows begin as blurs of several widths around each token; those that were taught are left alone."""
    net = network.new_network(Recipe(variant="tiny", drop_path=0.0))
    attentions = [module for module in net.modules() if isinstance(module, WindowAttention)]
    for module in attentions:
        torch.nn.init.zeros_(module.proj.weight)
    network.let_attention_join(net)
    for module in attentions:
        place = torch.arange(len(module.rel_pos_bias[0]))
        shares = module.rel_pos_bias.softmax(-1)
        assert torch.equal(shares.argmax(-1), place.expand(len(shares), -1)), "each token looks at itself first"
        own = shares.diagonal(dim1=1, dim2=2).mean(1)
        assert (own[:-1] > own[1:]).all(), "heads look ever further"
        torch.nn.init.ones_(module.proj.weight)
        module.rel_pos_bias.data.zero_()
    network.let_attention_join(net)
    assert not any(module.rel_pos_bias.any() for module in attentions)


def test_without_attention_it_computes_the_same_where_attention_adds_nothing(one_thread: None) -> None:
    config = network.variant_configuration("tiny")
    net = fold(PixelNetwork(config), network.new_network(Recipe(variant="tiny", drop_path=0.0)))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "attn.proj" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    picture = torch.rand(1, 3, 60, 60)
    with torch.no_grad():
        expected = net(picture)
        torch.testing.assert_close(network.leave_attention_out(net)(picture), expected)
    net.train()(picture).square().mean().backward()
    learning = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert not any("attn" in name or "inter" in name for name in learning)
    assert {"groups.0.blocks.0.conv.0.weight", "groups.0.blocks.1.ffn.fc1.weight", "conv_after.weight"} <= learning
