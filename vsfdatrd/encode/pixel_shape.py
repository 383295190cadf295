"""The shape of a film's pixels, which may change in its course: a logo in 4:3 before a film in 16:9."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import open_input, require_av

_SAMPLES = 1024  # key frames that are decoded at most, where the file is read from its beginning
_SEEKS = 48  # places that are looked at where a file can be sought in
_ODDEST = Fraction(4)
_ROUNDING = Fraction(1, 50)  # by which a container, which rounds the picture's width, may differ from the frames

_STREAMED = ("mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v", "dv", "obu", "vc1", "cavsvideo", "flv")
"""Formats of ffmpeg's in which places cannot be found by their time, or not exactly."""


def pixel_shapes(path: Path, video: int, frames: int) -> Counter[Fraction]:
    """Return the shapes that pixels have in a film, each with a number of frames that have it.

    Args:
        path: The file.
        video: Number of the video stream.
        frames: How many it has.

    Returns:
        Widths of a pixel, its height being 1; none where the frames do not tell.
    """
    av = require_av()
    shapes: Counter[Fraction] = Counter()
    with open_input(path) as container:
        stream = container.streams[video]
        context = stream.codec_context
        context.thread_type = "NONE"  # each packet by itself, at once
        streamed = container.format.name in _STREAMED or not container.duration
        packets = _key_packets(container, stream, frames) if streamed else _sought(av, container, stream)
        for packet, weight in packets:
            try:
                packet.decode()
            except (av.FFmpegError, ValueError):
                continue
            if context.sample_aspect_ratio:
                shapes[plausible(Fraction(context.sample_aspect_ratio))] += weight
    return shapes


def _key_packets(container: Any, stream: Any, frames: int) -> Iterator[tuple[Any, int]]:
    """Key frames from all of a file, and of how many frames each is the first."""
    step = max(1, frames // _SAMPLES)
    latest, count = None, 0
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_keyframe and (latest is None or count >= step):
            if latest is not None:
                yield latest, count
            latest, count = packet, 0
        count += 1
    if latest is not None:
        yield latest, count


def _sought(av: Any, container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
    begin = container.start_time or 0
    for i in range(_SEEKS):
        try:
            container.seek(begin + container.duration * i // _SEEKS)
            packet = next((p for p in container.demux(stream) if p.size and p.is_keyframe), None)
        except av.FFmpegError:
            continue
        if packet is not None:
            yield packet, 1


def plausible(sar: Fraction) -> Fraction:
    """Return a pixel's shape, or 1 if it cannot be meant: no picture is four times as wide as it is stored."""
    return sar if 1 / _ODDEST <= sar <= _ODDEST else Fraction(1)


def prevailing(shapes: Counter[Fraction], container: Fraction | None) -> tuple[Fraction, Sequence[str]]:
    """Choose one shape for the film.

    Args:
        shapes: What `pixel_shapes` found.
        container: What the container says, if it says anything.

    Returns:
        The shape, and a remark where frames, or frames and container, disagree.
    """
    told = plausible(container) if container else None
    if not shapes:
        return told or Fraction(1), ()
    sar = shapes.most_common(1)[0][0]
    if len(shapes) > 1:
        shares = ", ".join(f"{name(s)} in {100 * n / shapes.total():.1f} %" for s, n in shapes.most_common())
        return sar, (
            f"the shape of the pixels changes in the film ({shares}); all of it is shown with {name(sar)}, "
            "since a picture can have only one",
        )
    if told is not None and abs(told / sar - 1) > _ROUNDING:
        # Players believe the container, and it is there that people correct what is wrong.
        return told, (f"pixels are {name(sar)} by the frames and {name(told)} by the container, which is believed",)
    return sar, ()


def name(sar: Fraction) -> str:
    """A shape as people write it: ``8:9``."""
    return f"{sar.numerator}:{sar.denominator}"
