"""Cache of built engines: identity, locking, atomic writes, repair, eviction. Independent of the files' contents.

    <directory>/store-1/
      CACHEDIR.TAG                  marks the directory as ours; without it nothing here is ever removed
      engines/<digest>/             the built files and manifest.json (its mtime is the time of the engine's last use)
      state/<digest>/               data that users of an engine store and can recreate; removed with the engine
      notes/<kind>/<digest>.json    metadata, such as what a weights file contains
      locks/<digest>.lock           held while an engine is built or removed; released by the system when a process ends
      tmp/<digest>.<pid>.<random>/  engines being built or removed

Only complete engines are renamed into ``engines/``. So readers need no lock, a read-only cache still serves its
engines, and a process killed at any moment leaves nothing but files in ``tmp/``, which the next process deletes.
Another process may remove an engine in use: open and mapped files stay valid on POSIX; Windows refuses the removal,
and it is tried again later.
"""

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from vsfdatrd.cache.directory import (
    DIGEST_PATTERN,
    FOLDERS,
    CacheDirectory,
    delete_quietly,
    is_disk_full,
    remove_world_write,
    rename,
)
from vsfdatrd.cache.manifest import DamagedError, Entry, Key, read_entry, verify_entry, write_manifest
from vsfdatrd.cache.metadata import KIND_PATTERN, MetadataCache
from vsfdatrd.errors import ArgumentError, EngineUnavailable, StoreError
from vsfdatrd.system.files import sync_folder
from vsfdatrd.system.home import expand_user, private_temporary_directory, user_directory

log = logging.getLogger(__name__)

LIMIT_GIB = 20.0
"""Total size of the engines in GiB above which the least recently used are removed; $FDATRD_CACHE_LIMIT overrides it.
"""

_IN_USE_SECONDS = 60.0  # time after its last use in which an engine is not evicted: a process may be loading it
_MIN_FREE_BYTES = 1 << 20  # free bytes below which a failed build is attributed to a full disk


