"""The sample aspect ratio (SAR) of a video, which may change within it: a 4:3 logo before a 16:9 film."""

from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.input_file import open_input, require_av

_MAX_DECODED_KEY_FRAMES = 1024  # maximum number of key frames decoded in a file that is read sequentially
_SEEK_COUNT = 48  # number of positions decoded in a seekable file
_MAX_SAR = Fraction(4)  # largest plausible SAR; its inverse is the smallest
_SAR_TOLERANCE = Fraction(1, 50)  # tolerated difference from the container, which may round the display width

_SEQUENTIAL_FORMATS = ("mpeg", "mpegts", "mpegvideo", "h264", "hevc", "m4v", "dv", "obu", "vc1", "cavsvideo", "flv")
"""ffmpeg formats that cannot be seeked by time, or not accurately."""


def pixel_shapes(path: Path, video: int, frames: int) -> Counter[Fraction]:
    """Count the sample aspect ratios found in a sample of the frames.

    Args:
        path: The file.
        video: Index of the video stream.
        frames: Number of frames of the stream.

    Returns:
        Approximate number of frames, up to a common factor, of each SAR (pixel width / pixel height); empty if the
        frames do not declare any.

    Raises:
        av.FFmpegError: The file cannot be read.
    """
    av = require_av()
    shapes: Counter[Fraction] = Counter()
    with open_input(path) as container:
        stream = container.streams[video]
        context = stream.codec_context
        context.thread_type = "NONE"  # no frame threading: each packet is decoded immediately
        streamed = container.format.name in _SEQUENTIAL_FORMATS or not container.duration
        packets = _key_packets(container, stream, frames) if streamed else _seek_key_packets(av, container, stream)
        for packet, weight in packets:
            try:
                packet.decode()
            except (av.FFmpegError, ValueError):
                continue
            if context.sample_aspect_ratio:
                shapes[plausible_sar(Fraction(context.sample_aspect_ratio))] += weight
    return shapes


def _key_packets(container: Any, stream: Any, frames: int) -> Iterator[tuple[Any, int]]:
    """Yield key-frame packets from the complete file, each with the number of frames it stands for."""
    step = max(1, frames // _MAX_DECODED_KEY_FRAMES)
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


def _seek_key_packets(av: Any, container: Any, stream: Any) -> Iterator[tuple[Any, int]]:
    """Yield a key-frame packet from each of `_SEEK_COUNT` positions, spread evenly over the file, with the weight 1."""
    begin = container.start_time or 0
    for i in range(_SEEK_COUNT):
        try:
            container.seek(begin + container.duration * i // _SEEK_COUNT)
            packet = next((p for p in container.demux(stream) if p.size and p.is_keyframe), None)
        except av.FFmpegError:
            continue
        if packet is not None:
            yield packet, 1


def plausible_sar(sar: Fraction) -> Fraction:
    """Return the SAR if it is between 1:4 and 4:1, otherwise 1.

    Args:
        sar: A declared sample aspect ratio.
    """
    return sar if 1 / _MAX_SAR <= sar <= _MAX_SAR else Fraction(1)


def choose_sar(shapes: Counter[Fraction], container: Fraction | None) -> tuple[Fraction, Sequence[str]]:
    """Choose one SAR for the complete video.

    Args:
        shapes: Result of `pixel_shapes`.
        container: The SAR declared by the container; None if it declares none.

    Returns:
        The SAR, and remarks for the user if the frames disagree with each other or with the container.
    """
    declared = plausible_sar(container) if container else None
    if not shapes:
        return declared or Fraction(1), ()
    sar = shapes.most_common(1)[0][0]
    if len(shapes) > 1:
        shares = ", ".join(f"{format_sar(s)} in {100 * n / shapes.total():.1f} %" for s, n in shapes.most_common())
        return sar, (
            f"the shape of the pixels changes in the film ({shares}); all of it is shown with {format_sar(sar)}, "
            "since a picture can have only one",
        )
    if declared is not None and abs(declared / sar - 1) > _SAR_TOLERANCE:
        # Players use the container's value, and it is where users correct a wrong SAR.
        return declared, (
            f"pixels are {format_sar(sar)} in the frames and {format_sar(declared)} in the container, which is used",
        )
    return sar, ()


def format_sar(sar: Fraction) -> str:
    """Format a sample aspect ratio, such as ``8:9``.

    Args:
        sar: Pixel width / pixel height.
    """
    return f"{sar.numerator}:{sar.denominator}"
