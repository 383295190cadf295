"""Write an HTML page that shows some frames of a film upscaled by each model.

The page is written when the first picture is ready, and again after each further picture.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.compare import pick, pictures, preview_page
from vsfdatrd.compare.excerpt import Excerpt, make_excerpt
from vsfdatrd.compare.match import Thumbnails
from vsfdatrd.compare.page import format_time
from vsfdatrd.compare.preview_page import FrameEntry, ModelEntry, Preview, Views
from vsfdatrd.compare.video import Video, convert_to_rgb, read_frame
from vsfdatrd.encode.crop import square_pixel_size
from vsfdatrd.encode.encode import SourceAnalysis, analyze
from vsfdatrd.encode.progress import Reporter
from vsfdatrd.encode.settings import Settings
from vsfdatrd.encode.source import check_is_file
from vsfdatrd.encode.timing import format_rate
from vsfdatrd.errors import PREFIX, ArgumentError, FdatrdError
from vsfdatrd.filter import upscale
from vsfdatrd.system.progress import report_progress
from vsfdatrd.system.signals import interrupt_on_sigterm
from vsfdatrd.video import color
from vsfdatrd.weights.catalog import CATALOG, resolve_model

MIN_SECONDS = 4.0
"""Minimum duration of a speed measurement in seconds."""
MIN_FRAMES = 3
"""Minimum number of frames in a speed measurement."""

_ENDLESS_FRAMES = 1 << 24  # length of a clip that no measurement reaches the end of

type Report = Callable[[str], None]


def shipped_models() -> list[str]:
    """Return the names of the shipped models, one per file."""
    return list({model.file: model.name for model in reversed(CATALOG.values())}.values())[::-1]


def write_preview(
    film: Path,
    out: Path,
    settings: Settings,
    models: Sequence[str],
    count: int,
    report: Report,
    on_first_picture: Callable[[], None],
) -> list[ModelEntry]:
    """Write a page that shows frames of a film upscaled by each of the models.

    Args:
        film: The video file.
        out: The page.
        settings: Settings of `encode`; its model is ignored.
        models: Names from the catalog, or weights files.
        count: Number of frames to show; fewer are shown if fewer frames of the film differ.
        report: Called with a line of text for each step.
        on_first_picture: Called once, when the page has its first picture.

    Returns:
        The models with their speeds.

    Raises:
        FdatrdError: A file, a model or an engine cannot be used. Finished pictures stay on the page.
    """
    if not 1 <= count <= pick.MAX_FRAMES:
        raise ArgumentError(f"--frames {count} is not possible; give 1 to {pick.MAX_FRAMES}")
    check_is_file(film)
    _check_output(out)
    candidates = [_model_entry(model) for model in models]
    with TemporaryDirectory() as folder:
        with report_progress(f"reading {film.name}", delay=2):
            analysis = _analyze_film(film, Path(folder), settings)
        report(analysis.about)
        report("choosing frames")
        with report_progress("looking at frames", delay=5):
            picks = pick.choose_frames(Thumbnails(analysis.video), count, range(analysis.video.clip.num_frames))
        frames = _Frames(analysis, [picked.frame for picked in picks], max(model.scale for model in candidates))
        page = Preview(film.name, analysis.about, candidates, len(picks))

        def write() -> None:
            _write_page(out, page)
            if sum(len(shot.views) for shot in page.shots) == 1:
                on_first_picture()

        try:
            with interrupt_on_sigterm():  # a page that is not finished would go on updating itself
                for number in range(len(candidates)):
                    _render_model(page, number, frames, settings, report, write)
            page.state = "done"
        except BaseException:
            page.state = "stopped"
            raise
        finally:
            if page.shots:
                _write_page(out, page)
    return candidates


def _model_entry(model: str) -> ModelEntry:
    file = resolve_model(model)
    name = model if model.lower() in CATALOG else Path(model).name
    return ModelEntry(name, file, open_checkpoint(file).descriptor.scale)


def _check_output(out: Path) -> None:
    """Raise ArgumentError unless the page can be written, before any long computation."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise ArgumentError(f"--out {str(out)!r} is not the name of a page; end it in .html")
    if out.is_file():
        with out.open("rb") as file:
            if b'content="vsfdatrd preview' not in file.read(2000):
                raise ArgumentError(f"{str(out)!r} exists and is not a preview; give another name with --out")
    elif out.exists():
        raise ArgumentError(f"--out {str(out)!r} is a folder or a device; give the name of a file")
    pictures.check_writable(out.parent)


