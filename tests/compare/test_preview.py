"""``vsfdatrd preview``: the page in a real browser, what it holds, excerpts of long films, and errors as sentences."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import vapoursynth as vs

from tests.compare.browser import Browser, chromium
from tests.compare.conftest import Drawing, Writer, clip_of, scenes, write_y4m
from vsfdatrd.cli import main
from vsfdatrd.compare import excerpt, preview, preview_page
from vsfdatrd.compare.excerpt import Excerpt, Section, make_excerpt
from vsfdatrd.system.programs import ffmpeg, run

STILL: Any = {"prefers_reduced_motion": "reduce"}
SLIDER = "document.querySelector('.whole input')"
NAME = "a<script>alert(1)<&.y4m"

in_browser = pytest.mark.skipif(chromium() is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, identity_2x: Path) -> Path:
    """The page of a film of three scenes with two models and two frames; the film's name is hostile."""
    folder = tmp_path_factory.mktemp("film")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "index"))
        patch.setattr(preview, "MIN_SECONDS", 0.1)
        film = write_y4m(folder / NAME, clip_of(scenes(3, 8, (120, 80))))
        assert main(["preview", str(film), "--model", str(tiny_model), str(identity_2x), "--frames", "2"]) == 0
    return folder / f"{NAME.removesuffix('.y4m')}.preview.html"


def box(browser: Browser, of: str) -> tuple[float, float, float, float]:
    """x, y, width and height of a stage that is scrolled to the middle of the window."""
    browser.run(f"document.querySelector('{of}').scrollIntoView({{behavior: 'instant', block: 'center'}})")
    x, y, width, height = browser.run(
        f"(r => [r.x, r.y, r.width, r.height])(document.querySelector('{of}').getBoundingClientRect())"
    )
    return x, y, width, height


def test_the_page_holds_everything_and_believes_no_name(page: Path) -> None:
    text = page.read_text()
    assert text.count("<script") == 1
    assert "a&lt;script&gt;alert(1)&lt;&amp;.y4m" in text
    assert not re.search(r"url\(|@import|https?:", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert len(sources) == 2 * 3 * 2  # frames, pictures of each, whole and in detail
    assert all(source.startswith(("data:image/webp;", "data:image/png;")) for source in sources)
    assert text.count('width="240" height="160"') == 6  # both networks enlarge twice
    assert text.count(" fps, ") == 2
    assert 'data-state="done"' in text


@in_browser
def test_drag_and_keys(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), **STILL)
    x, y, width, height = box(browser, ".whole")
    browser.drag((x + width * 0.5, y + height * 0.5), (x + width * 0.2, y + height * 0.6))
    assert float(browser.run(f"{SLIDER}.value")) == pytest.approx(20, abs=0.5)
    assert browser.run("document.querySelector('.whole').style.getPropertyValue('--at')").startswith(("19", "20"))
    browser.run(f"{SLIDER}.focus()")
    browser.key("ArrowRight")
    assert float(browser.run(f"{SLIDER}.value")) == pytest.approx(22, abs=0.5)
    browser.key("Home")
    assert browser.run(f"{SLIDER}.getAttribute('aria-valuetext')") == "0 percent of the left picture"
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node and not node["ignored"]]
    used = [(role, name) for role, name in named if role in ("slider", "radio", "combobox", "image", "heading")]
    assert {role for role, _ in used} == {"slider", "radio", "combobox", "image", "heading"}
    assert all(name.strip() for _, name in used)
    assert [event for event in browser.events("Log.entryAdded")] == []
    assert browser.events("Runtime.exceptionThrown") == []


