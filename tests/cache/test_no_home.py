"""The cache of a user without a home directory, as in containers that run as any number."""

import logging
from pathlib import Path

import pytest

from vsfdatrd.cache import engine_cache
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import ArgumentError, StoreError
from vsfdatrd.system.home import expand_user
from vsfdatrd.workers.spawn import child_environment


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary directory of a user without a home."""

    def nowhere(*_: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FDATRD_CACHE", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", nowhere)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    engine_cache._directory_without_home.cache_clear()
    return tmp_path


def test_engines_are_kept_in_a_temporary_directory(homeless: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        directory = EngineCache().directory
        assert EngineCache().directory == directory
    assert directory.parent == homeless
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [record.message for record in caplog.records] == [
        f"there is no home directory: built engines are kept in {directory}; set FDATRD_CACHE to a permanent directory"
    ]
    assert Path(child_environment()["HOME"]).parent == homeless


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_a_directory_that_others_could_have_made_is_not_used(homeless: Path, what: str) -> None:
    directory = EngineCache().directory
    directory.rmdir()
    engine_cache._directory_without_home.cache_clear()
    if what == "open to others":
        directory.mkdir()
        directory.chmod(0o777)
    elif what == "a link":
        (homeless / "other").mkdir(0o700)
        directory.symlink_to(homeless / "other")
    else:
        directory.touch()
    with pytest.raises(StoreError, match=r"there is no home directory .*; set FDATRD_CACHE to a directory"):
        EngineCache()


def test_homes_of_nobody() -> None:
    with pytest.raises(ArgumentError, match="there is no such home directory; give the full path"):
        expand_user("~nobody-of-this-name/x.pth")
    with pytest.raises(StoreError, match="set FDATRD_CACHE"):
        EngineCache("~nobody-of-this-name/cache")
