"""The aspect ratio of the output's container."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.encode.joining import mux_inputs
from tests.encode.media import lavfi, make
from vsfdatrd.encode.mux import mux

CHAPTERS = ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=1000\ntitle=One\n"


@pytest.mark.parametrize("extension", [".mkv", ".mp4", ".mov"])
def test_other_pixels_than_square_cost_nothing_else(plain_film: Path, tmp_path: Path, extension: str) -> None:
    """Neither chapters nor the timecode make it fail; the cover stays one, and the attachment before it."""
    (tmp_path / "chapters.txt").write_text(CHAPTERS)
    (tmp_path / "font.ttf").write_bytes(b"not really a font")
    make(*lavfi("color=red:size=32x32"), "-frames:v", "1", tmp_path / "cover.jpg")
    attached: list[str | Path] = ["-attach", tmp_path / "font.ttf", "-metadata:s:t:0", "mimetype=font/ttf"]
    attached += ["-attach", tmp_path / "cover.jpg", "-metadata:s:t:1", "mimetype=image/jpeg"]
    source = tmp_path / "in.mkv"
    tags = ["-map_metadata", "1", "-metadata:s:v:0", "timecode=01:00:00:00"]
    make("-i", plain_film, "-i", tmp_path / "chapters.txt", *tags, "-c", "copy", *attached, source)
    target = tmp_path / f"out{extension}"
    film = replace(mux_inputs(plain_film, source, target), sar=Fraction(32, 27))
    assert mux(film, target) == []
    with av.open(str(target)) as container:
        picture, *covers = container.streams.video
        assert picture.sample_aspect_ratio == Fraction(32, 27)
        assert [chapter["metadata"]["title"] for chapter in container.chapters()] == ["One"]
        assert picture.metadata.get("timecode") == (None if extension == ".mkv" else "01:00:00:00")
        if extension == ".mkv":
            assert [cover.disposition for cover in covers] == [av.stream.Disposition.attached_pic]
            (shown,) = [bytes(packet) for packet in container.demux(covers) if packet.size]
            assert shown == (tmp_path / "cover.jpg").read_bytes()
            assert [stream.metadata["filename"] for stream in container.streams if stream.type == "attachment"] == [
                "font.ttf"
            ]
