"""``vsfdatrd models`` as a user starts it: what is printed, and the exit status."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.artcnns import C_LUMA, R_CHROMA, random_tensors
from tests.fdats import fdat
from tests.onnx_files import write_doubler
from tests.silence import BLOCK_PATTERN, zero_some_branches
from vsfdatrd.cli import main
from vsfdatrd.weights import aliases, catalog
from vsfdatrd.weights.catalog import CATALOG, resolve_model


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty list of aliases and an empty cache."""
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FDATRD_MODELS", str(tmp_path / "models.toml"))
    return tmp_path / "models.toml"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A weights file that may be changed."""
    return Path(shutil.copy(tiny_model, tmp_path / "weights.safetensors"))


def test_a_model_of_ones_own_from_its_naming_to_its_end(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "add", str(model), "--name", "mine"]) == 0
    assert capsys.readouterr().out == f'mine: FDAT-RD, 2x, {model}; in scripts model="mine"\n'
    assert resolve_model("mine") == model

    assert main(["models", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split(maxsplit=3) == ["mine", "2x", "-", f"FDAT-RD, {model}"]

    assert main(["models", "verify"]) == 0
    assert f"mine: as it was when it was added, {model}" in capsys.readouterr().out

    assert main(["models", "info", "mine", "--json"]) == 0
    by_name = json.loads(capsys.readouterr().out)
    assert main(["info", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_name

    assert main(["models", "remove", "mine"]) == 0
    assert capsys.readouterr().out == f"mine removed; its file {model} stays\n"
    assert model.exists()
    assert main(["models", "info", "mine"]) == 1


def test_info_says_which_parts_are_at_work(
    make_tensors: Callable[..., dict[str, NDArray[Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "silent.safetensors"
    save_file(zero_some_branches(make_tensors(7, **BLOCK_PATTERN)), path)
    assert main(["models", "info", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["at work"] == "attention in 3, feed-forward networks in 2 of 6 blocks"
    tensors = make_tensors(7, **BLOCK_PATTERN)
    tensors["conv_after.weight"][0, 0] = np.nan
    save_file(tensors, path)
    assert main(["models", "info", str(path), "--json"]) == 0
    assert "not finite" in json.loads(capsys.readouterr().out)["at work"]


def test_info_of_an_artcnn_says_what_it_works_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for config, works, blocks in ((C_LUMA, "luma", "inner convolutions"), (R_CHROMA, "chroma", "residual blocks")):
        save_file(random_tensors(config), tmp_path / "artcnn.safetensors")
        assert main(["models", "info", str(tmp_path / "artcnn.safetensors"), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["architecture"], result["works on"], result["scale"]) == (config.name, works, config.scale)
        assert (result["filters"], result[blocks]) == (config.filters, config.blocks)
        assert result["TFLOP per 720×540 frame"] == round(config.flops(540, 720) / 1e12, 3)


def test_info_of_an_fdat_says_what_it_is_made_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("spandrel")
    path = fdat(tmp_path / "fdat.safetensors", window_size=5, unshuffle_mod=True).path
    assert main(["models", "info", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["architecture"], result["scale"], result["padded to multiples of"]) == ("FDAT", 2, 2)
    assert (result["embed_dim"], result["heads"], result["window"], result["unshuffle"]) == (32, 2, "5×5", 2)
    assert (result["groups"], result["blocks of a group"]) == (1, "spatial channel spatial channel")
    assert (result["ffn width"], result["upsampler"]) == (64, "transpose+conv")


def test_info_of_an_onnx_file_says_what_white_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(write_doubler(tmp_path / "x.onnx", channels=1)), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["works on"], result["white"]) == ("luma", "1 in its input, 1 in its output")


def test_relative_files_are_remembered_whole(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    assert main(["models", "add", model.name, "--name", "mine"]) == 0
    assert aliases.read_aliases()["mine"].file == model


def test_what_ships_is_listed_with_scale_and_license(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "scale", "license"]
    rows = {line.split()[0]: line.split() for line in lines}
    assert list(rows) == list(CATALOG)
    assert rows["medium"][1:3] == ["2x", "CC-BY-4.0"]
    assert rows["medium"][-1] == "fdat_rd_medium_2x.safetensors"


def test_verify_finds_what_is_not_as_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "verify"]) == 0
    out = capsys.readouterr().out
    assert "medium: as released, " in out
    assert "dvd: as released, " in out
    (tmp_path / CATALOG["medium"].file).write_bytes(b"something else")
    monkeypatch.setattr(catalog, "weights_folders", lambda: (tmp_path, tmp_path))
    assert main(["models", "verify"]) == 1
    assert "medium: the weights of model='medium'" in capsys.readouterr().out


def test_verify_finds_own_files_that_changed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["models", "add", str(model), "--name", "mine"])
    model.write_bytes(b"another file")
    assert main(["models", "verify"]) == 1
    assert "mine: not the file that was added; remove the name and add it again, " in capsys.readouterr().out
    model.unlink()
    assert main(["models", "verify"]) == 1
    assert "mine: the weights file" in capsys.readouterr().out
    assert main(["models", "list"]) == 0
    assert "does not exist" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("medium", b"", "belongs to a model that ships"),
        ("mine", b"", "is empty"),
        ("mine", b"<html>", "web page"),
        ("no name", b"", "is not possible"),
    ],
)
def test_what_cannot_be_used_is_not_added(
    tmp_path: Path, own: Path, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(content)
    assert main(["models", "add", str(file), "--name", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vsfdatrd: ")
    assert message in err
    assert not own.exists()


def test_what_ships_cannot_be_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "remove", "medium"]) == 1
    assert "ships with the package and cannot be removed" in capsys.readouterr().err


def test_a_broken_list_is_said(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.write_text("[models.a\n")
    for command in (["list"], ["verify"], ["remove", "a"]):
        assert main(["models", *command]) == 1
        assert "at line 1" in capsys.readouterr().err
