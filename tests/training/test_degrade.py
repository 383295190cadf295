from dataclasses import fields

import pytest
import torch
import torch.nn.functional as F
import vapoursynth as vs
from torch import Generator, Tensor

from models.training import strengths as module
from models.training.degrade import add_noise, degrade
from models.training.lines import spline36, supersample, through
from models.training.mpeg2 import quantize, quantize_difference
from models.training.strengths import ANALOG_STEPS, FILM_STEPS, KERNELS, STEPS, Strengths, draw_strengths
from tests.clips import clip_of, planes


def seeded(seed: int = 1) -> Generator:
    return Generator().manual_seed(seed)


def pictures(batch: int = 4, height: int = 48, width: int = 64) -> Tensor:
    """Smooth, in the middle of the range."""
    coarse = torch.rand(batch, 3, 6, 8, generator=seeded())
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1) * 0.7 + 0.15


def test_halves_the_sides_and_stays_in_8_bit() -> None:
    g = seeded()
    lr = degrade(pictures(16), draw_strengths(16, g, clean=0.2, laserdisc=0.4), g)
    assert lr.shape == (16, 3, 24, 32)
    assert lr.min() >= 0
    assert lr.max() <= 1
    assert torch.equal(lr, torch.round(lr * 255) / 255)


def test_a_seed_repeats_it_and_another_does_not() -> None:
    def once(seed: int) -> Tensor:
        g = seeded(seed)
        return degrade(pictures(), draw_strengths(4, g, clean=0.0, laserdisc=0.5), g)

    assert torch.equal(once(3), once(3))
    assert not torch.equal(once(3), once(4))


def test_clean_pairs_are_exact_means_of_2_by_2() -> None:
    hr, g = pictures(), seeded()
    lr = degrade(hr, draw_strengths(4, g, clean=1.0, laserdisc=0.0), g)
    assert torch.equal(lr, torch.round(F.avg_pool2d(hr, 2) * 255) / 255)


@pytest.mark.parametrize("laserdisc", [0.0, 1.0])
def test_flat_colors_keep_their_mean(laserdisc: float) -> None:
    g = seeded()
    colors = torch.rand(800, 3, 1, 1, generator=g) * 0.7 + 0.15
    lr = degrade(colors.expand(-1, -1, 32, 32), draw_strengths(800, g, clean=0.0, laserdisc=laserdisc), g)
    shift = (lr.mean((2, 3)) - colors[..., 0, 0]).mean(0) * 255
    assert shift.abs().max() < 0.15


@pytest.mark.parametrize("kernel", KERNELS)
def test_nothing_moves(kernel: str) -> None:
    """A picture mirrored before or after degradation is the same."""
    hr = pictures()
    linear = {"optics": 1.0, "weave": 1.0, "luma": 5.0, "chroma": 1.3, "halo": 0.4, "halo_width": 1.0, "halo_down": 0.3}
    strengths = Strengths.only(4, linear, kernel)
    there = degrade(hr, strengths, seeded())
    mirrored = degrade(hr.flip(2, 3), strengths, seeded()).flip(2, 3)
    assert (there - mirrored).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    "name", [name for name in STEPS if name not in ("halo_width", "grain_size", "siting", "predicted")]
)
def test_every_step_does_something_and_more_when_stronger(name: str) -> None:
    hr = (torch.rand(4, 3, 64, 64, generator=seeded()) * 0.5 + F.interpolate(pictures(), (64, 64)) * 0.5).clamp(0, 1)
    step = STEPS[name].laserdisc
    none = degrade(hr, Strengths.only(4, {"halo_width": 1.0}), seeded())

    def change(strength: float) -> float:
        changed = degrade(hr, Strengths.only(4, {"halo_width": 1.0, name: strength}), seeded())
        return float((changed - none).abs().mean()) * 255

    strong, weak = change(step.strong), change(step.weak)
    assert strong > 0.01
    assert strong > weak or step.strong == step.weak


def test_strengths_stay_inside_their_ranges_and_happen_as_often() -> None:
    drawn = draw_strengths(4000, seeded(), clean=0.0, laserdisc=0.0)
    for name, (share, weak, strong) in ((name, step.dvd) for name, step in STEPS.items()):
        values = drawn.steps[name]
        on = values[values > 0]
        assert len(on) / 4000 == pytest.approx(share, abs=0.03)
        assert on.min() >= min(weak, strong) * 0.999
        assert on.max() <= max(weak, strong) * 1.001
    assert {field.name for field in fields(drawn)} == {"clean", "kernel", "steps"}


