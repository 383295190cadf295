"""Transparency in the frame property _Alpha through upscale(): its size, bits and values are those of the result."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs

from tests.onnx_files import write_doubler
from vsfdatrd import upscale

core = vs.core


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def picture(form: int = vs.RGB24, length: int = 3, width: int = 60, height: int = 60) -> vs.VideoNode:
    clip = core.std.BlankClip(width=width, height=height, format=form, length=length)
    return clip if clip.format.color_family == vs.RGB else clip.std.SetFrameProps(_Matrix=6, _Range=0)


def peak(form: vs.VideoFormat) -> int:
    return 1 if form.sample_type == vs.FLOAT else 2**form.bits_per_sample - 1


def mask(form: int = vs.GRAY8, width: int = 60, height: int = 60, length: int = 3) -> vs.VideoNode:
    """White on the left, black on the right."""
    white = peak(core.get_video_format(form))
    left = core.std.BlankClip(width=width // 2, height=height, format=form, color=white, length=length)
    right = core.std.BlankClip(width=width - width // 2, height=height, format=form, length=length)
    return core.std.StackHorizontal([left, right])


def enlarged(clip: vs.VideoNode, cache: Path, model: Path, **options: Any) -> vs.VideoNode:
    return upscale(clip, model=model, cache=cache, backend="openvino", precision="fp32", streams=1, **options)


@pytest.mark.parametrize("kind", [vs.GRAY8, vs.GRAY10, vs.GRAY16, vs.GRAYS])
@pytest.mark.parametrize("output", ["RGB24", "RGB48", "RGBS", "YUV420P10"])
def test_it_fits_the_result(identity_2x: Path, cache: Path, kind: int, output: str) -> None:
    """As set_output() and MaskedMerge want it, with black and white exact in full range."""
    clip = picture().std.ClipToProp(mask(kind))
    matrix = {"matrix": "709"} if output.startswith("YUV") else {}
    result = enlarged(clip, cache, identity_2x, format=output, **matrix)
    alpha = result.std.PropToClip()
    assert (alpha.width, alpha.height) == (result.width, result.height) == (120, 120)
    assert alpha.format.color_family == vs.GRAY
    assert alpha.format.bits_per_sample == result.format.bits_per_sample
    assert alpha.format.sample_type == result.format.sample_type
    values = np.asarray(alpha.get_frame(2)[0])
    white = peak(alpha.format)
    assert (values[:, :50] == white).all()
    assert (values[:, 70:] == 0).all()
    assert 0 <= values.min() <= values.max() <= white
    core.std.MaskedMerge(result, result, alpha.resize.Point(format=alpha.format.id), first_plane=True).get_frame(0)


def test_frames_may_differ_in_it(identity_2x: Path, cache: Path) -> None:
    """No alpha at all, another size, another format, tags that the resizer would refuse; in one clip."""
    plain = picture(length=1)
    tagged = mask(length=1).std.SetFrameProps(_Matrix=0, _FieldBased=1, _ChromaLocation=99)
    parts = [
        plain.std.ClipToProp(mask(length=1)),
        plain,
        plain.std.ClipToProp(mask(vs.GRAY16, 30, 20, length=1)),
        plain.std.ClipToProp(tagged),
        plain.std.SetFrameProps(_Alpha=7),
    ]
    result = enlarged(core.std.Splice(parts), cache, identity_2x)
    results: list[Any] = [frame.props.get("_Alpha") for frame in result.frames(close=False)]
    assert results[1] is None
    assert results[4] == 7
    for alpha in (results[0], results[2], results[3]):
        assert isinstance(alpha, vs.VideoFrame)
        assert (alpha.width, alpha.height, alpha.format.id) == (120, 120, vs.GRAY16)
        assert np.asarray(alpha[0])[60, 10] == 65535


def test_held_frames_keep_their_own(identity_2x: Path, cache: Path) -> None:
    """Frames of equal pictures are computed once; what changes in them alone is their transparency."""
    shades = [core.std.BlankClip(width=60, height=60, format=vs.GRAY8, length=1, color=shade) for shade in (10, 20, 30)]
    result = enlarged(picture(length=3).std.ClipToProp(core.std.Splice(shades)), cache, identity_2x)
    for frame, shade in zip(result.std.PropToClip().frames(close=False), (10, 20, 30), strict=True):
        assert (np.asarray(frame[0]) == shade * 257).all()


@pytest.mark.parametrize(("channels", "scale"), [(1, 2), (3, 1)])
def test_other_kinds_of_networks(tmp_path: Path, cache: Path, channels: int, scale: int) -> None:
    """Luma alone; and one that does not enlarge."""
    model = write_doubler(tmp_path / "x.onnx", channels=channels, scale=scale)
    clip = picture(vs.YUV420P8).std.ClipToProp(mask())
    alpha = enlarged(clip, cache, model).get_frame(0).props["_Alpha"]
    assert isinstance(alpha, vs.VideoFrame)
    assert (alpha.width, alpha.height, alpha.format.id) == (60 * scale, 60 * scale, vs.GRAY16)


def test_tiles_and_gray(identity_2x: Path, cache: Path) -> None:
    clip = picture(vs.GRAY8, width=90, height=90).std.ClipToProp(mask(width=90, height=90))
    alpha = enlarged(clip, cache, identity_2x, tile=60).std.PropToClip()
    assert (alpha.width, alpha.height, alpha.format.id) == (180, 180, vs.GRAY16)


def test_alpha_that_begins_later_is_left_out_with_a_warning(
    identity_2x: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = picture(length=1) + picture(length=2).std.ClipToProp(mask(length=2))
    result = enlarged(clip, cache, identity_2x)
    with caplog.at_level(logging.WARNING):
        assert all("_Alpha" not in frame.props for frame in result.frames(close=True))
    assert [r.getMessage() for r in caplog.records] == [
        "frame 1 has transparency (_Alpha) and the first frame has none: it is left out"
    ]


def test_alpha_in_color_is_left_out_with_a_warning(
    identity_2x: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = enlarged(picture(length=2).std.ClipToProp(picture(length=2)), cache, identity_2x)
    with caplog.at_level(logging.WARNING):
        # One frame at a time: of frames requested together, any may be the first and have the one warning.
        assert all("_Alpha" not in result.get_frame(n).props for n in range(result.num_frames))
    assert [r.getMessage() for r in caplog.records] == [
        "frame 0 has an _Alpha in RGB24, which is left out; give it as GRAY8"
    ]
