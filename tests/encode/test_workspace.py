"""Working folders of encodes: long names, planted links, folders of other users."""

import os
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from filelock import FileLock

from tests.encode.conftest import Encode, moving, write
from vsfdatrd.cli import main
from vsfdatrd.encode import settings
from vsfdatrd.encode.chunk import EncodeParams, accept_file
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.ray.remote_tasks import EncodeOrder, clear, trial
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.workspace import open_workspace, resume_chunks
from vsfdatrd.errors import ArgumentError, EncodeError


def ascii_of(name: str) -> str:
    """A short name for a test."""
    return f"{name[0]!a}x{len(name)}"


IN_IT = ("script.vpy", "journal.json", "lock", "index.1.bsindex", "frame.json", "joined.mkv")


@pytest.mark.parametrize("kind", [os.symlink, os.link])
@pytest.mark.parametrize("name", IN_IT)
def test_links_to_files_are_refused(tmp_path: Path, name: str, kind: Callable[[Path, Path], None]) -> None:
    folder, victim = tmp_path / "out.mkv.vsfdatrd", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    kind(victim, folder / name)
    with pytest.raises(EncodeError, match=f"{name} is a link .*; remove it"), open_workspace(tmp_path / "out.mkv"):
        pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["", "chunks", "chunks/00001.mkv", "script.vpy"])
