"""One encode from start to finish: analyze the source, plan chunks, encode them, mux the output."""

import contextlib
import hashlib
import itertools
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd import __version__
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.encode import field_detection, frame_metadata, presets, scenes, script, streams, timing
from vsfdatrd.encode.bitstream import codec_of
from vsfdatrd.encode.chunk import EncodeParams
from vsfdatrd.encode.crop import Borders, check_crop, find_borders, square_pixel_size
from vsfdatrd.encode.field_detection import Fields
from vsfdatrd.encode.frame_metadata import FrameMetadata
from vsfdatrd.encode.input_file import require_av
from vsfdatrd.encode.journal import DoneChunk, Journal
from vsfdatrd.encode.mux import TAG, MuxInputs, mux
from vsfdatrd.encode.presets import CONTAINERS
from vsfdatrd.encode.progress import Reporter, format_duration
from vsfdatrd.encode.settings import Settings
from vsfdatrd.encode.source import Source, check_is_file, explain_damage, file_identity, open_source
from vsfdatrd.encode.timing import Timing, format_rate
from vsfdatrd.encode.workers import ChunkInputs, ChunkProgress, ChunkRetry, Workers
from vsfdatrd.encode.workspace import Workspace, open_workspace, resume_chunks
from vsfdatrd.errors import ArgumentError, EncodeError
from vsfdatrd.system.files import format_bytes, write_atomic
from vsfdatrd.system.programs import ffmpeg, ffmpeg_version
from vsfdatrd.video import frame_props
from vsfdatrd.weights.catalog import resolve_model


@dataclass(frozen=True, slots=True)
class SourceAnalysis:
    """Properties of a source, and the processing and output parameters derived from them."""

    source: Source
    fields: Fields
    clip: Any
    """The prepared frames (fields processed, cropped), ready to be upscaled."""
    timing: Timing
    prepared: str
    """VapourSynth script that produces `clip`."""
    script: str
    """The complete VapourSynth script, including upscaling."""
    size: tuple[int, int]
    """Width and height of the output in pixels."""
    sar: Fraction
    """Sample aspect ratio of the output."""


def encode(path: Path, target: Path, settings: Settings, workers: Workers, reporter: Reporter) -> None:
    """Encode the video file `path` into `target`, resuming where an earlier call was interrupted.

    Args:
        path: The source video file.
        target: The output file.
        settings: What to encode and how.
        workers: What encodes the chunks: local devices or a Ray cluster.
        reporter: Receives messages and progress.

    Raises:
        FdatrdError: The encode failed. Finished chunks are kept, and the next call resumes with them.
    """
    start = time.monotonic()
    weights = open_checkpoint(resolve_model(settings.model)).descriptor
    with open_workspace(target) as workspace:
        fingerprint = _settings_fingerprint(path, settings, weights.sha256)
        if _is_done(target, fingerprint, settings):
            reporter.emit("finished", f"{target} is finished already, with these settings", output=target)
            return
        analysis = analyze(path, workspace.index, settings, weights.scale, reporter)
        journal = workspace.journal(lambda text: reporter.emit("anew", text))
        _prepare_workspace(workspace, journal, analysis, fingerprint, settings, reporter)
        inputs = ChunkInputs(
            path.resolve(),
            _model_argument(settings),
            weights.sha256,
            settings.encoder,
            workspace.script,
            workspace.index.resolve(),
        )
        if journal.get("first frame") is None:
            workers.try_encoder(
                _encoder_options(settings, {}, analysis.sar), settings.selected_preset.pixel_format, analysis.size
            )
        colors = _first_frame(inputs, journal, workers, reporter)
        params = EncodeParams(
            workspace.script, _encoder_options(settings, colors, analysis.sar), analysis.timing.rate, workspace.chunks
        )
        with explain_damage(path):
            selection = streams.choose_streams(path, analysis.source.video, CONTAINERS[target.suffix.lower()])
            metadata = frame_metadata.find_metadata(analysis.source)
        _report_streams(selection, metadata, settings.encoder, reporter)
        parts = _encode_chunks(workspace, journal, inputs, params, workers, reporter)
        reporter.emit("joining", f"joining {len(parts)} {'chunk' if len(parts) == 1 else 'chunks'}")
        tag = _output_tag(fingerprint)
        missing = mux(
            MuxInputs(
                analysis.source, analysis.timing, parts, workspace.chunks, selection, analysis.sar, tag, metadata
            ),
            workspace.joined,
        )
        if missing:
            text = f"NOT kept: {'; '.join(missing)} (damaged in the source, and not allowed in a {target.suffix} file)"
            reporter.emit("left", text, streams=missing)
        _finish_output(workspace, target, settings)
    frames, size = parts[-1].chunk.stop, target.stat().st_size
    seconds = time.monotonic() - start
    reporter.emit(
        "finished",
        f"{target} is done: {frames} frames, {format_bytes(size)}, in {format_duration(seconds)}",
        output=target,
        frames=frames,
        bytes=size,
        seconds=round(seconds, 1),
    )


