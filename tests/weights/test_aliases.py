"""The user's own models: read by hand or by command, and never left broken."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from vsfdatrd.errors import ArgumentError
from vsfdatrd.weights import aliases
from vsfdatrd.weights.aliases import ModelAlias
from vsfdatrd.weights.catalog import CATALOG, resolve_model


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of the test's own, which is not there yet."""
    path = tmp_path / "config" / "models.toml"
    monkeypatch.setenv("FDATRD_MODELS", str(path))
    return path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_it_lies_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FDATRD_MODELS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert aliases.aliases_path() == tmp_path / "vsfdatrd" / "models.toml"


def test_there_are_none_at_first() -> None:
    assert aliases.read_aliases() == {}


@pytest.mark.parametrize(
    "path",
    [
        "/films/weights.onnx",
        '/a "quoted" name\\with\tall\x7f.pth',
        "/ünï/コード.glsl",
    ],
)
def test_what_is_added_is_read_and_what_is_removed_is_gone(file: Path, path: str) -> None:
    one, other = ModelAlias("sharp", Path(path), "ab" * 32), ModelAlias("soft-2_x", Path("/other.pth"))
    aliases.add_alias(one, CATALOG)
    aliases.add_alias(other, CATALOG)
    assert aliases.read_aliases() == {"sharp": one, "soft-2_x": other}
    assert resolve_model("sharp") == resolve_model("Sharp") == Path(path)
    assert aliases.remove_alias("sharp").name == "sharp"
    assert aliases.read_aliases() == {"soft-2_x": other}
    assert {left.name for left in file.parent.iterdir()} <= {file.name, f".{file.name}.lock"}


def test_models_added_at_the_same_time_are_all_there() -> None:
    names = [f"model-{number}" for number in range(12)]
    with ThreadPoolExecutor(len(names)) as pool:
        for added in [pool.submit(aliases.add_alias, ModelAlias(name, Path("/a.pth")), CATALOG) for name in names]:
            added.result()
    assert sorted(aliases.read_aliases()) == sorted(names)


def test_a_file_that_another_program_changes_for_too_long(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "_LOCK_SECONDS", 0.01)
    file.parent.mkdir()
    with FileLock(file.with_name(".models.toml.lock")), pytest.raises(ArgumentError, match="by another program"):
        aliases.add_alias(ModelAlias("sharp", Path("/a.pth")), CATALOG)


def test_what_was_written_by_hand_stays(file: Path) -> None:
    before = '# mine\n\n[models.a]\nfile = "a.pth" # the first\n\n[ models . "b" ]\nfile = "b.pth"\n\n[other]\nx = 1\n'
    write(file, before)
    aliases.add_alias(ModelAlias("c", Path("/c.pth")), CATALOG)
    aliases.remove_alias("b")
    text = before.replace('[ models . "b" ]\nfile = "b.pth"\n\n[other]', '[models.c]\nfile = "/c.pth"\n[other]')
    assert file.read_text(encoding="utf-8") == text
    assert aliases.read_aliases()["a"].file == file.parent / "a.pth"  # beside the list


@pytest.mark.parametrize("name", ["medium", "small", "", "a.pth", "a b", "../a", "-x", "Ä", "x" * 65, "a/b", "UPPER"])
def test_names_that_cannot_be(file: Path, name: str) -> None:
    with pytest.raises(ArgumentError, match=r"the name .* (is not possible|belongs to a model that ships)"):
        aliases.add_alias(ModelAlias(name, Path("/a.pth")), CATALOG)
    assert not file.exists()


def test_a_name_written_by_hand_may_have_capitals(file: Path) -> None:
    write(file, '[models.Sharp]\nfile = "a.pth"\n')
    assert resolve_model("Sharp") == resolve_model("sharp") == file.parent / "a.pth"
    assert aliases.remove_alias("Sharp").name == "Sharp"


def test_a_name_is_given_once() -> None:
    aliases.add_alias(ModelAlias("sharp", Path("/a.pth")), CATALOG)
    with pytest.raises(ArgumentError, match=r"there is a model 'sharp' already, '/a.pth'; .*models remove sharp"):
        aliases.add_alias(ModelAlias("sharp", Path("/b.pth")), CATALOG)


