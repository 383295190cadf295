"""Errors of the file system: full disks, read-only disks, folders of other users."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cache.conftest import FILES, KEY, Builder, read, temporary
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import EngineBuildError, EngineError, StoreError


def test_no_space_reported_by_the_builder(store: EngineCache) -> None:
    def build(directory: Path) -> None:
        Builder()(directory)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StoreError, match=rf"no space is left.*{store.directory}.*FDATRD_CACHE"):
        store.open(KEY, build, read)
    assert (temporary(store), store.entries()) == ([], [])


@pytest.mark.parametrize("call", ["fsync", "rename"])
@pytest.mark.parametrize(
    ("number", "says"), [(errno.ENOSPC, "no space is left"), (errno.EACCES, "cannot be written"), (errno.EIO, "cannot")]
)
def test_system_error_after_the_build(
    store: EngineCache, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StoreError, match=rf"{says}.*FDATRD_CACHE"):
        store.open(KEY, Builder(), read)
    monkeypatch.undo()
    assert (temporary(store), store.entries()) == ([], [])
    assert store.open(KEY, Builder(), read) == FILES


@pytest.fixture
def disk() -> Iterator[Path]:
    """A mounted file system of 4 MiB, which only root can create."""
    path = Path(tempfile.mkdtemp())
    mounted = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount") is not None
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(path)]
    if not mounted or subprocess.run(command, capture_output=True).returncode:
        path.rmdir()
        pytest.skip("file systems cannot be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)
        path.rmdir()


def test_path_that_is_too_long(tmp_path: Path) -> None:
    store = EngineCache(tmp_path / ("x" * 300))
    key = "a" * 64
    for act in (lambda: store.open(KEY, Builder(), read), lambda: store.get_or_compute("speed", key, "timing", dict)):
        with pytest.raises(StoreError, match=r"cannot be used \(.*too long.*FDATRD_CACHE"):
            act()


def test_cache_that_is_deleted_during_a_build(store: EngineCache) -> None:
    def build(directory: Path) -> None:
        shutil.rmtree(store.directory)
        (directory / "model.bin").write_bytes(b"")

    with pytest.raises(StoreError, match=rf"{store.directory} cannot be used .*No such file.*FDATRD_CACHE"):
        store.open(KEY, build, read)


def test_full_disk(disk: Path) -> None:
    store = EngineCache(disk / "cache")
    store.open(KEY, Builder(), read)
    too_much = Builder({"model.bin": bytes(6 << 20)})
    with pytest.raises(StoreError, match=rf"no space is left.*{store.directory}.*cache=.*FDATRD_CACHE"):
        store.open(replace(KEY, shape="large"), too_much, read)
    assert temporary(store) == []

    def hidden(directory: Path) -> None:
        with contextlib.suppress(OSError):
            too_much(directory)
        raise EngineBuildError("the library said: failed")

    with pytest.raises(StoreError, match=r"no space is left.*the library said: failed"):
        store.open(replace(KEY, shape="large"), hidden, read)
    assert temporary(store) == []
    assert store.open(KEY, too_much, read) == FILES  # what was there still works
    with contextlib.suppress(OSError):
        (disk / "filler").write_bytes(bytes(6 << 20))
    store.metadata("checkpoint").put("a" * 64, {"text": "x" * 10_000})
    assert store.metadata("checkpoint").get("a" * 64) is None
    (disk / "filler").unlink()
    assert temporary(store) == []


def test_read_only_cache(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EngineCache(disk / "cache")
    store.open(KEY, Builder(), read)
    store.metadata("checkpoint").put("a" * 64, {"scale": 2})
    (store.directory / "store-1" / "tmp" / f"{'e' * 64}.1.aa").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    builder = Builder()
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 0
    assert len(store.entries()) == 1
    assert store.metadata("checkpoint").get("a" * 64) == {"scale": 2}
    store.metadata("checkpoint").put("b" * 64, {"scale": 2})
    assert caplog.records == []

    def load(path: Path) -> None:
        raise EngineError("no")

    for act in (
        lambda: store.open(replace(KEY, shape="another"), builder, read),
        lambda: EngineCache(disk / "new").open(KEY, builder, read),
        lambda: store.open(KEY, builder, load),
        lambda: store.clear(),
        lambda: store.discard(KEY, "no"),
    ):
        with pytest.raises(StoreError, match=rf"{disk}/.*cannot be written.*Read-only.*FDATRD_CACHE"):
            act()
    assert builder.count == 0


@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_directory_without_permission(mode: int) -> None:
    """For a user who is not root, in a process of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can become someone else")
    closed = Path(tempfile.mkdtemp())  # tmp_path's parents are closed to others
    closed.chmod(mode)
    code = """
import os, sys
from vsfdatrd.cache.manifest import Key
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import StoreError
os.setgid(65534); os.setuid(65534)
try:
    EngineCache(sys.argv[1]).open(Key(*"abcdefg"), None, None)
except StoreError as error:
    print(error)
"""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(closed / "cache")],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        closed.rmdir()
    assert f"the cache directory {closed}/cache cannot be written" in done.stdout
    assert "Permission denied" in done.stdout
