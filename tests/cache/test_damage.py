"""Engines that are damaged or do not load are built again."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cache.conftest import BODY, FILES, KEY, Builder, entry_of, read, temporary
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.errors import ArgumentError, EngineError, EngineUnavailable


def _truncate(entry: Path) -> None:
    os.truncate(entry / "model.bin", 100)


def _grow(entry: Path) -> None:
    with (entry / "model.bin").open("ab") as file:
        file.write(b"x")


def _flip(entry: Path) -> None:
    content = bytearray(BODY)
    content[5000] ^= 1
    (entry / "model.bin").write_bytes(content)


def _miss(entry: Path) -> None:
    (entry / "graph" / "model.xml").unlink()


def _link(entry: Path) -> None:
    (entry / "model.bin").rename(entry / "elsewhere")
    (entry / "model.bin").symlink_to("elsewhere")


def _folder(entry: Path) -> None:
    (entry / "model.bin").unlink()
    (entry / "model.bin").mkdir()


def _manifest(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(entry: Path) -> None:
        path = entry / "manifest.json"
        path.write_bytes(change(path.read_bytes()))

    return damage


def _escape(entry: Path) -> None:
    manifest = json.loads((entry / "manifest.json").read_text())
    manifest["files"]["../../../../secret"] = manifest["files"].pop("empty")
    (entry / "manifest.json").write_text(json.dumps(manifest))


def _no_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def _a_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_bytes(b"")


def _a_link(entry: Path) -> None:
    entry.rename(entry.parent / "elsewhere")
    entry.symlink_to("elsewhere")


def _empty(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.mkdir()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "model.bin has 100 bytes instead of 16384"),
        (_grow, "model.bin has 16385 bytes instead of 16384"),
        (_flip, "model.bin has changed"),
        (_miss, "model.xml cannot be read"),
        (_link, "model.bin is not a file"),
        (_folder, "model.bin is not a file"),
        (_no_manifest, "manifest.json cannot be read"),
        (_manifest(lambda text: b""), "manifest.json is damaged"),
        (_manifest(lambda text: text[:-10]), "manifest.json is damaged"),
        (_manifest(lambda text: b"\xff" + text), "manifest.json is damaged"),
        (_manifest(lambda text: b"[]"), "manifest.json is damaged"),
        (_manifest(lambda text: b"[" * 100_000), "manifest.json is damaged"),
        (_manifest(lambda text: text.replace(b"720x540", b"720x480")), "belongs to another engine"),
        (_manifest(lambda text: text.replace(b'"files": {', b'"files": {}, "x": {')), "belongs to another engine"),
        (_escape, "is not inside it"),
        (_a_file, "not a directory"),
        (_a_link, "not a directory"),
        (_empty, "manifest.json cannot be read"),
    ],
)
def test_damaged_entry_is_rebuilt(
    store: EngineCache, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
) -> None:
    store.open(KEY, Builder(), read)
    path = entry_of(store).path
    damage(path)
    builder = Builder()
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 1
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reason in line
    assert str(path) in line
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 1
    assert temporary(store) == []


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from([*FILES, "manifest.json"]))
def test_any_flipped_bit_is_harmless(store: EngineCache, where: float, bit: int, name: str) -> None:
    """Whatever bit flips in whichever file, what is loaded is what was built."""
    store.open(KEY, Builder(), read)
    path = entry_of(store).path / name
    content = bytearray(path.read_bytes())
    if content:
        content[int(where * len(content))] ^= 1 << bit
        path.write_bytes(content)
    builder = Builder()
    assert store.open(KEY, builder, read) == FILES
    if content and name != "manifest.json":
        assert builder.count == 1


def test_entry_that_does_not_load_is_rebuilt_once(store: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    old = Builder({"model.bin": b"of an older driver"})
    store.open(KEY, old, lambda path: None)

    def load(path: Path) -> bytes:
        if (content := (path / "model.bin").read_bytes()) != BODY:
            raise EngineError("wrong driver")
        return content

    new = Builder()
    assert store.open(KEY, new, load) == BODY
    assert new.count == 1
    assert "it does not load: wrong driver" in caplog.text


def test_new_engine_that_does_not_load_is_an_error(store: EngineCache) -> None:
    def load(path: Path) -> None:
        raise EngineError("never")

    builder = Builder()
    with pytest.raises(EngineError, match="never"):
        store.open(KEY, builder, load)
    assert builder.count == 1
    assert store.entries() == []
    store.open(KEY, builder, read)
    with pytest.raises(EngineError, match="never"):
        store.open(KEY, builder, load)
    assert builder.count == 3


@pytest.mark.parametrize(
    "error", [EngineUnavailable("the GPU is gone"), MemoryError(), ArgumentError("no such setting")]
)
def test_engine_stays_when_the_machine_is_at_fault(store: EngineCache, error: Exception) -> None:
    store.open(KEY, Builder(), read)

    def load(path: Path) -> None:
        raise error

    builder = Builder()
    with pytest.raises(type(error)):
        store.open(KEY, builder, load)
    assert builder.count == 0
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 0


def test_discard(store: EngineCache, caplog: pytest.LogCaptureFixture) -> None:
    store.discard(KEY, "nothing is there")
    assert not store.directory.exists()
    store.open(KEY, Builder(), read)
    store.discard(KEY, "wrong pictures")
    assert "wrong pictures" in caplog.text
    assert store.entries() == []