def test_removing_what_is_not_there() -> None:
    aliases.add_alias(ModelAlias("sharp", Path("/a.pth")), CATALOG)
    with pytest.raises(ArgumentError, match="no model of your own called 'shrap'; there are: sharp"):
        aliases.remove_alias("shrap")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[models.a\nfile = 1", r"at line 1, column"),
        ('[models.a]\nfile = "a"\n\n[models.b]\nfile = 3\n', r"its model 'b' needs file .* \(at line 4\)"),
        ('# x\n[models]\nb = "b.pth"\n', r"its model 'b' needs file .* \(at line 3\)"),
        ('[models.b]\nfile = "b"\nsha256 = 5\n', r"its model 'b' needs file .* \(at line 1\)"),
        ('[models.b]\nfile = ""\n', r"needs file"),
        ("\nmodels = [1]\n", r'"models" is not a table but \[1\] \(at line 2\)'),
        ("x = " + "[" * 5000, "cannot be read"),
        ("#\n" * (1 << 17), "more than 128 KiB"),
    ],
)
def test_a_broken_list_is_a_sentence_with_its_path(file: Path, text: str, why: str) -> None:
    write(file, text)
    for attempt in (
        aliases.read_aliases,
        lambda: resolve_model("sharp"),
        lambda: aliases.remove_alias("a"),
        lambda: aliases.add_alias(ModelAlias("c", Path("/c")), CATALOG),
    ):
        with pytest.raises(ArgumentError, match=why) as caught:
            attempt()
        assert repr(str(file)) in str(caught.value)
        assert "correct it, or move it away" in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


def test_a_broken_list_stops_nobody_who_does_not_need_it(file: Path) -> None:
    write(file, "[broken")
    assert resolve_model("medium").name == "fdat_rd_medium_2x.safetensors"
    assert resolve_model("./sharp.pth") == Path("sharp.pth")
    assert resolve_model("sharp.pth") == Path("sharp.pth")


def test_bytes_that_are_no_text_are_a_sentence(file: Path) -> None:
    write(file, "")
    file.write_bytes(b"[models.a]\nfile = '\xff'\n")
    with pytest.raises(ArgumentError, match=r"cannot be read: .*utf-8"):
        aliases.read_aliases()


def test_a_list_in_a_way_of_its_own_is_left_alone(file: Path) -> None:
    text = 'models.a.file = "a.pth"\nmodels.c.file = "c.pth"\n'
    write(file, text)
    assert aliases.read_aliases()["a"].file.name == "a.pth"
    with pytest.raises(ArgumentError, match="add 'b' by hand"):
        aliases.add_alias(ModelAlias("b", Path("/b")), CATALOG)
    assert file.read_text(encoding="utf-8") == text


def test_a_list_in_one_line_is_changed(file: Path) -> None:
    write(file, 'models = { a = { file = "a.pth" } } # mine\n')
    aliases.add_alias(ModelAlias("b", Path("/b.pth")), CATALOG)
    assert [*aliases.read_aliases()] == ["a", "b"]
    aliases.remove_alias("a")
    assert [*aliases.read_aliases()] == ["b"]
    assert file.read_text(encoding="utf-8").endswith("} # mine\n")


def test_a_folder_that_cannot_be_written_is_a_sentence(file: Path) -> None:
    file.parent.write_text("not a folder")
    with pytest.raises(ArgumentError, match=r"cannot be (written|read).*"):
        aliases.add_alias(ModelAlias("a", Path("/a")), CATALOG)


def test_unknown_names_are_corrected_to_own_ones() -> None:
    aliases.add_alias(ModelAlias("sharp", Path("/a.pth")), CATALOG)
    with pytest.raises(ArgumentError, match="did you mean 'sharp'"):
        resolve_model("shapr")


@pytest.mark.parametrize(
    "text",
    [
        "a" + ".a" * 60_000 + " = 1",
        '[models.a]\nfile = "~nobody-of-this-name/x.onnx"',
        "a = " + "9" * 4900,
        "a = " + "[" * 4900,
        "a = 2026-13-45",
        "\0",
        '[models.a]\nfile = "x"\nsha256 = 5',
    ],
    ids=["dots", "no such home", "digits", "brackets", "date", "zero", "number"],
)
def test_every_fault_of_the_list_is_a_sentence_and_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FDATRD_MODELS", str(tmp_path / "m.toml"))
    (tmp_path / "m.toml").write_text(text)
    begin = time.process_time()
    with pytest.raises(ArgumentError, match=r"m.toml'?, cannot be read: .*; correct it, or move it away"):
        aliases.read_aliases()
    assert time.process_time() - begin < 10


def test_a_user_without_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FDATRD_MODELS", raising=False)
    monkeypatch.setattr("platformdirs.user_config_dir", nowhere)
    assert aliases.read_aliases() == {}
    with pytest.raises(ArgumentError, match=r"no home directory to keep a list .*; set \$FDATRD_MODELS to a file"):
        aliases.add_alias(ModelAlias("a", tmp_path / "a.onnx"), ())
