"""core.fdatrd in this process: arguments arrive, and errors as one line."""

import logging
import os
from pathlib import Path
from typing import Any

import pytest
import vapoursynth as vs

import vsfdatrd
from tests.namespace.conftest import Calls, upscale

SIGNATURE = (
    "clip:vnode;model:data:opt;backend:data:opt;device:int[]:opt;precision:data:opt;format:data:opt;matrix:data:opt;"
    "streams:int:opt;tile:int[]:opt;cache:data:opt;reuse:data:opt;multiple:int:opt;input_range:data:opt;fit:data:opt;"
    "chroma_filter:data:opt;any"
)


def test_plugin_describes_itself() -> None:
    plugin = vs.core.fdatrd
    assert plugin.upscale.signature == SIGNATURE
    assert plugin.upscale.return_signature == "clip:vnode;"
    major, minor, *_ = vsfdatrd.__version__.split(".")
    assert plugin.version == (int(major), int(minor))


def test_returns_the_clip_with_and_without_arguments(clip: vs.VideoNode, calls: Calls) -> None:
    assert vs.core.fdatrd.upscale(clip).width == 128
    with upscale(clip).get_frame(2) as frame:
        assert (frame.width, frame.height) == (128, 96)
    assert calls == [{}, {}]


@pytest.mark.parametrize(
    ("given", "arrives"),
    [
        ({"model": "large"}, {"model": "large"}),
        ({"model": "Zeichnung_ö.pth"}, {"model": "Zeichnung_ö.pth"}),
        ({"model": Path("/a/b.pth")}, {"model": "/a/b.pth"}),
        ({"model": b"\xff.pth"}, {"model": os.fsdecode(b"\xff.pth")}),
        ({"backend": b"torch"}, {"backend": "torch"}),
        ({"format": vs.YUV420P10}, {"format": str(int(vs.YUV420P10))}),
        ({"format": "YUV420P10", "matrix": 1}, {"format": "YUV420P10", "matrix": "1"}),
        ({"matrix": vs.MATRIX_ST170_M}, {"matrix": "6"}),
        ({"device": 1}, {"device": 1}),
        ({"device": [1]}, {"device": 1}),
        ({"device": (0, 1, 2)}, {"device": [0, 1, 2]}),
        ({"tile": [360, 270], "streams": 2}, {"tile": [360, 270], "streams": 2}),
        ({"model": None, "cache": None}, {}),
    ],
)
def test_arguments_arrive_as_plain_values(
    clip: vs.VideoNode, calls: Calls, given: dict[str, Any], arrives: dict[str, Any]
) -> None:
    upscale(clip, **given)
    assert calls == [arrives]


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("clip error", "fdatrd.upscale: the clip is upside down"),
        ("own error", "fdatrd.upscale: the clip is upside down"),
        ("vapoursynth", "fdatrd.upscale: Resize error: upside down"),
        ("unexpected", "fdatrd.upscale: KeyError: 'upside down'"),
        ("nothing to say", "fdatrd.upscale: MemoryError"),
        ("not utf-8", "fdatrd.upscale: \\udcff.pth is not there"),
    ],
)
def test_errors_arrive_as_one_line(
    clip: vs.VideoNode, calls: Calls, caplog: pytest.LogCaptureFixture, model: str, text: str
) -> None:
    with caplog.at_level(logging.DEBUG, "vsfdatrd"), pytest.raises(vs.Error) as caught:
        upscale(clip, model=model)
    assert str(caught.value) == text
    (record,) = caplog.records
    assert record.exc_info, "the traceback goes to the log"
    assert record.levelno == (logging.ERROR if model in ("unexpected", "nothing to say") else logging.DEBUG)
    assert upscale(clip).width == 128, "the next call works"


def test_ctrl_c_stays_what_it_is(clip: vs.VideoNode, calls: Calls) -> None:
    with pytest.raises(KeyboardInterrupt):
        upscale(clip, model="ctrl-c")


def test_internal_function_says_that_it_is_internal() -> None:
    with pytest.raises(vs.Error, match=r"^fdatrd\.InternalBind: internal"):
        vs.core.fdatrd.InternalBind(func=lambda **_: 0)