@in_browser
def test_models_and_views(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri(), **STILL)
    over = "document.querySelector('.whole img.over').dataset.of"
    tags = "[...document.querySelectorAll('.whole .tag')].slice(0, 2).map(tag => tag.textContent)"
    assert browser.run(over) == "m0"
    assert browser.run(tags) == ["Source, resized", "tiny_2x.safetensors"]
    browser.run("document.querySelector('#model input').focus()")
    browser.key("ArrowRight")  # as radio buttons do
    assert browser.run(over) == "m1"
    assert browser.run(tags)[1] == "identity_2x.safetensors"
    browser.run("(s => { s.value = 'm0'; s.dispatchEvent(new Event('change')) })(document.getElementById('beside'))")
    assert browser.run("document.querySelector('.whole img.under').dataset.of") == "m0"
    browser.run("document.querySelector('[value=detail]').click()")
    assert browser.run("document.querySelector('.whole').offsetWidth") == 0
    assert browser.run("document.querySelector('.detail').offsetWidth") > 100
    browser.open(page.as_uri(), **STILL)  # as an unfinished page does by itself
    assert browser.run(over) == "m1"
    assert browser.run("document.body.dataset.view") == "detail"
    browser.run("sessionStorage.clear()")


@in_browser
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.open(page.as_uri(), width=width, height=844, **STILL)
    assert browser.run("document.documentElement.scrollWidth") <= width
    x, y, wide, high = box(browser, ".whole")
    assert x >= 0
    assert x + wide <= width
    assert wide / high == pytest.approx(1.5, rel=0.01)
    browser.swipe((x + wide * 0.5, y + high * 0.5), (x + wide * 0.75, y + high * 0.55))
    assert float(browser.run(f"{SLIDER}.value")) == pytest.approx(75, abs=6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_page_is_there_with_the_first_picture_and_says_so_when_it_was_stopped(
    write: Writer,
    tmp_path: Path,
    tiny_model: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    film, out = write("film.y4m", clip_of(scenes(2, 4, (64, 48)))), tmp_path / "page.html"

    def interrupted(clip: Any) -> float:
        assert 'data-state="working"' in out.read_text()
        assert "1 of 2 pictures are made" in out.read_text()
        signal.raise_signal(number)
        raise AssertionError("the signal has no handler")

    monkeypatch.setattr(preview, "_measure_fps", interrupted)
    assert main(["preview", str(film), "--model", str(tiny_model), "--frames", "2", "--out", str(out)]) == 130
    assert "1 of 2 pictures were made before this was stopped" in out.read_text()
    assert "a first picture is in" in capsys.readouterr().err


def test_an_excerpt_has_whole_sections_from_all_of_a_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second of the film has another brightness, so that a frame tells where it is from."""
    monkeypatch.setattr(excerpt, "MIN_FILM_SECONDS", 30.0)
    monkeypatch.setattr(excerpt, "MIN_SECTION_SECONDS", 0.4)
    for name, codec in (("film.vob", "mpeg2video"), ("film.mkv", "libx264")):
        path = tmp_path / name
        with av.open(str(path), "w", format="vob" if name.endswith("vob") else None) as container:
            stream: Any = container.add_stream(codec, rate=25, options={"g": "12", "bf": "2"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for n in range(60 * 25):
                frame = av.VideoFrame(64, 48, "yuv420p")
                for plane, value in zip(frame.planes, (40 + 3 * (n // 25), 128, 128), strict=True):
                    plane.update(bytes([value]) * plane.buffer_size)
                frame.pts = n
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        result = make_excerpt(path, tmp_path / f"{name}.excerpt")
        assert result is not None, name
        assert result.duration == pytest.approx(60, abs=2)  # for a program stream, estimated from its last timestamps
        assert len(result.sections) == excerpt.SECTION_COUNT
        assert result.sections[-1].film > 50
        with av.open(str(result.path)) as container:
            shades = [float(frame.to_ndarray()[:48].mean()) for frame in container.decode(video=0)]
        assert excerpt.SECTION_COUNT * 10 <= len(shades) <= excerpt.SECTION_COUNT * 30, name
        for n, shade in enumerate(shades):
            assert (shade - 40) / 3 == pytest.approx(result.in_film(n / 25), abs=1.6), (name, n)


def test_frames_at_seams_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their fields may be matched with those of another section."""
    monkeypatch.setattr(excerpt, "SEAM_SECONDS", 0.19)
    result = Excerpt(Path("film"), [Section(0, 10), Section(1, 50), Section(2, 90)], 100)
    blank = vs.core.std.BlankClip(format=vs.GRAY8, width=16, height=16, length=75, fpsnum=25, fpsden=1)
    clip = blank.std.FrameEval(lambda n: blank.std.SetFrameProps(number=n))
    left, times = preview._without_seams(clip, np.arange(75) / 25, result)
    numbers = [frame.props["number"] for frame in left.frames(close=True)]
    assert numbers == [*range(5, 21), *range(30, 46), *range(55, 75)]
    assert [round(time * 25) for time in times] == numbers
    assert result.in_film(times[16]) == pytest.approx(50.2)


def test_what_the_film_does_not_say_is_logged_once_under_its_name(
    write: Writer, identity_2x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preview, "MIN_SECONDS", 0.1)
    film = write("film.y4m", clip_of(scenes(1, 3, (64, 48))))
    assert main(["preview", str(film), "--model", str(identity_2x), "--frames", "1"]) == 0
    (said,) = (record.getMessage() for record in caplog.records if "does not say" in record.getMessage())
    assert said.startswith("film.y4m does not say its matrix")


@pytest.mark.parametrize("arguments", [["preview"], ["compare", "film.y4m"]])
def test_colors_that_cannot_be_converted_are_no_damage(
    arguments: list[str],
    write: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write("film.y4m", clip_of(scenes(1, 3, (64, 48))))
    run([ffmpeg(), "-i", "film.y4m", "-vf", "setparams=colorspace=smpte2085", "-c:v", "libx264", "odd.mkv"])
    assert main([*arguments, "odd.mkv"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vsfdatrd: odd.mkv: frame 0 cannot be converted to RGB: it is YUV, and its _Matrix is 11")


def test_the_page_of_a_film_with_the_longest_name(
    write: Writer, identity_2x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "MIN_SECONDS", 0.1)
    film = write("魔" * 83 + ".y4m", clip_of(scenes(1, 3, (64, 48))))
    assert main(["preview", str(film), "--model", str(identity_2x), "--frames", "1"]) == 0
    assert len(list(tmp_path.glob("魔*.preview.html"))) == 1
    exact = tmp_path / f"{'魔' * 83}.html"
    assert main(["preview", str(film), "--model", str(identity_2x), "--frames", "1", "--out", str(exact)]) == 0


def test_a_short_film_is_no_excerpt(write: Writer, film: list[Drawing], tmp_path: Path) -> None:
    assert make_excerpt(write("short.y4m", clip_of(film[:4])), tmp_path / "none") is None


def test_durations() -> None:
    assert preview_page.format_hours(0.001) == "1 minute"
    assert preview_page.format_hours(1.2) == "72 minutes"
    assert preview_page.format_hours(6) == "6 hours"
    assert preview_page.format_hours(35.4) == "35 hours"
    assert [preview_page.format_fps(fps) for fps in (0.401, 3.04, 120.3)] == ["0.40", "3.0", "120"]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["missing.mkv"], "the input 'missing.mkv' is not there"),
        (["film.y4m", "--model", "smal"], "did you mean 'small'"),
        (["film.y4m", "--frames", "0"], "--frames 0 is not possible; give 1 to 50"),
        (["film.y4m", "--out", "film.y4m"], "is not the name of a page; end it in .html"),
        (["film.y4m", "--out", "other.html"], "exists and is not a preview"),
        (["film.y4m", "--out", "nowhere/page.html"], "cannot be written"),
        (["film.y4m", "--out", "pipe.html"], "is a folder or a device"),
        (["."], "the input '.' is a folder"),
        (["other.html"], "cannot be read as video"),
        (["film.y4m", "--backend", "vulkan"], "backend='vulkan' is unknown"),
        (["film.y4m", "--crop", "200,0,0,0"], "--crop"),
    ],
)
def test_errors_are_sentences(
    write: Writer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reported: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write("film.y4m", clip_of(scenes(1, 3, (64, 48))))
    Path("other.html").write_text("<p>mine</p>")
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe.html")
    else:
        Path("pipe.html").mkdir()
    assert main(["preview", *arguments]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("vsfdatrd: ")
    assert reported in last
    assert Path("other.html").read_text() == "<p>mine</p>"
