"""Clips and frames that are refused, and who gets to read why."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import vapoursynth as vs

from tests.clips import blank, core, planes, props_of, round_trip
from vsfdatrd.errors import ClipError
from vsfdatrd.system.programs import vspipe
from vsfdatrd.video import color


def refused_clip(name: str) -> vs.VideoNode:
    match name:
        case "variable size":
            return core.std.Splice([blank(width=64), blank(width=80)], mismatch=True)
        case "variable format":
            return core.std.Splice([blank(vs.YUV420P8), blank(vs.YUV444P8)], mismatch=True)
        case "32 bit":
            return blank(vs.GRAY32)
        case "17 bit":
            return blank(core.query_video_format(vs.YUV, vs.INTEGER, 17, 1, 1).id)
        case "an eighth":
            return blank(core.query_video_format(vs.YUV, vs.INTEGER, 8, 3, 0).id)
        case "4×4":
            return blank(vs.RGB24, 4, 4)
        case "flat":
            return blank(vs.GRAY8, 1000, 7)
    raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "start", "cure"),
    [
        ("variable size", "the clip has a variable size", "core.resize."),
        ("variable format", "the clip has a variable format", "core.resize."),
        ("32 bit", "the format Gray32 is not supported", "format=vs.YUV444P16"),
        ("17 bit", "the format YUV420P17 is not supported", "format=vs.YUV444P16"),
        ("an eighth", "the format YUVssw3ssh0P8 is not supported", "format=vs.YUV444P16"),
        ("4×4", "the clip is 4×4 pixels", "core.std.AddBorders"),
        ("flat", "the clip is 1000×7 pixels", "core.std.AddBorders"),
    ],
)
def test_clips_that_are_refused(name: str, start: str, cure: str) -> None:
    with pytest.raises(ClipError) as caught:
        color.inspect_clip(refused_clip(name))
    assert str(caught.value).startswith(start)
    assert cure in str(caught.value)


def test_a_first_frame_that_cannot_be_read_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    clip = blank(length=3, _Matrix=1, _Range=1)

    def fail(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == 0:
            raise RuntimeError("sector 0 is scratched")
        return f

    out = round_trip(core.std.ModifyFrame(clip, clip, fail))
    with pytest.raises(vs.Error, match="sector 0 is scratched"):
        out.get_frame(0)
    # What is not known of the first frame is guessed for the output; the others are still read by their own tags.
    after = props_of(out, 1)
    assert (after["_Matrix"], after["_Range"]) == (6, 0)
    np.testing.assert_allclose([p[0, 0] / 256 for p in planes(out, 1)], [16, 128, 128], atol=20)
    assert caplog.messages == []


def test_it_works_inside_a_frame_callback() -> None:
    clip = blank(length=2, _Matrix=6, _Range=0)
    nested = core.std.FrameEval(blank(vs.YUV420P16, length=2), lambda n: round_trip(clip))
    assert props_of(nested)["_Matrix"] == 6


def test_vspipe_shows_the_sentence(tmp_path: Path) -> None:
    script = tmp_path / "mixed.vpy"
    script.write_text(
        "import vapoursynth as vs\nfrom vapoursynth import core\nfrom vsfdatrd.video import color as color\n"
        "clip = core.std.BlankClip(width=64, height=48, format=vs.YUV420P8, length=2)\n"
        "clip = clip + core.std.SetFieldBased(clip, 2)\n"
        "source = color.inspect_clip(clip)\n"
        "color.convert_output(color.to_rgb(source), color.output_spec(source, 1, None, None)).set_output()\n",
        encoding="utf-8",
    )
    done = subprocess.run([vspipe(), "-c", "y4m", str(script), "-"], capture_output=True, check=False)
    words = done.stderr.decode()
    assert done.returncode != 0
    assert done.stdout.startswith(b"YUV4MPEG2 C420p16 W64 H48 ")
    assert "fdatrd.upscale: frame 2 is interlaced (_FieldBased is 2, top field first). Undo the telecine" in words
    assert "Traceback" not in words
    assert words.count("the clip does not say its matrix and range; taken as 170m and limited") == 1
