"""Mux the chunks, packet by packet, with the source's timing, audio, subtitles, chapters and attachments."""

import hashlib
import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode import streams
from vsfdatrd.encode.bitstream import CODECS, FrameMessages, make_inserter, strip_sei
from vsfdatrd.encode.decoded_audio import DecodedAudio
from vsfdatrd.encode.frame_metadata import FrameMetadata, has_hdr
from vsfdatrd.encode.input_file import open_input, require_av
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.presets import CONTAINERS
from vsfdatrd.encode.source import Source
from vsfdatrd.encode.streams import Selection
from vsfdatrd.encode.timestamps import CLOCK_RESET_SECONDS, clock_reset_error
from vsfdatrd.encode.timing import Timing
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import replace_file, sync_file
from vsfdatrd.system.programs import ffmpeg, run

TAG = "VSFDATRD"
"""Name of the container tag that identifies the settings with which a file was made."""

_MIN_TICKS = 12000  # minimum ticks per second of the video time base
_UNKNOWN_TYPE = "application/octet-stream"
_AUDIO_PREROLL = Fraction(1, 10)  # seconds of audio before an edit list's start that decoders need as preroll


@dataclass(frozen=True, slots=True)
class MuxInputs:
    """Everything that is muxed into the output."""

    source: Source
    timing: Timing
    """Presentation times of the output's frames."""
    parts: Sequence[DoneChunk]
    """All chunks of the film, in order."""
    folder: Path
    """Folder of the chunk files."""
    selection: Selection
    """Streams of the source that go into the output."""
    sar: Fraction
    """Sample aspect ratio of the output (pixel width / pixel height)."""
    tag: str
    """Value of `TAG`."""
    metadata: FrameMetadata
    """Metadata to insert into the frames if the codec can carry it."""

    @property
    def first_part(self) -> Path:
        """The file of the first chunk, from which the stream gets its properties."""
        return self.folder / self.parts[0].chunk.name


