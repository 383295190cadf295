"""The cache has a size limit: the least recently used engines are removed first."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.conftest import BODY, KEY, Builder, read, temporary
from vsfdatrd.cache import engine_cache as store_module
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key
from vsfdatrd.errors import StoreError


def _sized(store: EngineCache, name: str, used: float | None) -> Key:
    key = replace(KEY, shape=name)
    store.open(key, Builder({"model.bin": bytes(100_000)}), lambda path: None)
    if used is not None:
        os.utime(store.directory / "store-1" / "engines" / key.digest / "manifest.json", (used, used))
    return key


def _shapes(store: EngineCache) -> list[str]:
    return [entry.fields["shape"] for entry in store.entries()]


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    store = EngineCache(tmp_path, limit=350_000)
    a = _sized(store, "a", 1000)
    _sized(store, "b", 1001)
    _sized(store, "c", 1002)
    assert _shapes(store) == ["a", "b", "c"]
    store.open(a, Builder(), lambda path: None)  # used again
    _sized(store, "d", 3000)
    assert sorted(_shapes(store)) == ["a", "c", "d"]
    _sized(store, "e", None)
    assert sorted(_shapes(store)) == ["a", "d", "e"]  # a is in use, so d would be next
    assert temporary(store) == []


def test_new_and_used_engines_stay(tmp_path: Path) -> None:
    store = EngineCache(tmp_path, limit=0)
    _sized(store, "a", None)
    _sized(store, "b", 1000)
    assert sorted(_shapes(store)) == ["a", "b"]
    _sized(store, "c", 2000)
    assert sorted(_shapes(store)) == ["a", "c"]


def test_the_new_engine_stays_even_if_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_IN_USE_SECONDS", 0.0)
    store = EngineCache(tmp_path, limit=0)
    for name in "abc":
        _sized(store, name, None)
        assert _shapes(store) == [name]


def test_engine_that_is_being_rebuilt_is_not_evicted(tmp_path: Path) -> None:
    store = EngineCache(tmp_path, limit=0)
    a = _sized(store, "a", 1000)
    with store._folder.lock_if_free(a.digest) as held:
        assert held
        _sized(store, "b", 1000)
    assert sorted(_shapes(store)) == ["a", "b"]


def test_damaged_entries_count_and_go(tmp_path: Path) -> None:
    store = EngineCache(tmp_path, limit=150_000)
    a = _sized(store, "a", None)
    path = tmp_path / "store-1" / "engines" / a.digest
    (path / "manifest.json").unlink()
    os.utime(path, (1000, 1000))
    [entry] = store.entries()
    assert (entry.fields, entry.size, entry.used) == ({}, 100_000, 1000)
    _sized(store, "b", 2000)
    assert _shapes(store) == ["b"]


def test_removed_while_in_use(store: EngineCache) -> None:
    """On POSIX a file that is open outlives its removal."""

    def load(path: Path) -> bytes:
        with (path / "model.bin").open("rb") as file:
            assert EngineCache(store.directory).clear() == 1
            return file.read()

    store.open(KEY, Builder(), read)
    assert store.open(KEY, Builder(), load) == BODY
    assert store.entries() == []


@pytest.mark.parametrize(("given", "limit"), [("1", 2**30), ("0.5", 2**29), ("0", 0), ("", 20 * 2**30)])
def test_limit_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, limit: int) -> None:
    monkeypatch.setenv("FDATRD_CACHE_LIMIT", given)
    assert EngineCache(tmp_path).limit == limit


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf", "1 GiB"])
def test_wrong_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str) -> None:
    monkeypatch.setenv("FDATRD_CACHE_LIMIT", given)
    with pytest.raises(StoreError, match=r"FDATRD_CACHE_LIMIT=.*GiB"):
        EngineCache(tmp_path)
