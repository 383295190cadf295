"""Side data of the source's frames (HDR metadata, captions, transparency), and which of it is kept in the output."""

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

_FRAMES_EXAMINED = 8  # frames at the start of the file that are examined for HDR metadata and transparency
_MAX_TRIPLETS = 31  # caption triplets per frame; their count is a five-bit field
_CODECS_WITH_CAPTIONS = ("mpeg1video", "mpeg2video", "h264", "hevc", "av1", "vvc")
# Start of user data with captions: ATSC A/53, DVD, SCTE 20 (the last two after MPEG-2's start code for user data).
_CAPTION_MARKERS = (b"GA94\x03", b"\0\0\1\xb2CC\x01", b"\0\0\1\xb2\x03\x01", b"\0\0\1\xb2\x03\x81")
_NEVER_KEPT = {
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
    """Metadata found in a source."""

    display: MasteringDisplay | None = None
    light: LightLevel | None = None
    captions: Sequence[tuple[Fraction, bytes]] = ()
    """cc_data triplets with the time of their frame, in seconds after the start of the file."""
    lost: tuple[str, ...] = ()
    """A phrase for each kind of metadata that is never kept."""

    def describe_kept(self, codec: str) -> list[str]:
        """Return a phrase for each kind of metadata that is kept.

        Args:
            codec: Codec of the output, as from `codec_of`.
        """
        return self._carried() if codec in CODECS else []

    def describe_lost(self, codec: str, encoder: str) -> list[str]:
        """Return a phrase for each kind of metadata that is dropped.

        Args:
            codec: Codec of the output, as from `codec_of`.
            encoder: ffmpeg's name of the encoder, for the phrases.
        """
        not_stored = [] if codec in CODECS else self._carried()
        return [*(f"{kind} ({encoder} cannot store it)" for kind in not_stored), *self.lost]

    def _carried(self) -> list[str]:
        """Return a phrase for each kind of metadata here that the codecs in `CODECS` can carry."""
        result = {
            "HDR mastering display": self.display,
            "HDR content light level": self.light,
            "closed captions": self.captions,
        }
        return [kind for kind, content in result.items() if content]

    def per_frame(self, timing: Timing, frames: int) -> list[bytes]:
        """Assign captions to output frames, each to the frame nearest in time.

        Args:
            timing: Presentation times of the output frames.
            frames: Number of output frames.

        Returns:
            cc_data triplets of each frame, at most 31 of them (3 bytes each); excess triplets move to later frames.
        """
        times = [timing.at(n) for n in range(frames)]
        due: list[list[bytes]] = [[] for _ in times]
        for time, triplets in self.captions:
            after = min(bisect(times, time), frames - 1)
            near = after - 1 if after and time - times[after - 1] <= times[after] - time else after
            due[near].append(triplets)
        result = []
        waiting = b""
        for pieces in due:
            if waiting or len(pieces) > 1:  # fewer frames than in the source: drop padding triplets
                waiting += b"".join(map(_valid_triplets, pieces))
            elif pieces:
                waiting = pieces[0]
            result.append(waiting[: 3 * _MAX_TRIPLETS])
            waiting = waiting[3 * _MAX_TRIPLETS :]
        return result


def find_metadata(source: Source) -> FrameMetadata:
    """Find a source's metadata: HDR and transparency in the first frames, captions in the complete file.

    Args:
        source: The opened source.

    Raises:
        av.FFmpegError: The file can no longer be read.
    """
    av = require_av()
    result: dict[str, bytes] = {}
    lost: dict[str, None] = {}
    with _open_video_stream(source) as (container, stream):
        if stream.metadata.get("alpha_mode") == "1":  # VP8 and VP9 store alpha as a second picture
            lost["transparency"] = None
        for frame in itertools.islice(_decode_frames(av, container, stream), _FRAMES_EXAMINED):
            if any(component.is_alpha for component in frame.format.components) and not frame.format.has_palette:
                lost["transparency"] = None
            for name, content in _side_data(frame):
                result.setdefault(name, content)
    lost |= dict.fromkeys(_NEVER_KEPT[name] for name in result if name in _NEVER_KEPT)
    display = _mastering_display(result.get("MASTERING_DISPLAY_METADATA", b""))
    light = result.get("CONTENT_LIGHT_LEVEL", b"")
    return FrameMetadata(
        display,
        LightLevel(*struct.unpack("=2I", light[:8])) if len(light) >= 8 else None,
        _read_captions(av, source) if _has_captions(source) else (),
        tuple(lost),
    )


def has_hdr(path: Path) -> bool:
    """Return True if the first frame of a video file has HDR metadata, for example from encoder options.

    Args:
        path: A video file.
    """
    av = require_av()
    with av.open(str(path.absolute())) as container:
        frame = next(_decode_frames(av, container, container.streams.video[0]), None)
        return frame is not None and bool(
            {name for name, _ in _side_data(frame)} & {"MASTERING_DISPLAY_METADATA", "CONTENT_LIGHT_LEVEL"}
        )


@contextmanager
def _open_video_stream(source: Source) -> Iterator[tuple[Any, Any]]:
    with open_input(source.path) as container:
        yield container, container.streams[source.video]


def _decode_frames(av: Any, container: Any, stream: Any) -> Iterator[Any]:
    """Yield decoded frames, skipping damaged packets."""
    stream.thread_type = "AUTO"
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _side_data(frame: Any) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each side data entry."""
    for kind in frame.side_data:
        yield kind.name, bytes(memoryview(frame.side_data[kind]))


def _mastering_display(content: bytes) -> MasteringDisplay | None:
    """Parse AVMasteringDisplayMetadata: ten fractions, then flags for valid primaries and valid luminance."""
    if len(content) < 88:
        return None
    numbers = struct.unpack("=22i", content[:88])
    fractions = [Fraction(top, bottom) if bottom else Fraction(0) for top, bottom in itertools.batched(numbers[:20], 2)]
    colors = fractions[:8] if numbers[20] else [Fraction(0)] * 8
    darkest, brightest = fractions[8:] if numbers[21] else (Fraction(0), Fraction(0))
    return MasteringDisplay(tuple(colors), brightest, darkest)


def _has_captions(source: Source) -> bool:
    """Return True if any packet contains a caption marker. Packets are not decoded, which is far faster."""
    with _open_video_stream(source) as (container, stream):
        if stream.codec_context.codec.canonical_name not in _CODECS_WITH_CAPTIONS:
            return False
        return any(mark in packet for packet in map(bytes, container.demux(stream)) for mark in _CAPTION_MARKERS)


def _read_captions(av: Any, source: Source) -> list[tuple[Fraction, bytes]]:
    """Return all captions of the video in order of time; an empty list if all of them are padding."""
    result = []
    has_text = False
    with _open_video_stream(source) as (container, stream):
        base = Fraction(stream.time_base)
        for n, frame in enumerate(_decode_frames(av, container, stream)):
            for name, triplets in _side_data(frame):
                if name != "A53_CC":
                    continue
                has_text = has_text or any(
                    a & 127 or b & 127 for _, a, b in itertools.batched(_valid_triplets(triplets), 3)
                )
                time = source.start() + n / source.rate if frame.pts is None else frame.pts * base - source.origin
                result.append((time, triplets))
    return sorted(result, key=lambda caption: caption[0]) if has_text else []


def _valid_triplets(triplets: bytes) -> bytes:
    """Remove the caption triplets marked as not valid, which are padding."""
    return b"".join(triplets[n : n + 3] for n in range(0, len(triplets) - 2, 3) if triplets[n] & 4)
