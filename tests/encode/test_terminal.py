"""Output of `vsfdatrd encode` on a terminal."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.encode.conftest import CHUNK, command
from tests.encode.terminal import Terminal

DEVICE = "2× GeForce RTX 4090"
# A film of 34567 frames; each letter that comes through the pipe lets it go on.
SHOW = f"""
import os, sys
from vsfdatrd.encode.progress import choose_reporter
def step(): assert os.read(int(sys.argv[1]), 1)
with choose_reporter(False) as show:
    show.emit("reading", "reading film.mkv")
    step()
    show.begin(34567, 1200, "{DEVICE}")
    step()
    show.frames(1205, 0)
    show._rate._history.clear()
    show._rate._history.extend([(0.0, 1200), (1000.0, 12345)])
    show._rate.update = lambda done: setattr(show._rate, "done", done)
    show.frames(12345, 1023 << 20)
    step()
    show.emit("retry", "chunk 3 (frames 14400 to 21599) failed: ffmpeg ended with status 9: [libx265] it gave up")
    step()
print("that was all", file=sys.stderr)
"""


@pytest.fixture
def watch() -> Iterator[Any]:
    """Start a program in a terminal, which is closed at the end."""
    opened = []

    def start(words: list[str], columns: int, *fds: int) -> Terminal:
        opened.append(Terminal(words, columns, fds))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_line_fits_and_nothing_stays_of_it(watch: Any, columns: int) -> None:
    theirs, ours = os.pipe()
    terminal = watch([sys.executable, "-c", SHOW, str(theirs)], columns, theirs)
    os.close(theirs)

    def step() -> None:
        os.write(ours, b".")

    try:
        lines = terminal.until(lambda lines: len(lines) == 2 and re.search(r"0:00:0[1-9]$", lines[1]))
        assert lines[0] == "reading film.mkv"
        step()
        lines = terminal.until(lambda lines: "1200/34567" in lines[-1])
        assert len(lines) == 2  # the clock is gone
        step()
        numbers = "12345/34567  11.14 fps  33 min left  1023.0 MiB"
        lines = terminal.until(lambda lines: numbers in lines[-1])
        assert re.fullmatch(rf". +36% ━+[╸╺]━+ {re.escape(numbers)}({re.escape('  ' + DEVICE)})?", lines[-1])
        assert (DEVICE in lines[-1]) == (columns == 120)
        assert len(lines[-1]) == columns
        other = 60 if columns == 120 else 140 - columns
        terminal.resize(other)
        terminal.until(lambda lines: len(lines[-1]) == other and lines[-1].endswith(numbers))
        step()
        output = "it gave up"
        lines = terminal.until(lambda lines: output in " ".join(lines))
        assert "ffmpeg ended with status 9: [libx265]" in " ".join(lines)  # whole words, whatever the width
        assert lines[-1].endswith(numbers)
        step()
        assert terminal.end() == 0
        assert terminal.lines()[-1] == "that was all"
        assert not terminal.cursor_is_hidden
        if columns == 80:  # at widths that shrink a terminal itself folds what was there
            assert not [line for line in terminal.lines() if "36%" in line]
    finally:
        os.close(ours)


def test_ctrl_c_in_a_terminal(watch: Any, identity_2x: Path, film: Path, tmp_path: Path) -> None:
    words = command(identity_2x, film, tmp_path / "out.mkv", "--preset", "x264", *CHUNK)
    terminal = watch(words, 80)
    terminal.until(lambda lines: any(line.startswith("chunk 1 of 4: 15 frames, ") for line in lines))
    terminal.type(b"\x03")
    assert terminal.end() == 130
    assert terminal.lines()[-1] == "vsfdatrd: stopped; run the same command again to continue"
    assert not terminal.cursor_is_hidden
    again = watch(words, 80)
    assert again.end() == 0
    assert "of 4 chunks are there already" in "\n".join(again.lines())
    assert "out.mkv is done: 60 frames" in " ".join(again.lines()[-3:])
