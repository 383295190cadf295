"""Cache of small JSON objects by sha256, such as metadata of a weights file: ``notes/<kind>/<digest>.json``."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsfdatrd.cache.directory import DIGEST_PATTERN, FOLDER_MODE, CacheDirectory, remove_world_write
from vsfdatrd.cache.manifest import digest_of
from vsfdatrd.errors import StoreError
from vsfdatrd.system.files import replace_file

log = logging.getLogger(__name__)

KIND_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,31}")


class MetadataCache:
    """JSON objects of one kind, stored by sha256 in the cache directory, next to the engines."""

    def __init__(self, folder: CacheDirectory, kind: str) -> None:
        """Select a kind of metadata, such as ``checkpoint``; nothing is read or written yet.

        Args:
            folder: The cache directory.
            kind: Lower-case letters, digits and hyphens, at most 32.

        Raises:
            ValueError: `kind` does not match `KIND_PATTERN`.
        """
        if not KIND_PATTERN.fullmatch(kind):
            raise ValueError(f"{kind!r} cannot name a kind of metadata")
        self._folder, self._kind = folder, kind

    def _path(self, digest: str) -> Path:
        if not DIGEST_PATTERN.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a sha256")
        return self._folder.root / "notes" / self._kind / f"{digest}.json"

    def get(self, digest: str) -> dict[str, Any] | None:
        """Return the JSON object that is stored under a digest.

        Args:
            digest: A sha256, 64 hexadecimal digits.

        Returns:
            The stored object; None if there is none, or if it is damaged or unreadable.
        """
        path = self._path(digest)
        try:
            self._folder.check_trust(path.parent, path)
            result = json.loads(path.read_bytes())
            data = result["data"]
            return data if isinstance(data, dict) and result["sha256"] == digest_of(data) else None
        except (OSError, StoreError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def objects(self) -> Iterator[dict[str, Any]]:
        """Iterate over all stored objects, oldest first."""
        with contextlib.suppress(OSError):
            files = (self._folder.root / "notes" / self._kind).glob("*.json")
            for file in sorted(files, key=lambda file: file.stat().st_mtime):
                if DIGEST_PATTERN.fullmatch(file.stem) and (data := self.get(file.stem)) is not None:
                    yield data

    def put(self, digest: str, data: Mapping[str, Any]) -> None:
        """Store an object for `get`. If the cache is not writable, nothing is stored and no error is raised.

        Args:
            digest: A sha256, 64 hexadecimal digits.
            data: Values that JSON can represent.
        """
        path = self._path(digest)
        text = json.dumps({"data": dict(data), "sha256": digest_of(data)})
        try:
            self._folder.prepare()
            path.parent.mkdir(FOLDER_MODE, exist_ok=True)
            # In tmp/, where files of dead processes are deleted later.
            with replace_file(path, durable=False, folder=self._folder.tmp) as temporary:
                temporary.write_text(text, encoding="utf-8")
                remove_world_write(temporary)
        except (OSError, StoreError) as error:
            log.debug("%s is not kept: %s", path, error)
