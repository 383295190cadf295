"""Engines are built once and then loaded from the cache; a failed build leaves no files."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from tests.cache.conftest import FILES, KEY, Builder, entry_of, read, temporary
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import EngineBuildError


def test_built_once(store: EngineCache) -> None:
    builder = Builder()
    for _ in range(3):
        assert store.open(KEY, builder, read) == FILES
    assert builder.count == 1
    assert temporary(store) == []


def test_another_store_finds_it(store: EngineCache) -> None:
    store.open(KEY, Builder(), read)
    builder = Builder()
    assert EngineCache(store.directory).open(KEY, builder, read) == FILES
    assert builder.count == 0


def test_entry_tells_what_it_is(store: EngineCache) -> None:
    before = time.time()
    assert store.entries() == []
    assert store.size == 0
    store.open(KEY, Builder(), read)
    entry = entry_of(store)
    assert entry.fields == {f.name: getattr(KEY, f.name) for f in fields(KEY)}
    assert entry.size == store.size >= sum(map(len, FILES.values()))
    assert before - 1 <= entry.built <= time.time() + 1
    os.utime(entry.path / "manifest.json", (1000, 1000))
    assert entry_of(store).used == 1000
    store.open(KEY, Builder(), read)
    assert entry_of(store).used >= before - 1


def test_nothing_happens_before_the_first_use(tmp_path: Path) -> None:
    store = EngineCache(tmp_path / "cache")
    assert store.clear() == 0
    assert store.metadata("checkpoint").get("a" * 64) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [EngineBuildError("no"), KeyboardInterrupt(), OSError(errno.ENOENT, "no weights")])
def test_failed_build_leaves_nothing(store: EngineCache, error: BaseException) -> None:
    def build(directory: Path) -> None:
        Builder()(directory)
        raise error

    with pytest.raises(type(error)) as caught:
        store.open(KEY, build, read)
    assert caught.value is error
    assert (temporary(store), store.entries()) == ([], [])
    builder = Builder()
    store.open(KEY, builder, read)
    assert builder.count == 1


def test_build_without_files_is_refused(store: EngineCache) -> None:
    with pytest.raises(EngineBuildError, match="left no file"):
        store.open(KEY, lambda directory: None, read)
    with pytest.raises(EngineBuildError, match=r"manifest\.json"):
        store.open(KEY, Builder({"manifest.json": b"{}"}), read)
    assert (temporary(store), store.entries()) == ([], [])


def test_light() -> None:
    """A warm start pays for the cache, so it must not cost what it saves."""
    heavy = "{'torch', 'numpy', 'openvino', 'vapoursynth', 'asyncio'}"
    code = f"import sys, vsfdatrd.cache.engine_cache; print(*{heavy} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
