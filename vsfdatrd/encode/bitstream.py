"""Put metadata into encoded frames: closed captions and HDR10's static metadata, in H.264, HEVC and AV1.

The messages are those of ITU-T H.264 and H.265, annex D (SEI), and of the AV1 specification, 5.8 (metadata OBU);
captions travel in all of them as ATSC A/53 says, registered by ITU-T T.35.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

CODECS = ("h264", "hevc", "av1")
"""Codecs that have a place for it."""

_MDCV_SEI, _CLL_SEI, _T35_SEI = 137, 144, 4
_CLL_OBU, _MDCV_OBU, _T35_OBU = 1, 2, 4


@dataclass(frozen=True, slots=True)
class MasteringDisplay:
    """The display on which a film was graded (SMPTE ST 2086)."""

    primaries: tuple[Fraction, ...]
    """CIE 1931 x and y of red, green, blue and white: eight numbers."""
    brightest: Fraction
    """cd/m²."""
    darkest: Fraction
    """cd/m²."""


@dataclass(frozen=True, slots=True)
class LightLevel:
    """How bright a film's content is (CTA-861.3), in cd/m²."""

    pixel: int
    """Of its brightest pixel (MaxCLL)."""
    frame: int
    """Of its brightest frame, on average (MaxFALL)."""


@dataclass(frozen=True, slots=True)
class Messages:
    """What goes into one frame."""

    display: MasteringDisplay | None = None
    light: LightLevel | None = None
    captions: bytes = b""
    """Triplets of cc_data (CTA-708), 31 at most."""

    def __bool__(self) -> bool:
        return bool(self.display or self.light or self.captions)


def codec_of(encoder: str) -> str:
    """Return which of CODECS an encoder of ffmpeg writes; empty if none of them."""
    names = {"264": "h264", "265": "hevc", "hevc": "hevc", "av1": "av1"}
    return next((codec for part, codec in names.items() if part in encoder), "")


def inserter(codec: str, header: bytes) -> Callable[[bytes, Messages], bytes]:
    """Return a function that puts messages into a frame of a stream.

    Args:
        codec: One of CODECS.
        header: The stream's, as in a Matroska file (avcC, hvcC).
    """
    if codec == "av1":
        return _into_av1
    width = (header[4 if codec == "h264" else 21] & 3) + 1 if len(header) > 21 else 4  # bytes of a NAL unit's length
    return lambda frame, messages: _into_nal_units(frame, messages, codec == "hevc", width)


def _into_nal_units(frame: bytes, messages: Messages, hevc: bool, width: int) -> bytes:
    """Put an SEI unit before the first unit of a picture."""
    at = 0
    while at + width < len(frame):
        kind = frame[at + width] >> 1 & 63 if hevc else frame[at + width] & 31
        if kind < 32 if hevc else 1 <= kind <= 5:
            break
        at += width + int.from_bytes(frame[at : at + width])
    unit = b"\x4e\x01" if hevc else b"\x06"
    unit += _escaped(b"".join(_sei(*message) for message in _sei_messages(messages)) + b"\x80")
    return frame[:at] + len(unit).to_bytes(width) + unit + frame[at:]


def _sei_messages(messages: Messages) -> Iterator[tuple[int, bytes]]:
    if messages.display is not None:
        red, green, blue, white = (messages.display.primaries[n : n + 2] for n in range(0, 8, 2))
        numbers = [_whole(number * 50000, 2) for number in (*green, *blue, *red, *white)]
        light = [_whole(luminance * 10000, 4) for luminance in (messages.display.brightest, messages.display.darkest)]
        yield _MDCV_SEI, b"".join(numbers + light)
    if messages.light is not None:
        yield _CLL_SEI, _whole(messages.light.pixel, 2) + _whole(messages.light.frame, 2)
    if messages.captions:
        yield _T35_SEI, _a53(messages.captions)


def _sei(kind: int, payload: bytes) -> bytes:
    ff, rest = divmod(len(payload), 255)
    return bytes([kind]) + b"\xff" * ff + bytes([rest]) + payload


def _escaped(payload: bytes) -> bytes:
    """Keep start codes out of a unit: 0, 0 and a byte below 4 are parted by a 3."""
    result = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte < 4:
            result.append(3)
            zeros = 0
        result.append(byte)
        zeros = zeros + 1 if not byte else 0
    return bytes(result)


def _into_av1(frame: bytes, messages: Messages) -> bytes:
    """Put metadata units before the first frame of a temporal unit."""
    at = 0
    while (
        at < len(frame) and frame[at] >> 3 & 15 in (1, 2, 5) and frame[at] & 2
    ):  # sequence header, delimiter, metadata
        size = at + (2 if frame[at] & 4 else 1)
        length = shift = 0
        while True:
            length |= (frame[size] & 127) << shift
            shift, size = shift + 7, size + 1
            if not frame[size - 1] & 128:
                break
        at = size + length
    return frame[:at] + b"".join(_obu(*message) for message in _obu_messages(messages)) + frame[at:]


def _obu_messages(messages: Messages) -> Iterator[tuple[int, bytes]]:
    if messages.display is not None:
        numbers = [_whole(number * (1 << 16), 2) for number in messages.display.primaries]
        light = [_whole(messages.display.brightest * (1 << 8), 4), _whole(messages.display.darkest * (1 << 14), 4)]
        yield _MDCV_OBU, b"".join(numbers + light)
    if messages.light is not None:
        yield _CLL_OBU, _whole(messages.light.pixel, 2) + _whole(messages.light.frame, 2)
    if messages.captions:
        yield _T35_OBU, _a53(messages.captions)


def _obu(kind: int, payload: bytes) -> bytes:
    content = bytes([kind]) + payload + b"\x80"
    size = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 127 | 128, len(content) >> 7])
    return b"\x2a" + size + content


def _a53(triplets: bytes) -> bytes:
    """Captions as registered user data: the United States, ATSC, GA94, cc_data."""
    return b"\xb5\x00\x31GA94\x03" + bytes([0x40 | len(triplets) // 3, 0xFF]) + triplets + b"\xff"


def _whole(number: Fraction | int, size: int) -> bytes:
    """The nearest number that so many bytes hold."""
    return min(max(round(number), 0), (1 << 8 * size) - 1).to_bytes(size)
