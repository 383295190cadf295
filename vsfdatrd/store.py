"""The cache of built engines: identity, lock, atomic write, repair, eviction. Knows nothing of what it keeps.

    <directory>/store-1/
      CACHEDIR.TAG                  says what this is; without it nothing here is ever removed
      engines/<digest>/             what a builder wrote, and manifest.json (its mtime is when the engine was last used)
      state/<digest>/               what users of an engine keep beside it and may lose; goes with the engine
      notes/<kind>/<digest>.json    small facts, such as what a weights file holds
      locks/<digest>.lock           held while an engine is built or removed; the system frees it with its process
      tmp/<digest>.<pid>.<random>/  what is being built or removed

Only finished engines are ever renamed into ``engines/``, so readers take no lock, a cache that cannot be written still
serves what it holds, and a process killed at any moment leaves nothing worse than files in ``tmp/``, which the next one
sweeps. An engine in use may be removed by another process: open and mapped files stay valid on POSIX, and Windows
refuses the removal, which then is left for another time.
"""

import contextlib
import errno
import json
import logging
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from vsfdatrd.errors import EngineUnavailable, StoreError
from vsfdatrd.manifest import DamagedError, Entry, Key, describe, digest_of, seal, sync_folder, verified
from vsfdatrd.progress import working

log = logging.getLogger(__name__)

LAYOUT = "store-1"
"""Name of the folder inside the cache directory; changes with the layout above."""
LIMIT_GIB = 20.0
"""Total size of the engines in GiB beyond which the least recently used are removed; $FDATRD_CACHE_LIMIT overrides."""

