"""The cache of engines: built once, found again, repaired when damaged, whole after any death of its process."""

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vsfdatrd import cache_folder
from vsfdatrd import store as store_module
from vsfdatrd.errors import EngineBuildError, EngineError, EngineUnavailable, StoreError
from vsfdatrd.manifest import Entry, Key
from vsfdatrd.store import Store

KEY = Key(
    weights="ab" * 32, graph="1", shape="720x540", precision="fp32", engine="openvino 2026.4", device="CPU", options="x"
)
BODY = bytes(range(256)) * 64
FILES = {"model.bin": BODY, "graph/model.xml": b"<net/>", "empty": b""}


class Builder:
    """Writes FILES, and counts."""

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
    """A loader: the files themselves."""
    return {name: (directory / name).read_bytes() for name in FILES}


def entry_of(store: Store, key: Key = KEY) -> Entry:
    return next(entry for entry in store.entries() if entry.digest == key.digest)


def temporary(store: Store) -> list[Path]:
    return list((store.directory / "store-1" / "tmp").iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


# Identity


def test_digest_is_fixed() -> None:
    """Changing how keys are hashed makes every user rebuild: not by accident."""
    assert KEY.digest == "05c99514fdf863663f3427956109ef5d5b004702dbdfd212365bfdf2568adf55"


@pytest.mark.parametrize("name", [f.name for f in fields(Key)])
def test_every_field_counts(name: str, store: Store) -> None:
    builder = Builder()
    store.open(KEY, builder, read)
    store.open(replace(KEY, **{name: "another"}), builder, read)
    assert builder.count == 2


@given(st.lists(st.text(max_size=8), min_size=7, max_size=7), st.lists(st.text(max_size=8), min_size=7, max_size=7))
def test_different_keys_differ(one: list[str], other: list[str]) -> None:
    assert (Key(*one).digest == Key(*other).digest) == (one == other)


# Finding and building


def test_built_once(store: Store) -> None:
    builder = Builder()
    for _ in range(3):
        assert store.open(KEY, builder, read) == FILES
    assert builder.count == 1
    assert temporary(store) == []


def test_another_store_finds_it(store: Store) -> None:
    store.open(KEY, Builder(), read)
    builder = Builder()
    assert Store(store.directory).open(KEY, builder, read) == FILES
    assert builder.count == 0


def test_entry_tells_what_it_is(store: Store) -> None:
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
    store = Store(tmp_path / "cache")
    assert store.clear() == 0
    assert store.notes("checkpoint").recall("a" * 64) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [EngineBuildError("no"), KeyboardInterrupt(), OSError(errno.ENOENT, "no weights")])
def test_failed_build_leaves_nothing(store: Store, error: BaseException) -> None:
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


def test_build_without_files_is_refused(store: Store) -> None:
    with pytest.raises(EngineBuildError, match="left no file"):
        store.open(KEY, lambda directory: None, read)
    with pytest.raises(EngineBuildError, match=r"manifest\.json"):
        store.open(KEY, Builder({"manifest.json": b"{}"}), read)
    assert (temporary(store), store.entries()) == ([], [])


# Damage


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
        (_escape, "is not inside it"),
        (_a_file, "not a directory"),
        (_a_link, "not a directory"),
        (_empty, "manifest.json cannot be read"),
    ],
)  # fmt: skip
def test_damaged_entry_is_rebuilt(
    store: Store, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], reason: str
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


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), name=st.sampled_from([*FILES, "manifest.json"]))
def test_any_flipped_bit_is_harmless(store: Store, where: float, bit: int, name: str) -> None:
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


def test_entry_that_does_not_load_is_rebuilt_once(store: Store, caplog: pytest.LogCaptureFixture) -> None:
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


def test_new_engine_that_does_not_load_is_an_error(store: Store) -> None:
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


@pytest.mark.parametrize("error", [EngineUnavailable("the GPU is gone"), MemoryError()])
def test_engine_stays_when_the_machine_is_at_fault(store: Store, error: Exception) -> None:
    store.open(KEY, Builder(), read)

    def load(path: Path) -> None:
        raise error

    builder = Builder()
    with pytest.raises(type(error)):
        store.open(KEY, builder, load)
    assert builder.count == 0
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 0