def test_links_to_folders_are_refused(tmp_path: Path, name: str) -> None:
    folder, victim = tmp_path / "out.mkv.vsfdatrd", tmp_path / "victim"
    victim.mkdir()
    (victim / "00001.mkv").write_text("precious")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(victim)
    with pytest.raises(EncodeError, match="is a link"), open_workspace(tmp_path / "out.mkv"):
        pass
    assert (victim / "00001.mkv").read_text() == "precious"
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(EncodeError, match="is a link"), open_workspace(tmp_path / "out.mkv"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_only_whole_and_unchanged_chunks_are_resumed(tmp_path: Path) -> None:
    with open_workspace(tmp_path / "out.mkv") as place:
        place.chunks.mkdir()
        film = write(moving(4), tmp_path / "film.mkv", "25")
        chunks = [Chunk(n, 4 * n, 4 * n + 4) for n in range(7)]
        journal = place.journal(pytest.fail)
        journal.begin({}, chunks)
        params = EncodeParams(place.script, (), Fraction(25), place.chunks)
        for chunk in chunks[:4]:
            shutil.copy(film, place.chunks / "new.mkv")
            journal.add(accept_file(place.chunks / "new.mkv", chunk, params, 1.0))
        other = film.read_bytes().replace(b"Lavf", b"lavF")  # as large and valid, but not what was recorded
        assert other != film.read_bytes()
        (place.chunks / chunks[0].name).write_bytes(other)
        (place.chunks / chunks[1].name).unlink()
        with (place.chunks / chunks[2].name).open("ab") as file:
            file.write(b"x")
        shutil.copy(film, place.chunks / chunks[4].name)  # killed before it was recorded
        shutil.copy(film, place.chunks / "00006.whole.mkv")  # killed before it was verified
        (place.chunks / "00007.whole.mkv").write_bytes(film.read_bytes()[:-100])
        (place.chunks / "00007.1234.tmp.mkv").write_bytes(b"x")
        result = resume_chunks(place, journal, params)
        assert [record.chunk for record in result] == chunks[3:6]
        assert sorted(os.listdir(place.chunks)) == [chunk.name for chunk in chunks[3:6]]
        assert place.journal(pytest.fail).done_chunks() == result


def test_a_link_planted_while_the_folder_is_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Path.mkdir

    def plant(folder: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        original(folder, mode, parents, exist_ok)
        (folder / "script.vpy").symlink_to(tmp_path / "victim")

    monkeypatch.setattr(Path, "mkdir", plant)
    with pytest.raises(EncodeError, match="is a link"), open_workspace(tmp_path / "out.mkv"):
        pass


def test_a_folder_that_another_process_has_just_removed_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(lock: FileLock, blocking: bool = True) -> None:
        shutil.rmtree(Path(lock.lock_file).parent)

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(EncodeError, match="has just finished"), open_workspace(tmp_path / "out.mkv"):
        pass


def test_a_link_is_a_sentence_of_the_command(encode: Encode, film: Path, tmp_path: Path) -> None:
    (tmp_path / "out.mkv.vsfdatrd").symlink_to(tmp_path)
    result = encode(film, tmp_path / "out.mkv")
    assert result.returncode == 1
    assert result.stderr.startswith(f"vsfdatrd: {tmp_path / 'out.mkv.vsfdatrd'} is a link")
    assert os.listdir(tmp_path) == ["out.mkv.vsfdatrd"]


@pytest.mark.parametrize(
    "name",
    [
        "x" * 251 + ".mkv",
        "魔" * 83 + ".mkv",
        "魔" * 81 + ".mkv",
        "e\u0301" * 83 + ".mp4",
        os.fsdecode(b"\xff" * 251) + ".mkv",
    ],
    ids=ascii_of,
)
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with open_workspace(tmp_path / name) as place:
        assert place.folder.is_dir()
        place.script.touch()
    assert os.listdir(tmp_path) == [name]


def test_long_names_cut_alike_have_folders_of_their_own(tmp_path: Path) -> None:
    with open_workspace(tmp_path / f"{'x' * 250}1.mkv") as one, open_workspace(tmp_path / f"{'x' * 250}2.mkv") as other:
        assert one.folder != other.folder
    with open_workspace(tmp_path / f"{'x' * 250}1.mkv") as again:
        assert again.folder == one.folder  # an interrupted encode is found again


@pytest.mark.parametrize("name", ["x" * 252 + ".mkv", "魔" * 84 + ".mkv"], ids=ascii_of)
def test_names_that_are_too_long_are_a_sentence(
    capsys: pytest.CaptureFixture[str], film: Path, tmp_path: Path, name: str
) -> None:
    size = len(os.fsencode(name))
    with pytest.raises(ArgumentError, match=f"has {size} bytes, and its folder allows 255; give a shorter name"):
        settings.pair_outputs([film, tmp_path / name], None)
    with pytest.raises(ArgumentError, match="give a shorter name with"):
        settings.pair_outputs([Path(name).with_suffix(".x")], tmp_path)
    for words in ((tmp_path / name, tmp_path / "out.mkv"), (film, tmp_path / ("y" * 300) / "out.mkv")):
        assert main(["encode", *map(str, words), "--model", "small", "--preset", "ffv1"]) == 1
        assert capsys.readouterr().err.startswith("vsfdatrd: ")


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EncodeOrder:
    """Of an encode on this machine, as one of a cluster, with a temporary folder of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    return EncodeOrder("output", "run", Environment("", {}, "", "", "", "", {}), "", Path("index"), None)


@pytest.mark.parametrize("plant", ["link", "writable", "group", "owner", "file"])
def test_a_temporary_folder_of_somebody_else_is_not_used(order: EncodeOrder, tmp_path: Path, plant: str) -> None:
    folder, other = tmp_path / "vsfdatrd-encode-somebody", tmp_path / "other"
    (other / "output").mkdir(parents=True)
    (other / "output" / "precious").touch()
    if plant == "link":
        folder.symlink_to(other)
    elif plant == "file":
        folder.touch()
    else:
        other.rename(folder)
        folder.chmod({"writable": 0o777, "group": 0o770, "owner": 0o700}[plant])
        if plant == "owner":
            if os.geteuid():
                pytest.skip("only root can give a folder away")
            os.chown(folder, 12345, 12345)
    messages = list(trial("here", {}, order, frozenset(["here"])))
    assert [one[0] for one in messages] == ["begun", "unfit"]
    assert "that another user owns or can write; remove it there" in messages[1][1]
    list(clear("here", {}, order))
    if plant != "file":
        assert (folder / "output" / "precious").exists()


def test_a_user_without_a_name_has_a_temporary_folder(
    order: EncodeOrder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    list(trial("here", {}, order, frozenset(["here"])))
    assert (tmp_path / f"vsfdatrd-encode-{os.getuid()}" / "output" / "run" / "script.vpy").exists()


def test_the_temporary_folder_is_private(order: EncodeOrder, tmp_path: Path) -> None:
    folder = tmp_path / "vsfdatrd-encode-somebody"
    for _ in range(2):
        messages = list(trial("here", {"index": b"x"}, order, frozenset(["here"])))
        assert "unfit" not in [one[0] for one in messages]  # it fails, but later: there is no film
        assert folder.stat().st_mode & 0o7777 == 0o700
        assert (folder / "output" / "run" / "script.vpy").exists()
        folder.chmod(0o755)  # as earlier versions made it
    list(clear("here", {}, order))
    assert not (folder / "output").exists()
