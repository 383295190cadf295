"""Insert closed captions and HDR10 static metadata into encoded H.264, HEVC and AV1 frames; normalize codec headers.

The message formats are defined in ITU-T H.264 and H.265, annex D (SEI), and in the AV1 specification, 5.8 (metadata
OBU). Captions are carried in all three as ATSC A/53 user data registered by ITU-T T.35.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

CODECS = ("h264", "hevc", "av1")
"""Codecs that can carry this metadata."""

_MDCV_SEI, _CLL_SEI, _T35_SEI = 137, 144, 4
_CLL_OBU, _MDCV_OBU, _T35_OBU = 1, 2, 4
_SEI_UNITS = (39, 40)  # HEVC NAL unit types: prefix SEI, suffix SEI


@dataclass(frozen=True, slots=True)
class MasteringDisplay:
    """Mastering display color volume (SMPTE ST 2086)."""

    primaries: tuple[Fraction, ...]
    """CIE 1931 x and y of red, green, blue and white: eight numbers."""
    brightest: Fraction
    """Maximum luminance in cd/m²."""
    darkest: Fraction
    """Minimum luminance in cd/m²."""


@dataclass(frozen=True, slots=True)
class LightLevel:
    """Content light level (CTA-861.3), in cd/m²."""

    pixel: int
    """Brightest pixel (MaxCLL)."""
    frame: int
    """Average of the brightest frame (MaxFALL)."""


@dataclass(frozen=True, slots=True)
class FrameMessages:
    """Metadata to insert into one frame. As a bool, False if there is none."""

    display: MasteringDisplay | None = None
    light: LightLevel | None = None
    captions: bytes = b""
    """cc_data triplets (CTA-708), at most 31."""

    def __bool__(self) -> bool:
        return bool(self.display or self.light or self.captions)


def codec_of(encoder: str) -> str:
    """Return the codec, one of `CODECS`, of an ffmpeg encoder; empty if it writes another codec.

    Args:
        encoder: ffmpeg's name of the encoder.
    """
    names = {"264": "h264", "265": "hevc", "hevc": "hevc", "av1": "av1"}
    return next((codec for part, codec in names.items() if part in encoder), "")


def strip_sei(header: bytes, codec: str) -> bytes:
    """Return codec extradata without SEI units, so that chunks from different machines compare equal.

    x265 writes the CPU and the number of threads into an SEI unit.

    Args:
        header: Codec extradata as in a Matroska file; for HEVC the record of ISO/IEC 14496-15, 8.3.3.1, which holds
            arrays of NAL units. That of other codecs is returned unchanged.
        codec: PyAV's name of the codec or encoder.
    """
    if codec not in ("hevc", "libx265") or len(header) < 23:
        return header
    result, at = header[:22], 23
    for _ in range(header[22]):
        begin = at
        kind, count = header[at] & 63, int.from_bytes(header[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            at += 2 + int.from_bytes(header[at : at + 2])
        if kind not in _SEI_UNITS:
            result += header[begin:at]
    return result


def make_inserter(codec: str, header: bytes) -> Callable[[bytes, FrameMessages], bytes]:
    """Return a function of a packet's data and messages, which returns the data with the messages inserted.

    Args:
        codec: One of `CODECS`.
        header: The stream's codec extradata, as in a Matroska file (avcC, hvcC).
    """
    if codec == "av1":
        return _insert_obus
    width = (header[4 if codec == "h264" else 21] & 3) + 1 if len(header) > 21 else 4  # bytes of the NAL length field
    return lambda frame, messages: _insert_sei_units(frame, messages, codec == "hevc", width)


def _insert_sei_units(frame: bytes, messages: FrameMessages, hevc: bool, width: int) -> bytes:
    """Insert an SEI unit before the first slice of a picture. Each unit begins with its length, of `width` bytes."""
    at = 0
    while at + width < len(frame):
        kind = frame[at + width] >> 1 & 63 if hevc else frame[at + width] & 31
        if kind < 32 if hevc else 1 <= kind <= 5:
            break
        at += width + int.from_bytes(frame[at : at + width])
    unit = b"\x4e\x01" if hevc else b"\x06"
    unit += _escape(b"".join(_make_sei(*message) for message in _sei_messages(messages)) + b"\x80")
    return frame[:at] + len(unit).to_bytes(width) + unit + frame[at:]


def _sei_messages(messages: FrameMessages) -> Iterator[tuple[int, bytes]]:
    """Yield the payload type and the payload of each SEI message."""
    if messages.display is not None:
        red, green, blue, white = (messages.display.primaries[n : n + 2] for n in range(0, 8, 2))
        numbers = [_to_big_endian(number * 50000, 2) for number in (*green, *blue, *red, *white)]
        light = [
            _to_big_endian(luminance * 10000, 4) for luminance in (messages.display.brightest, messages.display.darkest)
        ]
        yield _MDCV_SEI, b"".join(numbers + light)
    if messages.light is not None:
        yield _CLL_SEI, _to_big_endian(messages.light.pixel, 2) + _to_big_endian(messages.light.frame, 2)
    if messages.captions:
        yield _T35_SEI, _wrap_captions(messages.captions)


def _make_sei(kind: int, payload: bytes) -> bytes:
    """Return an SEI message: payload type, size in steps of 255, payload."""
    full, last = divmod(len(payload), 255)
    return bytes([kind]) + b"\xff" * full + bytes([last]) + payload


def _escape(payload: bytes) -> bytes:
    """Add emulation prevention bytes: insert 3 between two zeros and a byte below 4."""
    result = bytearray()
    zeros = 0
    for byte in payload:
        if zeros >= 2 and byte < 4:
            result.append(3)
            zeros = 0
        result.append(byte)
        zeros = zeros + 1 if not byte else 0
    return bytes(result)


def _insert_obus(frame: bytes, messages: FrameMessages) -> bytes:
    """Insert metadata OBUs before the first frame of a temporal unit."""
    at = 0
    # OBU types: 1 sequence header, 2 temporal delimiter, 5 metadata. Bit 1 of the header: the size follows.
    while at < len(frame) and frame[at] >> 3 & 15 in (1, 2, 5) and frame[at] & 2:
        size = at + (2 if frame[at] & 4 else 1)
        length = shift = 0
        while True:
            length |= (frame[size] & 127) << shift
            shift, size = shift + 7, size + 1
            if not frame[size - 1] & 128:
                break
        at = size + length
    return frame[:at] + b"".join(_make_obu(*message) for message in _obu_messages(messages)) + frame[at:]


def _obu_messages(messages: FrameMessages) -> Iterator[tuple[int, bytes]]:
    """Yield the type and the payload of each metadata OBU."""
    if messages.display is not None:
        numbers = [_to_big_endian(number * (1 << 16), 2) for number in messages.display.primaries]
        light = [
            _to_big_endian(messages.display.brightest * (1 << 8), 4),
            _to_big_endian(messages.display.darkest * (1 << 14), 4),
        ]
        yield _MDCV_OBU, b"".join(numbers + light)
    if messages.light is not None:
        yield _CLL_OBU, _to_big_endian(messages.light.pixel, 2) + _to_big_endian(messages.light.frame, 2)
    if messages.captions:
        yield _T35_OBU, _wrap_captions(messages.captions)


def _make_obu(kind: int, payload: bytes) -> bytes:
    """Return a metadata OBU: header, size in LEB128, type, payload, trailing bit."""
    content = bytes([kind]) + payload + b"\x80"
    size = bytes([len(content)]) if len(content) < 128 else bytes([len(content) & 127 | 128, len(content) >> 7])
    return b"\x2a" + size + content


def _wrap_captions(triplets: bytes) -> bytes:
    """Wrap captions as T.35 registered user data: country code United States, provider ATSC, GA94, cc_data."""
    return b"\xb5\x00\x31GA94\x03" + bytes([0x40 | len(triplets) // 3, 0xFF]) + triplets + b"\xff"


def _to_big_endian(number: Fraction | int, size: int) -> bytes:
    """Round and clamp a number to an unsigned big-endian integer of `size` bytes."""
    return min(max(round(number), 0), (1 << 8 * size) - 1).to_bytes(size)