class EngineCache:
    """The engine cache in one directory.

    Creating the object is cheap: nothing is read or written before the first use. Any number of processes and threads
    may use one directory, also over NFS if its locks work.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, limit: int | None = None) -> None:
        """Select the cache directory.

        Args:
            directory: The cache directory; by default $FDATRD_CACHE or the platform's cache directory.
            limit: Size in bytes above which the least recently used engines are removed; by default
                $FDATRD_CACHE_LIMIT (in GiB) or LIMIT_GIB.

        Raises:
            StoreError: $FDATRD_CACHE_LIMIT is not a number, or no directory is possible.
        """
        path = directory or os.environ.get("FDATRD_CACHE")
        if not path:
            path = user_directory("cache") or _directory_without_home()
        try:
            self.directory = Path(os.path.abspath(expand_user(path)))
        except ArgumentError as error:
            raise StoreError(f"{error}; set FDATRD_CACHE to a directory") from error
        self.limit = _limit_bytes() if limit is None else limit
        self._folder = CacheDirectory(self.directory)
        self._engines, self._state, self._metadata = (self._folder.root / name for name in FOLDERS)

    # Engines

    def open[T](self, key: Key, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
        """Load an engine, after building it if it is not in the cache.

        Only one process at a time builds a key; the others wait for it and use the result.

        Args:
            key: Identity of the engine.
            build: Writes files (and folders) into the empty directory passed to it. If it raises, nothing is left
                behind.
            load: Reads that directory, without changing it, and returns the engine. If it raises for a cached engine,
                the engine is rebuilt once. If it raises for a new engine, the engine is removed and the error is
                passed on. MemoryError, EngineUnavailable and ArgumentError are not caused by the engine's files and
                are passed on at once.

        Returns:
            What `load` returned.

        Raises:
            StoreError: The cache directory cannot be used.
            Exception: Whatever `build` and `load` raise.
        """
        engine = self._engines / key.digest
        with self._folder.translate_errors():
            self._folder.check_trust(engine, *engine.rglob("*"), self._state / key.digest)
        self._folder.clean_tmp()
        rejected: str | None = None
        reason = ""
        while True:
            entry, new = self._find_or_build(key, build, rejected, reason)
            try:
                return load(entry.path)
            except (MemoryError, EngineUnavailable, ArgumentError):
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
        """Return the folder for an engine's mutable data: kernels compiled for a GPU, verification results.

        The folder may not exist yet. Files there must be written atomically and may disappear at any time.

        Args:
            key: Identity of the engine.
        """
        return self._state / key.digest

    def discard(self, key: Key, reason: str) -> None:
        """Remove an engine and log the reason.

        Args:
            key: Identity of the engine.
            reason: Why it is removed, as part of a sentence.

        Raises:
            StoreError: It cannot be removed.
        """
        if not os.path.lexists(self._engines / key.digest):
            return
        self._folder.prepare()
        with self._folder.lock(key.digest, _building(key)), self._folder.translate_errors():
            if self._remove(key.digest):
                log.warning("the cached engine %s (%s) is removed: %s", self._engines / key.digest, key, reason)

    def entries(self) -> list[Entry]:
        """List all engines, least recently used first.

        Raises:
            StoreError: The directory cannot be read.
        """
        result = []
        with self._folder.translate_errors():
            try:
                candidates = list(os.scandir(self._engines))
            except FileNotFoundError:
                return []
            for item in candidates:
                if DIGEST_PATTERN.fullmatch(item.name) and item.is_dir(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
                        result.append(read_entry(Path(item.path)))
        return sorted(result, key=lambda entry: entry.used)

    @property
    def size(self) -> int:
        """Size of all engines on disk in bytes."""
        return sum(entry.size for entry in self.entries())

    def clear(self) -> int:
        """Remove all engines and metadata. Engines that another process is building stay.

        Returns:
            Number of engines removed.

        Raises:
            StoreError: The directory was not made by this cache, is a symbolic link, or cannot be written.
        """
        if not os.path.lexists(self._folder.root):
            return 0
        self._folder.prepare()
        removed = 0
        with self._folder.translate_errors():
            for entry in self.entries():
                with self._folder.lock_if_free(entry.digest) as locked:
                    removed += locked and self._remove(entry.digest)
            for item in os.scandir(self._state) if self._state.is_dir() else ():
                if not (self._engines / item.name).exists():
                    delete_quietly(Path(item.path))
            for kind in os.scandir(self._metadata) if self._metadata.is_dir() else ():
                if KIND_PATTERN.fullmatch(kind.name):
                    delete_quietly(Path(kind.path))
        self._folder.clean_tmp()
        return removed

    def metadata(self, kind: str) -> MetadataCache:
        """Return the cache for one kind of metadata, such as ``checkpoint``.

        Args:
            kind: Lower-case letters, digits and hyphens, at most 32.

        Raises:
            ValueError: `kind` does not match `KIND_PATTERN`.
        """
        return MetadataCache(self._folder, kind)

    def get_or_compute(
        self, kind: str, digest: str, operation: str, compute: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Read metadata, or compute and store it. Only one process at a time computes it; the others wait.

        Args:
            kind: The kind of metadata.
            digest: A sha256.
            operation: The computation, for the message shown while another process is waited for, such as ``timing x``.
            compute: Computes the object. Its exceptions are passed on, and nothing is stored.

        Raises:
            StoreError: The cache directory cannot be used.
        """
        metadata = self.metadata(kind)
        if (data := metadata.get(digest)) is not None:
            return data
        self._folder.prepare()
        with self._folder.lock(digest, operation):
            data = metadata.get(digest)  # another process may have stored it meanwhile
            if data is None:
                data = compute()
                metadata.put(digest, data)
        return data

    # Building

    def _find_or_build(
        self, key: Key, build: Callable[[Path], None], rejected: str | None, reason: str
    ) -> tuple[Entry, bool]:
        """Return an intact entry other than the `rejected` build, and whether it was built by this call."""
        if rejected is None and isinstance(result := self._read_intact(key.digest), Entry):
            return result, False
        self._folder.prepare()
        with self._folder.lock(key.digest, _building(key)):
            result = self._read_intact(key.digest)  # another process may have built it meanwhile
            if isinstance(result, Entry):
                if result.build != rejected:
                    return result, False
                result = DamagedError(reason)
            if result:
                path = self._engines / key.digest
                log.warning("the cached engine %s (%s) is removed and built again: %s", path, key, result)
                with self._folder.translate_errors():
                    self._remove(key.digest)
            entry = self._build(key, build)
        self._evict(keep=key.digest)
        return entry, True

    def _read_intact(self, digest: str) -> Entry | DamagedError | None:
        path = self._engines / digest
        # Before reading it, so that no other process evicts it meanwhile. Fails in a read-only cache.
        with contextlib.suppress(OSError):
            os.utime(path / "manifest.json")
        try:
            return verify_entry(path) if os.path.lexists(path) else None
        except DamagedError as damage:
            return damage

    def _build(self, key: Key, build: Callable[[Path], None]) -> Entry:
        directory = self._folder.temporary_path(key.digest)
        try:
            with self._folder.translate_errors():
                directory.mkdir()
            try:
                build(directory)
            except Exception as error:
                # Every library reports a full disk differently, so check the free space.
                with self._folder.translate_errors():
                    free = shutil.disk_usage(self._folder.tmp).free
                if is_disk_full(error) or free < _MIN_FREE_BYTES:
                    raise StoreError(f"{self._folder.disk_full_message()}; the build failed with: {error}") from error
                raise
            with self._folder.translate_errors():
                write_manifest(directory, key)
                remove_world_write(directory)
                rename(directory, self._engines / key.digest)
                sync_folder(self._engines)
                return read_entry(self._engines / key.digest)
        finally:
            delete_quietly(directory)

    def _evict(self, keep: str) -> None:
        """Remove the least recently used engines until the limit is met. Engines that cannot be removed stay."""
        with contextlib.suppress(OSError, StoreError):
            entries = self.entries()
            total = sum(entry.size for entry in entries)
            for entry in entries:
                if total <= self.limit:
                    break
                if entry.digest == keep or time.time() - entry.used < _IN_USE_SECONDS:
                    continue
                with contextlib.suppress(OSError), self._folder.lock_if_free(entry.digest) as locked:
                    if locked and self._remove(entry.digest):
                        total -= entry.size
                        log.info("the engine %s is removed: the cache is beyond its limit", entry.path)

    def _remove(self, digest: str) -> bool:
        """Move an entry to tmp/, so that it disappears at once, then delete it. The caller must hold its lock.

        Returns:
            False if there is no such entry.
        """
        doomed = self._folder.temporary_path(digest)
        try:
            rename(self._engines / digest, doomed)
        except FileNotFoundError:
            return False
        delete_quietly(doomed)
        delete_quietly(self._state / digest)
        return True


def _building(key: Key) -> str:
    return f"building the same engine ({key})"


@lru_cache(maxsize=1)
def _directory_without_home() -> Path:
    """Return the cache directory for a user without a home directory.

    Raises:
        StoreError: No directory is possible.
    """
    try:
        result = private_temporary_directory("vsfdatrd-cache")
    except OSError as error:
        raise StoreError(
            f"there is no home directory to keep built engines in, and {error}; set FDATRD_CACHE to a directory"
        ) from error
    log.warning(
        "there is no home directory: built engines are kept in %s; set FDATRD_CACHE to a permanent directory", result
    )
    return result


def _limit_bytes() -> int:
    text = os.environ.get("FDATRD_CACHE_LIMIT") or str(LIMIT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not 0 <= gib < math.inf:
        raise StoreError(f"FDATRD_CACHE_LIMIT={text!r} is not a size; set it to a number of GiB, such as {LIMIT_GIB}")
    return int(gib * 2**30)
