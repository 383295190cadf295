"""Location of the cache, and files in it that are not engines."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.conftest import FILES, KEY, Builder, read, temporary
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import StoreError


def test_directory_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "env"))
    assert EngineCache().directory == tmp_path / "env"
    assert EngineCache(tmp_path / "given").directory == tmp_path / "given"
    monkeypatch.setenv("FDATRD_CACHE", "~/engines")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EngineCache().directory == tmp_path / "engines"
    monkeypatch.delenv("FDATRD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if sys.platform == "linux":
        assert EngineCache().directory == tmp_path / ".cache" / "vsfdatrd"
    monkeypatch.chdir(tmp_path)
    relative = EngineCache("here")
    monkeypatch.chdir("/")
    assert relative.directory == tmp_path / "here"


@pytest.mark.parametrize("where", [".", "below/it", "store-1"])
def test_file_in_the_way(tmp_path: Path, where: str) -> None:
    directory = tmp_path if where == "store-1" else tmp_path / "file" / where
    in_the_way = tmp_path / (where if where == "store-1" else "file")
    in_the_way.write_text("mine")
    store = EngineCache(directory)
    builder = Builder()
    with pytest.raises(StoreError, match=rf"{in_the_way} is a file.*cache=.*FDATRD_CACHE"):
        store.open(KEY, builder, read)
    assert builder.count == 0
    store.metadata("checkpoint").put("a" * 64, {})
    assert in_the_way.read_text() == "mine"


def test_clear_leaves_what_is_not_ours(store: EngineCache, tmp_path: Path) -> None:
    keys = [replace(KEY, shape=shape) for shape in "abc"]
    for key in keys:
        store.open(key, Builder(), read)
    store.metadata("checkpoint").put("a" * 64, {"scale": 2})
    outside = tmp_path / "outside"
    outside.mkdir()
    precious = outside / "precious"
    precious.write_text("mine")
    beside = store.directory / "script.vpy"
    beside.write_text("mine")
    engines = store.directory / "store-1" / "engines"
    (engines / "readme").write_text("mine")
    (engines / ("f" * 64)).symlink_to(outside)
    (engines / keys[0].digest / "link").symlink_to(outside)
    (store.directory / "store-1" / "tmp" / f"{'e' * 64}.1.aa").symlink_to(outside)
    assert store.clear() == 3
    assert store.entries() == []
    assert store.metadata("checkpoint").get("a" * 64) is None
    assert temporary(store) == []
    assert precious.read_text() == beside.read_text() == (engines / "readme").read_text() == "mine"
    assert store.clear() == 0
    store.open(KEY, Builder(), read)


def test_state_goes_with_its_engine(store: EngineCache) -> None:
    keys = [replace(KEY, shape=shape) for shape in "abc"]
    for key in keys:
        store.open(key, Builder(), read)
        store.state(key).mkdir()
        (store.state(key) / "kernels").write_text("compiled")
    store.discard(keys[0], "no")
    assert not store.state(keys[0]).exists()
    with store._folder.lock_if_free(keys[1].digest):  # as while it is built again
        assert store.clear() == 1
    assert [store.state(key).exists() for key in keys] == [False, True, False]
    shutil.rmtree(store.directory / "store-1" / "engines" / keys[1].digest)
    assert store.clear() == 0
    assert not store.state(keys[1]).exists()


def test_directory_of_someone_else(tmp_path: Path) -> None:
    root = tmp_path / "store-1"
    precious = root / "engines" / KEY.digest / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    for call in (lambda: EngineCache(tmp_path).clear(), lambda: EngineCache(tmp_path).open(KEY, Builder(), read)):
        with pytest.raises(StoreError, match="was not made by vsfdatrd"):
            call()
    (root / "CACHEDIR.TAG").write_text("Signature: another program's")
    with pytest.raises(StoreError, match="was not made by vsfdatrd"):
        EngineCache(tmp_path).clear()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("folder", ["", "engines", "tmp", "notes", "locks"])
def test_links_are_not_followed(store: EngineCache, tmp_path: Path, folder: str) -> None:
    store.open(KEY, Builder(), read)
    path = store.directory / "store-1" / folder
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    precious = outside / f"{'d' * 64}.1.aa"
    precious.write_text("mine")
    with pytest.raises(StoreError, match="is a link"):
        store.clear()
    with pytest.raises(StoreError, match="is a link"):
        store.open(replace(KEY, shape="another"), Builder(), read)
    assert precious.read_text() == "mine"


def test_missing_folders_come_back(store: EngineCache) -> None:
    """Someone tidied up inside."""
    root = store.directory / "store-1"
    for act in (lambda: store.clear(), lambda: store.discard(KEY, "no")):
        store.open(KEY, Builder(), read)
        for name in ("tmp", "locks", "notes"):
            shutil.rmtree(root / name)
        act()
        assert store.entries() == []
    shutil.rmtree(root / "engines")
    assert store.entries() == []
    assert store.open(KEY, Builder(), read) == FILES


def test_half_made_directory_is_completed(tmp_path: Path) -> None:
    (tmp_path / "store-1").mkdir()
    (tmp_path / "store-1" / "CACHEDIR.TAG").write_text("Sign")  # killed while writing it
    store = EngineCache(tmp_path)
    assert store.open(KEY, Builder(), read) == FILES
    assert store.clear() == 1
