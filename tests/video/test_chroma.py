"""The way of chroma models: what they get, what becomes of what they give, and clips that they are not for."""

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import blank, clip_of, core, planes, props_of, yuv
from vsfdatrd.errors import ClipError
from vsfdatrd.video import chroma
from vsfdatrd.video import color as color


def swapped(rgb: vs.VideoNode) -> vs.VideoNode:
    """A network that gives Cr and Cb, in this order."""
    assert rgb.format.id == vs.RGBS
    return core.std.ShufflePlanes([rgb, rgb, rgb], [2, 1, 0], vs.RGB)


def reconstruct(clip: vs.VideoNode, format: str | None = None, network=swapped) -> vs.VideoNode:  # type: ignore[no-untyped-def]
    source = color.inspect_clip(clip)
    chroma.check_chroma_clip(source)
    target = color.output_spec(source, 1, format, None, "chroma")
    return color.convert_output(chroma.reconstruct_chroma(source, target, network), target)


def noise(location: int = 0, limits: int = 0) -> vs.VideoNode:
    random = np.random.default_rng(0)
    codes = [random.integers(16, 236, (48, 64)), *random.integers(16, 241, (2, 24, 32))]
    return clip_of(yuv(8, "420"), [codes], _Matrix=6, _Range=limits, _ChromaLocation=location)


@pytest.mark.parametrize("limits", [0, 1])
@pytest.mark.parametrize("location", range(6))
def test_chroma_is_the_networks_and_luma_stays(location: int, limits: int) -> None:
    clip = noise(location, limits)
    out = reconstruct(clip)
    tags = props_of(out)
    assert (out.format.id, tags["_Matrix"], tags["_Range"]) == (vs.YUV444P16, 6, limits)
    assert "_ChromaLocation" not in tags
    linear = planes(clip.resize.Bilinear(format=vs.YUV444P16))
    y, u, v = planes(out)
    np.testing.assert_array_equal(y, linear[0])
    np.testing.assert_allclose(u, linear[2].astype(float), atol=1)
    np.testing.assert_allclose(v, linear[1].astype(float), atol=1)


def test_the_network_gets_chroma_around_a_half() -> None:
    seen = []

    def look(rgb: vs.VideoNode) -> vs.VideoNode:
        seen.append(rgb)
        return rgb

    clip = core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, color=[235, 128, 240], length=1)
    reconstruct(clip.std.SetFrameProps(_Matrix=1, _Range=0), network=look)
    np.testing.assert_allclose([plane.mean() for plane in planes(seen[0])], [1, 0.5, 1], atol=1e-6)


def test_a_format_that_is_asked_for_is_made() -> None:
    assert reconstruct(noise(), "YUV420P10").format.id == vs.YUV420P10
    assert reconstruct(noise(), "RGBS").format.id == vs.RGBS
    assert reconstruct(noise().resize.Point(format=vs.YUV420PS)).format.id == vs.YUV444PS


@pytest.mark.parametrize(
    ("format", "cure"),
    [
        (vs.YUV444P8, "needs no such model"),
        (vs.YUV422P8, "convert it first"),
        (vs.GRAY8, "give a luma model"),
        (vs.RGB24, "needs no such model"),
        (vs.YUV411P8, "convert it first"),
    ],
)
def test_clips_it_is_not_for_are_refused(format: int, cure: str) -> None:
    with pytest.raises(ClipError, match=cure) as caught:
        chroma.check_chroma_clip(color.inspect_clip(blank(format)))
    assert core.get_video_format(format).name in str(caught.value)
