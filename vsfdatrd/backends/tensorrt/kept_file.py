"""Files that save time when they are there and are made anew when they are not: caches beside an engine."""

import contextlib
import os
from pathlib import Path


def read(path: Path | None) -> bytes | None:
    """A file's content; None if there is none to read."""
    with contextlib.suppress(OSError):
        return path.read_bytes() if path else None
    return None


def keep(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; where that cannot be, nothing is kept and nothing raised."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
