"""What a stream's header says of how to decode it, to tell whether parts belong together."""

_SEI = (39, 40)  # kinds of NAL units that a decoder may skip


def essential(header: bytes, codec: str) -> bytes:
    """A stream's header, without what only tells: x265 notes there on which CPU and in how many threads it ran.

    header: as in a Matroska file; of HEVC that is a record of ISO/IEC 14496-15, 8.3.3.1, in arrays of NAL units.
    """
    if codec not in ("hevc", "libx265") or len(header) < 23:
        return header
    kept, at = header[:22], 23
    for _ in range(header[22]):
        begin = at
        kind, count = header[at] & 63, int.from_bytes(header[at + 1 : at + 3])
        at += 3
        for _ in range(count):
            at += 2 + int.from_bytes(header[at : at + 2])
        if kind not in _SEI:
            kept += header[begin:at]
    return kept
