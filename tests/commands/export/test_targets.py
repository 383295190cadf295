"""Target files: formats by suffix, unwritable places, links, permissions."""

import errno
import os
import stat
import sys
from pathlib import Path

import pytest

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.commands.export import export
from vsfdatrd.errors import ArgumentError

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]


def test_suffixes_in_capitals(tiny_model: Path, target: Path) -> None:
    assert export(tiny_model, target.with_suffix(".ONNX"), size=(30, 30), verify=False).format == "onnx"


def test_targets_that_cannot_be_written(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "tensors", None)  # it is said before any work

    def refused(path: Path, message: str) -> None:
        with pytest.raises(ArgumentError, match=message):
            export(tiny_model, path, format="onnx")

    refused(target.parent / "none" / "x.onnx", "x.onnx' cannot be written: there is no directory '.*none'; create it")
    refused(target.parent, "out' is a directory or a device; give the path of a file")
    refused(Path("/dev/null"), "is a directory or a device")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    refused(target.with_name("a\0b"), r"cannot be written \(.*null.*\); give a path where you may write")
    refused(target.with_name("a" * 300), r"cannot be written \(File name too long\)")
    if sys.platform == "linux":  # a directory in which not even root may write
        refused(Path("/proc/x.onnx"), r"'/proc/x.onnx' cannot be written \(.*\); give a path where you may write")


def test_a_full_disk(tiny_model: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ArgumentError, match=r"x.onnx' cannot be written \(No space left on device\); give a path"):
        export(tiny_model, target, size=(30, 30))
    assert not list(target.parent.iterdir())


def test_the_models_own_file_stays(tiny_model: Path, target: Path) -> None:
    before = tiny_model.read_bytes()
    for path in (tiny_model, target.with_suffix(".safetensors")):
        if path != tiny_model:
            path.symlink_to(tiny_model)
        with pytest.raises(ArgumentError, match=r"is the model's own weights file; give the path of another"):
            export(tiny_model, path, precision="fp16")
    assert tiny_model.read_bytes() == before


def test_a_link_stays_one_and_permissions_are_usual(tiny_model: Path, target: Path, tmp_path: Path) -> None:
    target.symlink_to(tmp_path / "behind.onnx")
    mask = os.umask(0o027)
    try:
        export(tiny_model, target, size=(30, 30), verify=False)
    finally:
        os.umask(mask)
    assert target.is_symlink()
    assert stat.S_IMODE((tmp_path / "behind.onnx").stat().st_mode) == 0o640