def analyze(path: Path, index: Path | None, settings: Settings, scale: int, reporter: Reporter) -> SourceAnalysis:
    """Inspect the source, choose field processing, crop and output size, and report the choices.

    Args:
        path: The source video file.
        index: Where BestSource's index is stored, as in `open_source`.
        settings: What to encode and how.
        scale: Upscaling factor of the model.
        reporter: Receives the messages.

    Raises:
        FdatrdError: The source cannot be encoded with these settings.
    """
    reporter.emit("reading", f"reading {path}")
    source = open_source(path, index)
    clip = source.clip
    steps = [b - a for a, b in itertools.pairwise(source.timestamps)]
    median = statistics.median_high(steps) if steps else 0
    measured_rate = 1 / (median * source.time_base) if median > 0 else source.rate
    rate = measured_rate if abs(measured_rate / source.rate - 1) > 0.1 else source.rate
    with explain_damage(path):
        fields = field_detection.choose_fields(clip, rate, settings.field, source.survey)
    reporter.emit(
        "source",
        f"source: {clip.width}×{clip.height}, {clip.format.name}, {_describe_pixel_shape(source.sar)}, "
        f"{clip.num_frames} frames, {format_rate(source.rate)} a second",
        width=clip.width,
        height=clip.height,
        frames=clip.num_frames,
        rate=source.rate,
        sar=source.sar,
    )
    for remark in source.remarks:
        reporter.emit("remark", remark)
    if assumed := _describe_colors(clip):
        reporter.emit("colors", assumed)
    reporter.emit(
        "fields", f"fields: {_FIELD_DESCRIPTIONS[fields.kind]}; {fields.why}", kind=fields.kind, why=fields.why
    )
    device = ",".join(map(str, settings.devices))
    absolute = path.resolve()
    index = index and index.resolve()

    def prepared(crop: Borders) -> str:
        return script.preparation_script(absolute, source.video, index, fields, crop, device, source.threads)

    uncropped = script.run_script(prepared(Borders()))
    crop = settings.borders
    with explain_damage(path):
        black = find_borders(uncropped)
    if crop is None:
        crop = black
    elif black and not crop:
        reporter.emit(
            "borders", f"black borders of {black} pixels (left,top,right,bottom) are kept; --crop auto removes them"
        )
    check_crop(crop, uncropped)
    text = prepared(crop)
    clip = script.run_script(text)
    times = timing.compute_timing(source, fields, clip.num_frames)
    width, height = clip.width * scale, clip.height * scale
    size = (width, height) if settings.keep_sar else square_pixel_size(width, height, source.sar)
    sar = source.sar if size == (width, height) else Fraction(1)
    reporter.emit(
        "output",
        f"output: {size[0]}×{size[1]}{f', {crop} cropped' if crop else ''}, {_describe_pixel_shape(sar)}, "
        f"{clip.num_frames} frames, {times}",
        width=size[0],
        height=size[1],
        frames=clip.num_frames,
        rate=times.rate,
        crop=str(crop),
    )
    resized = None if size == (width, height) else size
    complete_script = text + script.upscaling_script(settings, _model_argument(settings), resized, sar, times.rate)
    return SourceAnalysis(source, fields, clip, times, text, complete_script, size, sar)


