"""The cache of metadata next to the engines."""

import os

import pytest

from tests.cache.conftest import temporary
from vsfdatrd.cache.engine_cache import EngineCache


def test_notes(store: EngineCache) -> None:
    metadata = store.metadata("checkpoint")
    data = {"scale": 2, "groups": ["spatial", "channel"], "name": "Ä", "config": None, "x": 0.1}
    assert metadata.get("a" * 64) is None
    metadata.put("a" * 64, data)
    assert metadata.get("a" * 64) == data
    assert store.metadata("other").get("a" * 64) is None
    metadata.put("a" * 64, {"scale": 4})
    assert metadata.get("a" * 64) == {"scale": 4}
    assert temporary(store) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"data": 1}', b'{"data": {"scale": 4}, "sha256": "0"}', b"\xff", b"[" * 100_000]
)
def test_damaged_notes_are_ignored(store: EngineCache, content: bytes) -> None:
    metadata = store.metadata("checkpoint")
    metadata.put("a" * 64, {"scale": 2})
    path = store.directory / "store-1" / "notes" / "checkpoint" / f"{'a' * 64}.json"
    assert path.is_file()
    path.write_bytes(content)
    assert metadata.get("a" * 64) is None
    metadata.put("a" * 64, {"scale": 2})
    assert metadata.get("a" * 64) == {"scale": 2}


def test_the_oldest_note_comes_first(store: EngineCache) -> None:
    metadata = store.metadata("speed")
    folder = store.directory / "store-1" / "notes" / "speed"
    for n, letter in enumerate("cadb"):
        metadata.put(letter * 64, {"n": n})
        os.utime(folder / f"{letter * 64}.json", (n, n))
    (folder / f"{'d' * 64}.json").write_bytes(b"damaged")
    (folder / "readme.json").write_text("mine")
    assert list(metadata.objects()) == [{"n": 0}, {"n": 1}, {"n": 3}]
    assert list(store.metadata("other").objects()) == []


def test_notes_stay_inside(store: EngineCache) -> None:
    for kind in ("", "../engines", "A", "a/b", "a.b"):
        with pytest.raises(ValueError, match="kind"):
            store.metadata(kind)
    for digest in ("", "../x", "A" * 64, "a" * 63, "a" * 65):
        with pytest.raises(ValueError, match="sha256"):
            store.metadata("checkpoint").get(digest)
        with pytest.raises(ValueError, match="sha256"):
            store.metadata("checkpoint").put(digest, {})
