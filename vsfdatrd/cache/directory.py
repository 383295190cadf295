"""A folder that holds a cache: made with care, locked by name, never anybody else's. Knows nothing of what lies in it.

<directory>/<layout>/
  CACHEDIR.TAG                  says what this is; without it nothing here is ever removed
  locks/<name>.lock             held while something of that name is made or removed; freed with its process
  tmp/<name>.<pid>.<random>/    what is being made or removed; what dead processes left there is swept
  ...                           folders of whoever uses it
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
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from vsfdatrd.errors import StoreError
from vsfdatrd.system.progress import working

_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Engines built by vsfdatrd. `vsfdatrd cache clear` removes them; they are built again when needed.
"""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PATIENCE = 3.0  # seconds to wait for another builder before saying so
_STALE = 3600.0  # seconds after which a temporary file that has no lock is a dead process's
_CURE = "give another directory as cache= or in the environment variable FDATRD_CACHE"


FOLDER_MODE = 0o775  # of folders, less the umask: never writable by everybody, even where the umask is 0


def _trusted() -> set[int]:
    """The users whose files are as good as this user's own: the administrator, and who became it by sudo."""
    users = {0}
    if sys.platform != "win32":
        asked = os.environ.get("SUDO_UID", "")
        if os.geteuid() == 0 and asked.isdecimal():
            users.add(int(asked))
        users.add(os.geteuid())
    return users


class CacheFolder:
    """One cache folder, cheap to name: nothing is read or written before the first use."""

    def __init__(self, directory: Path, layout: str, folders: Sequence[str]) -> None:
        """directory: what a user named. layout: the folder inside it, which changes with its shape."""
        self.directory = directory
        self.root = directory / layout
        self._locks, self.tmp = self.root / "locks", self.root / "tmp"
        self._folders = (self._locks, self.tmp, *(self.root / name for name in folders))

    def prepare(self) -> None:
        """Make the folders. Raises StoreError."""
        with self.explained():
            self.directory.mkdir(parents=True, exist_ok=True)
            self.root.mkdir(FOLDER_MODE, exist_ok=True)
            tag = self.root / "CACHEDIR.TAG"
            if not tag.exists() and not any(self.root.iterdir()):
                tag.write_bytes(_TAG)
            self._check_ours()
            for folder in self._folders:
                folder.mkdir(FOLDER_MODE, exist_ok=True)

    def check_trust(self, *paths: Path) -> None:
        """Check that no other user could have put something here for us to load.

        An engine is code. Folders, and what lies in them under the names of `paths`, have to belong to this user or to
        the system's administrator, and must not be writable by everybody. Members of a folder's group are trusted: it
        is their owner who lets them write. POSIX only; what is not there is no reason.

        Raises:
            StoreError: If another user owns one of them, or all may write to it.
        """
        if os.name != "posix":
            return
        for path in (self.root, *self._folders, *paths):
            with contextlib.suppress(OSError):
                status = path.stat(follow_symlinks=False)
                if status.st_uid not in _trusted():
                    raise StoreError(
                        f"{path} belongs to another user (number {status.st_uid}), who could have put a harmful engine "
                        f"there, and is not used; {_CURE}"
                    )
                if status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode):
                    raise StoreError(
                        f"every user may write to {path} and could have put a harmful engine there; it is not used: "
                        f"remove it, or {_CURE}"
                    )

    def _check_ours(self) -> None:
        self.check_trust()
        for path in (self.root, *self._folders):
            if path.is_symlink() or path.is_junction():
                raise StoreError(f"{path} is a link, which the cache does not follow; remove it, or {_CURE}")
        with self.explained():
            try:
                tag = (self.root / "CACHEDIR.TAG").read_bytes()
            except FileNotFoundError:
                tag = b"\0"
            if not _TAG.startswith(tag):  # a part of it: another process is writing it
                raise StoreError(f"{self.root} was not made by vsfdatrd and is left alone; move it away, or {_CURE}")

    @contextlib.contextmanager
    def locked(self, digest: str, what: str) -> Iterator[None]:
        """Hold an engine's lock, saying so on stderr if it takes long to get it."""
        lock = FileLock(self._locks / f"{digest}.lock", poll_interval=0.05)
        with self.explained():
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout:
                with working(f"waiting for another process that is building the same engine ({what})", delay=0):
                    lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def lock_if_free(self, digest: str) -> Iterator[bool]:
        """Hold the lock if nobody else does; whether it is held."""
        lock = FileLock(self._locks / f"{digest}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turn OSError into StoreError: which directory, why, and what to do."""
        try:
            yield
        except OSError as error:
            if no_space(error):
                raise StoreError(self.full()) from error
            in_the_way = [p for p in (self.root, *self.root.parents) if p.exists() and not p.is_dir()]
            if in_the_way:
                why = f"cannot be made, because {in_the_way[0]} is a file"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                why = f"cannot be written or read ({error.strerror}: {error.filename or self.root})"
            else:
                why = f"cannot be used ({error})"
            raise StoreError(f"the cache directory {self.directory} {why}; {_CURE}") from error

    def full(self) -> str:
        """That the disk is full, as the beginning of a sentence."""
        return f"no space is left for the cache directory {self.directory}; free some space on that disk, or {_CURE}"

    def sweep(self) -> None:
        """Remove what dead processes left in tmp/. Never fails: it is nobody's errand."""
        with contextlib.suppress(OSError, StoreError):
            items = list(os.scandir(self.tmp))
            if items:
                self._check_ours()
            for item in items:
                digest = item.name.partition(".")[0]
                if _DIGEST.fullmatch(digest):
                    # Whoever builds or removes an engine holds its lock for as long as it lives.
                    with self.lock_if_free(digest) as held:
                        if held:
                            delete(Path(item.path))
                elif time.time() - item.stat(follow_symlinks=False).st_mtime > _STALE:
                    delete(Path(item.path))

    def temporary(self, name: str) -> Path:
        """A name in tmp/ that nobody has, for something of this name."""
        return self.tmp / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"


def no_space(error: BaseException) -> bool:
    """Whether an error says that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def take_from_all(path: Path) -> None:
    """Take the right to write from everybody, which a umask of 0 gives, for a file or a folder and all in it."""
    if os.name == "posix":
        for item in (path, *path.rglob("*")):
            if not item.is_symlink():
                item.chmod(stat.S_IMODE(item.stat().st_mode) & ~stat.S_IWOTH)


def rename(source: Path, target: Path) -> None:
    """Move a directory to a name that is free."""
    for pause in (0.05, 0.1, 0.2, 0.4):
        try:
            os.rename(source, target)
            return
        except PermissionError:
            if os.name != "nt":
                raise
            time.sleep(pause)  # a virus scanner has a look at the new files
    os.rename(source, target)


def delete(path: Path) -> None:
    """Delete a file or a directory, never through a link. What cannot be deleted is swept another time."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.is_junction() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
