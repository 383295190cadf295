"""Names and paths of models."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from vsfdatrd.errors import ArgumentError, CheckpointError
from vsfdatrd.weights import catalog
from vsfdatrd.weights.catalog import CATALOG, Model, resolve_model

MODELS = Path(__file__).resolve().parents[2] / "models"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights file (its content does not matter here) that ships as `medium`, and no other."""
    folder = tmp_path / "package" / "models"
    folder.mkdir(parents=True)
    path = folder / "fdat_rd_medium_2x.safetensors"
    path.write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    for name, model in CATALOG.items():
        if model.file == path.name:
            monkeypatch.setitem(CATALOG, name, dataclasses.replace(model, sha256=digest))
    monkeypatch.setattr(catalog, "weights_folders", lambda: (tmp_path / "absent", folder))
    return path


def test_names() -> None:
    assert list(CATALOG) == ["small", "medium", "dvd", "aligned", "large", "ld", "clean"]
    for other in ("dvd", "aligned"):
        assert CATALOG[other] == dataclasses.replace(CATALOG["medium"], name=other)
    assert all(model.scale == 2 for model in CATALOG.values())


@pytest.mark.parametrize("model", CATALOG.values(), ids=lambda model: model.name)
def test_every_model_has_a_card_with_its_license(model: Model) -> None:
    card = (MODELS / model.card).read_text(encoding="utf-8")
    assert model.license in card
    assert model.file in card


def test_shipped_weights_are_there() -> None:
    from vsfdatrd.checkpoint import open_checkpoint

    for model in CATALOG.values():
        result = open_checkpoint(resolve_model(model.name)).descriptor
        assert (result.sha256, result.scale, result.name) == (model.sha256, model.scale, "FDAT-RD")


@pytest.mark.parametrize("name", ["medium", "aligned", "Medium"])
def test_a_name_is_its_file(shipped: Path, name: str) -> None:
    assert resolve_model(name) == shipped


def test_a_wheel_comes_before_a_checkout(shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "installed"
    inside.mkdir()
    (inside / shipped.name).write_bytes(b"weights")
    monkeypatch.setattr(catalog, "weights_folders", lambda: (inside, shipped.parent))
    assert resolve_model("medium") == inside / shipped.name


def test_where_weights_are_looked_for() -> None:
    package = Path(catalog.__file__).parents[1]
    assert catalog.weights_folders() == (package / "models", package.parent / "models")


def test_a_name_comes_before_a_file(shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "medium").write_bytes(b"another")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("medium") == shipped
    assert resolve_model("./medium") == Path("medium")


def test_damaged_installation(shipped: Path) -> None:
    shipped.write_bytes(b"weighty")
    with pytest.raises(CheckpointError, match="are not those that were released; reinstall the package: pip install"):
        resolve_model("medium")


def test_missing_from_the_installation(shipped: Path) -> None:
    shipped.unlink()
    with pytest.raises(CheckpointError, match=r"are missing: fdat_rd_medium_2x.safetensors is neither in .*; re"):
        resolve_model("medium")


@pytest.mark.parametrize(("given", "near"), [("mediun", "medium"), ("aligne", "aligned"), ("smal", "small")])
def test_unknown_name_with_a_near_one(given: str, near: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        resolve_model(given)
    assert str(caught.value) == (
        f"model={given!r} is neither a name of the catalog nor a file; did you mean {near!r}? "
        "Give one of small, medium, dvd, aligned, large, ld, clean, or the path of a .safetensors, .pth, .onnx or "
        ".glsl file"
    )


def test_a_file_of_that_name_is_still_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").write_bytes(b"w")
    assert resolve_model("./large") == Path("large")


def test_unknown_name_without_a_near_one() -> None:
    with pytest.raises(ArgumentError, match=r"model='zzz' is neither a name of the catalog nor a file\. Give one of"):
        resolve_model("zzz")


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "weights").write_bytes(b"w")
    assert resolve_model("~/a.pth") == tmp_path / "a.pth"
    assert resolve_model("weights") == Path("weights")
    assert resolve_model("absent.pth") == Path("absent.pth")
    assert resolve_model("no/such") == Path("no/such")
    assert resolve_model(tmp_path / "weights") == tmp_path / "weights"


def test_what_cannot_be_a_path() -> None:
    with pytest.raises(ArgumentError, match="cannot be a path"):
        resolve_model("~no-such-user-here/weights.pth")
