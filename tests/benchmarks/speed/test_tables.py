"""Tables and pictures of results, and the command that makes them."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as front
from benchmarks.command_line import result_name, run
from benchmarks.errors import BenchmarkError
from benchmarks.speed.cases import OURS
from benchmarks.speed.plot import draw
from benchmarks.speed.table import compared, table
from tests.benchmarks.speed.results import result, row


def test_table() -> None:
    about = {"busy_seconds_per_frame": 0.05, "joules_per_frame": 12.3, "memory_mib": 900}
    rows = [
        row(OURS, 20.0, psnr_to_pytorch_db=72.4),
        row("PyTorch", 10.0),
        row("x", 1.0, missing="not there"),
    ]
    del rows[2]["fps"]
    lines = table(rows).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "20.00" in lines[2]
    assert "72 dB" in lines[2]
    assert "2.00×" in lines[3]
    assert "not measured: not there" in lines[4]
    assert "VRAM" not in lines[0]
    rows[0]["gpu"] = about
    lines = table(rows).splitlines()
    assert "VRAM" in lines[0]
    assert "12.3" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_two_results_compared() -> None:
    old, new = result(row(OURS, 10.0), row("gone", 1.0))["result"], result(row(OURS, 15.0), row("new", 1.0))["result"]
    text = compared(old, new)
    assert "| 1.50" in text
    assert "gone" not in text
    assert compared(old, result(row("new", 1.0))["result"]) == "The two results have no case in common."


def test_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    sweep = [row(OURS, 400 / w, size=[w, w]) for w in (100, 200, 400)]
    one = result(row(OURS, 20.0), row("PyTorch", 10.0))
    one["result"]["groups"].append({"name": "sweep", "title": "", "rows": sweep})
    draw([one], tmp_path / "one.png")
    draw([one, result(row(OURS, 30.0), gpus=("a GPU",))], tmp_path / "two.png")
    one["result"]["groups"] = one["result"]["groups"][1:]
    draw([one], tmp_path / "curve.png")
    for name in ("one.png", "two.png", "curve.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 800
            assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50
    pyplot = pytest.importorskip("matplotlib.pyplot")
    bars: list[int] = []
    monkeypatch.setattr(pyplot, "close", lambda figure: bars.append(len(figure.axes[0].patches)))
    draw([result(row(OURS, 20.0)), result(row(OURS, 30.0, model="small"))], tmp_path / "same.png")
    assert bars == [2], "two results of one machine share a bar"
    with pytest.raises(ValueError, match="nothing in these results"):
        draw([result()], tmp_path / "none.png")


def test_front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    files = []
    for name, fps in (("old", 10.0), ("new", 12.0)):
        files.append(f"{name}.json")
        Path(files[-1]).write_text(json.dumps(result(row(OURS, fps))))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", *files])
    assert front.main() == 0
    assert "1.20" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--chart", *files])
    assert front.main() == 0
    assert Path("chart.png").stat().st_size > 10_000
    Path("bad.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--compare", "old.json", "bad.json"])
    with pytest.raises(BenchmarkError, match=r"bad\.json cannot be read as a result"):
        front.main()
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--size", "large"])
    with pytest.raises(SystemExit):
        front.main()
    assert "'large' is not a size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rounds", "0"), "'0' is not a whole number of 1 or more"),
        (("--seconds", "-1"), "'-1' is not a number above 0"),
        (("--groups", "headlines"), "invalid choice: 'headlines'"),
        (("--only", "vapoursynth"), "invalid choice: 'vapoursynth'"),
        (("--clip", "film.mkv"), "--clip is measured with --full only"),
    ],
)
def test_bad_arguments_are_refused_before_measuring(
    arguments: tuple[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match="2"):
        front.main()
    assert sentence in capsys.readouterr().err


def test_a_model_that_is_not_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--model", str(tmp_path / "nowhere.safetensors")])
    with pytest.raises(SystemExit, match=r"nowhere\.safetensors"):
        run(front.main)


def test_a_result_without_what_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "none.json"
    file.write_text(json.dumps(result(row(OURS, 10.0)) | {"result": {"groups": []}}))
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--chart", str(file)])
    assert front.main() == 0
    assert "no picture: nothing in these results" in capsys.readouterr().out


def test_name_of_a_result_that_is_a_path(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before anything is measured, which takes minutes."""
    assert result_name("speed.json") == "speed"
    assert result_name("/speed") == "/speed"
    monkeypatch.setattr("sys.argv", ["benchmarks", "--out", "benchmarks/results/speed"])
    with pytest.raises(SystemExit):
        front.main()
    assert "is not a name for a result, because" in capsys.readouterr().err
