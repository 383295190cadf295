"""The visit to a GPU, rehearsed as a whole, and its parts: packing that can be undone, deadlines, the document."""

import json
import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_visit import pack, parts, record
from benchmarks.gpu_visit.parts import Part, run_all
from benchmarks.gpu_visit.record import Visit, find_problems
from benchmarks.gpu_visit.sizes import TINY

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_rehearsal() -> None:
    """On a machine without what the visited one lacks; with a training that is killed."""
    command = [sys.executable, "-m", "benchmarks.gpu_visit", "--rehearse"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1700, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MiB  in all, of 62" in done.stdout
    assert "nothing ran on a GPU" in done.stdout


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small git repository with two weights files, as `pack` sees the real one."""
    root = tmp_path / "tree"
    (root / "models").mkdir(parents=True)
    for name in ("fdat_rd_medium_2x", "fdat_rd_large_2x"):
        (root / "models" / f"{name}.safetensors").write_bytes(name.encode() * 1000)
    (root / "code.py").write_bytes(b"#" * 5000)
    (root / ".gitignore").write_text("/.gpu_visit*\n/runs/\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for name in ("PACK", "KEPT", "MODELS", "START", "COMMIT", "TILES", "VALIDATION", "CHECKPOINT", "ROOT"):
        monkeypatch.setattr(pack, name, root / getattr(pack, name).relative_to(ROOT))
    return root


def weights(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (root / "models").glob("*.safetensors")}


def test_packing_moves_weights_out_and_restoring_brings_them_back(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(tree)
    contents = dict(pack.pack(TINY))
    assert weights(tree) == {}
    assert contents["the tree without weights files"] < 6000
    packed = tree / ".gpu_visit" / "models" / "fdat_rd_medium_2x.safetensors.xz"
    assert lzma.decompress(packed.read_bytes()) == before["fdat_rd_medium_2x.safetensors"]
    assert pack.restore() == sorted(before)
    assert weights(tree) == before
    assert pack.restore() == []
    pack.pack(TINY)
    assert dict(pack.pack(TINY)) == contents, "packing twice is another pack"
    (tree / "models" / "fdat_rd_large_2x.safetensors").write_bytes(b"another")
    with pytest.raises(pack.PackError, match=r"another file than .*; remove one of them"):
        pack.restore()
    (tree / "models" / "fdat_rd_large_2x.safetensors").unlink()
    pack.unpack()
    assert weights(tree).keys() == {"fdat_rd_medium_2x.safetensors"}, "what was carried is not unpacked there"
    pack.restore()
    assert weights(tree) == before


def test_a_pack_that_is_too_large_is_refused_and_leaves_the_tree_as_it_was(tree: Path) -> None:
    before = weights(tree)
    with (tree / "film.mkv").open("wb") as file:
        file.truncate(pack.MOST)
    with pytest.raises(pack.PackError, match=r"have 62\.0 MiB, and 62 are the most: remove files"):
        pack.pack(TINY)
    assert weights(tree) == before
    (tree / "film.mkv").rename(tree / "runs.zip")
    with pytest.raises(pack.PackError, match=r"the training's tiles have 62\.0 MiB, and there is room for 60\."):
        pack.pack_training(TINY, None, tree / "runs.zip", 60 << 20)
    assert not pack.TILES.exists()
    with pytest.raises(pack.PackError, match=r"nowhere\.zip is no file"):
        pack.pack_training(TINY, None, tree / "nowhere.zip", 60 << 20)
    assert weights(tree) == before


def test_an_interrupted_packing_is_undone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(tree)
    moved = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if "medium" in self.name and target.parent == pack.KEPT:
            os.kill(os.getpid(), signal.SIGTERM)
        return moved(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(SystemExit):
        pack.pack(TINY)
    assert weights(tree) == before


def test_the_pack_of_this_tree_has_room_for_the_training() -> None:
    tree = pack.total_bytes([file for file in pack.files_to_copy(ROOT) if file not in pack.weights_files()])
    assert tree < 12 << 20, "the tree has grown: less than 50 MiB are left for what travels with it"


# A part's module that does what its name says; for the tests of deadlines.
MODULES = {
    "good": "def run(sizes, record):\n    record({'machine': {'gpu': None}})\n",
    "bad": "def run(sizes, record):\n"
    "    record({'ceilings': {'copy_gbs': 1.0}})\n"
    "    raise ValueError('no such GPU')\n",
    "long": "import time, subprocess, sys\n"
    "def run(sizes, record):\n"
    "    record({'tests': {'passed': 1}})\n"
    "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(999)']).wait()\n",
    "idle": "from benchmarks.gpu_visit.record import Skipped\n"
    "def run(sizes, record):\n"
    "    raise Skipped('there is none')\n",
}


@pytest.fixture
def modules(tmp_path: Path) -> dict[str, str]:
    """An environment in which `benchmarks.gpu_visit` has these modules."""
    folder = tmp_path / "modules"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / f"{name}.py").write_text(text)
    hook = f"import benchmarks.gpu_visit as p\np.__path__.append({str(folder)!r})\n"
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{hook}")
    return {"PYTHONPATH": str(folder)}


def test_every_part_is_recorded_whatever_becomes_of_it(
    modules: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", modules["PYTHONPATH"])
    visit = Visit(tmp_path / "out.json", "abc", rehearsal=True)
    run_all(visit, [Part("good", 200), Part("bad", 200), Part("long", 12), Part("idle", 200)], 900, {})
    document = json.loads(visit.file.read_text())
    assert find_problems(document) == []
    good, bad, long, idle = document["parts"]
    assert good["status"] == "ok"
    assert (bad["status"], bad["error"]) == ("failed", "ValueError: no such GPU")
    assert (long["status"], long["error"]) == ("timeout", "it was ended after 12 s")
    assert (idle["status"], idle["error"]) == ("skipped", "there is none")
    assert document["machine"] == {"gpu": None}
    assert document["ceilings"] == {"copy_gbs": 1.0}, "what a part found before it failed is lost"
    assert document["tests"] == {"passed": 1}, "what a part found before its deadline is lost"


def test_parts_that_no_time_is_left_for_are_skipped(tmp_path: Path) -> None:
    visit = Visit(tmp_path / "out.json", None, rehearsal=True)
    run_all(visit, [Part("machine", 60)], 1, {})
    assert visit.document["parts"] == [
        {"name": "machine", "status": "skipped", "seconds": 0, "error": "no time was left for it"}
    ]


def test_the_document_is_replaced_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "visit.json"
    record.write(file, {"a": [float("nan"), {"b": float("inf")}, (1, 2.5)]})
    assert json.loads(file.read_text()) == {"a": [None, {"b": None}, [1, 2.5]]}
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": 99}, "no visit of schema 1"),
        ({"parts": [{"name": "x", "status": "fine", "seconds": 1}]}, "the part x has no status"),
        ({"parts": [{"name": "x", "status": "failed", "seconds": 1}]}, "does not say why it is failed"),
        ({"engines": {}}, "engines is no list"),
        ({"engines": [{"precision": "fp16"}]}, "a row of engines lacks"),
        ({"surprise": 1}, "surprise is nothing that a visit has"),
    ],
)
def test_problems_of_a_document(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    document = Visit(tmp_path / "visit.json", None, rehearsal=True).document
    assert find_problems(document) == []
    assert any(sentence in problem for problem in find_problems(document | change))


def test_parts_have_modules_and_fit_into_the_call() -> None:
    for part in (*parts.FACTS, parts.TRAIN):
        assert (ROOT / "benchmarks" / "gpu_visit" / f"{part.name}.py").exists()
