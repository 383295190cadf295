"""Synthetic and real clips keep their colors, compared with a conversion by zimg alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs
import vsutil

from tests.clips import SUBSAMPLINGS, Array, clip_of, core, planes, props_of, yuv
from vsfdatrd.errors import ClipError
from vsfdatrd.video import color


def means(clip: vs.VideoNode, frames: Sequence[int]) -> Array:
    """Mean of each plane of some frames, as a share of the sample range."""
    peak = vsutil.get_peak_value(clip)
    return np.array([[plane.mean() / peak for plane in planes(clip, n)] for n in frames])


@pytest.mark.parametrize("limits", [0, 1])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_drawn_clip_keeps_its_means(subsampling: str, limits: int) -> None:
    y, x = np.mgrid[0:96, 0:128] / 16
    rgb = [0.5 + 0.3 * np.sin(x + i) * np.cos(y - i) + 0.1 * (np.floor(x + y) % 2) for i in range(3)]
    drawn = clip_of(core.get_video_format(vs.RGBS), [rgb])
    clip = drawn.resize.Bicubic(format=yuv(8, subsampling).id, matrix=5, range=limits)
    source = color.inspect_clip(clip)
    doubled = color.to_rgb(source).resize.Bicubic(256, 192).std.Expr("x 0 max 1 min")
    for matrix in (5, 1, 8):
        out = color.convert_output(doubled, color.output_spec(source, 2, None, str(matrix)))
        expected = clip.resize.Lanczos(256, 192, format=out.format.id, matrix=matrix)
        assert np.abs(means(out, [0]) - means(expected, [0])).max() <= 1 / 255


@pytest.mark.parametrize(
    ("name", "matrix", "sar"),
    [
        ("ntsc_film_480p.mpg", 6, (8, 9)),
        ("ntsc_telecined_480i.mpg", 6, (8, 9)),
        ("pal_576p.mpg", 5, (16, 15)),
        ("ld_square_720x540.mkv", 6, (1, 1)),
        ("popeye_dvd_720x478_2997p.mkv", 6, (8, 9)),
    ],
)
def test_real_clips_keep_their_colors(shared: Path, name: str, matrix: int, sar: tuple[int, int]) -> None:
    clip = core.bs.VideoSource(str(shared / "data" / "clips" / name), cachemode=0)
    if "telecined" in name:
        with pytest.raises(ClipError, match=r"^frame 0 is interlaced \(_FieldBased is 2, top field first\)"):
            color.inspect_clip(clip)
        clip = core.vivtc.VDecimate(core.vivtc.VFM(clip, order=1))
    source = color.inspect_clip(clip)
    assert (source.matrix, source.range, source.chroma) == (matrix, 0, 0)
    doubled = color.to_rgb(source).resize.Bicubic(2 * clip.width, 2 * clip.height).std.Expr("x 0 max 1 min")
    frames = (0, 7, min(60, clip.num_frames - 1))
    for arguments, expected_matrix in ((None, 1), ("source", matrix)):
        out = color.convert_output(doubled, color.output_spec(source, 2, None, arguments))
        assert (out.num_frames, out.fps, out.format.id) == (clip.num_frames, clip.fps, vs.YUV420P16)
        expected = clip.resize.Lanczos(2 * clip.width, 2 * clip.height, format=vs.YUV420P16, matrix=expected_matrix)
        assert np.abs(means(out, frames) - means(expected, frames)).max() <= 1 / 255
        before, after = props_of(clip), props_of(out)
        assert (after["_SARNum"], after["_SARDen"]) == sar
        assert (after["_Matrix"], after["_Range"], after["_ChromaLocation"]) == (expected_matrix, 0, 0)
        assert {k: v for k, v in after.items() if k != "_Matrix"} == {k: v for k, v in before.items() if k != "_Matrix"}
