"""An empty cache, and engines that are a few files."""

from pathlib import Path

import pytest

from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Entry, Key

KEY = Key(
    weights="ab" * 32, graph="1", shape="720x540", precision="fp32", engine="openvino 2026.4", device="CPU", options="x"
)
BODY = bytes(range(256)) * 64
FILES = {"model.bin": BODY, "graph/model.xml": b"<net/>", "empty": b""}


class Builder:
    """Build function that writes FILES and counts its calls."""

    def __init__(self, files: dict[str, bytes] = FILES) -> None:
        self.files = files
        self.count = 0

    def __call__(self, directory: Path) -> None:
        assert list(directory.iterdir()) == []
        self.count += 1
        for name, content in self.files.items():
            (directory / name).parent.mkdir(exist_ok=True)
            (directory / name).write_bytes(content)


def read(directory: Path) -> dict[str, bytes]:
    """Load function that returns the files' contents."""
    return {name: (directory / name).read_bytes() for name in FILES}


def entry_of(store: EngineCache, key: Key = KEY) -> Entry:
    return next(entry for entry in store.entries() if entry.digest == key.digest)


def temporary(store: EngineCache) -> list[Path]:
    return list((store.directory / "store-1" / "tmp").iterdir())


@pytest.fixture
def store(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")
