"""Small facts under a sha256, such as what a weights file holds: ``notes/<kind>/<digest>.json`` in the cache."""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vsfdatrd.cache.directory import FOLDER_MODE, CacheFolder, take_from_all
from vsfdatrd.cache.manifest import digest_of
from vsfdatrd.errors import StoreError
from vsfdatrd.system.files import replacing

log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")


class MetadataCache:
    """Small JSON objects under a sha256, kept beside the engines, such as what a weights file holds."""

    def __init__(self, folder: CacheFolder, kind: str) -> None:
        """kind: lower-case letters, digits and hyphens; ValueError for others."""
        if not KIND.fullmatch(kind):
            raise ValueError(f"{kind!r} cannot name a kind of notes")
        self._folder, self._kind = folder, kind

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a sha256")
        return self._folder.root / "notes" / self._kind / f"{digest}.json"

    def recall(self, digest: str) -> dict[str, Any] | None:
        """What was remembered; None if nothing was, or it is damaged or cannot be read."""
        path = self._path(digest)
        try:
            self._folder.check_trust(path.parent, path)
            found = json.loads(path.read_bytes())
            data = found["data"]
            return data if isinstance(data, dict) and found["sha256"] == digest_of(data) else None
        except (OSError, StoreError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def every(self) -> Iterator[dict[str, Any]]:
        """All that was remembered, the oldest first."""
        with contextlib.suppress(OSError):
            files = (self._folder.root / "notes" / self._kind).glob("*.json")
            for file in sorted(files, key=lambda file: file.stat().st_mtime):
                if _DIGEST.fullmatch(file.stem) and (data := self.recall(file.stem)) is not None:
                    yield data

    def remember(self, digest: str, data: Mapping[str, Any]) -> None:
        """Keep `data` for `recall`. Where the cache cannot be written nothing is kept, and nothing is raised."""
        path = self._path(digest)
        text = json.dumps({"data": dict(data), "sha256": digest_of(data)})
        try:
            self._folder.prepare()
            path.parent.mkdir(FOLDER_MODE, exist_ok=True)
            # In tmp/, which is swept of what dead processes leave.
            with replacing(path, durable=False, folder=self._folder.tmp) as temporary:
                temporary.write_text(text, encoding="utf-8")
                take_from_all(temporary)
        except (OSError, StoreError) as error:
            log.debug("%s is not kept: %s", path, error)