@pytest.mark.parametrize("laserdisc", [0.0, 1.0])
def test_digital_samples_were_never_on_film(laserdisc: float) -> None:
    drawn = draw_strengths(4000, seeded(), clean=0.0, laserdisc=laserdisc, digital=1.0)
    on = {name for name, values in drawn.steps.items() if values.any()}
    kept = {"halo_width", "grain_size", "half", "siting", "quantizer", "predicted"}
    assert on == kept | (ANALOG_STEPS if laserdisc else set())
    assert STEPS.keys() >= FILM_STEPS | ANALOG_STEPS


@pytest.mark.parametrize("laserdisc", [0.0, 0.5, 1.0])
def test_the_share_of_digital_samples_is_that_of_both_media(laserdisc: float) -> None:
    """Optics and grain tell a sample's kind: a digital one has no optics, which the others have in 80 and 90 %."""
    common = {"clean": 0.2, "laserdisc": 0.8 * laserdisc}
    drawn = draw_strengths(8000, seeded(), **common, digital=0.25)
    before = draw_strengths(8000, seeded(), **common)
    happens = (drawn.steps["optics"] > 0) & ~drawn.clean
    happened = (before.steps["optics"] > 0) & ~before.clean
    assert torch.equal(drawn.clean, before.clean)
    assert int(happens.sum()) / int(happened.sum()) == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drawn.steps["quantizer"], before.steps["quantizer"])


def test_the_documented_table_is_the_one_in_use() -> None:
    documented = {line.split()[0]: line for line in (module.__doc__ or "").splitlines() if "%:" in line}
    assert documented.keys() == STEPS.keys()
    for name, step in STEPS.items():
        for share, weak, strong in step:
            span = f"{weak:g}" if weak == strong else f"{weak:g} – {strong:g}"
            assert f"{share:.0%}".replace("%", " %") + f": {span}" in documented[name]


def test_a_fine_quantizer_changes_little_and_a_coarse_one_much() -> None:
    levels = torch.randn(2, 1, 3, 3, 8, 8, generator=seeded()) * 30
    fine, coarse = (quantize(levels, torch.full((2,), q)) for q in (0.1, 30.0))
    ac = torch.ones(8, 8, dtype=torch.bool)
    ac[0, 0] = False
    assert (fine - levels)[..., ac].abs().max() < 0.5
    assert (fine - levels)[..., 0, 0].abs().max() <= 1
    assert (coarse - levels).abs().mean() > 5 * (fine - levels).abs().mean()
    assert quantize_difference(torch.full((1, 1, 1, 1, 8, 8), 9.0), torch.tensor([10.0])).abs().max() == 0  # dead zone


def test_mpeg2_blocks_lie_on_a_grid_of_eight() -> None:
    """One coefficient's error spreads over its block and no further."""
    hr = torch.full((1, 3, 96, 96), 0.45)  # not between two levels, where rounding depends on the processor
    hr[..., 46:50, 46:50] = 0.9
    lr = degrade(hr, Strengths.only(1, {"quantizer": 20.0}), seeded())
    changed = (lr != degrade(hr, Strengths.only(1, {}), seeded())).any(1)[0]
    rows = changed.any(1).nonzero().flatten()
    assert 2 <= len(rows) <= 16


def test_chroma_comes_back_where_it_was() -> None:
    """4:2:0 is read back at the siting it was written with; the siting error moves chroma by what it says."""
    ramp = torch.linspace(-0.2, 0.2, 128).expand(1, 1, 64, 128)
    hr = (torch.full((1, 3, 64, 128), 0.5) + ramp * torch.tensor([1.0, -0.51, 0.0]).view(1, 3, 1, 1)).clamp(0, 1)
    none = degrade(hr, Strengths.only(1, {}), seeded())
    half = degrade(hr, Strengths.only(1, {"half": 1}), seeded())
    moved = degrade(hr, Strengths.only(1, {"half": 1, "siting": 0.25}), seeded())
    inside = slice(8, -8)
    slope = 0.4 / 64  # per LR pixel, of red
    assert float((half - none)[:, 0, :, inside].mean()) == pytest.approx(0, abs=0.3 / 255)
    assert float((moved - none)[:, 0, :, inside].mean()) == pytest.approx(-0.25 * slope, abs=0.4 / 255)


