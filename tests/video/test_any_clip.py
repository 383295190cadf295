"""Clips of every format keep their format and properties; float values are unchanged."""

from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clips import WEIGHTS, clip_of, core, planes, props_of, round_trip
from tests.video.conftest import in_gamut, worst
from vsfdatrd.video import color


@st.composite
def clips(draw: st.DrawFn) -> tuple[vs.VideoNode, dict[str, Any]]:
    """A clip of one flat in-gamut color in any format that is supported, with properties of all kinds."""
    family = draw(st.sampled_from([vs.YUV, vs.YUV, vs.GRAY, vs.RGB]))
    sample_type = draw(st.sampled_from([vs.INTEGER, vs.INTEGER, vs.FLOAT]))
    bits = draw(st.integers(8, 16) if sample_type == vs.INTEGER else st.sampled_from([16, 32]))
    shifts = draw(st.tuples(st.integers(0, 2), st.integers(0, 2))) if family == vs.YUV else (0, 0)
    form = core.query_video_format(family, sample_type, bits, *shifts)
    width = draw(st.integers(8 >> shifts[0], 80 >> shifts[0])) << shifts[0]
    height = draw(st.integers(8 >> shifts[1], 80 >> shifts[1])) << shifts[1]
    limits = draw(st.sampled_from([0, 1]))
    matrix = draw(st.sampled_from([*WEIGHTS])) if family != vs.RGB else 0
    if sample_type == vs.INTEGER and family == vs.YUV:
        values = in_gamut(1, bits, matrix, limits, seed=draw(st.integers(0, 2**32 - 1)))[:, 0]
    elif sample_type == vs.INTEGER:
        low, high = (16 << (bits - 8), 235 << (bits - 8)) if limits == 0 else (0, 2**bits - 1)
        values = np.array(draw(st.lists(st.integers(low, high), min_size=3, max_size=3)))
    else:
        values = np.array(draw(st.lists(st.floats(0.25, 0.75, width=16), min_size=3, max_size=3)))
        if family == vs.YUV:  # values that RGB holds
            values[1:] = (values[1:] - 0.5) / 8
    own: dict[str, Any] = draw(
        st.dictionaries(
            st.from_regex(r"my_[A-Za-z0-9_]{0,15}[a-z]", fullmatch=True),
            st.one_of(
                st.integers(-(2**63), 2**63 - 1),
                st.floats(allow_nan=False),
                st.binary(max_size=20).map(b"\xff".__add__),
                st.lists(st.integers(-9, 9), min_size=2, max_size=4),
            ),
            max_size=4,
        )
    )
    aspect = draw(st.fractions(0, 64, max_denominator=99).filter(bool))
    own |= {"_SARNum": aspect.numerator, "_SARDen": aspect.denominator, "_PictType": "B"}
    frame = [
        np.full((height >> shifts[1] * (i > 0), width >> shifts[0] * (i > 0)), values[i])
        for i in range(form.num_planes)
    ]
    return clip_of(form, [frame], _Matrix=matrix, _Range=limits, **own), own


@settings(max_examples=150)
@given(clips(), st.integers(1, 3))
def test_any_flat_clip_comes_back_with_its_properties(made: tuple[vs.VideoNode, dict[str, Any]], scale: int) -> None:
    clip, own = made
    out = round_trip(clip, scale)
    given_format, form = clip.format, out.format
    assert (out.width, out.height) == (clip.width * scale, clip.height * scale)
    assert (out.num_frames, out.fps) == (clip.num_frames, clip.fps)
    assert form == (given_format if given_format.sample_type == vs.FLOAT else given_format.replace(bits_per_sample=16))
    before, after = props_of(clip), props_of(out)
    for name in (*own, "_Matrix", "_Range", "_DurationNum", "_DurationDen"):
        assert after[name] == before[name]
    assert after["_FieldBased"] == 0
    subsampled = bool(form.subsampling_w or form.subsampling_h)
    assert after.get("_ChromaLocation") == (0 if subsampled else None)
    for i, (result, expected) in enumerate(zip(planes(out), planes(clip), strict=True)):
        if form.sample_type == vs.FLOAT:
            assert np.abs(result.astype(float) - float(expected[0, 0])).max() <= (
                1e-3 if form.bits_per_sample == 16 else 1e-5
            )
        else:
            chroma = int(given_format.color_family == vs.YUV) * i
            assert worst(result, expected[0, 0], given_format.bits_per_sample, before["_Range"], chroma) <= 1


@pytest.mark.parametrize("name", ["YUV444PS", "YUV420PS", "YUV420PH", "YUV444PH", "GRAYS", "GRAYH", "RGBS", "RGBH"])
def test_floats_stay_what_they_were(name: str) -> None:
    form = core.get_video_format(int(vs.PresetVideoFormat[name]))
    random = np.random.default_rng(5)
    kind = np.float16 if form.bits_per_sample == 16 else np.float32
    if form.color_family == vs.YUV:
        y = random.uniform(0.3, 0.7, (48, 64)).astype(kind)
        chroma = np.full((48 >> form.subsampling_h, 64 >> form.subsampling_w), 0.125, kind)
        frame = [y, chroma, -chroma]
    else:
        frame = [random.uniform(0, 1, (48, 64)).astype(kind) for _ in range(form.num_planes)]
    clip = clip_of(form, [frame], _Range=0, **({} if form.color_family == vs.RGB else {"_Matrix": 6}))
    out = round_trip(clip)
    assert out.format.id == form.id
    step = 2**-11 if kind is np.float16 else 1e-6
    for result, expected in zip(planes(out), frame, strict=True):
        if form.color_family == vs.YUV or kind is np.float32:
            assert np.abs(result.astype(float) - expected.astype(float)).max() <= step
        else:
            np.testing.assert_array_equal(result, expected)


def test_half_floats_are_read_as_they_are() -> None:
    values = np.linspace(0, 1, 64 * 48).reshape(48, 64).astype(np.float16)
    rgb = color.to_rgb(color.inspect_clip(clip_of(core.get_video_format(vs.RGBH), [[values] * 3])))
    for plane in planes(rgb):
        np.testing.assert_array_equal(plane, values.astype(np.float32))


def test_rgb_floats_are_not_touched() -> None:
    values = np.array([-0.5, 0, 0.25, 1, 2, 7e-4, 1e6, 0.1], np.float32).repeat(8).reshape(8, 8)
    rgb = color.to_rgb(color.inspect_clip(clip_of(core.get_video_format(vs.RGBS), [[values] * 3])))
    for plane in planes(rgb):
        np.testing.assert_array_equal(plane, values)