def _write_page(out: Path, page: Preview) -> None:
    content = preview_page.render_preview(page).encode(errors="replace")  # file names may not be valid UTF-8
    pictures.write_picture(out, content)


@dataclass(frozen=True, slots=True)
class _FilmAnalysis:
    """What the preview needs to know of a film."""

    video: Video
    """The frames that `encode` would upscale, of the film or of an excerpt."""
    sar: Fraction
    """Sample aspect ratio (pixel width / pixel height)."""
    frames: int
    """Number of frames of the complete film, after inverse telecine or deinterlacing."""
    excerpt: Excerpt | None
    """None if the frames are those of the complete film."""
    about: str
    """Description of the film, one line."""

    def seconds(self, number: int) -> float:
        """Return the time of a frame in the film, in seconds."""
        at = float(self.video.times[number])
        return self.excerpt.in_film(at) if self.excerpt else at


class _QuietReporter(Reporter):
    """A reporter for `encode`'s analysis that prints only the selected events."""

    def __init__(self, remarks: Sequence[str]) -> None:
        super().__init__()
        self._remarks = remarks
        self.fields = ""

    def emit(self, event: str, text: str, **facts: Any) -> None:
        """Store what `analyze` decided about interlacing, print the events in `remarks`, drop all others."""
        if event == "fields":
            self.fields = text
        elif event in self._remarks:
            super().emit(event, text, **facts)


def _analyze_film(film: Path, folder: Path, settings: Settings) -> _FilmAnalysis:
    excerpt = make_excerpt(film, folder / "excerpt")
    reporter, analysis = _QuietReporter(["borders"]), None  # remarks about an excerpt do not apply to the film
    if excerpt is not None:
        # An error may come from the seams of the excerpt; analyzing the film itself will report real ones.
        with contextlib.suppress(FdatrdError):
            analysis = analyze(excerpt.path, folder / "index", settings, 2, reporter)
    if analysis is None:
        excerpt, reporter = None, _QuietReporter(["borders", "remark"])
        analysis = analyze(film, folder / "whole", settings, 2, reporter)
    clip = analysis.clip
    # The timestamps of an excerpt are disturbed at its seams.
    rate = analysis.fields.rate(analysis.source.rate) if excerpt else analysis.timing.rate
    start = analysis.timing.at(0)
    times = np.array([float(analysis.timing.at(n) - start) for n in range(clip.num_frames)])
    frames = round(excerpt.duration * rate) if excerpt else clip.num_frames
    about = _describe_film(analysis, frames, rate, reporter.fields)
    if excerpt:
        clip, times = _without_seams(clip, times, excerpt)
    clip, rgb = convert_to_rgb(film, clip)
    video = Video(film, rgb, clip, times, float(analysis.source.sar), "")
    return _FilmAnalysis(video, analysis.source.sar, frames, excerpt, about)


def _without_seams(
    clip: vs.VideoNode, times: NDArray[np.float64], excerpt: Excerpt
) -> tuple[vs.VideoNode, NDArray[np.float64]]:
    """Keep the frames whose fields, including neighbors used in deinterlacing, all belong to one section."""
    inside = [n for n, at in enumerate(times) if excerpt.is_inside(at)]
    starts = [i for i, n in enumerate(inside) if not i or inside[i - 1] != n - 1]
    ends = [*starts[1:], len(inside)]
    parts = [clip[inside[first] : inside[end - 1] + 1] for first, end in zip(starts, ends, strict=True)]
    return (vs.core.std.Splice(parts), times[inside]) if parts else (clip, times)


def _describe_film(analysis: SourceAnalysis, frames: int, rate: Fraction, fields: str) -> str:
    clip = analysis.clip
    length = format_time(frames / float(rate)).partition(".")[0]
    decided = fields.removeprefix("fields: ").partition(";")[0]
    speed = f"{frames:,} frames at {format_rate(rate)} a second"
    return f"{clip.width}×{clip.height} pixels; {length} long, {speed}; {decided}"