_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# Engines built by vsfdatrd. `vsfdatrd cache clear` removes them; they are built again when needed.
"""
_FOLDERS = ("engines", "notes", "locks", "tmp", "state")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")
_PATIENCE = 3.0  # seconds to wait for another builder before saying so
_IN_USE = 60.0  # seconds after its last use in which an engine is not evicted: someone may be about to load it
_STALE = 3600.0  # seconds after which a temporary file that has no lock is a dead process's
_FULL = 1 << 20  # bytes free below which a failed build is put down to the disk
_CURE = "give another directory as cache= or in the environment variable FDATRD_CACHE"


class Store:
    """The cache in one directory. Cheap to make: nothing is read or written before the first use.

    Any number of processes and threads may use one directory, over NFS too where its locks work.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, limit: int | None = None) -> None:
        """A store in `directory`, by default $FDATRD_CACHE or the platform's cache directory.

        limit: bytes beyond which the least recently used engines are removed; by default $FDATRD_CACHE_LIMIT (GiB), or
        LIMIT_GIB. Raises StoreError if that variable is not a number.
        """
        chosen = directory or os.environ.get("FDATRD_CACHE") or platformdirs.user_cache_path("vsfdatrd", False)
        self.directory = Path(os.path.abspath(os.path.expanduser(chosen)))
        self.limit = _limit() if limit is None else limit
        self._root = self.directory / LAYOUT
        self._engines, self._notes, self._locks, self._tmp, self._state = (self._root / name for name in _FOLDERS)

    # Engines

    def open[T](self, key: Key, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
        """What `load` makes of the engine's directory, after building it if the cache does not hold it.

        build: writes files (and folders) into the empty directory it is given. Only one process at a time builds a key;
            the others wait for it and use the result. If it raises, nothing is left behind.
        load: reads that directory and must not change it. If it raises on an engine from the cache, that engine is
            built again, once; if it raises on a new one, the engine is removed and the error is passed on.
            MemoryError and EngineUnavailable are not the engine's fault and are passed on at once.

        Raises StoreError if the cache directory cannot be used, and what `build` and `load` raise.
        """
        self._sweep()
        rejected: str | None = None
        reason = ""
        while True:
            entry, new = self._find_or_build(key, build, rejected, reason)
            try:
                return load(entry.path)
            except (MemoryError, EngineUnavailable):
                raise
            except Exception as error:
                reason = f"it does not load: {error}"
                if new:
                    with contextlib.suppress(StoreError):
                        self.discard(key, reason)
                if new or rejected is not None:
                    raise
                rejected = entry.build

    def state(self, key: Key) -> Path:
        """A folder, not made yet, for what may change while an engine is used: kernels compiled for a GPU, what was
        verified. Whoever writes there writes whole files and expects them gone at any time.
        """
        return self._state / key.digest

    def discard(self, key: Key, reason: str) -> None:
        """Remove an engine, saying why in the log. Raises StoreError if it cannot be removed."""
        if not os.path.lexists(self._engines / key.digest):
            return
        self._prepare()
        with self._locked(key.digest, str(key)), self._explained():
            if self._remove(key.digest):
                log.warning("the cached engine %s (%s) is removed: %s", self._engines / key.digest, key, reason)

    def entries(self) -> list[Entry]:
        """All engines, the least recently used first. Raises StoreError if the directory cannot be read."""
        found = []
        with self._explained():
            try:
                candidates = list(os.scandir(self._engines))
            except FileNotFoundError:
                return []
            for item in candidates:
                if _DIGEST.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                        found.append(describe(Path(item.path)))
        return sorted(found, key=lambda entry: entry.used)

    @property
    def size(self) -> int:
        """Bytes all engines take on disk."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> int:
        """Remove all engines and notes, and return how many engines were removed.

        Engines that another process is building stay. Raises StoreError if the directory was not made by a store, is a
        symbolic link, or cannot be written.
        """
        if not os.path.lexists(self._root):
            return 0
        self._prepare()
        removed = 0
        with self._explained():
            for entry in self.entries():
                with self._lock_if_free(entry.digest) as held:
                    removed += held and self._remove(entry.digest)
            for item in os.scandir(self._state) if self._state.is_dir() else ():
                if not (self._engines / item.name).exists():
                    _delete(Path(item.path))
            for kind in os.scandir(self._notes) if self._notes.is_dir() else ():
                if _KIND.fullmatch(kind.name):
                    _delete(Path(kind.path))
        self._sweep()
        return removed

    def notes(self, kind: str) -> "Notes":
        """The notes of one kind. kind: lower-case letters, digits and hyphens; ValueError for others."""
        if not _KIND.fullmatch(kind):
            raise ValueError(f"{kind!r} cannot name a kind of notes")
        return Notes(self, kind)

    # Building

    def _find_or_build(
        self, key: Key, build: Callable[[Path], None], rejected: str | None, reason: str
    ) -> tuple[Entry, bool]:
        """A sound entry that is not the `rejected` build, and whether it was built just now."""
        if rejected is None and isinstance(found := self._examine(key.digest), Entry):
            return found, False
        self._prepare()
        with self._locked(key.digest, str(key)):
            found = self._examine(key.digest)  # another process may have been faster
            if isinstance(found, Entry):
                if found.build != rejected:
                    return found, False
                found = DamagedError(reason)
            if found:
                log.warning(
                    "the cached engine %s (%s) is thrown away and built again: %s",
                    self._engines / key.digest, key, found,
                )  # fmt: skip
                with self._explained():
                    self._remove(key.digest)
            entry = self._build(key, build)
        self._evict(keep=key.digest)
        return entry, True

    def _examine(self, digest: str) -> Entry | DamagedError | None:
        path = self._engines / digest
        with contextlib.suppress(OSError):  # read-only; before the work, so that nobody evicts it meanwhile
            os.utime(path / "manifest.json")
        try:
            return verified(path) if os.path.lexists(path) else None
        except DamagedError as damage:
            return damage

    def _build(self, key: Key, build: Callable[[Path], None]) -> Entry:
        directory = self._temporary(key.digest)
        try:
            with self._explained():
                directory.mkdir()
            try:
                build(directory)
            except Exception as error:
                # Libraries report a full disk in their own ways, so the disk is asked.
                if _no_space(error) or shutil.disk_usage(self._tmp).free < _FULL:
                    raise StoreError(f"{self._full()}; the build failed with: {error}") from error
                raise
            with self._explained():
                seal(directory, key)
                _rename(directory, self._engines / key.digest)
                sync_folder(self._engines)
                return describe(self._engines / key.digest)
        finally:
            _delete(directory)

    def _evict(self, keep: str) -> None:
        """Remove the least recently used engines beyond the limit. What cannot be removed stays."""
        with contextlib.suppress(OSError, StoreError):
            entries = self.entries()
            total = sum(entry.size for entry in entries)
            for entry in entries:
                if total <= self.limit:
                    break
                if entry.digest == keep or time.time() - entry.used < _IN_USE:
                    continue
                with contextlib.suppress(OSError), self._lock_if_free(entry.digest) as held:
                    if held and self._remove(entry.digest):
                        total -= entry.size
                        log.info("the engine %s is removed: the cache is beyond its limit", entry.path)

    def _remove(self, digest: str) -> bool:
        """Take an entry out of sight at once, then delete it; False if there is none. Its lock must be held."""
        doomed = self._temporary(digest)
        try:
            _rename(self._engines / digest, doomed)
        except FileNotFoundError:
            return False
        _delete(doomed)
        _delete(self._state / digest)
        return True

    def _sweep(self) -> None:
        """Remove what dead processes left in tmp/. Never fails: it is nobody's errand."""
        with contextlib.suppress(OSError, StoreError):
            items = list(os.scandir(self._tmp))
            if items:
                self._check_ours()
            for item in items:
                digest = item.name.partition(".")[0]
                if _DIGEST.fullmatch(digest):
                    # Whoever builds or removes an engine holds its lock for as long as it lives.
                    with self._lock_if_free(digest) as held:
                        if held:
                            _delete(Path(item.path))
                elif time.time() - item.stat(follow_symlinks=False).st_mtime > _STALE:
                    _delete(Path(item.path))

    def _temporary(self, name: str) -> Path:
        return self._tmp / f"{name}.{os.getpid()}.{secrets.token_hex(4)}"

    # The directory

    def _prepare(self) -> None:
        """Make the folders. Raises StoreError."""
        with self._explained():
            self._root.mkdir(parents=True, exist_ok=True)
            tag = self._root / "CACHEDIR.TAG"
            if not tag.exists() and not any(self._root.iterdir()):
                tag.write_bytes(_TAG)
            self._check_ours()
            for name in _FOLDERS:
                (self._root / name).mkdir(exist_ok=True)

    def _check_ours(self) -> None:
        for path in (self._root, *(self._root / name for name in _FOLDERS)):
            if path.is_symlink() or path.is_junction():
                raise StoreError(f"{path} is a link, which the cache does not follow; remove it, or {_CURE}")
        with self._explained():
            try:
                tag = (self._root / "CACHEDIR.TAG").read_bytes()
            except FileNotFoundError:
                tag = b"\0"
            if not _TAG.startswith(tag):  # a part of it: another process is writing it
                raise StoreError(f"{self._root} was not made by vsfdatrd and is left alone; move it away, or {_CURE}")

    @contextlib.contextmanager
    def _locked(self, digest: str, what: str) -> Iterator[None]:
        """Hold an engine's lock, saying so on stderr if it takes long to get it."""
        lock = FileLock(self._locks / f"{digest}.lock", poll_interval=0.05)
        with self._explained():
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
    def _lock_if_free(self, digest: str) -> Iterator[bool]:
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
    def _explained(self) -> Iterator[None]:
        """Turn OSError into StoreError: which directory, why, and what to do."""
        try:
            yield
        except OSError as error:
            if _no_space(error):
                raise StoreError(self._full()) from error
            in_the_way = [p for p in (self._root, *self._root.parents) if p.exists() and not p.is_dir()]
            if in_the_way:
                why = f"cannot be made, because {in_the_way[0]} is a file"
            elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                why = f"cannot be written or read ({error.strerror}: {error.filename or self._root})"
            else:
                why = f"cannot be used ({error})"
            raise StoreError(f"the cache directory {self.directory} {why}; {_CURE}") from error

    def _full(self) -> str:
        return f"no space is left for the cache directory {self.directory}; free some space on that disk, or {_CURE}"


class Notes:
    """Small JSON objects under a sha256, kept beside the engines, such as what a weights file holds."""

    def __init__(self, store: Store, kind: str) -> None:
        self._store = store
        self._kind = kind

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a sha256")
        return self._store._notes / self._kind / f"{digest}.json"

    def recall(self, digest: str) -> dict[str, Any] | None:
        """What was remembered; None if nothing was, or it is damaged or cannot be read."""
        path = self._path(digest)
        try:
            found = json.loads(path.read_bytes())
            data = found["data"]
            return data if isinstance(data, dict) and found["sha256"] == digest_of(data) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def remember(self, digest: str, data: Mapping[str, Any]) -> None:
        """Keep `data` for `recall`. Where the cache cannot be written nothing is kept, and nothing is raised."""
        path = self._path(digest)
        text = json.dumps({"data": dict(data), "sha256": digest_of(data)})
        temporary = self._store._temporary("note")
        try:
            self._store._prepare()
            path.parent.mkdir(exist_ok=True)
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except (OSError, StoreError) as error:
            log.debug("%s is not kept: %s", path, error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _limit() -> int:
    given = os.environ.get("FDATRD_CACHE_LIMIT") or str(LIMIT_GIB)
    try:
        gib = float(given)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise StoreError(f"FDATRD_CACHE_LIMIT={given!r} is not a size; set it to a number of GiB, such as {LIMIT_GIB}")
    return int(gib * 2**30)


def _no_space(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _rename(source: Path, target: Path) -> None:
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


def _delete(path: Path) -> None:
    """Delete a file or a directory, never through a link. What cannot be deleted is swept another time."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or path.is_junction() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
