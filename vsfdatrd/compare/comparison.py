"""Compare two files and write pictures, metrics and an HTML page.

BEFORE is the original, AFTER the upscaled file; frame numbers refer to AFTER. BEFORE is enlarged to AFTER's size with
Spline36, as a player without a network would show it, using its own matrix and range. AFTER is resized to square
pixels, as a player would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vapoursynth as vs

from vsfdatrd.compare import metrics, page, pick, pictures
from vsfdatrd.compare.match import MAX_DIFFERENT, MatchedPair, Thumbnails, crop_borders, match_frames, overlap
from vsfdatrd.compare.video import Video, open_video, read_frame
from vsfdatrd.encode.source import check_is_file
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.progress import report_progress

LABELS = ("before", "after")


@dataclass(slots=True)
class Comparison:
    """The result of a comparison, frame by frame."""

    before: Video
    after: Video
    folder: Path
    notes: list[str] = field(default_factory=list)
    """Remarks for the reader, as sentences: processing of the files, and where they disagree."""
    shots: list[page.FramePair] = field(default_factory=list)
    """The pairs of frames that are shown."""
    files: list[Path] = field(default_factory=list)
    """The files that were written."""

    @property
    def mean(self) -> metrics.Metrics:
        """The mean of the metrics over all frames."""
        return metrics.mean_metrics([shot.metrics for shot in self.shots])


def compare(
    before: Path,
    after: Path,
    folder: Path,
    *,
    frames: Sequence[int] = (),
    count: int = 6,
    offset: float = 0.0,
    html: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Compare two video files; write about three PNG files per frame, and ``compare.html``, into `folder`.

    Files with different content are compared as well, with a note.

    Args:
        before: The original file.
        after: The upscaled file.
        folder: Created if missing.
        frames: Numbers of the frames of AFTER to show; if empty, `count` frames are chosen.
        count: Number of frames to choose.
        offset: Seconds at the start of BEFORE that are missing in AFTER.
        html: Write ``compare.html`` as well.
        report: Called with a line of text for each step.

    Raises:
        ArgumentError: A file, a frame number or the folder cannot be used.
        FrameError: A frame cannot be read.
    """
    pick.check_frames(frames, count)
    check_is_file(before)
    check_is_file(after)
    _create_folder(folder)
    result = Comparison(open_video(before), open_video(after), folder)
    report("choosing frames")
    shared = overlap(result.before, result.after, offset)
    thumbnails = Thumbnails(result.after)
    with report_progress("looking at frames", delay=5):  # takes minutes if a file has to be decoded from its start
        picks = pick.requested_frames(result.after, frames) if frames else pick.choose_frames(thumbnails, count, shared)
    report("finding the same frames in the first file")
    with report_progress("looking for frames", delay=5):
        matches = match_frames(result.before, thumbnails, [p.frame for p in picks], offset)
    uncropped = result.before
    result.before, matches = crop_borders(uncropped, thumbnails, matches, offset)
    result.notes += [
        *_length_notes(result.before, result.after, shared),
        *_matching_notes(uncropped, result.before, result.after, matches),
    ]
    clips = _ScaledClips(result.before, result.after)
    for number, (picked, pair) in enumerate(zip(picks, matches, strict=True), 1):
        report(f"frame {picked.frame} ({number} of {len(picks)})")
        result.shots.append(_make_shot(result, clips, picked, pair, with_uris=html))
    if html:
        file = folder / "compare.html"
        text = page.render_comparison(result.before, result.after, result.shots, result.notes, result.mean)
        pictures.write_picture(file, text.encode(errors="replace"))  # file names may not be valid UTF-8
        result.files.append(file)
    return result


