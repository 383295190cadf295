"""What a film's frames carry beside their pictures (HDR metadata, captions, transparency), and what of it is kept."""

import itertools
import struct
from bisect import bisect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode.bitstream import CODECS, LightLevel, MasteringDisplay
from vsfdatrd.encode.input_file import open_input, require_av
from vsfdatrd.encode.source import Source
from vsfdatrd.encode.timing import Timing

_LOOK = 8  # frames that are looked at for what a film has from its beginning
_MOST = 31  # triplets of captions in a frame; the field for their number has five bits
_CODECS_WITH_CAPTIONS = ("mpeg1video", "mpeg2video", "h264", "hevc", "av1", "vvc")
# How user data with captions begins: of ATSC A/53, of DVDs, of SCTE 20 (in MPEG-2, behind its start code).
_MARKS = (b"GA94\x03", b"\0\0\1\xb2CC\x01", b"\0\0\1\xb2\x03\x01", b"\0\0\1\xb2\x03\x81")
_LOST = {
    "DYNAMIC_HDR_PLUS": "HDR10+ dynamic metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid dynamic metadata",
    "DYNAMIC_HDR_SMPTE_2094_APP5": "HDR dynamic metadata (SMPTE 2094-50)",
    "AMBIENT_VIEWING_ENVIRONMENT": "HDR ambient viewing environment",
    "ICC_PROFILE": "the ICC profile",
    "STEREO3D": "the marks of stereoscopic pictures",
    "SPHERICAL": "the marks of spherical pictures",
    "LCEVC": "the LCEVC enhancement layer",
    "VIEW_ID": "the other views of stereoscopic pictures",
}


@dataclass(frozen=True, slots=True)
class FrameMetadata:
    """What was found in a film."""

    display: MasteringDisplay | None = None
    light: LightLevel | None = None
    captions: Sequence[tuple[Fraction, bytes]] = ()
    """Triplets of cc_data with the time of their frame, in seconds after the beginning of the file."""
    lost: tuple[str, ...] = ()
    """What no output can hold, a phrase each."""

    def kept(self, codec: str) -> list[str]:
        """Return what goes into a video of this codec, a phrase each."""
        return self._carried() if codec in CODECS else []

    def left(self, codec: str, encoder: str) -> list[str]:
        """Return what does not, a phrase each."""
        nowhere = [] if codec in CODECS else [f"{what} ({encoder} has no place for it)" for what in self._carried()]
        return [*nowhere, *self.lost]

    def _carried(self) -> list[str]:
        found = {
            "HDR mastering display": self.display, "HDR content light level": self.light,
            "closed captions": self.captions,
        }  # fmt: skip
        return [what for what, there in found.items() if there]

    def per_frame(self, timing: Timing, frames: int) -> list[bytes]:
        """Return the captions of each output frame, which are those of the source's frames nearest to it in time."""
        times = [timing.at(n) for n in range(frames)]
        due: list[list[bytes]] = [[] for _ in times]
        for time, triplets in self.captions:
            after = min(bisect(times, time), frames - 1)
            near = after - 1 if after and time - times[after - 1] <= times[after] - time else after
            due[near].append(triplets)
        result = []
        waiting = b""
        for pieces in due:
            if waiting or len(pieces) > 1:  # fewer frames than before: without what only fills up
                waiting += b"".join(map(_valid, pieces))
            elif pieces:
                waiting = pieces[0]
            result.append(waiting[: 3 * _MOST])
            waiting = waiting[3 * _MOST :]
        return result


def find(source: Source) -> FrameMetadata:
    """Look for metadata: at the first frames for what all of them have, in the whole file for captions.

    Raises av.FFmpegError if the file cannot be opened any more.
    """
    av = require_av()
    found: dict[str, bytes] = {}
    lost: dict[str, None] = {}
    with _opened(source) as (container, stream):
        if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 keep it in a second picture
            lost["transparency"] = None
        for frame in itertools.islice(_frames(av, container, stream), _LOOK):
            if any(component.is_alpha for component in frame.format.components) and not frame.format.has_palette:
                lost["transparency"] = None
            for name, content in _side_data(frame):
                found.setdefault(name, content)
    lost |= dict.fromkeys(_LOST[name] for name in found if name in _LOST)
    display = _mastering_display(found.get("MASTERING_DISPLAY_METADATA", b""))
    light = found.get("CONTENT_LIGHT_LEVEL", b"")
    return FrameMetadata(
        display, LightLevel(*struct.unpack("=2I", light[:8])) if len(light) >= 8 else None,
        _captions(av, source) if _has_marks(source) else (), tuple(lost),
    )  # fmt: skip


def has_hdr(path: Path) -> bool:
    """Return whether a video's first frame has HDR metadata, as where options of the encoder give some."""
    av = require_av()
    with av.open(str(path.absolute())) as container:
        frame = next(_frames(av, container, container.streams.video[0]), None)
        return frame is not None and bool(
            {name for name, _ in _side_data(frame)} & {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"}
        )


@contextmanager
def _opened(source: Source) -> Iterator[tuple[Any, Any]]:
    with open_input(source.path) as container:
        yield container, container.streams[source.video]


def _frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """The frames that decode; damaged ones are left out."""
    stream.thread_type = "AUTO"
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _side_data(frame: Any) -> Iterator[tuple[str, bytes]]:
    """Name and content of each piece."""
    for kind in frame.side_data:
        yield kind.name, bytes(memoryview(frame.side_data[kind]))


def _mastering_display(content: bytes) -> MasteringDisplay | None:
    """AVMasteringDisplayMetadata: ten fractions, then whether those of colour, and of luminance, are known."""
    if len(content) < 88:
        return None
    numbers = struct.unpack("=22i", content[:88])
    fractions = [Fraction(top, bottom) if bottom else Fraction(0) for top, bottom in itertools.batched(numbers[:20], 2)]
    colours = fractions[:8] if numbers[20] else [Fraction(0)] * 8
    darkest, brightest = fractions[8:] if numbers[21] else (Fraction(0), Fraction(0))
    return MasteringDisplay(tuple(colours), brightest, darkest)


def _has_marks(source: Source) -> bool:
    """Whether anything in the stream looks like captions. Reads packets only, which is far faster than decoding."""
    with _opened(source) as (container, stream):
        if stream.codec_context.codec.canonical_name not in _CODECS_WITH_CAPTIONS:
            return False
        return any(mark in packet for packet in map(bytes, container.demux(stream)) for mark in _MARKS)


def _captions(av: Any, source: Source) -> list[tuple[Fraction, bytes]]:
    """All captions of the video; none if they only fill up."""
    found = []
    speaks = False
    with _opened(source) as (container, stream):
        base = Fraction(stream.time_base)
        for n, frame in enumerate(_frames(av, container, stream)):
            for name, triplets in _side_data(frame):
                if name != "A53_CC":
                    continue
                speaks = speaks or any(a & 127 or b & 127 for _, a, b in itertools.batched(_valid(triplets), 3))
                time = source.start() + n / source.rate if frame.pts is None else frame.pts * base - source.origin
                found.append((time, triplets))
    return sorted(found, key=lambda caption: caption[0]) if speaks else []


def _valid(triplets: bytes) -> bytes:
    """Captions without those triplets that are marked as not valid, which fill up."""
    return b"".join(triplets[n : n + 3] for n in range(0, len(triplets) - 2, 3) if triplets[n] & 4)