class _Frames:
    """The chosen frames, decoded once, and the resized source at the size of the largest result."""

    def __init__(self, analysis: _FilmAnalysis, numbers: list[int], scale: int) -> None:
        clip = analysis.video.stored
        self.analysis, self.numbers = analysis, numbers
        self._source_frames = [clip.get_frame(n) for n in numbers]
        # Repeats the frames under new numbers, so that VapourSynth's cache does not return earlier results.
        blank = clip.std.BlankClip(length=_ENDLESS_FRAMES, keep=True)
        self.clip = blank.std.ModifyFrame(blank, lambda n, f: self._source_frames[n % len(self._source_frames)])
        self.size = square_pixel_size(clip.width * scale, clip.height * scale, analysis.sar)
        self.source = color.to_rgb(color.inspect_clip(self.clip)).resize.Spline36(*self.size)

    def views(self, clip: vs.VideoNode, number: int, box: pictures.Box) -> Views:
        """Encode one frame of an RGB clip and its detail for the page."""
        image = pictures.to_image(read_frame(self.analysis.video, clip, number))
        return Views(pictures.frame_uri(image), pictures.png_uri(image.crop(box)))

    def shot(self, number: int) -> FrameEntry:
        """Return the page entry of one frame with the source only, and a crop where it has the most detail."""
        box = pictures.find_detail(read_frame(self.analysis.video, self.source, number), 1)[0]
        seconds = self.analysis.seconds(self.numbers[number])
        return FrameEntry(seconds, self.size, box, self.views(self.source, number, box))


def _render_model(
    page: Preview, number: int, frames: _Frames, settings: Settings, report: Report, write: Callable[[], None]
) -> None:
    """Add the pictures of model `number` to the page, and measure its speed after the first picture."""
    candidate = page.candidates[number]
    report(f"{candidate.name}: preparing the engine")
    with _as_fdatrd_error():
        upscaled = _upscale_frames(frames, candidate, settings)
        converted = color.to_rgb(color.inspect_clip(upscaled))
        if (converted.width, converted.height) != frames.size:
            converted = converted.resize.Spline36(*frames.size)
        for i in range(len(frames.numbers)):
            if i == len(page.shots):
                page.shots.append(frames.shot(i))
            page.shots[i].views[number] = frames.views(converted, i, page.shots[i].box)
            write()
            report(f"{candidate.name}: frame {i + 1} of {len(frames.numbers)}")
            if i == 0:
                candidate.fps = _measure_fps(upscaled[len(frames.numbers) :])
                candidate.hours = frames.analysis.frames / candidate.fps / 3600
                report(
                    f"{candidate.name}: {preview_page.format_fps(candidate.fps)} frames a second, "
                    f"about {preview_page.format_hours(candidate.hours)} for the film"
                )


@contextlib.contextmanager
def _as_fdatrd_error() -> Iterator[None]:
    """Convert `vapoursynth.Error` raised by `upscale` back to FdatrdError, without the prefix."""
    try:
        yield
    except vs.Error as error:
        text = str(error)
        if PREFIX not in text:
            raise
        raise FdatrdError(text.partition(PREFIX)[2]) from error


def _upscale_frames(frames: _Frames, model: ModelEntry, settings: Settings) -> vs.VideoNode:
    """Return the frames as `encode` would pass them to the video encoder."""
    clip = frames.clip
    upscaled_size = clip.width * model.scale, clip.height * model.scale
    size = square_pixel_size(*upscaled_size, frames.analysis.sar)
    output_format = vs.core.get_video_format(vs.PresetVideoFormat[settings.selected_preset.format])
    fits = size == upscaled_size
    upscaled_format = output_format if fits else output_format.replace(bits_per_sample=16)
    # reuse="off": unlike a film, the clip repeats the same frames; reusing them would falsify the measured speed.
    result = upscale(
        clip,
        model.file,
        settings.backend,
        settings.devices,
        settings.precision,
        upscaled_format.id,
        reuse="off",
        chroma_filter=settings.chroma_filter,
    )
    if fits:
        return result
    return result.resize.Spline36(*size, format=output_format.id, dither_type="error_diffusion")


def _measure_fps(clip: vs.VideoNode) -> float:
    """Measure the frames per second of an endless clip, with as many requests in flight as vspipe has."""
    ahead = vs.core.num_threads
    start, counted = 0.0, 0
    for n, _ in enumerate(clip.frames(prefetch=ahead, close=True), 1):
        if n == ahead:  # the first frames arrive together, so start the clock after them
            start = time.monotonic()
        elif n > ahead:
            counted = n - ahead
            if counted >= MIN_FRAMES and time.monotonic() - start >= MIN_SECONDS:
                break
    return counted / (time.monotonic() - start)
