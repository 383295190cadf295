"""What an encode tells while it runs: a progress line on a terminal, plain lines elsewhere, or events as JSON."""

import json
import sys
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from vsfdatrd.system.files import format_bytes
from vsfdatrd.system.terminal import printable, raw_stream

_EVERY = 30.0  # seconds between plain lines
_SPAN = 120.0  # seconds over which the rate is taken
_BAR = 40  # columns that a bar, and what stands before it, should have at least
_LONG = ("reading", "fields", "output", "engine", "joining")  # events after which nothing can be counted for a while


class Rate:
    """Frames a second of late, and how long the rest will take."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done = total, done
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), done)])

    def update(self, done: int) -> None:
        """Take down how many frames there are now; fewer than before where a chunk is tried once more."""
        now = time.monotonic()
        if done < self.done:
            self._seen.clear()
        self.done = done
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[0][0] > _SPAN:
            self._seen.popleft()

    @property
    def fps(self) -> float:
        """Frames a second; 0 as long as nobody knows."""
        (begin, first), (end, last) = self._seen[0], self._seen[-1]
        return (last - first) / (end - begin) if last > first and end > begin else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to go."""
        return (self.total - self.done) / self.fps if self.fps else None


class Reporter:
    """Plain lines on stderr; the base of the others."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rate: Rate | None = None
        self._what = ""
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rest()

    def say(self, event: str, text: str, **facts: Any) -> None:
        """Tell something as a line. event, facts: the same for programs."""
        self._line(text)

    def begin(self, total: int, done: int, device: str) -> None:
        """Frames are going to be made: `total` of them, of which some are done; device: who makes them."""
        self._rate = Rate(total, done)
        self._what = device
        self._next = time.monotonic() + _EVERY

    def frames(self, done: int, size: int) -> None:
        """So many are done, which fill so many bytes."""
        if self._rate is not None:
            self._rate.update(done)
            self._progress(self._rate, size)

    def rest(self) -> None:
        """No more progress for now."""
        self._rate = None

    def _progress(self, rate: Rate, size: int) -> None:
        if time.monotonic() >= self._next and rate.done < rate.total:
            self._next = time.monotonic() + _EVERY
            share = 100 * rate.done / rate.total
            self._line(f"{rate.done} of {rate.total} frames ({share:.1f} %), {rate.fps:.2f} fps, "
                       f"{clock(rate.left)} to go, {format_bytes(size)}, {self._what}")  # fmt: skip

    def _line(self, text: str) -> None:
        print(printable(text), file=self._stream, flush=True)


class JsonShow(Reporter):
    """One event a line, on stdout."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream or sys.stdout)

    def say(self, event: str, text: str, **facts: Any) -> None:
        """As an object: event, text and facts."""
        self._write({"event": event, "text": text, **facts})

    def begin(self, total: int, done: int, device: str) -> None:
        """See `Reporter.begin`; the first frames are told at once."""
        super().begin(total, done, device)
        self._next = 0.0

    def _progress(self, rate: Rate, size: int) -> None:
        if time.monotonic() >= self._next or rate.done == rate.total:
            self._next = time.monotonic() + 1
            left = None if rate.left is None else round(rate.left, 1)
            self._write({"event": "progress", "frames": rate.done, "total": rate.total, "fps": round(rate.fps, 3),
                         "seconds_left": left, "bytes": size, "device": self._what})  # fmt: skip

    def _write(self, what: Mapping[str, Any]) -> None:
        # In ASCII: it is JSON whatever stdout's encoding is, and for names that are not UTF-8 as well.
        print(json.dumps(what, default=str), file=self._stream, flush=True)


class TerminalShow(Reporter):
    """One line that is kept up to date, by rich; a clock while something takes long that cannot be counted."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._console = Console(file=raw_stream(sys.stderr), highlight=False)
        # Where it is narrow the bar gives way, and no number is cut off.
        numbers = TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True))
        self._bar = Progress(SpinnerColumn(), TaskProgressColumn(), BarColumn(None), numbers, console=self._console,
                             expand=True, refresh_per_second=4, redirect_stdout=False)  # fmt: skip
        self._clock = Progress(SpinnerColumn(), TimeElapsedColumn(), console=self._console, transient=True,
                               refresh_per_second=4, redirect_stdout=False)  # fmt: skip
        self._task: Any = None
        self._numbers = ""
        self._waiting: Any = None

    def say(self, event: str, text: str, **facts: Any) -> None:
        """See `Reporter.say`."""
        self._wait_no_more()
        super().say(event, text, **facts)
        if event in _LONG and self._task is None:
            self._waiting = self._clock.add_task("", total=None)
            self._clock.start()

    def begin(self, total: int, done: int, device: str) -> None:
        """See `Reporter.begin`."""
        self._wait_no_more()
        super().begin(total, done, device)
        self._numbers = f"{done}/{total}"
        self._task = self._bar.add_task("", total=total, completed=done, numbers=self)
        self._bar.start()

    def rest(self) -> None:
        """See `Reporter.rest`."""
        super().rest()
        self._wait_no_more()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
            self._bar.stop()

    def _progress(self, rate: Rate, size: int) -> None:
        numbers = f"{rate.done}/{rate.total}"
        if rate.fps:
            numbers += f"  {rate.fps:.2f} fps  {clock(rate.left)} left"
        if size:
            numbers += f"  {format_bytes(size)}"
        self._numbers = numbers
        self._bar.update(self._task, completed=rate.done)

    def __str__(self) -> str:
        """The numbers beside the bar; asked for whenever it is drawn, since the terminal may have become narrow."""
        longer = f"{self._numbers}  {printable(self._what)}"
        return longer if len(longer) + _BAR <= self._console.width else self._numbers

    def _wait_no_more(self) -> None:
        if self._waiting is not None:
            self._clock.remove_task(self._waiting)
            self._waiting = None
            self._clock.stop()

    def _line(self, text: str) -> None:
        self._console.print(printable(text), markup=False)


def choose(as_json: bool) -> Reporter:
    """JSON where it was asked for, the progress line on a terminal if rich is there, else plain lines."""
    if as_json:
        return JsonShow()
    if sys.stderr is not None and sys.stderr.isatty():
        try:
            return TerminalShow()
        except ImportError:
            pass  # plain lines say the same
    return Reporter()


def clock(seconds: float | None) -> str:
    """A duration as people write it: ``1 h 05 min``, ``3 min``, ``12 s``."""
    if seconds is None:
        return "some time"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 90 else f"{minutes} min"
