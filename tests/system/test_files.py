"""Files written whole or not at all, names cut to fit, numbers of bytes as text."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from vsfdatrd.system.files import (
    format_bytes,
    is_private,
    is_regular,
    max_name_bytes,
    replace_file,
    sha256_file,
    shorten_name,
    write_atomic,
)


@pytest.mark.parametrize("durable", [True, False])
def test_content_is_replaced_as_a_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, b"old", durable)
    with contextlib.suppress(KeyError), replace_file(path, durable) as new:
        new.write_text("half of")
        assert path.read_text() == "old"
        raise KeyError
    assert (path.read_text(), os.listdir(tmp_path)) == ("old", ["file.txt"])
    write_atomic(path, "néw", durable)
    assert path.read_bytes() == "néw".encode()
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("make", [os.symlink, os.link])
def test_links_are_replaced_and_not_followed(tmp_path: Path, make: object) -> None:
    victim, path = tmp_path / "victim", tmp_path / "path"
    victim.write_text("precious")
    make(victim, path)  # type: ignore[operator]
    write_atomic(path, "mine")
    assert (victim.read_text(), path.read_text(), path.is_symlink()) == ("precious", "mine", False)


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("魔" * ((max_name_bytes(tmp_path) - 4) // 3) + ".mkv")
    write_atomic(path, b"x")
    assert path.read_bytes() == b"x"


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with replace_file(tmp_path / "picture.png") as new:  # writers choose a format by it
        assert new.suffix == ".png"


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@pytest.mark.parametrize(
    "name", ["film.mkv", "x" * 247, "x" * 255, "魔" * 85, "e\u0301" * 80, "🎬" * 63 + ".mk", os.fsdecode(b"\xff" * 255)]
)
def test_shortened_names_fit_and_differ(name: str, tmp_path: Path) -> None:
    short = shorten_name(name, ".vsfdatrd", 255)
    assert len(os.fsencode(short)) <= 255
    assert short.endswith(".vsfdatrd")
    (tmp_path / short).mkdir()
    if len(os.fsencode(name)) <= 246:
        assert short == name + ".vsfdatrd"
    else:
        assert short != shorten_name(name[:-1] + "y", ".vsfdatrd", 255)
    assert len(os.fsencode(shorten_name(name, ".vsfdatrd", 143))) <= 143  # eCryptfs


def test_what_is_plain(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "lost").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    assert [is_regular(tmp_path / name) for name in ("file", ".", "nothing", "link", "lost", "pipe")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_what_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for mode, private in ((0o700, True), (0o755, True), (0o775, False), (0o777, False), (0o1777, False)):
        folder.mkdir(exist_ok=True)
        folder.chmod(mode)
        assert is_private(folder) is private
    folder.chmod(0o700)
    (tmp_path / "link").symlink_to(folder)
    assert not is_private(tmp_path / "link")
    if os.geteuid() == 0:
        os.chown(folder, 12345, -1)
        assert not is_private(folder)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 19, "2.5 MiB"), (3 << 40, "3072.0 GiB")]
)
def test_bytes_as_text(count: int, text: str) -> None:
    assert format_bytes(count) == text
