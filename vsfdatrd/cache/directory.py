"""The directory of the engine cache: safe creation, locks by name, ownership checks, temporary files.

`engine_cache` defines the layout; this module does not depend on the contents.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from vsfdatrd.errors import StoreError
from vsfdatrd.system.progress import report_progress

LAYOUT = "store-1"
"""Name of the folder inside the cache directory; changes whenever the layout does."""
FOLDERS = ("engines", "state", "notes")
_CACHEDIR_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Engines built by vsfdatrd. `vsfdatrd cache clear` removes them; they are built again when needed.
"""
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
_SILENT_SECONDS = 3.0  # seconds to wait for another process before telling the user
_STALE_SECONDS = 3600.0  # age in seconds from which a temporary file without a lock counts as left by a dead process
_REMEDY = "give another directory as cache= or in the environment variable FDATRD_CACHE"
FOLDER_MODE = 0o775  # mode of folders before the umask: never world-writable, even if the umask is 0


def _trusted_users() -> set[int]:
    """Return the ids of users whose files are trusted: this user, root, and as root the user who invoked sudo."""
    users = {0}
    if sys.platform != "win32":
        sudo_user = os.environ.get("SUDO_UID", "")
        if os.geteuid() == 0 and sudo_user.isdecimal():
            users.add(int(sudo_user))
        users.add(os.geteuid())
    return users


class CacheDirectory:
    """One cache directory. Creating the object is cheap: nothing is read or written before the first use.

    Args:
        directory: The directory, which may not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / LAYOUT
        self._locks, self.tmp = self.root / "locks", self.root / "tmp"
        self._folders = (self._locks, self.tmp, *(self.root / name for name in FOLDERS))

    def prepare(self) -> None:
        """Create the folders.

        Raises:
            StoreError: They cannot be created, or the directory is not ours.
        """
        with self.translate_errors():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(FOLDER_MODE, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists() and not any(self.root.iterdir()):
                tag.write_bytes(_CACHEDIR_TAG)
            self._check_owner()
            for folder in self._folders:
                folder.mkdir(FOLDER_MODE, exist_ok=True)

    def check_trust(self, *paths: Path) -> None:
        """Check that no other user could have placed files here for us to load. Engines contain code.

        Folders, and the contents of folders under the names of `paths`, must belong to this user or to root and must
        not be world-writable. Members of a folder's group are trusted, because its owner granted them write access.
        Paths that do not exist are ignored. Checks on POSIX only.

        Args:
            *paths: Files and folders to check in addition to the cache's own.

        Raises:
            StoreError: Another user owns one of them, or it is world-writable.
        """
        if os.name != "posix":
            return
        for path in (self.root, *self._folders, *paths):
            with contextlib.suppress(OSError):
                status = path.stat(follow_symlinks=False)
                if status.st_uid not in _trusted_users():
                    raise StoreError(
                        f"{path} belongs to another user (number {status.st_uid}), who could have put a harmful engine "
                        f"there, and is not used; {_REMEDY}"
                    )
                if status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
                    raise StoreError(
                        f"every user may write to {path} and could have put a harmful engine there; it is not used: "
                        f"remove it, or {_REMEDY}"
                    )

    def _check_owner(self) -> None:
        self.check_trust()
        for path in (self.root, *self._folders):
            if path.is_symlink() or path.is_junction():
                raise StoreError(f"{path} is a link, which the cache does not follow; remove it, or {_REMEDY}")
        with self.translate_errors():
            try:
                tag = (self.root / "CACHEDIR.TAG").read_bytes()
            except FileNotFoundError:
                tag = b"\0"
            if not _CACHEDIR_TAG.startswith(tag):  # accept an incomplete tag: another process is writing it
                raise StoreError(f"{self.root} was not made by vsfdatrd and is left alone; move it away, or {_REMEDY}")

    @contextlib.contextmanager
    def lock(self, digest: str, operation: str) -> Iterator[None]:
        """Hold a lock, with a message on stderr if waiting for it takes long.

        Args:
            digest: Digest of the entry to lock.
            operation: What the holder of the lock does, for the message, such as ``building the engine``.

        Raises:
            StoreError: The lock file cannot be used.
        """
        lock = FileLock(self._locks / f"{digest}.lock", poll_interval=0.05)
        with self.translate_errors():
            try:
                lock.acquire(timeout=_SILENT_SECONDS)
            except Timeout:
                with report_progress(f"waiting for another process that is {operation}", delay=0):
                    lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def lock_if_free(self, digest: str) -> Iterator[bool]:
        """Hold a lock if it is free.

        Args:
            digest: Name of the lock.

        Yields:
            Whether the lock is held.
        """
        lock = FileLock(self._locks / f"{digest}.lock")
        with contextlib.suppress(Timeout):
            lock.acquire(blocking=False)
        try:
            yield lock.is_locked
        finally:
            lock.release()

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Turn OSError into StoreError with the directory, the reason and a remedy.

        Raises:
            StoreError: An OSError was raised inside the block.
        """
        try:
            yield
        except OSError as error:
            if is_disk_full(error):
                raise StoreError(self.disk_full_message()) from error
            in_the_way = [p for p in (self.root, *self.root.parents) if os.path.exists(p) and not os.path.isdir(p)]
            if in_the_way:
                reason = f"cannot be made, because {in_the_way[0]} is a file"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                reason = f"cannot be written or read ({error.strerror}: {error.filename or self.root})"
            else:
                reason = f"cannot be used ({error})"
            raise StoreError(f"the cache directory {self.directory} {reason}; {_REMEDY}") from error

    def disk_full_message(self) -> str:
        """Return the beginning of an error message for a full disk."""
        return f"no space is left for the cache directory {self.directory}; free some space on that disk, or {_REMEDY}"

    def clean_tmp(self) -> None:
        """Delete temporary files of dead processes. Best effort; errors are ignored."""
        with contextlib.suppress(OSError, StoreError):
            items = list(os.scandir(self.tmp))
            if items:
                self._check_owner()
            for item in items:
                digest = item.name.partition(".")[0]
                if DIGEST_PATTERN.fullmatch(digest):
                    # A process that builds or removes an engine holds its lock until it has finished or died.
                    with self.lock_if_free(digest) as locked:
                        if locked:
                            delete_quietly(Path(item.path))
                elif time.time() - item.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                    delete_quietly(Path(item.path))

    def temporary_path(self, name: str) -> Path:
        """Return an unused path in tmp/ for an item.

        Args:
            name: Name of the item.
        """
        return self.tmp / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error reports a full disk or quota.

    Args:
        error: Any exception.
    """
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def remove_world_write(path: Path) -> None:
    """Remove the world-writable bit, which a umask of 0 leaves set, from a path and everything in it.

    Args:
        path: A file or folder.
    """
    if os.name == "posix":
        for item in (path, *path.rglob("*")):
            if not item.is_symlink():
                item.chmod(stat.S_IMODE(item.stat().st_mode) & ~stat.S_IWOTH)


def rename(source: Path, target: Path) -> None:
    """Move a directory to an unused path.

    Args:
        source: The directory.
        target: Its new path.

    Raises:
        OSError: It cannot be moved.
    """
    for pause in (0.05, 0.1, 0.2, 0.4):
        try:
            os.rename(source, target)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(pause)  # a virus scanner may have the new files open
    os.rename(source, target)


def delete_quietly(path: Path) -> None:
    """Delete a file or directory, without following links. Errors are ignored; leftovers in tmp/ are deleted later.

    Args:
        path: The file or directory.
    """
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.is_junction() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
