"""Atomic and durable file writes, SHA-256 of files, and sizes as text."""

import contextlib
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replace_file(
    path: Path, durable: bool = True, folder: Path | None = None, suffix: str | None = None
) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when the block ends, or is deleted after an error.

    A link at `path` is replaced, not followed. Readers of `path` see the old content or the complete new content, never
    a partial file.

    Args:
        path: The file to replace or create, in an existing folder.
        durable: Whether the content and the new name survive a power failure once this returns.
        folder: Folder of the temporary file, on the same file system; that of `path` if None.
        suffix: Suffix of the temporary file, for libraries that choose a format by it; that of `path` if None.

    Raises:
        OSError: The file cannot be written; the old file is unchanged.
    """
    if suffix is None:
        suffix = path.suffix if len(path.suffix) < 16 else ""
    # Not derived from the file's name, which may already have the maximum length.
    temporary = (folder or path.parent) / f".{secrets.token_hex(8)}.tmp{suffix}"
    temporary.open("xb").close()  # exclusive: does not follow a link planted by another user
    try:
        yield temporary
        if durable:
            commit_file(temporary, path)
        else:
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str, durable: bool = True) -> None:
    """Replace or create a file atomically, as `replace_file` does.

    Args:
        path: The file to replace or create, in an existing folder.
        content: The new content; text is written as UTF-8.
        durable: Whether the content and the new name survive a power failure once this returns.

    Raises:
        OSError: The file cannot be written; the old file is unchanged.
    """
    with replace_file(path, durable) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def keep_if_possible(path: Path, content: bytes) -> None:
    """Write a cache file atomically and create its folder. Best effort; errors are ignored."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, content, durable=False)


def read_or_none(path: Path | None) -> bytes | None:
    """Return a file's content, or None if it does not exist or cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_bytes() if path else None
    return None


def read_json_object(path: Path | None) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if it does not exist, cannot be read or holds something else."""
    try:
        content = json.loads(read_or_none(path) or b"{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def commit_file(temporary: Path, path: Path) -> None:
    """Flush a temporary file to disk, rename it to `path`, and make the new name durable.

    Raises:
        OSError: The file cannot be flushed or renamed.
    """
    sync_file(temporary)
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file's content to the disk."""
    with path.open("r+b" if os.name == "nt" else "rb") as file:  # Windows flushes only files that are open for writing
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the system supports it."""
    with contextlib.suppress(OSError):  # not supported by every system and file system
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


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file or a folder, not a link, device or pipe. True if it does not exist."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return True
    return (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) and not path.is_junction()


def is_private(path: Path) -> bool:
    """Return whether a path is a folder that this user owns and no other user can write to.

    On Windows, where temporary folders belong to one user, return whether it is a folder.
    """
    status = path.lstat()
    private = stat.S_ISDIR(status.st_mode)
    if sys.platform != "win32":
        private = private and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return private


def max_name_bytes(folder: Path) -> int:
    """Return the maximum length of a file name in a folder, in bytes; 255 if the system does not report it."""
    try:
        return os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    except (OSError, ValueError):
        return 255


def shorten_name(name: str, suffix: str, max_bytes: int) -> str:
    """Return a name with a suffix, truncated to `max_bytes` bytes. A digest keeps truncated names distinct."""
    if len(os.fsencode(name + suffix)) <= max_bytes:
        return name + suffix
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    room = max(0, max_bytes - len(os.fsencode(f"~{digest}{suffix}")))
    begin = os.fsencode(name)[:room].decode(errors="ignore")  # drops a truncated character
    return f"{begin}~{digest}{suffix}"


def format_bytes(count: float) -> str:
    """Format a number of bytes: ``512 B``, ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
