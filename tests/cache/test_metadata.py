"""Small facts kept beside the engines."""

import pytest

from tests.cache.conftest import temporary
from vsfdatrd.cache.engine_cache import EngineCache


def test_notes(store: EngineCache) -> None:
    notes = store.notes("checkpoint")
    data = {"scale": 2, "groups": ["spatial", "channel"], "name": "Ä", "config": None, "x": 0.1}
    assert notes.recall("a" * 64) is None
    notes.remember("a" * 64, data)
    assert notes.recall("a" * 64) == data
    assert store.notes("other").recall("a" * 64) is None
    notes.remember("a" * 64, {"scale": 4})
    assert notes.recall("a" * 64) == {"scale": 4}
    assert temporary(store) == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"data": 1}', b'{"data": {"scale": 4}, "sha256": "0"}', b"\xff", b"[" * 100_000]
)
def test_damaged_notes_are_ignored(store: EngineCache, content: bytes) -> None:
    notes = store.notes("checkpoint")
    notes.remember("a" * 64, {"scale": 2})
    path = store.directory / "store-1" / "notes" / "checkpoint" / f"{'a' * 64}.json"
    assert path.is_file()
    path.write_bytes(content)
    assert notes.recall("a" * 64) is None
    notes.remember("a" * 64, {"scale": 2})
    assert notes.recall("a" * 64) == {"scale": 2}


def test_notes_stay_inside(store: EngineCache) -> None:
    for kind in ("", "../engines", "A", "a/b", "a.b"):
        with pytest.raises(ValueError, match="kind"):
            store.notes(kind)
    for digest in ("", "../x", "A" * 64, "a" * 63, "a" * 65):
        with pytest.raises(ValueError, match="sha256"):
            store.notes("checkpoint").recall(digest)
        with pytest.raises(ValueError, match="sha256"):
            store.notes("checkpoint").remember(digest, {})
