"""Report messages and progress: a progress bar on a terminal, plain lines elsewhere, or JSON events."""

import json
import sys
import time
from collections import deque
from typing import Any, Self, TextIO

from vsfdatrd.system.files import format_bytes
from vsfdatrd.system.terminal import escape_control, raw_stream

_LINE_INTERVAL = 30.0  # seconds between plain lines
_RATE_WINDOW = 120.0  # seconds over which the frame rate is averaged
_MIN_BAR_COLUMNS = 40  # minimum columns for the bar and what precedes it
_LONG_STEPS = ("reading", "fields", "output", "engine", "joining")  # events that announce a long step without progress


class Rate:
    """Recent frame rate and estimated time remaining, given the frames of the film and those of an earlier run."""

    def __init__(self, total: int, done: int) -> None:
        """Start counting.

        Args:
            total: Number of frames of the film.
            done: Frames finished by an earlier run.
        """
        self.total, self.done = total, done
        self._history: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def update(self, done: int) -> None:
        """Record the number of finished frames.

        Args:
            done: Number of frames; it decreases when a chunk is retried.
        """
        now = time.monotonic()
        if done < self.done:
            self._history.clear()
        self.done = done
        self._history.append((now, done))
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_WINDOW:
            self._history.popleft()

    @property
    def fps(self) -> float:
        """Frames per second; 0 if not known yet."""
        (begin, first), (end, last) = self._history[0], self._history[-1]
        return (last - first) / (end - begin) if last > first and end > begin else 0.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds remaining; None if not known yet."""
        return (self.total - self.done) / self.fps if self.fps else None


class Reporter:
    """Reports as plain lines on a text stream, stderr by default; base class of the other reporters."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Report to a stream.

        Args:
            stream: A text stream; None for stderr.
        """
        self._stream = stream or sys.stderr
        self._rate: Rate | None = None
        self._device = ""
        self._next = 0.0
        """When the next progress is due, on the clock `time.monotonic`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def emit(self, event: str, text: str, **facts: Any) -> None:
        """Report a message.

        Args:
            event: Kind of message, for programs.
            text: The message, for people.
            facts: Further values for programs; they are part of JSON events only.
        """
        self._line(text)

    def begin(self, total: int, done: int, device: str) -> None:
        """Start reporting progress.

        Args:
            total: Number of frames of the film.
            done: Frames finished by an earlier run.
            device: Name of the workers.
        """
        self._rate = Rate(total, done)
        self._device = device
        self._next = time.monotonic() + _LINE_INTERVAL

    def frames(self, done: int, size: int) -> None:
        """Report the number of finished frames, and the bytes of the finished chunks.

        Args:
            done: Number of finished frames.
            size: Bytes of the finished chunks.
        """
        if self._rate is not None:
            self._rate.update(done)
            self._progress(self._rate, size)

    def stop(self) -> None:
        """Stop reporting progress."""
        self._rate = None

    def _progress(self, rate: Rate, size: int) -> None:
        if time.monotonic() >= self._next and rate.done < rate.total:
            self._next = time.monotonic() + _LINE_INTERVAL
            share = 100 * rate.done / rate.total
            self._line(
                f"{rate.done} of {rate.total} frames ({share:.1f} %), {rate.fps:.2f} fps, "
                f"{format_duration(rate.remaining)} to go, {format_bytes(size)}, {self._device}"
            )

    def _line(self, text: str) -> None:
        print(escape_control(text), file=self._stream, flush=True)


