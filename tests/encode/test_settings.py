"""Settings of an encode, and options of ffmpeg after ``--``."""

from fractions import Fraction
from pathlib import Path

import pytest

from vsfdatrd.encode import field_detection, presets, script, settings
from vsfdatrd.encode.chunk import try_encoder
from vsfdatrd.encode.cli import split_command_line
from vsfdatrd.encode.crop import Borders
from vsfdatrd.encode.settings import Settings
from vsfdatrd.errors import ArgumentError, EncodeError


def test_where_frames_are_made_is_no_other_setting() -> None:
    result, film, index = field_detection.Fields("progressive", True, ""), Path("/film.mkv"), Path("/place/index")
    text, other = (script.preparation_script(film, 0, index, result, Borders(), device) for device in ("0", "0,1"))
    assert text != other
    assert script.without_devices(text) == script.without_devices(other)
    assert "cachepath='/there/index'" in script.with_index(text, index, Path("/there/index"))


def test_an_output_that_is_the_input_under_another_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film.mkv").write_bytes(b"film")
    (tmp_path / "link.mkv").symlink_to("film.mkv")
    with pytest.raises(ArgumentError, match="is the input itself"):
        settings.pair_outputs([tmp_path / "film.mkv", tmp_path / "link.mkv"], None)


def test_settings_are_checked() -> None:
    for wrong, words in (
        ({"preset": "divx"}, "--preset divx is unknown"),
        ({"field": "both"}, "--field both is unknown"),
        ({"minutes": 0.0}, "--chunk 0 is out of range"),
        ({"backend": "vulkan"}, "backend='vulkan' is unknown"),
        ({"crop": "all"}, "is not a crop"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Settings(**wrong)
    with pytest.raises(ArgumentError, match=r"two inputs would both become a\.mkv"):
        settings.pair_outputs([Path("x/a.mkv"), Path("y/a.mpg")], Path("/tmp"))
    assert split_command_line(["encode", "a", "b", "--", "-crf", "3"]) == (["encode", "a", "b"], ("-crf", "3"))
    assert split_command_line(["info", "--", "-odd"]) == (["info", "--", "-odd"], ())


@pytest.mark.parametrize(
    "words",
    [
        "-frames 3",
        "-frames:v 3",
        "-vframes 3",
        "-i x.mkv",
        "-map 0",
        "-map:v 0",
        "-c copy",
        "-c:a aac",
        "-codec:s srt",
        "-acodec aac",
        "-r 25",
        "-r:v 25",
        "-t 3",
        "-to 3",
        "-ss 3",
        "-fs 1000",
        "-f mp4",
        "-vn",
        "-an",
        "-vsync 0",
        "-pass 1",
        "-fps_mode:v cfr",
        "-shortest",
        "-s 100x100",
        "-filter_complex x",
        "-crf 3 -metadata title=x",
        "-crf 3 -frames 1",
    ],
)
def test_options_that_are_not_the_encoders_are_refused(words: str) -> None:
    with pytest.raises(ArgumentError, match="after -- would change which frames or streams"):
        Settings(further=tuple(words.split()))


@pytest.mark.parametrize("words", ["out2.mkv", "-crf 3 out2.mkv", "-crf 3 -preset slow x"])
def test_a_second_output_is_refused(words: str) -> None:
    with pytest.raises(ArgumentError, match="after -- is not the value of an option"):
        Settings(further=tuple(words.split()))


@pytest.mark.parametrize(
    ("words", "encoder"),
    [
        ("-crf 14 -preset slow", "libx265"),
        ("-x265-params log-level=none:aq-mode=3", "libx265"),
        ("-crf -1", "libx265"),
        ("-c:v libx264 -b:v 4M", "libx264"),
        ("-vcodec libx264 -codec:v libaom-av1", "libaom-av1"),
        ("", "libx265"),
        ("-bsf:v hevc_metadata=level=5", "libx265"),
        ("-vf noise=alls=3", "libx265"),
        ("-tag:v hvc1", "libx265"),
    ],
)
def test_options_of_the_encoder_are_taken(words: str, encoder: str) -> None:
    assert Settings(further=tuple(words.split())).encoder == encoder


def test_filters_after_the_dashes_follow_the_color_tags() -> None:
    """ffmpeg uses only the last of several filter options, which would leave the output without tags."""
    further = ("-crf", "3", "-filter:v", "noise=alls=3", "-vf", "hue=s=0")
    tags = presets.color_options({"_Matrix": 1}, Fraction(1))
    merged = presets.merge_filters((*tags, *further))
    assert merged == ("-vf", f"{tags[1]},noise=alls=3,hue=s=0", *tags[2:], "-crf", "3")


def test_an_encoder_whose_codec_the_container_cannot_hold_is_refused() -> None:
    """Before any work: a muxer would refuse it at the end of the encode."""
    further = Settings(preset="x264", further=("-c:v", "prores_ks"))
    settings.check_ffmpeg(further, [Path("out.mkv"), Path("out.mov")])
    with pytest.raises(ArgumentError, match=r"a \.mp4 file cannot hold what prores_ks encodes"):
        settings.check_ffmpeg(further, [Path("out.mp4")])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("-c:v libx265 -preset nosuch", "Error setting preset/tune nosuch"),
        ("-c:v libx264 -crf much", 'Unable to parse "crf" option value "much"'),
        ("-c:v libx264 -nosuchoption 1", "nosuchoption"),
        ("-c:v ffv1 -vf nosuchfilter", "No such filter: 'nosuchfilter'"),
    ],
)
def test_options_that_an_encoder_refuses(options: str, reason: str) -> None:
    with pytest.raises(EncodeError, match=r"ffmpeg cannot encode 192×128 with \S+ and these options") as raised:
        try_encoder(options.split(), "yuv420p10le", (192, 128))
    assert reason in str(raised.value)
    try_encoder(["-c:v", "ffv1"], "yuv422p10le", (192, 128))
