"""Pickles with code are refused and not run."""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.weights.checkpoint.conftest import Tensors, refused


class _Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("how", ["zip", "legacy", "bare pickle 0", "bare pickle 2", "bare pickle 4", "bare pickle 5"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, state: Tensors, how: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "a.pth"
    tree = {**state, "extra": _Payload(ran)}
    if how == "zip":
        torch.save(tree, path)
    elif how == "legacy":
        torch.save(tree, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(_Payload(ran), protocol=int(how[-1])))
    output = refused(path)
    assert not ran.exists()
    if how.endswith("0"):  # nothing tells such a file from any other text
        assert "is neither a safetensors nor a PyTorch file" in output
    else:
        assert f"was refused because reading it would run code ({os.name}.mkdir)" in output
        assert "save its state_dict() as .safetensors" in output
    assert pickle.loads(pickle.dumps(_Payload(ran))) is None  # the payload does work
    assert ran.exists()


def test_whole_modules_are_refused(tmp_path: Path) -> None:
    for tree in (torch.nn.Conv2d(3, 3, 3), {"epoch": 3, "model": torch.nn.Conv2d(3, 3, 3)}):
        torch.save(tree, path := tmp_path / "a.pt")
        output = refused(path)
        assert "holds a Python object (torch.nn.modules.conv.Conv2d) instead of weights" in output
        assert "save its state_dict() as .safetensors" in output


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a/constants.pkl", b"\x80\x02)."), ("a/data.pkl", b"\x80\x02}."), ("a/version", b"3\n")):
            archive.writestr(name, content)
    assert "is a TorchScript program, which would run code" in refused(path)


def test_archives_that_are_no_weights(tmp_path: Path, state: Tensors) -> None:
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "weights are elsewhere")
    assert "is a zip archive without PyTorch weights; unpack it" in refused(path)


def test_compressed_archives_are_not_unpacked(tmp_path: Path, state: Tensors) -> None:
    torch.save(state, buffer := io.BytesIO())
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    assert "has compressed parts, which PyTorch does not write" in refused(path)


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path, state: Tensors) -> None:
    torch.save(state | {"conv_after.weight": torch.zeros(1).expand(2**20, 2**18)}, path := tmp_path / "a.pth")
    assert "claim to hold 1,099," in refused(path)


def test_sparse_tensors_are_not_weights(tmp_path: Path, state: Tensors) -> None:
    name = "conv_after.weight"
    torch.save(state | {name: state[name].to_sparse()}, path := tmp_path / "a.pth")
    assert f"lacks '{name}'" in refused(path)
