"""The page in a real browser: its slider by keyboard, mouse and finger, dark and light, narrow and wide, offline."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.compare.browser import Browser, chromium
from tests.compare.conftest import clip_of, write_y4m
from vsfdatrd.compare.comparison import compare

pytestmark = pytest.mark.skipif(chromium() is None, reason="there is no Chromium on this machine")

SLIDER = "document.querySelector('.stage input')"
STILL: Any = {"prefers_reduced_motion": "reduce"}
# How far the page is scrolled sideways, once it has not moved for forty drawn pictures.
STANDING = """new Promise(done => {
    let at = -1, same = 0;
    const look = () => {
        const now = document.querySelector('.scroll').scrollLeft;
        same = now === at ? same + 1 : 0;
        at = now;
        if (same < 40) requestAnimationFrame(look); else done(at);
    };
    look();
})"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page whose first picture is red before and blue after, with a gray frame around both."""
    folder = tmp_path_factory.mktemp("page")
    for name, color in (("before", (200, 30, 30)), ("after", (30, 30, 200))):
        frames = []
        for n in range(3):
            picture = np.full((240, 320, 3), 128, np.uint8)
            picture[20:-20, 20:-20] = color
            picture[100 + 10 * n : 110 + 10 * n, 100:200] = 255
            frames.append(picture)
        write_y4m(folder / f"{name}.y4m", clip_of(frames))
    done = compare(folder / "before.y4m", folder / "after.y4m", folder / "out", frames=[0, 2], html=True)
    assert done.files[-1].name == "compare.html"
    return done.files[-1].as_uri()


def stage(browser: Browser) -> tuple[float, float, float, float]:
    """x, y, width, height of the first picture in the window, which it is scrolled to."""
    browser.run("document.querySelector('.stage').scrollIntoView({behavior: 'instant', block: 'start'})")
    box = "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.stage').getBoundingClientRect())"
    x, y, width, height = browser.run(box)
    return x, y, width, height


def pixels(browser: Browser) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(browser.picture())).convert("RGB"), np.int64)


def line(browser: Browser) -> float:
    """Where red becomes blue, in percent of the picture, as the screen shows it."""
    x, y, width, height = stage(browser)
    row = pixels(browser)[int(y + height * 0.8), int(x) : int(x + width)]
    blue = np.flatnonzero(row[:, 2] - row[:, 0] > 100)
    return float(blue[0]) / width * 100 if len(blue) else 100.0


def value(browser: Browser) -> float:
    return float(browser.run(f"{SLIDER}.value"))


def test_the_slider_follows_the_mouse(browser: Browser, url: str) -> None:
    browser.open(url, **STILL)
    x, y, width, height = stage(browser)
    assert value(browser) == 50
    assert line(browser) == pytest.approx(50, abs=1)
    browser.drag((x + width * 0.5, y + height * 0.5), (x + width * 0.2, y + height * 0.6))
    assert value(browser) == pytest.approx(20, abs=0.3)
    assert line(browser) == pytest.approx(20, abs=1)
    browser.drag((x + width * 0.8, y + height * 0.1), (x + width * 0.7, y + height * 0.1))  # not on the handle
    assert line(browser) == pytest.approx(70, abs=1)


def test_the_slider_follows_a_finger(browser: Browser, url: str) -> None:
    browser.open(url, width=420, height=800, **STILL)
    x, y, width, height = stage(browser)
    browser.swipe((x + width * 0.5, y + height * 0.5), (x + width * 0.75, y + height * 0.55))
    assert value(browser) == pytest.approx(75, abs=1)
    assert line(browser) == pytest.approx(75, abs=1.5)


def test_the_slider_obeys_the_keyboard(browser: Browser, url: str) -> None:
    browser.open(url, **STILL)
    for _ in range(12):  # links and the checkbox come first
        browser.key("Tab")
        if browser.run(f"document.activeElement === {SLIDER}"):
            break
    assert browser.run(f"document.activeElement === {SLIDER}")
    browser.key("ArrowLeft")
    assert value(browser) == 48
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert line(browser) == pytest.approx(52, abs=1)
    browser.key("PageUp")
    assert value(browser) > 60
    browser.key("End")
    assert value(browser) == 100
    browser.key("Home")
    assert line(browser) == pytest.approx(20 / 320 * 100, abs=1)  # all of it is after; blue begins at its frame
    assert browser.run(f"{SLIDER}.getAttribute('aria-valuetext')") == "0 percent before"
    assert browser.run("getComputedStyle(document.querySelector('.bar'), '::after').outlineStyle") == "solid"