def test_discard(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    store.discard(KEY, "nothing is there")
    assert not store.directory.exists()
    store.open(KEY, Builder(), read)
    store.discard(KEY, "wrong pictures")
    assert "wrong pictures" in caplog.text
    assert store.entries() == []


# Several processes


PRELUDE = """
import os, sys, time
from pathlib import Path
from vsfdatrd.manifest import Key
from vsfdatrd.store import Store
key = Key("ab" * 32, "1", "720x540", "fp32", "openvino 2026.4", "CPU", "x")
cache, log, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
def build(directory):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    (directory / "model.bin").write_bytes(bytes(range(256)) * 64)
    if mode == "hang":
        print("building", flush=True)
        time.sleep(600)
    time.sleep(float(mode))
print("ready", flush=True)
sys.stdin.readline()
print(len(Store(cache).open(key, build, lambda path: (path / "model.bin").read_bytes())), flush=True)
"""


def process(store: Store, log: Path, mode: str) -> "subprocess.Popen[str]":
    """A Python that opens KEY once a line arrives on its stdin."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PRELUDE, str(store.directory), str(log), mode],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def quiet(err: str) -> str:
    """What a process said besides that it waits, which it does on a busy machine."""
    return "".join(line for line in err.splitlines() if not line.startswith("fdatrd: waiting for another process"))


def test_eight_processes_build_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "builds"
    processes = [process(store, log, "0.5") for _ in range(8)]
    for each in processes:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in processes:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in processes:
        out, err = each.communicate(timeout=50)
        assert (each.returncode, out, quiet(err)) == (0, f"{len(BODY)}\n", "")
    assert len(log.read_text().split()) == 1
    assert temporary(store) == []


def test_kill_during_build(store: Store, tmp_path: Path) -> None:
    """The waiting process builds in its place; nothing of the dead one remains."""
    log = tmp_path / "builds"
    victim = process(store, log, "hang")
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write("\n")
    victim.stdin.flush()
    assert [victim.stdout.readline() for _ in range(2)] == ["ready\n", "building\n"]
    [left] = temporary(store)
    assert (left / "model.bin").exists()
    # A live builder's files are not swept by others, and its key does not hold up other keys.
    store.open(replace(KEY, shape="64x64"), Builder(), read)
    assert temporary(store) == [left]
    heir = process(store, log, "0")
    assert heir.stdin is not None
    heir.stdin.write("\n")
    heir.stdin.flush()
    time.sleep(0.5)
    assert heir.poll() is None
    victim.send_signal(signal.SIGKILL)
    victim.communicate(timeout=20)
    out, err = heir.communicate(timeout=20)
    assert (heir.returncode, out.split()[-1], quiet(err)) == (0, str(len(BODY)), "")
    assert len(log.read_text().split()) == 2
    store.open(KEY, Builder(), lambda path: None)
    assert temporary(store) == []


def test_waiting_is_announced(store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cache_folder, "_PATIENCE", 0.1)
    building, go_on = threading.Event(), threading.Event()

    def build(directory: Path) -> None:
        building.set()
        go_on.wait(20)
        Builder()(directory)

    first = threading.Thread(target=lambda: store.open(KEY, build, read))
    first.start()
    building.wait(20)
    results = []
    second = threading.Thread(target=lambda: results.append(store.open(KEY, build, read)))
    second.start()
    time.sleep(0.6)
    assert results == []
    go_on.set()
    first.join(20)
    second.join(20)
    assert results == [FILES]
    out, err = capfd.readouterr()
    assert out == ""
    assert "waiting for another process" in err
    assert "720x540" in err


def test_different_keys_build_at_once(store: Store) -> None:
    """Each builder waits until the other one has started too."""
    meeting = threading.Barrier(2, timeout=20)

    def build(directory: Path) -> None:
        meeting.wait()
        Builder()(directory)

    keys = [replace(KEY, shape=shape) for shape in ("64x64", "96x96")]
    threads = [threading.Thread(target=lambda k=k: store.open(k, build, read)) for k in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {entry.digest for entry in store.entries()} == {key.digest for key in keys}


def test_old_leftovers_are_swept(store: Store) -> None:
    store.open(KEY, Builder(), read)
    tmp = store.directory / "store-1" / "tmp"
    old, new = tmp / "note.1.aa", tmp / "note.2.bb"
    for path in (old, new):
        path.write_text("{")
    os.utime(old, (1000, 1000))
    dead = tmp / f"{'0' * 64}.99.cc"
    dead.mkdir()
    (dead / "half").write_bytes(BODY)
    store.open(KEY, Builder(), read)
    assert temporary(store) == [new]


# Eviction


def _sized(store: Store, name: str, used: float | None) -> Key:
    key = replace(KEY, shape=name)
    store.open(key, Builder({"model.bin": bytes(100_000)}), lambda path: None)
    if used is not None:
        os.utime(store.directory / "store-1" / "engines" / key.digest / "manifest.json", (used, used))
    return key


def _shapes(store: Store) -> list[str]:
    return [entry.fields["shape"] for entry in store.entries()]


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=350_000)
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
    store = Store(tmp_path, limit=0)
    _sized(store, "a", None)
    _sized(store, "b", 1000)
    assert sorted(_shapes(store)) == ["a", "b"]
    _sized(store, "c", 2000)
    assert sorted(_shapes(store)) == ["a", "c"]


def test_the_new_engine_stays_even_if_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_IN_USE", 0.0)
    store = Store(tmp_path, limit=0)
    for name in "abc":
        _sized(store, name, None)
        assert _shapes(store) == [name]


def test_engine_that_is_being_rebuilt_is_not_evicted(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=0)
    a = _sized(store, "a", 1000)
    with store._folder.lock_if_free(a.digest) as held:
        assert held
        _sized(store, "b", 1000)
    assert sorted(_shapes(store)) == ["a", "b"]


def test_damaged_entries_count_and_go(tmp_path: Path) -> None:
    store = Store(tmp_path, limit=150_000)
    a = _sized(store, "a", None)
    path = tmp_path / "store-1" / "engines" / a.digest
    (path / "manifest.json").unlink()
    os.utime(path, (1000, 1000))
    [entry] = store.entries()
    assert (entry.fields, entry.size, entry.used) == ({}, 100_000, 1000)
    _sized(store, "b", 2000)
    assert _shapes(store) == ["b"]


def test_removed_while_in_use(store: Store) -> None:
    """On POSIX a file that is open outlives its removal."""

    def load(path: Path) -> bytes:
        with (path / "model.bin").open("rb") as file:
            assert Store(store.directory).clear() == 1
            return file.read()

    store.open(KEY, Builder(), read)
    assert store.open(KEY, Builder(), load) == BODY
    assert store.entries() == []


@pytest.mark.parametrize(("given", "limit"), [("1", 2**30), ("0.5", 2**29), ("0", 0), ("", 20 * 2**30)])
def test_limit_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str, limit: int) -> None:
    monkeypatch.setenv("FDATRD_CACHE_LIMIT", given)
    assert Store(tmp_path).limit == limit


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf", "1 GiB"])
def test_wrong_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: str) -> None:
    monkeypatch.setenv("FDATRD_CACHE_LIMIT", given)
    with pytest.raises(StoreError, match=r"FDATRD_CACHE_LIMIT=.*GiB"):
        Store(tmp_path)


# The directory


def test_directory_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "env"))
    assert Store().directory == tmp_path / "env"
    assert Store(tmp_path / "given").directory == tmp_path / "given"
    monkeypatch.setenv("FDATRD_CACHE", "~/engines")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store().directory == tmp_path / "engines"
    monkeypatch.delenv("FDATRD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if sys.platform == "linux":
        assert Store().directory == tmp_path / ".cache" / "vsfdatrd"
    monkeypatch.chdir(tmp_path)
    relative = Store("here")
    monkeypatch.chdir("/")
    assert relative.directory == tmp_path / "here"


@pytest.mark.parametrize("where", [".", "below/it", "store-1"])
def test_file_in_the_way(tmp_path: Path, where: str) -> None:
    directory = tmp_path if where == "store-1" else tmp_path / "file" / where
    in_the_way = tmp_path / (where if where == "store-1" else "file")
    in_the_way.write_text("mine")
    store = Store(directory)
    builder = Builder()
    with pytest.raises(StoreError, match=rf"{in_the_way} is a file.*cache=.*FDATRD_CACHE"):
        store.open(KEY, builder, read)
    assert builder.count == 0
    store.notes("checkpoint").remember("a" * 64, {})
    assert in_the_way.read_text() == "mine"


def test_clear_leaves_what_is_not_ours(store: Store, tmp_path: Path) -> None:
    keys = [replace(KEY, shape=shape) for shape in "abc"]
    for key in keys:
        store.open(key, Builder(), read)
    store.notes("checkpoint").remember("a" * 64, {"scale": 2})
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
    assert store.notes("checkpoint").recall("a" * 64) is None
    assert temporary(store) == []
    assert precious.read_text() == beside.read_text() == (engines / "readme").read_text() == "mine"
    assert store.clear() == 0
    store.open(KEY, Builder(), read)


def test_directory_of_someone_else(tmp_path: Path) -> None:
    root = tmp_path / "store-1"
    precious = root / "engines" / KEY.digest / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    for call in (lambda: Store(tmp_path).clear(), lambda: Store(tmp_path).open(KEY, Builder(), read)):
        with pytest.raises(StoreError, match="was not made by vsfdatrd"):
            call()
    (root / "CACHEDIR.TAG").write_text("Signature: another program's")
    with pytest.raises(StoreError, match="was not made by vsfdatrd"):
        Store(tmp_path).clear()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("folder", ["", "engines", "tmp", "notes", "locks"])
def test_links_are_not_followed(store: Store, tmp_path: Path, folder: str) -> None:
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


def test_missing_folders_come_back(store: Store) -> None:
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
    store = Store(tmp_path)
    assert store.open(KEY, Builder(), read) == FILES
    assert store.clear() == 1


def test_no_space_reported_by_the_builder(store: Store) -> None:
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
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
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
    """A file system of its own of 4 MiB, mounted; only root can."""
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


def test_full_disk(disk: Path) -> None:
    store = Store(disk / "cache")
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
    store.notes("checkpoint").remember("a" * 64, {"text": "x" * 10_000})
    assert store.notes("checkpoint").recall("a" * 64) is None
    (disk / "filler").unlink()
    assert temporary(store) == []


def test_read_only_cache(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(disk / "cache")
    store.open(KEY, Builder(), read)
    store.notes("checkpoint").remember("a" * 64, {"scale": 2})
    (store.directory / "store-1" / "tmp" / f"{'e' * 64}.1.aa").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    builder = Builder()
    assert store.open(KEY, builder, read) == FILES
    assert builder.count == 0
    assert len(store.entries()) == 1
    assert store.notes("checkpoint").recall("a" * 64) == {"scale": 2}
    store.notes("checkpoint").remember("b" * 64, {"scale": 2})
    assert caplog.records == []

    def load(path: Path) -> None:
        raise EngineError("no")

    for act in (
        lambda: store.open(replace(KEY, shape="another"), builder, read),
        lambda: Store(disk / "new").open(KEY, builder, read),
        lambda: store.open(KEY, builder, load),
        lambda: store.clear(),
        lambda: store.discard(KEY, "no"),
    ):
        with pytest.raises(StoreError, match=rf"{disk}/.*cannot be written.*Read-only.*FDATRD_CACHE"):
            act()
    assert builder.count == 0


def test_directory_without_permission(tmp_path: Path) -> None:
    """For a user who is not root, in a process of its own."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("only root can become someone else")
    closed = Path(tempfile.mkdtemp())  # tmp_path's parents are closed to others
    closed.chmod(0o755)
    code = """
import os, sys
from vsfdatrd.manifest import Key
from vsfdatrd.store import Store
from vsfdatrd.errors import StoreError
os.setgid(65534); os.setuid(65534)
try:
    Store(sys.argv[1]).open(Key(*"abcdefg"), None, None)
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


# Notes


def test_notes(store: Store) -> None:
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
def test_damaged_notes_are_ignored(store: Store, content: bytes) -> None:
    notes = store.notes("checkpoint")
    notes.remember("a" * 64, {"scale": 2})
    path = store.directory / "store-1" / "notes" / "checkpoint" / f"{'a' * 64}.json"
    assert path.is_file()
    path.write_bytes(content)
    assert notes.recall("a" * 64) is None
    notes.remember("a" * 64, {"scale": 2})
    assert notes.recall("a" * 64) == {"scale": 2}


def test_notes_stay_inside(store: Store) -> None:
    for kind in ("", "../engines", "A", "a/b", "a.b"):
        with pytest.raises(ValueError, match="kind"):
            store.notes(kind)
    for digest in ("", "../x", "A" * 64, "a" * 63, "a" * 65):
        with pytest.raises(ValueError, match="sha256"):
            store.notes("checkpoint").recall(digest)
        with pytest.raises(ValueError, match="sha256"):
            store.notes("checkpoint").remember(digest, {})


def test_light() -> None:
    """A warm start pays for the cache, so it must not cost what it saves."""
    code = (
        "import sys, vsfdatrd.store; print(*{'torch', 'numpy', 'openvino', 'vapoursynth', 'asyncio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