class JsonReporter(Reporter):
    """Reports as JSON on a text stream, stdout by default, one event per line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Report to a stream.

        Args:
            stream: A text stream; None for stdout.
        """
        super().__init__(stream or sys.stdout)

    def emit(self, event: str, text: str, **facts: Any) -> None:
        """Write an object with the event, the text and the facts. See `Reporter.emit`."""
        self._write(event=event, text=text, **facts)

    def begin(self, total: int, done: int, device: str) -> None:
        """See `Reporter.begin`; the first progress is reported immediately."""
        super().begin(total, done, device)
        self._next = 0.0

    def _progress(self, rate: Rate, size: int) -> None:
        if time.monotonic() >= self._next or rate.done == rate.total:
            self._next = time.monotonic() + 1
            self._write(
                event="progress",
                frames=rate.done,
                total=rate.total,
                fps=round(rate.fps, 3),
                seconds_left=None if rate.remaining is None else round(rate.remaining, 1),
                bytes=size,
                device=self._device,
            )

    def _write(self, **event: Any) -> None:
        # ASCII only, so that it is valid JSON with any encoding of stdout, and with file names that are not UTF-8.
        print(json.dumps(event, default=str), file=self._stream, flush=True)


class TerminalReporter(Reporter):
    """Shows a progress bar with rich, and a clock during long steps without progress counts."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._console = Console(file=raw_stream(sys.stderr), highlight=False)
        common: dict[str, Any] = {"console": self._console, "refresh_per_second": 4, "redirect_stdout": False}
        # On a narrow terminal the bar shrinks, so that the numbers are never cut off.
        numbers = TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True))
        self._bar = Progress(SpinnerColumn(), TaskProgressColumn(), BarColumn(None), numbers, expand=True, **common)
        self._clock = Progress(SpinnerColumn(), TimeElapsedColumn(), transient=True, **common)
        self._task: Any = None
        self._numbers = ""
        self._clock_task: Any = None

    def emit(self, event: str, text: str, **facts: Any) -> None:
        """See `Reporter.emit`."""
        self._stop_clock()
        super().emit(event, text, **facts)
        if event in _LONG_STEPS and self._task is None:
            self._clock_task = self._clock.add_task("", total=None)
            self._clock.start()

    def begin(self, total: int, done: int, device: str) -> None:
        """See `Reporter.begin`."""
        self._stop_clock()
        super().begin(total, done, device)
        self._numbers = f"{done}/{total}"
        self._task = self._bar.add_task("", total=total, completed=done, numbers=self)
        self._bar.start()

    def stop(self) -> None:
        """See `Reporter.stop`."""
        super().stop()
        self._stop_clock()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._bar.stop()

    def _progress(self, rate: Rate, size: int) -> None:
        numbers = f"{rate.done}/{rate.total}"
        if rate.fps:
            numbers += f"  {rate.fps:.2f} fps  {format_duration(rate.remaining)} left"
        if size:
            numbers += f"  {format_bytes(size)}"
        self._numbers = numbers
        self._bar.update(self._task, completed=rate.done)

    def __str__(self) -> str:
        """Return the numbers next to the bar, with the name of the device if the terminal is wide enough.

        The bar's field `numbers` is this object itself: rich formats it at every redraw, when the width of the terminal
        may have changed.
        """
        longer = f"{self._numbers}  {escape_control(self._device)}"
        return longer if len(longer) + _MIN_BAR_COLUMNS <= self._console.width else self._numbers

    def _stop_clock(self) -> None:
        """Stop the clock, if a long step is running."""
        if self._clock_task is not None:
            self._clock.remove_task(self._clock_task)
            self._clock_task = None
            self._clock.stop()

    def _line(self, text: str) -> None:
        self._console.print(escape_control(text), markup=False)


def choose_reporter(as_json: bool) -> Reporter:
    """Return a reporter: JSON if requested, a progress bar on a terminal with rich, otherwise plain lines.

    Args:
        as_json: Whether ``--json`` was given.
    """
    if as_json:
        return JsonReporter()
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            return TerminalReporter()
        except ImportError:
            pass  # without rich: plain lines have the same information
    return Reporter()


def format_duration(seconds: float | None) -> str:
    """Format a duration, such as ``1 h 05 min``, ``3 min`` or ``12 s``; ``some time`` if it is unknown.

    Args:
        seconds: The duration; None if unknown.
    """
    if seconds is None:
        return "some time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 90 else f"{minutes} min"