def test_nothing_is_loaded_and_nothing_fails(browser: Browser, url: str) -> None:
    browser.open(url)
    arguments = [event["request"]["url"] for event in browser.events("Network.requestWillBeSent")]
    assert arguments.count(url) == 1
    assert all(address.startswith("data:image/") for address in arguments if address != url)
    assert browser.events("Log.entryAdded") == []
    assert browser.events("Runtime.exceptionThrown") == []
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert browser.run("fetch('https://example.org').then(() => 'loaded', () => 'refused')") == "refused"


def test_dark_and_light(browser: Browser, url: str) -> None:
    brightness = []
    for scheme in ("light", "dark"):
        browser.open(url, prefers_color_scheme=scheme, **STILL)
        brightness.append(pixels(browser)[5, 5].mean())
    assert brightness[0] > 200
    assert brightness[1] < 60


def test_everything_has_a_name(browser: Browser, url: str) -> None:
    """What a screen reader would say of each thing that can be used or seen."""
    browser.open(url)
    nodes = browser.ask("Accessibility.getFullAXTree")["nodes"]
    named = [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node and not node["ignored"]]
    roles = [role for role, _ in named]
    assert roles.count("slider") == 2
    assert roles.count("image") >= 4
    assert all(name.strip() for role, name in named if role in ("slider", "image", "link", "checkbox", "heading"))
    assert ("slider", "How much is shown of before, frame 0") in named


@pytest.mark.parametrize("width", [320, 768, 1600])
def test_the_page_fits_its_window(browser: Browser, url: str, width: int) -> None:
    browser.open(url, width=width, height=700)
    assert browser.run("document.documentElement.scrollWidth") <= width
    x, _, wide, high = stage(browser)
    assert x >= 0
    assert x + wide <= width
    assert wide / high == pytest.approx(4 / 3, rel=0.01)


def test_actual_pixels_are_those_of_the_file(browser: Browser, url: str) -> None:
    browser.open(url, width=1280, **STILL)
    assert stage(browser)[2] > 400
    browser.run("document.querySelector('.actual input').click()")
    assert stage(browser)[2:] == (320, 240)
    browser.open(url, width=250, height=500, **STILL)
    browser.run("document.querySelector('.actual input').click()")
    x, y, width, height = stage(browser)
    assert width == 320
    moved = "document.querySelector('.scroll').scrollLeft"
    middle = browser.run(moved)
    assert middle > 30
    browser.swipe((x + middle + 60, y + height * 0.7), (x + middle + 10, y + height * 0.7))  # beside the line
    assert browser.run(moved) > middle + 20
    assert value(browser) == 50
    at = browser.run(STANDING)  # it goes on by itself for a moment
    x = stage(browser)[0]
    browser.swipe((x + width * 0.5, y + height * 0.7), (x + width * 0.3, y + height * 0.7))  # the line itself
    assert value(browser) == pytest.approx(30, abs=6)  # a finger's first pixels may not count
    assert browser.run(moved) == at


def test_motion_only_where_it_is_welcome(browser: Browser, url: str) -> None:
    name = "getComputedStyle(document.querySelector('.over')).animationName"
    browser.open(url, prefers_reduced_motion="no-preference")
    assert browser.run(name) == "look"
    browser.open(url, **STILL)
    assert browser.run(name) == "none"


def test_without_scripts_both_pictures_are_seen(browser: Browser, url: str, tmp_path: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.ask("Emulation.setDeviceMetricsOverride", width=800, height=1400, deviceScaleFactor=1, mobile=False)
        browser.ask("Page.navigate", url=url)
        end = time.monotonic() + 120
        while browser.run("document.readyState") != "complete" and time.monotonic() < end:
            time.sleep(0.05)
        heights = browser.run("[...document.querySelectorAll('.stage img')].map(i => i.getBoundingClientRect().top)")
        assert heights[1] > heights[0] + 100
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