def _create_folder(folder: Path) -> None:
    """Create the folder and check that it is writable, before any long computation."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"the folder {folder} cannot be made ({error.strerror or error}); give another with --out"
        ) from error
    pictures.check_writable(folder)


def _matching_notes(uncropped: Video, before: Video, after: Video, matches: list[MatchedPair]) -> list[str]:
    notes = [f"{video.path.name} {video.treatment}." for video in (before, after) if video.treatment]
    if before is not uncropped:
        notes.append(
            f"{before.path.name} has black borders that {after.path.name} does not have; they were cut off: "
            f"{uncropped.clip.width}×{uncropped.clip.height} became {before.clip.width}×{before.clip.height}."
        )
    unmatched = [str(pair.after) for pair in matches if pair.likeness < MAX_DIFFERENT]
    if unmatched:
        frames = (
            "all of these frames"
            if len(unmatched) == len(matches)
            else f"frame{'s'[: len(unmatched) - 1]} " + ", ".join(unmatched)
        )
        notes.append(
            f"The two files do not seem to show the same: {before.path.name} has another picture at {frames} of "
            f"{after.path.name}. If the second leaves out a beginning, give its length in seconds with --offset; "
            "otherwise the metrics mean little."
        )
    return notes


def _length_notes(before: Video, after: Video, shared: range) -> list[str]:
    """Return a note if AFTER extends beyond BEFORE by more than a second at either end."""
    start, end = float(after.times[shared[0]]), float(after.times[shared[-1]])
    lacks = [f"before {page.format_time(start)}"] if start > 1 else []
    lacks += [f"after {page.format_time(end)}"] if after.times[-1] - end > 1 else []
    return [f"{before.path.name} has nothing {' and '.join(lacks)} of {after.path.name}."] if lacks else []


class _ScaledClips:
    """Both clips at the size of AFTER with square pixels, for viewing, and at the size of the smaller, for metrics."""

    def __init__(self, before: Video, after: Video) -> None:
        width, height = round(after.clip.width * after.pixel_aspect), after.clip.height
        small = min((video.clip.width, video.clip.height) for video in (before, after))
        self.large = _resize(before.clip, width, height), _resize(after.clip, width, height)
        self.small = _resize(before.clip, *small), _resize(after.clip, *small)


def _resize(clip: vs.VideoNode, width: int, height: int) -> vs.VideoNode:
    return clip if (clip.width, clip.height) == (width, height) else clip.resize.Spline36(width, height)


def _make_shot(
    result: Comparison, clips: _ScaledClips, picked: pick.ChosenFrame, pair: MatchedPair, *, with_uris: bool
) -> page.FramePair:
    """Measure one pair of frames and write its pictures."""
    large, small = (
        (read_frame(result.before, first, pair.before), read_frame(result.after, second, pair.after))
        for first, second in (clips.large, clips.small)
    )
    score = metrics.ssimulacra2(clips.small[0][pair.before], clips.small[1][pair.after])
    numbers = metrics.measure_pair(large, small, score)
    images = pictures.to_image(large[0]), pictures.to_image(large[1])
    stem = f"frame_{pair.after:06d}"
    seconds = float(result.after.times[pair.after])
    labels = (f"{LABELS[0]}, frame {pair.before}", f"{LABELS[1]}, frame {pair.after}, {page.format_time(seconds)}")
    _write_picture(result, f"{stem}_side_by_side.png", pictures.encode_png(pictures.side_by_side(*images, labels)))
    crops = []
    for i, box in enumerate(pictures.find_detail(large[1]), 1):
        first, second = (picture.crop(box) for picture in images)
        sheet = pictures.side_by_side(first, second, labels, pictures.MAGNIFICATION)
        _write_picture(result, f"{stem}_crop_{i}.png", pictures.encode_png(sheet))
        crops.append((first, second))
    return page.FramePair(
        pair,
        picked.why,
        seconds,
        images[0].size,
        numbers,
        frames=tuple(pictures.frame_uri(picture) for picture in images) if with_uris else (),
        crops=[(pictures.png_uri(a), pictures.png_uri(b), a.size) for a, b in crops] if with_uris else [],
    )


def _write_picture(result: Comparison, name: str, content: bytes) -> None:
    pictures.write_picture(result.folder / name, content)
    result.files.append(result.folder / name)
