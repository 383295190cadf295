"""Ownership of the cache: engines contain code, and those of other users are not loaded."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cache.conftest import KEY, Builder, read
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import StoreError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")

ENGINE = f"engines/{KEY.digest}"
PLACES = [
    ".",
    "engines",
    ENGINE,
    f"{ENGINE}/manifest.json",
    f"{ENGINE}/graph",
    f"{ENGINE}/graph/model.xml",
    "notes",
    "state",
    f"state/{KEY.digest}",
    "locks",
    "tmp",
]
STRANGER = 54321


def given_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, STRANGER, -1)


def opened(path: Path) -> None:
    path.chmod(0o777)


@pytest.fixture
def filled(store: EngineCache) -> EngineCache:
    """A cache with an engine and a note."""
    store.open(KEY, Builder(), read)
    store.metadata("checkpoint").put("a" * 64, {"scale": 2})
    store.state(KEY).mkdir(exist_ok=True)
    return store


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("spoil", "words"), [(given_away, "belongs to another user"), (opened, "every user may write")]
)
def test_what_others_could_have_put_there_is_not_loaded(
    filled: EngineCache, place: str, spoil: Callable[[Path], None], words: str
) -> None:
    path = filled.directory / "store-1" / place
    spoil(path)
    builder = Builder()
    with pytest.raises(StoreError, match=rf"{path}.*; .*cache=.*FDATRD_CACHE") as caught:
        filled.open(KEY, builder, lambda _: pytest.fail("a planted engine was loaded"))
    assert words in str(caught.value)
    assert builder.count == 0
    if not place.startswith(("engines/", "state/")):
        assert filled.metadata("checkpoint").get("a" * 64) is None


@pytest.mark.parametrize("spoil", [given_away, opened])
@pytest.mark.parametrize("place", ["notes/checkpoint", f"notes/checkpoint/{'a' * 64}.json"])
def test_a_note_of_somebody_else_is_no_note(filled: EngineCache, place: str, spoil: Callable[[Path], None]) -> None:
    spoil(filled.directory / "store-1" / place)
    assert filled.metadata("checkpoint").get("a" * 64) is None
    filled.open(KEY, Builder(), read)


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_what_is_made_here_is_trusted_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        for _ in range(2):
            store = EngineCache(tmp_path / "cache")
            assert store.open(KEY, Builder(), read)
            store.metadata("checkpoint").put("a" * 64, {"scale": 2})
            assert store.metadata("checkpoint").get("a" * 64) == {"scale": 2}
    finally:
        os.umask(before)
    made = list((tmp_path / "cache/store-1").rglob("*"))
    loaded = [path for path in made if path.is_dir() or path.parts[-2] not in ("locks", "store-1")]
    assert not [path for path in loaded if path.stat().st_mode & 2]


def test_a_folder_for_all_may_hold_a_cache_of_ones_own(tmp_path: Path) -> None:
    """Such as /tmp, in which nobody can exchange what belongs to somebody else."""
    tmp_path.chmod(0o1777)
    EngineCache(tmp_path).open(KEY, Builder(), read)
    EngineCache(tmp_path).open(KEY, Builder(), read)


def test_what_the_administrator_made_is_trusted(filled: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in [filled.directory, *filled.directory.rglob("*")]:
        given_away(path)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)  # now they are ours
    filled.open(KEY, Builder(), read)
    os.chown(filled.directory / "store-1", 0, -1)
    filled.open(KEY, Builder(), read)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(StoreError, match="belongs to another user"):
        filled.open(KEY, Builder(), read)
    monkeypatch.setenv("SUDO_UID", str(STRANGER))
    filled.open(KEY, Builder(), read)
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER + 1)  # anybody can set the variable, but not become root
    with pytest.raises(StoreError, match="belongs to another user"):
        filled.open(KEY, Builder(), read)
