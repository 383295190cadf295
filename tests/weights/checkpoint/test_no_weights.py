"""Files that are not weights."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.weights.checkpoint.conftest import refused
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import CheckpointError


def test_missing(tmp_path: Path) -> None:
    message = refused(tmp_path / "no.pth")
    assert message == "the weights file 'FILE' does not exist; check the path, or give a name of the catalog"
    with pytest.raises(CheckpointError, match="cannot be opened"):
        open_checkpoint("a\0b.pth")


def test_directory(tmp_path: Path) -> None:
    assert "is a directory; give the path of a .safetensors or .pth file in it" in refused(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe.pth")
    assert "is a device or a pipe" in refused(path)


def test_unreadable(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(tiny_model.read_bytes())
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **options: Any) -> Any:  # what the system does to users who may not read it
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    assert "cannot be read ([Errno 13] Permission denied); check its permissions" in refused(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ""])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; download it again"),
        (b"<!DOCTYPE html><html><title>Not Found</title></html>", "is a web page or an XML file, not weights; the dow"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer, not the weights; fetch"),
        (np.random.default_rng(3).bytes(5000), "is neither a safetensors nor a PyTorch file|is damaged: it announces"),
        (b"\0", "is neither a safetensors nor a PyTorch file|is damaged: it announces a header"),
    ],
    ids=["empty", "web page", "lfs", "random", "one byte"],
)
def test_other_content(tmp_path: Path, content: bytes, message: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    result = refused(path)
    assert any(part in result for part in message.split("|"))


@pytest.mark.parametrize("content", [b"GGUF\3\0\0\0", b"\x89HDF\r\n", b"\x08\x07\x12\x07pytorch"])
def test_weights_of_other_programs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content + bytes(100))
    assert "; " in refused(path) or "not an image network" in refused(path)
