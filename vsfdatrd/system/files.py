"""Write files whole or not at all, make them durable, hash them, and give their sizes as text."""

import contextlib
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(
    path: Path, durable: bool = True, folder: Path | None = None, suffix: str | None = None
) -> Iterator[Path]:
    """Yield a new, empty file beside `path` to be filled; it takes that name at the end, or is removed after an error.

    A link at `path` is replaced, not followed. Whoever reads `path` sees the old content or the new one, never a part.

    Args:
        path: The file to replace or create, in a folder that exists.
        durable: Whether the content and the new name survive a power cut once this returns.
        folder: Where the new file is made, on the same file system; beside `path` if None.
        suffix: The new file's suffix, for libraries that choose a format by it; that of `path` if None.

    Raises:
        OSError: The file cannot be written; what was there is unchanged.
    """
    if suffix is None:
        suffix = path.suffix if len(path.suffix) < 16 else ""
    # Not derived from the file's name, which may already be as long as a name can be.
    temporary = (folder or path.parent) / f".{secrets.token_hex(8)}.tmp{suffix}"
    temporary.open("xb").close()  # exclusive: no link that somebody made is followed
    try:
        yield temporary
        if durable:
            commit(temporary, path)
        else:
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, durable: bool = True, folder: Path | None = None) -> None:
    """Replace or create a file, as `replacing` does. Text is written as UTF-8.

    Raises:
        OSError: The file cannot be written; what was there is unchanged.
    """
    with replacing(path, durable, folder) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def keep_if_possible(path: Path, content: bytes) -> None:
    """Write a file that only saves time, and its folder, whole or not at all; where that fails nothing is raised."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, durable=False)


def read_or_none(path: Path | None) -> bytes | None:
    """Return a file's content, or None if there is no such file or it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes() if path else None
    return None


def commit(path: Path, final: Path) -> None:
    """Rename a file once all of its content is on the disk, and make the new name durable too.

    Raises:
        OSError: The file cannot be flushed or renamed.
    """
    sync_file(path)
    os.replace(path, final)
    sync_folder(final.parent)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("r+b" if os.name == "nt" else "rb") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with contextlib.suppress(OSError):  # not every system and file system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_plain(path: Path) -> bool:
    """Return whether a path is a regular file or a folder itself: no link, device or pipe. True if nothing is there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and not path.is_junction()


def is_private(path: Path) -> bool:
    """Return whether a path is a folder of this user's own that nobody else can write.

    On Windows, whose temporary folders belong to one user, whether it is a folder.
    """
    status = path.lstat()
    private = stat.S_ISDIR(status.st_mode)
    if sys.platform != "win32":
        private = private and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return private


def longest_name(folder: Path) -> int:
    """Return how many bytes a file's name may have in a folder; 255 where the system does not tell."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    except (OSError, ValueError):
        return 255


def shortened(name: str, suffix: str, most: int) -> str:
    """Return a name with a suffix, cut to `most` bytes; a digest of the name then tells it from others cut alike."""
    if len(os.fsencode(name + suffix)) <= most:
        return name + suffix
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    room = max(0, most - len(os.fsencode(f"~{digest}{suffix}")))
    begin = os.fsencode(name)[:room].decode(errors="ignore")  # no half of a character
    return f"{begin}~{digest}{suffix}"


def format_bytes(count: float) -> str:
    """Return a number of bytes as people write it: ``512 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