def _model_argument(settings: Settings) -> str:
    """Return the model as it appears in scripts: a catalog name, or an absolute path."""
    return str(resolve_model(settings.model).resolve()) if Path(settings.model).suffix else settings.model


def _describe_colors(clip: Any) -> str | None:
    """Return which matrix and range are assumed for the film; None if its first frame states both."""
    with clip.get_frame(0) as frame:
        repairs = frame_props.missing_props(frame.props, frame.format, frame.width, frame.height)
        form, width, height = frame.format, frame.width, frame.height
    assumed = frame_props.describe_assumptions("the film", repairs, form, width, height)
    return assumed and f"{assumed}; --script prints the script in which to do so"


def _describe_pixel_shape(sar: Fraction) -> str:
    return "square pixels" if sar == 1 else f"pixels {sar.numerator}:{sar.denominator} (width to height)"


_FIELD_DESCRIPTIONS = {
    "progressive": "progressive, left alone",
    "ivtc": "telecined film, the film's own frames are restored",
    "match": "film with shifted fields, which are matched again",
    "deint": "interlaced, deinterlaced",
}


_SETTING_DESCRIPTIONS = {
    "chroma_filter": "--chroma-filter",
    "ffmpeg": "the version of ffmpeg",
    "further": "the options after --",
    "keep_sar": "--keep-sar",
    "minutes": "--chunk",
    "vsfdatrd": "the version of vsfdatrd",
}


def _settings_fingerprint(path: Path, settings: Settings, weights: str) -> dict[str, Any]:
    """Return all settings, files and versions on which the output depends."""
    check_is_file(path)
    fields = asdict(settings)
    for name in ("overwrite", "devices"):
        del fields[name]
    fields["further"] = list(settings.further)
    fields["ffmpeg options of the preset"] = settings.selected_preset.arguments
    version = ffmpeg_version(ffmpeg(settings.encoder))
    return fields | {"weights": weights, "vsfdatrd": __version__, "ffmpeg": version, "source": file_identity(path)}


def _output_tag(fingerprint: dict[str, Any]) -> str:
    """Return the value of the container tag `TAG`: version, model, and a digest of all settings."""
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
    return f"{__version__} {fingerprint['model']} {digest[:32]}"


def _is_done(target: Path, fingerprint: dict[str, Any], settings: Settings) -> bool:
    """Return True if the output exists and was made with these settings.

    Raises:
        ArgumentError: The output exists, was made differently, and may not be overwritten.
    """
    if not target.exists():
        return False
    av = require_av()
    with contextlib.suppress(av.FFmpegError), av.open(str(target)) as container:
        tag = _output_tag(fingerprint)
        if any(name.upper() == TAG and value == tag for name, value in container.metadata.items()):
            return True
    if settings.overwrite:
        return False
    raise ArgumentError(
        f"the output {str(target)!r} exists, and was made from another source or with other settings; "
        "give another name, or --overwrite"
    )


def _prepare_workspace(
    workspace: Workspace,
    journal: Journal,
    analysis: SourceAnalysis,
    fingerprint: dict[str, Any],
    settings: Settings,
    reporter: Reporter,
) -> None:
    """Write the script, and keep the journal of an earlier run; start a new one if any setting has changed."""
    now = fingerprint | {"script": script.without_devices(analysis.script)}
    before = journal.get("settings")
    if before is not None and before != now and journal.done_chunks():
        names = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        changed = ", ".join(_SETTING_DESCRIPTIONS.get(name, name) for name in names)
        reporter.emit("anew", f"starting over, because these differ from the interrupted run: {changed}", changed=names)
    if before != now:
        workspace.forget()
        with explain_damage(analysis.source.path):
            chunks = scenes.plan_chunks(analysis.clip, analysis.timing.rate, settings.minutes)
        journal.begin(now, chunks)
    try:
        write_atomic(workspace.script, analysis.script)
    except OSError as error:
        raise EncodeError(
            f"{workspace.script} cannot be written ({error.strerror}); free some space there, "
            "then run the same command again: what is done is kept"
        ) from error


