"""``vsfdatrd compare`` as a user runs it: files, numbers, notes, and errors as sentences."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.compare.conftest import Drawing, Writer, clip_of
from vsfdatrd.cli import main
from vsfdatrd.compare.page import format_time


@pytest.fixture
def files(write: Writer, film: list[Drawing]) -> tuple[Path, Path]:
    """An SD file with square pixels, and the same twice as large and repeated as 30 frames a second, 709 for HD."""
    large = [np.asarray(Image.fromarray(one).resize((720, 640), Image.Resampling.NEAREST)) for one in film]
    small = [np.asarray(Image.fromarray(one).resize((360, 320), Image.Resampling.BOX)) for one in large]
    return (
        write("episode.y4m", clip_of([small[n * 4 // 5] for n in range(75)]), rate="30:1"),
        write("episode_hd.y4m", clip_of(large, matrix=1)),
    )


def numbers(line: str) -> list[float]:
    return [float(result) for result in re.findall(r"-?\d+\.\d+", line)]


def test_pictures_numbers_and_page(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "made" / "here"
    assert main(["compare", *map(str, files), "--frames", "8", "40", "--out", str(out), "--html"]) == 0
    table, messages = capsys.readouterr()
    lines = table.splitlines()
    assert lines[1].split()[:2] == ["8", "10"]
    assert lines[2].split()[:2] == ["40", "50"]
    for line in lines[1:4]:
        before, after, *_, ssim, score = numbers(line)
        assert after > 1.2 * before  # the large one was there first; BEFORE has lost its sharpest lines
        assert ssim > 0.97
        assert score > 70
    assert "requested" in lines[1]
    assert lines[-1] == f"7 files in {out}; open {out / 'compare.html'}"
    assert "compare: frame 40 (2 of 2)" in messages
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "compare.html",
        *(f"frame_0000{n}_{what}.png" for n in ("08", "40") for what in ("crop_1", "crop_2", "side_by_side")),
    ]
    sheet = np.asarray(Image.open(out / "frame_000040_side_by_side.png"), int)
    left, right = sheet[-640:, :720], sheet[-640:, -720:]
    assert 1 < np.abs(left - right).mean() < 6  # the same colors, though one is 170m and one is 709


def test_without_html_there_are_only_pictures_beside_the_second_file_s_name(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, files), "--count", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "9 files in episode_hd_compare"
    made = [path.name for path in Path("episode_hd_compare").iterdir()]
    assert len(made) == 9
    assert all(name.endswith(".png") for name in made)


class Page(HTMLParser):
    """Parser that collects the resources a page loads, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "srcset", "data", "action", "poster")]
        if tag == "link":
            self.sources += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_believes_no_name(write: Writer, film: list[Drawing], tmp_path: Path) -> None:
    name = "a<script>alert(1)<.y4m"
    before, after = write(name, clip_of(film[:3])), write("$after & co.y4m", clip_of(film[40:43]))
    assert main(["compare", str(before), str(after), "--frames", "1", "--html", "--out", str(tmp_path / "o")]) == 0
    text = (tmp_path / "o" / "compare.html").read_text()
    page = Page(text)
    assert page.tags.count("script") == 1
    assert name in page.text
    assert "$after & co.y4m" in page.text
    assert len(page.sources) >= 4
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"url\(|@import|https?:", text)


