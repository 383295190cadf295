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
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from vsfdatrd.cache.directory import CacheFolder, delete, no_space, rename, take_from_all
from vsfdatrd.cache.manifest import DamagedError, Entry, Key, describe, seal, verified
from vsfdatrd.cache.metadata import KIND, MetadataCache
from vsfdatrd.errors import ArgumentError, EngineUnavailable, StoreError
from vsfdatrd.system.files import sync_folder
from vsfdatrd.system.home import expand_user, private_temporary_directory, user_directory

log = logging.getLogger(__name__)

LAYOUT = "store-1"
"""Name of the folder inside the cache directory; changes with the layout above."""
LIMIT_GIB = 20.0
"""Total size of the engines in GiB beyond which the least recently used are removed; $FDATRD_CACHE_LIMIT overrides."""

_FOLDERS = ("engines", "state", "notes")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_IN_USE = 60.0  # seconds after its last use in which an engine is not evicted: someone may be about to load it
_FULL = 1 << 20  # bytes free below which a failed build is put down to the disk


class EngineCache:
    """The cache in one directory. Cheap to make: nothing is read or written before the first use.

    Any number of processes and threads may use one directory, over NFS too where its locks work.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, limit: int | None = None) -> None:
        """A store in `directory`, by default $FDATRD_CACHE or the platform's cache directory.

        limit: bytes beyond which the least recently used engines are removed; by default $FDATRD_CACHE_LIMIT (GiB), or
        LIMIT_GIB. Raises StoreError if that variable is not a number.
        """
        chosen = directory or os.environ.get("FDATRD_CACHE")
        if not chosen:
            chosen = user_directory("cache") or _without_home()
        try:
            self.directory = Path(os.path.abspath(expand_user(chosen)))
        except ArgumentError as error:
            raise StoreError(f"{error}; set FDATRD_CACHE to a directory") from error
        self.limit = _limit() if limit is None else limit
        self._folder = CacheFolder(self.directory, LAYOUT, _FOLDERS)
        self._engines, self._state, self._notes = (self._folder.root / name for name in _FOLDERS)

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
        engine = self._engines / key.digest
        self._folder.check_trust(engine, *engine.rglob("*"), self._state / key.digest)
        self._folder.sweep()
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
        self._folder.prepare()
        with self._folder.locked(key.digest, str(key)), self._folder.explained():
            if self._remove(key.digest):
                log.warning("the cached engine %s (%s) is removed: %s", self._engines / key.digest, key, reason)

    def entries(self) -> list[Entry]:
        """All engines, the least recently used first. Raises StoreError if the directory cannot be read."""
        found = []
        with self._folder.explained():
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
        if not os.path.lexists(self._folder.root):
            return 0
        self._folder.prepare()
        removed = 0
        with self._folder.explained():
            for entry in self.entries():
                with self._folder.lock_if_free(entry.digest) as held:
                    removed += held and self._remove(entry.digest)
            for item in os.scandir(self._state) if self._state.is_dir() else ():
                if not (self._engines / item.name).exists():
                    delete(Path(item.path))
            for kind in os.scandir(self._notes) if self._notes.is_dir() else ():
                if KIND.fullmatch(kind.name):
                    delete(Path(kind.path))
        self._folder.sweep()
        return removed

    def notes(self, kind: str) -> MetadataCache:
        """The notes of one kind. kind: lower-case letters, digits and hyphens; ValueError for others."""
        return MetadataCache(self._folder, kind)

    def once(self, kind: str, digest: str, what: str, find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Recall a note, or find it out and remember it; only one process at a time does, and the others wait for it.

        Args:
            kind: The kind of notes.
            digest: A sha256.
            what: What is found out, for those who wait.
            find: Finds it out. What it raises is passed on, and nothing is remembered.

        Raises:
            StoreError: The cache directory cannot be used.
        """
        notes = self.notes(kind)
        if (known := notes.recall(digest)) is not None:
            return known
        self._folder.prepare()
        with self._folder.locked(digest, what):
            known = notes.recall(digest)  # another process may have been faster
            if known is None:
                known = find()
                notes.remember(digest, known)
        return known

    # Building

    def _find_or_build(
        self, key: Key, build: Callable[[Path], None], rejected: str | None, reason: str
    ) -> tuple[Entry, bool]:
        """A sound entry that is not the `rejected` build, and whether it was built just now."""
        if rejected is None and isinstance(found := self._examine(key.digest), Entry):
            return found, False
        self._folder.prepare()
        with self._folder.locked(key.digest, str(key)):
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
                with self._folder.explained():
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
        directory = self._folder.temporary(key.digest)
        try:
            with self._folder.explained():
                directory.mkdir()
            try:
                build(directory)
            except Exception as error:
                # Libraries report a full disk in their own ways, so the disk is asked.
                if no_space(error) or shutil.disk_usage(self._folder.tmp).free < _FULL:
                    raise StoreError(f"{self._folder.full()}; the build failed with: {error}") from error
                raise
            with self._folder.explained():
                seal(directory, key)
                take_from_all(directory)
                rename(directory, self._engines / key.digest)
                sync_folder(self._engines)
                return describe(self._engines / key.digest)
        finally:
            delete(directory)

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
                with contextlib.suppress(OSError), self._folder.lock_if_free(entry.digest) as held:
                    if held and self._remove(entry.digest):
                        total -= entry.size
                        log.info("the engine %s is removed: the cache is beyond its limit", entry.path)

    def _remove(self, digest: str) -> bool:
        """Take an entry out of sight at once, then delete it; False if there is none. Its lock must be held."""
        doomed = self._folder.temporary(digest)
        try:
            rename(self._engines / digest, doomed)
        except FileNotFoundError:
            return False
        delete(doomed)
        delete(self._state / digest)
        return True


@lru_cache(maxsize=1)
def _without_home() -> Path:
    """Where engines of a user without a home directory go. Raises StoreError if there is no place."""
    try:
        found = private_temporary_directory("vsfdatrd-cache")
    except OSError as error:
        raise StoreError(
            f"there is no home directory to keep built engines in, and {error}; set FDATRD_CACHE to a directory"
        ) from error
    log.warning(
        "there is no home directory: built engines are kept in %s; set FDATRD_CACHE to a directory that lasts", found
    )
    return found


def _limit() -> int:
    given = os.environ.get("FDATRD_CACHE_LIMIT") or str(LIMIT_GIB)
    try:
        gib = float(given)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise StoreError(f"FDATRD_CACHE_LIMIT={given!r} is not a size; set it to a number of GiB, such as {LIMIT_GIB}")
    return int(gib * 2**30)