def _first_frame(inputs: ChunkInputs, journal: Journal, workers: Workers, reporter: Reporter) -> dict[str, int]:
    """Return the color properties of the first output frame.

    Rendering it also builds the engine once, before any chunk is started.
    """
    if (stored := journal.get("first frame")) is not None:
        return dict(stored)
    reporter.emit("engine", "rendering one frame, which builds the engine if there is none yet")
    colors = workers.first_frame(inputs)
    journal.set("first frame", colors)
    return colors


def _encoder_options(settings: Settings, colors: dict[str, int], sar: Fraction) -> tuple[str, ...]:
    """Return all ffmpeg output options: encoder, color tags, the preset's and the user's options."""
    preset = settings.selected_preset
    options = ("-c:v", preset.encoder, *presets.color_options(colors, sar), *preset.arguments, *settings.further)
    return presets.merge_filters(options)


def _report_streams(selection: streams.Selection, metadata: FrameMetadata, encoder: str, reporter: Reporter) -> None:
    """Report which streams and metadata of the source are kept, and which are not."""
    codec = codec_of(encoder)
    kept = [*selection.kept, *metadata.describe_kept(codec)]
    lost = [*selection.dropped, *metadata.describe_lost(codec, encoder)]
    if kept:
        reporter.emit("kept", f"kept: {'; '.join(kept)}", streams=kept)
    if lost:
        reporter.emit("left", f"NOT kept: {'; '.join(lost)}", streams=lost)


def _encode_chunks(
    workspace: Workspace,
    journal: Journal,
    inputs: ChunkInputs,
    params: EncodeParams,
    workers: Workers,
    reporter: Reporter,
) -> list[DoneChunk]:
    """Encode the missing chunks and return all chunks in order, including those of earlier runs."""
    done = resume_chunks(workspace, journal, params)
    chunks = journal.chunks()
    total = chunks[-1].stop
    records = {record.chunk.number: record for record in done}
    ready, size = sum(record.chunk.frames for record in done), sum(record.bytes for record in done)
    if done:
        reporter.emit(
            "resuming",
            f"{len(done)} of {len(chunks)} chunks are there already ({ready} of {total} frames)",
            parts=len(done),
            frames=ready,
        )
    waiting = [chunk for chunk in chunks if chunk.number not in records]
    running: dict[int, int] = {}
    reporter.begin(total, ready, workers.name)
    with contextlib.closing(workers.make(inputs, waiting, params)) as events:
        for event in events:
            match event:
                case ChunkProgress(chunk, frames):
                    running[chunk.number] = frames
                case ChunkRetry(chunk, error):
                    running[chunk.number] = 0
                    reporter.emit("retry", f"{error}; trying it once more", part=chunk.number + 1)
                case DoneChunk(chunk):
                    journal.add(event)
                    records[chunk.number] = event
                    running.pop(chunk.number, None)
                    ready, size = ready + chunk.frames, size + event.bytes
                    reporter.emit(
                        "part",
                        f"chunk {chunk.number + 1} of {len(chunks)}: {chunk.frames} frames, "
                        f"{format_bytes(event.bytes)}, {format_duration(event.seconds)}",
                        part=chunk.number + 1,
                    )
            reporter.frames(ready + sum(running.values()), size)
    reporter.stop()
    return [records[chunk.number] for chunk in chunks]


def _finish_output(workspace: Workspace, target: Path, settings: Settings) -> None:
    """Rename the muxed file to the output's name and remove the workspace."""
    try:
        if not settings.overwrite and target.exists():
            raise EncodeError(f"{target} has appeared in the meantime; {workspace.joined} is the finished film")
        os.replace(workspace.joined, target)
    except OSError as error:
        raise EncodeError(
            f"{target} cannot be written ({error.strerror}); {workspace.joined} is the finished film"
        ) from error
    workspace.clear()
