"""Make text safe to print: names and metadata from files must not move the cursor or recolor the terminal."""

import re
from typing import TextIO, cast
from unicodedata import combining, east_asian_width

# C0 and C1 controls except tab and newline, separators at which some terminals break lines, and characters that
# override text direction. Joiners and direction marks stay: names in Persian, Arabic or emoji need them.
_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def escape_control(text: str) -> str:
    r"""Return text with control characters escaped (``\x1b``), except tabs and newlines."""
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def column_count(text: str) -> int:
    """Return the number of columns that a text takes on a terminal, where Chinese and Japanese characters take two."""
    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


class PrintableStream:
    """A text stream whose `write` passes everything through `escape_control`."""

    def __init__(self, stream: TextIO) -> None:
        self.raw = stream
        """The wrapped stream, for code that moves the cursor on purpose."""

    def write(self, text: str) -> int:
        """Write text with control characters escaped; return the length of `text`."""
        self.raw.write(escape_control(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each of the lines."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self.raw, name)


def printable_stream(stream: TextIO) -> TextIO:
    """Return the stream wrapped in a `PrintableStream`, unless it is one already."""
    return stream if isinstance(stream, PrintableStream) else cast(TextIO, PrintableStream(stream))


def raw_stream(stream: TextIO) -> TextIO:
    """Return the stream inside a `PrintableStream`; any other stream unchanged."""
    return stream.raw if isinstance(stream, PrintableStream) else stream
