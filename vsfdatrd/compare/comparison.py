"""Compare two files and write pictures, metrics and an HTML page.

Frame numbers refer to AFTER. BEFORE is enlarged to AFTER's size with Spline36, as a player without a network would show
it, using its own matrix and range. AFTER is resized to square pixels, as a player would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import vapoursynth as vs

from vsfdatrd.compare import metrics, page, pick, pictures
from vsfdatrd.compare.match import DIFFERENT, Pair, Thumbnails, overlap, pairs, without_borders
from vsfdatrd.compare.video import Video, frame, open_video
from vsfdatrd.encode.source import check_file
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.progress import working

LABELS = ("before", "after")


@dataclass(slots=True)
class Comparison:
    """The result of a comparison, frame by frame."""

    before: Video
    after: Video
    folder: Path
    notes: list[str] = field(default_factory=list)
    """Remarks for the reader, as sentences: processing of the files, and where they disagree."""
    shots: list[page.Shot] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def mean(self) -> metrics.Metrics:
        """The mean of the metrics over all frames."""
        return metrics.mean([shot.metrics for shot in self.shots])


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
        folder: Output folder; created if missing.
        frames: Numbers of the frames of AFTER to show; if empty, `count` frames are chosen.
        count: Number of frames to choose.
        offset: Seconds at the start of BEFORE that are missing in AFTER.
        html: Write ``compare.html`` as well.
        report: Called with a line of text for each step.

    Returns:
        The frames with their metrics, the notes and the files written.

    Raises:
        ArgumentError: A file, a frame number or the folder cannot be used.
        FrameError: A frame cannot be read.
    """
    pick.check(frames, count)
    check_file(before)
    check_file(after)
    _create_folder(folder)
    result = Comparison(open_video(before), open_video(after), folder)
    report("choosing frames")
    shared = overlap(result.before, result.after, offset)
    small = Thumbnails(result.after)
    with working("looking at frames", delay=5):  # takes minutes if a file has to be decoded from its start
        picks = pick.requested(result.after, frames) if frames else pick.choose_frames(small, count, shared)
    report("finding the same frames in the first file")
    with working("looking for frames", delay=5):
        matches = pairs(result.before, small, [p.frame for p in picks], offset)
    uncropped = result.before
    result.before, matches = without_borders(uncropped, small, matches, offset)
    result.notes += [
        *_length_notes(result.before, result.after, shared),
        *_notes(uncropped, result.before, result.after, matches),
    ]
    sizes = _Sizes(result.before, result.after)
    for number, (picked, pair) in enumerate(zip(picks, matches, strict=True), 1):
        report(f"frame {picked.frame} ({number} of {len(picks)})")
        result.shots.append(_shot(result, sizes, picked, pair, with_uris=html))
    if html:
        file = folder / "compare.html"
        text = page.render(result.before, result.after, result.shots, result.notes, result.mean)
        pictures.write(file, text.encode(errors="replace"))  # file names may not be valid UTF-8
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
    probe = folder / ".writable"
    pictures.write(probe, b"")
    probe.unlink()


def _notes(uncropped: Video, before: Video, after: Video, matches: list[Pair]) -> list[str]:
    notes = [f"{video.path.name} {video.treatment}." for video in (before, after) if video.treatment]
    if before is not uncropped:
        notes.append(
            f"{before.path.name} has black borders that {after.path.name} does not have; they were cut off: "
            f"{uncropped.clip.width}×{uncropped.clip.height} became {before.clip.width}×{before.clip.height}."
        )
    strange = [str(pair.after) for pair in matches if pair.likeness < DIFFERENT]
    if strange:
        frames = (
            "all of these frames"
            if len(strange) == len(matches)
            else f"frame{'s'[: len(strange) - 1]} " + ", ".join(strange)
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


class _Sizes:
    """Both clips at the size of AFTER, for viewing, and at the size of the smaller one, for metrics."""

    def __init__(self, before: Video, after: Video) -> None:
        width, height = round(after.clip.width * after.pixel_aspect), after.clip.height
        small = min((video.clip.width, video.clip.height) for video in (before, after))
        self.large = _sized(before.clip, width, height), _sized(after.clip, width, height)
        self.small = _sized(before.clip, *small), _sized(after.clip, *small)


def _sized(clip: vs.VideoNode, width: int, height: int) -> vs.VideoNode:
    return clip if (clip.width, clip.height) == (width, height) else clip.resize.Spline36(width, height)


def _shot(comparison: Comparison, sizes: _Sizes, picked: pick.Pick, pair: Pair, *, with_uris: bool) -> page.Shot:
    """Measure one pair of frames and write its pictures."""
    large, small = (
        (frame(comparison.before, first, pair.before), frame(comparison.after, second, pair.after))
        for first, second in (sizes.large, sizes.small)
    )
    score = metrics.ssimulacra2(sizes.small[0][pair.before], sizes.small[1][pair.after])
    numbers = metrics.measure(large, small, score)
    both = pictures.image(large[0]), pictures.image(large[1])
    stem = f"frame_{pair.after:06d}"
    seconds = float(comparison.after.times[pair.after])
    labels = (f"{LABELS[0]}, frame {pair.before}", f"{LABELS[1]}, frame {pair.after}, {page.format_time(seconds)}")
    _write_picture(comparison, f"{stem}_side_by_side.png", pictures.encode_png(pictures.side_by_side(*both, labels)))
    crops = []
    for i, box in enumerate(pictures.detail(large[1]), 1):
        first, second = (one.crop(box) for one in both)
        sheet = pictures.side_by_side(first, second, labels, pictures.MAGNIFICATION)
        _write_picture(comparison, f"{stem}_crop_{i}.png", pictures.encode_png(sheet))
        crops.append((first, second))
    return page.Shot(
        pair,
        picked.why,
        seconds,
        both[0].size,
        numbers,
        frames=tuple(pictures.frame_uri(one) for one in both) if with_uris else (),
        crops=[(pictures.png_uri(a), pictures.png_uri(b), a.size) for a, b in crops] if with_uris else [],
    )


def _write_picture(comparison: Comparison, name: str, content: bytes) -> None:
    pictures.write(comparison.folder / name, content)
    comparison.files.append(comparison.folder / name)