def test_a_telecined_disc_beside_its_film(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Film frame n stands at 5n/4 of the disc, whose frames there and thereabouts mix two of them."""
    files = (str(shared / "data/clips" / name) for name in ("ntsc_telecined_480i.mpg", "ntsc_film_480p.mpg"))
    asked = (33, 40, 66, 111)
    assert main(["compare", *files, "--frames", *map(str, asked), "--out", str(tmp_path / "o")]) == 0
    out, err = capsys.readouterr()
    assert "ntsc_telecined_480i.mpg is interlaced: fields were matched as for telecined film" in err
    for number, line in zip(asked, out.splitlines()[1:5], strict=True):
        assert abs(int(line.split()[1]) - number * 5 / 4) <= 1
        assert numbers(line)[-2] > 0.97  # two encodes of one film; the frame before or after has far less


def test_files_in_the_folder_that_compare_did_not_make_stay(write: Writer, film: list[Drawing], tmp_path: Path) -> None:
    before, out = write("a.y4m", clip_of(film[:3])), tmp_path / "o"
    out.mkdir()
    mine = out / ".writable"
    mine.write_text("mine")
    assert main(["compare", str(before), str(before), "--frames", "1", "--out", str(out)]) == 0
    assert mine.read_text() == "mine"


def test_other_content_is_said_and_not_refused(
    write: Writer, film: list[Drawing], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = write("a.y4m", clip_of(film[:10])), write("b.y4m", clip_of(film[40:60]))
    assert main(["compare", str(before), str(after), "--out", str(tmp_path / "o"), "--html", "--count", "2"]) == 0
    message = "The two files do not seem to show the same: a.y4m has another picture at all of these frames of b.y4m."
    assert message in capsys.readouterr().err
    assert message in Page((tmp_path / "o" / "compare.html").read_text()).text


def test_cut_borders_and_lengths_are_said(
    write: Writer, film: list[Drawing], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    framed = [np.pad(picture, ((16, 16), (0, 0), (0, 0))) for picture in film[:30]]
    before, after = write("a.y4m", clip_of(framed)), write("b.y4m", clip_of(film))
    assert main(["compare", str(before), str(after), "--out", str(tmp_path / "o"), "--count", "3"]) == 0
    out, err = capsys.readouterr()
    assert "a.y4m has black borders that b.y4m does not have; they were cut off: 240×192 became 240×160." in err
    assert "a.y4m has nothing after 0:00:01.2 of b.y4m." in err
    assert all(int(line.split()[0]) <= 30 for line in out.splitlines()[1:-2])
    assert numbers(out.splitlines()[-2])[-2] > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.y4m", "gone.mkv"], "gone.mkv' is not there; give the path of a video file"),
        (["gone.mkv", "a.y4m"], "the input 'gone.mkv' is not there"),
        (["a.y4m", "notes.txt"], "'notes.txt' cannot be read as video"),
        (["a.y4m", "a.y4m", "--frames", "2", "99"], "--frames 99 is not in"),
        (["a.y4m", "a.y4m", "--count", "0"], "--count 0 is not possible; give 1 to 50"),
        (["a.y4m", "a.y4m", "--offset", "50"], "--offset 50 leaves nothing to compare"),
        (["a.y4m", "a.y4m", "--offset", "nan"], "--offset nan leaves nothing to compare"),
        (["a.y4m", "a.y4m", "--out", "notes.txt"], "the folder notes.txt cannot be made"),
        (["a.y4m", "a.y4m", "--out", "notes.txt/there"], "the folder notes.txt/there cannot be made"),
        (["a.y4m", "a.y4m", "--out", "/proc"], "cannot be written"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str],
    message: str,
    write: Writer,
    film: list[Drawing],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("a.y4m", clip_of(film[:4]))
    (tmp_path / "notes.txt").write_text("nothing to see")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("vsfdatrd: ")
    assert message in last


def test_without_pillow_the_command_to_install_it_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["compare", "a.mkv", "b.mkv"]) == 1
    assert "pip install pillow" in capsys.readouterr().err


def test_the_command_line_starts_without_what_only_compare_needs() -> None:
    script = (
        "import sys, vsfdatrd.cli\n"
        "print(sorted({'vapoursynth', 'numpy', 'PIL', 'vsfdatrd.compare.comparison'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=250, check=True)
    assert done.stdout.strip() == "[]"


def test_clock() -> None:
    assert [format_time(s) for s in (0, 59.96, 62.5, 3661)] == ["0:00:00.0", "0:01:00.0", "0:01:02.5", "1:01:01.0"]