def mux(inputs: MuxInputs, target: Path) -> list[str]:
    """Mux the output, verify it by reading it back, and fsync it.

    Args:
        inputs: What to mux.
        target: The file to write; it is removed on failure.

    Returns:
        What the output lacks because the container refused damaged packets: a phrase for each stream concerned.

    Raises:
        EncodeError: The file cannot be written or is not valid, or the chunks do not fit together.
    """
    av = require_av()
    try:
        target.unlink(missing_ok=True)
        try:
            written = _write_streams(av, inputs, target)
        except (av.error.InvalidDataError, av.error.ArgumentError):  # a damaged packet
            written = _write_streams(av, inputs, target, leave_out=True)
        if inputs.sar != 1:
            _write_aspect(inputs, target, written.covers)
        missing = _verify_output(av, inputs, target, written)
        sync_file(target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if not isinstance(error, (av.FFmpegError, OSError)):
            raise
        reason = getattr(error, "strerror", None) or error
        raise EncodeError(
            f"the chunks cannot be joined in {target.parent} ({reason}); free some space there if it is full, "
            "then run the same command again: what is done is kept"
        ) from error
    return missing


@dataclass(slots=True)
class _Written:
    """What was given to the muxer."""

    amounts: dict[int, int]
    """Amount of each output stream (`_packet_amount`), by its index."""
    names: dict[int, str]
    """Descriptions of the source's streams, by index of the output stream."""
    video: bytes
    """Digest of the video packets."""
    refused: int
    """Number of packets that the muxer refused."""
    covers: list[str]
    """MIME type of each cover, see `_add_attachments`."""


def _write_streams(av: Any, inputs: MuxInputs, target: Path, leave_out: bool = False) -> _Written:
    """Write all streams, with or without packets that the muxer refuses."""
    container = CONTAINERS[target.suffix.lower()]
    options = {} if container == "matroska" else {"movflags": "+faststart+use_metadata_tags"}
    if leave_out:
        # Microseconds. Otherwise, the muxer buffers packets, and an error at the end loses those after the refused one.
        options["max_interleave_delta"] = "1"
    counts: dict[int, int] = {}
    refused = 0
    digest = hashlib.sha256()
    with (
        open_input(inputs.source.path) as source,
        av.open(str(inputs.first_part)) as sample,
        av.open(str(target), "w", format=container, options=options) as out,
    ):
        video = out.add_stream_from_template(sample.streams.video[0], opaque=True)
        video.time_base = _video_time_base(inputs.timing)
        if inputs.timing.times is None:
            video.codec_context.framerate = inputs.timing.rate
        if container != "matroska" and video.codec_context.name == "hevc":
            video.codec_context.codec_tag = "hvc1"  # required by some players
        video.metadata.update(_valid_tags(source.streams[inputs.source.video].metadata))
        outputs, decoded = {}, {}
        for index in sorted((*inputs.selection.copied, *inputs.selection.decoded, *inputs.selection.converted)):
            stream = source.streams[index]
            if index in inputs.selection.decoded:
                decoded[index] = DecodedAudio(av, out, stream)
                outputs[index] = decoded[index].output
            elif index in inputs.selection.converted:
                outputs[index] = streams.add_converted_stream(out, stream, container)
            else:
                outputs[index] = out.add_stream_from_template(stream, opaque=True)
            outputs[index].metadata.update(_valid_tags(stream.metadata))
            outputs[index].disposition = stream.disposition
        covers = _add_attachments(av, inputs, out, source)
        out.metadata.update(_valid_tags(source.metadata) | {TAG: inputs.tag})
        out.set_chapters(_shift_chapters(source, inputs.source.origin))
        names = {output.index: streams.describe_stream(source.streams[index]) for index, output in outputs.items()}
        out.start_encoding()
        others = _other_packets(av, inputs, source, outputs, decoded)
        # Interleaved by time, so that the muxer has little to buffer.
        for packet in heapq.merge(others, _video_packets(av, inputs, video), key=_packet_time):
            counts[packet.stream.index] = counts.get(packet.stream.index, 0) + _packet_amount(packet)
            if packet.stream.index == video.index:
                digest.update(packet)
            try:
                out.mux_one(packet)
            except (av.error.InvalidDataError, av.error.ArgumentError):
                if not leave_out:
                    raise
                # Refused: this packet, or a buffered one before it; `_verify_output` finds out which.
                refused += 1
    return _Written(counts, names, digest.digest(), refused, covers)


def _write_aspect(inputs: MuxInputs, target: Path, covers: Sequence[str]) -> None:
    """Remux with ffmpeg to set the container's aspect ratio, which PyAV cannot do, and the MIME types of covers."""
    with require_av().open(str(inputs.first_part)) as sample:
        size = sample.streams.video[0]
        aspect = inputs.sar * Fraction(size.width, size.height)
    # -dn: data streams are chapters and timecodes, which the muxer writes from the metadata.
    command = [ffmpeg(), "-v", "error", "-y", "-i", str(target), "-map", "0", "-dn", "-c", "copy", "-map_metadata", "0"]
    for n, kind in enumerate(covers, len(inputs.selection.attached)):
        command += [f"-metadata:s:t:{n}", f"mimetype={kind}"]
    command += ["-aspect:v:0", f"{aspect.numerator}:{aspect.denominator}", "-movflags", "+faststart+use_metadata_tags"]
    with replace_file(target, durable=False) as with_aspect:
        run([*command, str(with_aspect)])


def _video_time_base(timing: Timing) -> Fraction:
    """Return the video time base in seconds; at a constant rate, a frame lasts an integer number of ticks."""
    if timing.times is not None:
        return Fraction(1, 90000)
    return Fraction(1, timing.rate.numerator * math.ceil(_MIN_TICKS / timing.rate.numerator))


def _valid_tags(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that are still valid for the output, without those written or computed by muxers."""
    stale = ("encoder", "duration", "handler_name", "vendor_id", "major_brand", "minor_version", "compatible_brands")
    return {
        name: value
        for name, value in metadata.items()
        if name.lower() not in stale and not name.upper().startswith(("BPS", "NUMBER_OF_", "_STATISTICS", "DURATION"))
    }


def _add_attachments(av: Any, inputs: MuxInputs, out: Any, source: Any) -> list[str]:
    """Add the source's attachments, then its cover art as attachments; return the MIME types of the covers."""
    for index in inputs.selection.attached:
        stream = source.streams[index]
        name = stream.metadata.get("filename", f"attachment{index}")
        out.add_attachment(name, stream.mimetype or _UNKNOWN_TYPE, stream.data)
    kinds = []
    for index in inputs.selection.covers:
        with av.open(source.name) as reopened:  # a second container, so that the first keeps its position
            picture = next(iter(reopened.demux(reopened.streams[index])))
            name, kind, content = streams.cover_attachment(reopened.streams[index], bytes(picture))
        # As a picture, it would become a second video in `_write_aspect`, which therefore sets the type itself.
        out.add_attachment(name, kind if inputs.sar == 1 else _UNKNOWN_TYPE, content)
        kinds.append(kind)
    return kinds


def _shift_chapters(source: Any, origin: Fraction) -> list[Any]:
    """Return the source's chapters, shifted to the output's clock, which starts at 0."""
    result = []
    for chapter in source.chapters():
        shift = round(origin / Fraction(chapter["time_base"]))
        result.append({**chapter, "start": max(0, chapter["start"] - shift), "end": max(0, chapter["end"] - shift)})
    return result


def _video_packets(av: Any, inputs: MuxInputs, output: Any) -> Iterator[Any]:
    """Yield the video packets of all chunks in decoding order, with timestamps for the output."""
    tick = _video_time_base(inputs.timing)
    reorder = max(record.reorder for record in inputs.parts)
    extradata = None
    insert = None
    for record in inputs.parts:
        path = inputs.folder / record.chunk.name
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            complete_header = bytes(stream.codec_context.extradata or b"")
            header = strip_sei(complete_header, stream.codec_context.name)
            if extradata is None:
                extradata = header
                insert = _metadata_inserter(av, inputs, stream.codec_context.codec.canonical_name, complete_header)
            elif header != extradata:
                raise EncodeError(
                    f"{path.name} was encoded with other headers than the first chunk; leave out options that make "
                    "the encoder decide by content, or delete the folder next to the output to start over"
                )
            beginning = None
            stored = record.chunk.start
            for packet in container.demux(stream):
                if not packet.size or packet.pts is None:
                    continue
                if beginning is None:
                    beginning = packet.pts
                position = record.chunk.start + round(
                    (packet.pts - beginning) * Fraction(stream.time_base) * inputs.timing.rate
                )
                if insert is not None:
                    packet = insert(position, packet)
                packet.stream = output
                packet.time_base = tick
                packet.pts = round(inputs.timing.at(position) / tick)
                packet.dts = round(inputs.timing.at(stored - reorder) / tick)
                is_last = inputs.timing.times is not None and position + 1 == len(inputs.timing.times)
                packet.duration = 0 if is_last else round(inputs.timing.at(position + 1) / tick) - packet.pts
                stored += 1
                yield packet


def _metadata_inserter(av: Any, inputs: MuxInputs, codec: str, header: bytes) -> Callable[[int, Any], Any] | None:
    """Return a function of frame number and packet that inserts the source's metadata; None if there is none."""
    metadata = inputs.metadata
    hdr = (metadata.display or metadata.light) and not has_hdr(inputs.first_part)
    if codec not in CODECS or not (hdr or metadata.captions):
        return None
    captions = metadata.per_frame(inputs.timing, inputs.parts[-1].chunk.stop)
    insert_messages = make_inserter(codec, header)

    def insert(position: int, packet: Any) -> Any:
        with_hdr = hdr and packet.is_keyframe  # repeated at every key frame, for players that seek there
        messages = FrameMessages(
            metadata.display if with_hdr else None, metadata.light if with_hdr else None, captions[position]
        )
        if not messages:
            return packet
        new = av.Packet(insert_messages(bytes(packet), messages))
        new.is_keyframe = packet.is_keyframe
        return new

    return insert


def _other_packets(
    av: Any, inputs: MuxInputs, source: Any, outputs: Mapping[int, Any], decoded: Mapping[int, DecodedAudio]
) -> Iterator[Any]:
    """Yield audio and subtitle packets, shifted to the output's clock, which starts at 0."""
    if not outputs:
        return
    last: dict[int, int] = {}
    for packet in source.demux([source.streams[index] for index in outputs]):
        index = packet.stream.index
        if index in decoded:
            yield from decoded[index].packets(packet, inputs.source.origin)
            continue
        if index in inputs.selection.converted:
            try:  # including the empty packet at the end, which flushes captions that were never erased
                new = streams.convert_packet(av, packet, outputs[index])
            except av.FFmpegError:
                continue  # damaged packet: skip it, as players do
            if new is None:
                continue
            packet = new
        if not packet.size or (packet.pts is None and packet.dts is None):
            continue
        base = Fraction(packet.time_base)
        shift = round(inputs.source.origin / base)
        pts = packet.dts if packet.pts is None else packet.pts
        if packet.is_discard and pts * base < inputs.source.origin - _AUDIO_PREROLL:
            continue  # excluded by an MP4 edit list, as in clips that were cut without encoding
        dts = pts if packet.dts is None else packet.dts
        if index in last and dts - shift < last[index] - CLOCK_RESET_SECONDS / base:
            raise clock_reset_error(streams.describe_stream(source.streams[index]), last[index] * base)
        packet.dts = last[index] = max(dts - shift, last.get(index, dts - shift))
        packet.pts = max(pts - shift, packet.dts)  # muxers refuse packets that are shown before they are decoded
        packet.stream = outputs[index]
        yield packet
    for audio in decoded.values():
        yield from audio.flush()


def _packet_time(packet: Any) -> Fraction:
    """Return a packet's decoding time in seconds."""
    return (packet.dts or 0) * Fraction(packet.time_base)


def _packet_amount(packet: Any) -> int:
    """Return the size of a packet for counting: bytes for PCM, which demuxers divide arbitrarily; otherwise 1."""
    return packet.size if packet.stream.name.startswith("pcm_") else 1


def _verify_output(av: Any, inputs: MuxInputs, target: Path, written: _Written) -> list[str]:
    """Check that the output has every packet, and that the video's data and times are unchanged.

    Returns:
        What streams other than the video lack, if the muxer refused packets.

    Raises:
        EncodeError: Something else is missing or wrong.
    """
    result: dict[int, int] = dict.fromkeys(written.amounts, 0)
    digest = hashlib.sha256()
    times: list[Fraction] = []
    with av.open(str(target)) as container:
        checked = [stream for stream in container.streams if stream.index in written.amounts]
        units = {stream.index: "bytes" if stream.name.startswith("pcm_") else "packets" for stream in checked}
        for packet in container.demux(checked):
            if not packet.size:
                continue
            index = packet.stream.index
            result[index] = result.get(index, 0) + _packet_amount(packet)
            if index == 0 and packet.pts is not None:
                digest.update(packet)
                times.append(packet.pts * Fraction(packet.time_base))
    frames = inputs.parts[-1].chunk.stop
    # More is allowed: mp4 fills gaps in subtitles.
    short = {index: count - result[index] for index, count in written.amounts.items() if result[index] < count}
    damaged = len(times) != frames or digest.digest() != written.video
    if damaged or (short and not written.refused):
        raise EncodeError(
            f"the joined file does not have the packets that were written ({result} packets of {written.amounts})"
        )
    worst = max(abs(time - inputs.timing.at(n)) for n, time in enumerate(sorted(times)))
    if worst > Fraction(1, 500):
        raise EncodeError(f"a frame of the joined file is shown {float(worst * 1000):.1f} ms from its correct time")
    return [
        f"{count} of {written.amounts[index]} {units.get(index, 'packets')} of {written.names[index]}"
        for index, count in short.items()
    ]
