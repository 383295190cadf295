import pytest
import torch

from models.training import loss, network
from models.training.recipe import Recipe
from tests.training.reach import untouched
from vsfdatrd.archs.fdat_rd import variant
from vsfdatrd.compare.metrics import ssim
from vsfdatrd.nn.fdat_rd import FdatRd


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_an_untrained_network_interpolates(one_thread: None, name: str) -> None:
    """Against cubic interpolation as a matrix; the network has zeros beyond the border, so not there."""
    picture = torch.rand(1, 3, 60, 60)
    up = torch.zeros(120, 60)
    for pixel in range(2, 57):
        up[2 * pixel : 2 * pixel + 2, pixel - 2 : pixel + 4] = network.cubic_taps()
    with torch.no_grad():
        enlarged = network.new(Recipe(variant=name)).eval()(picture)
    inside = slice(8, -8)
    torch.testing.assert_close(enlarged[..., inside, inside], (up @ picture @ up.T)[..., inside, inside])


def test_its_first_steps_reach_every_weight(one_thread: None) -> None:
    net = network.new(Recipe(variant="tiny", drop_path=0.0))
    assert untouched(net) == []


def test_another_network_is_refused() -> None:
    with pytest.raises(ValueError, match="only a network of 2x"):
        network.interpolate(FdatRd(variant("small", scale=4)))


def test_the_loss_is_least_at_the_truth() -> None:
    torch.manual_seed(0)
    recipe = Recipe(texture=0.5, structure=0.5)
    truth = torch.rand(2, 3, 48, 48)
    near, far = truth + 0.01 * torch.randn_like(truth), truth + 0.1 * torch.randn_like(truth)
    values = [float(loss.total(output, truth, recipe)) for output in (truth, near, far)]
    assert values == sorted(values)
    assert values[0] < 2e-3


def test_structure_is_that_of_ssim() -> None:
    """And so it minds noise on a calm picture more than on a busy one."""
    generator = torch.Generator().manual_seed(4)
    truth = torch.rand(1, 1, 40, 44, generator=generator).expand(-1, 3, -1, -1)
    output = (truth + 0.1 * torch.randn(1, 1, 40, 44, generator=generator)).clamp(0, 1)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # our window is 9 pixels, the other's 11
    expected = 1 - ssim(truth[0, 0].double().numpy(), output[0, 0].double().numpy())
    assert float(loss.structure(output[inner], truth[inner], scales=1)) == pytest.approx(expected, rel=0.02)
    grey, noise = torch.full_like(truth, 0.5), 0.02 * torch.randn(1, 1, 40, 44, generator=generator)
    assert loss.structure(grey + noise, grey) > 2 * loss.structure(truth + noise, truth)


def test_texture_minds_blur_more_than_displacement() -> None:
    torch.manual_seed(0)
    truth = (torch.rand(1, 1, 48, 48) > 0.8).float().expand(1, 3, -1, -1)
    truth = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    moved, blurred = truth.roll(1, -1), torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    assert loss.texture(moved, truth) < loss.texture(blurred, truth)
