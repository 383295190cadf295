"""Normalize codec headers, to check that chunks can be decoded as one stream."""

_SEI = (39, 40)  # HEVC NAL unit types: prefix SEI, suffix SEI


def strip_sei(header: bytes, codec: str) -> bytes:
    """Return codec extradata without SEI units, so that chunks from different machines compare equal.

    x265 writes the CPU and the number of threads into an SEI unit.

    Args:
        header: Codec extradata as in a Matroska file; for HEVC the record of ISO/IEC 14496-15, 8.3.3.1, which holds
            arrays of NAL units.
        codec: PyAV's name of the codec or encoder.

    Returns:
        The extradata; for codecs other than HEVC unchanged.
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
        if kind not in _SEI:
            result += header[begin:at]
    return result
