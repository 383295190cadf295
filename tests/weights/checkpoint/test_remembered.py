"""Cached descriptors: what is cached, what need not be imported, and files that change."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import save_file

from tests.weights.checkpoint.conftest import Maker, Tensors
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.errors import CheckpointError


class _Memory:
    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def get(self, sha256: str) -> Mapping[str, Any] | None:
        return json.loads(self.kept[sha256]) if sha256 in self.kept else None

    def put(self, sha256: str, description: Mapping[str, Any]) -> None:
        self.kept[sha256] = json.dumps(description)


def test_descriptions_are_remembered_by_content(
    tmp_path: Path, state: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    memory = _Memory()
    first = open_checkpoint(path, cache=memory)
    assert memory.kept.keys() == {first.descriptor.sha256}
    monkeypatch.setattr("vsfdatrd.checkpoint._describe", lambda *_: pytest.fail("it was looked at again"))
    assert open_checkpoint(path, cache=memory).descriptor == first.descriptor
    path.rename(moved := tmp_path / "b.pth")
    assert open_checkpoint(moved, cache=memory).descriptor == first.descriptor


CHANGES: list[dict[str, Any]] = [
    {"parameters": "2"},
    {"config": 5},
    {"sha256": "0" * 64},
    {"config": {"heads": 1}},
    {"architecture": "FDAT", "scale": 2, "fdat": {"heads": 1}, "config": None},  # as 1.0 wrote it
    {"architecture": ["FDAT-RD"]},
    {"architecture": "a network of tomorrow"},
]


@pytest.mark.parametrize("change", CHANGES)
def test_memories_that_do_not_fit_are_ignored(tmp_path: Path, tensors: Tensors, change: dict[str, Any]) -> None:
    save_file(tensors, path := tmp_path / "a.safetensors")
    memory = _Memory()
    expected = open_checkpoint(path, cache=memory).descriptor
    memory.kept[expected.sha256] = json.dumps(expected.to_dict() | change)
    assert open_checkpoint(path, cache=memory).descriptor == expected
    memory.kept[expected.sha256] = "{}"
    assert open_checkpoint(path, cache=memory).descriptor == expected


def test_no_torch_for_safetensors_nor_for_what_is_remembered(tmp_path: Path, tiny_model: Path, state: Tensors) -> None:
    torch.save(state, path := tmp_path / "a.pth")
    known = open_checkpoint(path).descriptor.to_dict()
    (tmp_path / "known.json").write_text(json.dumps(known))
    script = f"""
import json, sys
from pathlib import Path
from vsfdatrd.checkpoint import open_checkpoint
open_checkpoint({str(tiny_model)!r}).tensors()
class Memory:
    def get(self, sha256): return json.loads(Path({str(tmp_path / "known.json")!r}).read_text())
open_checkpoint({str(path)!r}, cache=Memory())
sys.exit(any(name in sys.modules for name in ("torch", "spandrel", "vapoursynth")))
"""
    assert subprocess.run([sys.executable, "-W", "error", "-c", script], timeout=250).returncode == 0


def test_a_file_that_changes_meanwhile(tmp_path: Path, make_tensors: Maker) -> None:
    groups = (("channel", "dictionary"),)
    save_file(make_tensors(1, groups=groups), path := tmp_path / "a.safetensors")
    checkpoint = open_checkpoint(path)
    save_file(make_tensors(2, groups=groups), path)
    os.utime(path, ns=(1, 1))
    for read in (checkpoint.tensors, checkpoint.network):
        with pytest.raises(CheckpointError, match="was changed while it was in use; run the script again"):
            read()
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.tensors()