def test_chroma_is_read_back_as_the_filter_does() -> None:
    """With zimg's Spline36, at left siting; only near the border is it another."""
    luma, half = torch.zeros(32, 40), torch.rand(16, 20, generator=seeded())
    form = vs.core.get_video_format(vs.YUV420PS)
    clip = clip_of(form, [[plane.numpy() for plane in (luma, half, half)]], _ChromaLocation=0, _Matrix=6)
    expected = torch.from_numpy(planes(clip.resize.Spline36(format=vs.YUV444PS))[1])
    one = torch.ones(1)
    back = through(half[None, None], supersample(32, 2, one, spline36), supersample(40, 2, one / 2, spline36))[0, 0]
    inside = slice(6, -6)
    torch.testing.assert_close(back[inside, inside], expected[inside, inside])


def test_one_field_of_a_combed_picture_stays_where_it_is() -> None:
    """Odd lines are displaced, so the even ones are kept."""
    hr = torch.full((16, 3, 64, 64), 0.3)
    hr[..., 24:40] = 0.7
    combed, none = (
        degrade(hr, Strengths.only(16, {"one_field": 1, "combing": shift}), seeded())[..., 4:-4, :] for shift in (3, 0)
    )
    assert (combed - none).abs().max() < 1.01 / 255


def test_only_clean_samples_get_more_noise() -> None:
    gray = torch.full((400, 3, 16, 16), 128 / 255)
    clean = torch.arange(400) % 4 < 2
    noise = 255 * (add_noise(gray, clean, 4.0, seeded()) - gray)
    sigma = noise.std((1, 2, 3))
    assert (sigma[~clean] < 0.01).all()
    assert 0.4 < float((sigma[clean] > 0.3).float().mean()) < 0.6
    assert 3 < float(sigma.max()) < 4.5
    assert abs(float(noise[clean].mean() - noise[~clean].mean())) < 0.05


def test_a_bar_that_rings_stays_where_it_is() -> None:
    """On one side alone, and yet it keeps its mean and its center."""
    hr = torch.full((64, 3, 32, 128), 0.4)
    hr[..., 56:72] = 0.6
    lr = [degrade(hr, Strengths.only(64, steps), seeded()) for steps in ({"ringing": 0.3}, {})]
    there, none = (x.mean((0, 1, 2)) - 0.4 for x in lr)
    x = torch.arange(64.0)
    assert float(there.sum()) == pytest.approx(float(none.sum()), abs=0.02)
    assert float((there * x).sum() / there.sum()) == pytest.approx(float((none * x).sum() / none.sum()), abs=0.06)
    assert float((lr[0] - lr[1]).abs().max()) > 2 / 255


def test_a_comb_leaves_color_only_where_lines_differ() -> None:
    """Bars of color from top to bottom come through a comb without dots; across, dots hang below every border."""
    hr = torch.full((8, 3, 96, 96), 0.5)
    red = torch.tensor([0.2, -0.1, -0.02]).view(3, 1, 1)  # of equal luma
    comb = {"chroma": 0.4, "comb": 1.0}

    def dots(picture: Tensor) -> float:
        g = seeded()
        both = [degrade(picture, Strengths.only(8, steps), g) for steps in (comb, {"chroma": 0.4})]
        luma = [(x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1) for x in both]
        return float((luma[0] - luma[1])[:, 8:-8, 8:-8].abs().mean((0, 2)).max())  # of the line that has most

    down, across = hr.clone(), hr.clone()
    down[..., 48:] += red
    across[..., 48:, :] += red
    assert dots(across) > 3 * dots(down)


def test_one_field_s_lines_are_kept_and_the_others_made() -> None:
    hr = torch.rand(6, 3, 64, 64, generator=seeded())
    whole = degrade(hr, Strengths.only(6, {}), seeded())
    field = degrade(hr, Strengths.only(6, {"one_field": 1}), seeded())
    changed = (field - whole).abs().amax((1, 3)) > 1.5 / 255  # (B, H)
    for lines in changed:
        assert not lines[0::2].any() or not lines[1::2].any()
        assert lines.any()


def test_samples_can_be_drawn_once_and_happen_twice() -> None:
    """As of two frames of a held cel: the same degradation, other noise."""
    g = seeded()
    drawn = draw_strengths(3, g, clean=0.0, laserdisc=1.0)
    twice = drawn.repeated(torch.tensor([0, 1, 2, 0]))
    assert all(torch.equal(strength[3], strength[0]) for strength in twice.steps.values())
    lr = degrade(pictures(1).expand(4, -1, -1, -1), twice, g)
    assert 0 < float((lr[3] - lr[0]).abs().mean()) < 0.1
