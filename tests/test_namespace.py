"""core.fdatrd: the plugin and its Python half, in this process, in others, and in programs that are not Python.

The filter itself is replaced by a stand-in here, so that what is tested is the way to it.
"""

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import vapoursynth as vs

import vsfdatrd
from vsfdatrd import _plugin
from vsfdatrd._native.hatch_build import system_compiler
from vsfdatrd.errors import ClipError

SIGNATURE = (
    "clip:vnode;model:data:opt;backend:data:opt;device:int[]:opt;precision:data:opt;format:data:opt;matrix:data:opt;"
    "streams:int:opt;tile:int[]:opt;cache:data:opt;reuse:data:opt;multiple:int:opt;input_range:data:opt;fit:data:opt;any"
)
STAND_IN = """
import sys, types
def stand_in(clip, **arguments):
    if "model" in arguments:
        raise RuntimeError(arguments["model"])
    return clip.resize.Bilinear(clip.width * 2, clip.height * 2)
sys.modules["vsfdatrd.filter"] = types.ModuleType("vsfdatrd.filter")
sys.modules["vsfdatrd.filter"].upscale = stand_in
"""
# An environment policy that holds several cores, as an editor does that has several scripts open.
SEVERAL_CORES = """
import threading
import vapoursynth as vs

class Policy(vs.EnvironmentPolicy):
    def on_policy_registered(self, api):
        self.api, self.local = api, threading.local()
    def get_current_environment(self):
        return getattr(self.local, "environment", None)
    def set_environment(self, environment):
        previous = self.get_current_environment()
        self.local.environment = environment
        return previous

policy = Policy()
vs.register_policy(policy)
messages = []

def open_environment():
    data = policy.api.create_environment()
    policy.api.set_logger(data, lambda level, text: messages.append(text))
    return data, policy.api.wrap_environment(data)
"""

type Calls = list[dict[str, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A stand-in for vsfdatrd.filter: the arguments that arrive; model= names an exception to raise."""
    arrived: Calls = []
    raised: dict[Any, Callable[[], BaseException]] = {
        "clip error": lambda: ClipError("the clip is upside down"),
        "own error": lambda: vs.Error("fdatrd.upscale: the clip is upside down"),
        "vapoursynth": lambda: vs.Error("Resize error: upside down"),
        "unexpected": lambda: KeyError("upside down"),
        "nothing to say": lambda: MemoryError(),
        "not utf-8": lambda: ClipError("\udcff.pth is not there"),
        "ctrl-c": lambda: KeyboardInterrupt(),
    }

    def stand_in(clip: vs.VideoNode, **arguments: Any) -> vs.VideoNode:
        arrived.append(arguments)
        if error := raised.get(arguments.get("model")):
            raise error()
        return clip.resize.Bilinear(clip.width * 2, clip.height * 2)

    module = ModuleType("vsfdatrd.filter")
    module.upscale = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vsfdatrd.filter", module)
    return arrived


@pytest.fixture
def clip() -> vs.VideoNode:
    return vs.core.std.BlankClip(format=vs.YUV420P8, width=64, height=48, length=3)


def upscale(clip: vs.VideoNode, **arguments: Any) -> vs.VideoNode:
    return clip.fdatrd.upscale(**arguments)


def run(script: str, **environment: str) -> str:
    """What a fresh Python prints; warnings are errors there too."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True, text=True, timeout=120, env=os.environ | environment, cwd=Path.home(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


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


def test_failed_import_of_the_filter_says_why(clip: vs.VideoNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vsfdatrd.filter", None)
    with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: cannot import vsfdatrd: ModuleNotFoundError: .*Install"):
        upscale(clip)


def test_library_that_does_not_load_says_why(clip: vs.VideoNode, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "vsfdatrd.filter":
                raise OSError("libtbb.so.12: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "vsfdatrd.filter", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: cannot import vsfdatrd: OSError: libtbb\.so\.12: .*Install"):
        upscale(clip)


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("raise ModuleNotFoundError(\"No module named 'numpy'\")", "ModuleNotFoundError: No module named 'numpy'. "),
        ("raise ValueError", "ValueError. "),
        ("class Mute(Exception):\n    def __str__(self): raise TypeError('no')\nraise Mute", "Mute. "),
        ("raise RuntimeError('ö' * 5000)", "RuntimeError: öö"),
        ("raise RuntimeError('x' + 'ö' * 5000)", "RuntimeError: xö"),
        ("raise RuntimeError('€' * 5000)", "RuntimeError: €€"),
        ("raise RuntimeError('x😀' * 5000)", "RuntimeError: x😀x"),
    ],
)
def test_failed_import_of_the_package_says_why(tmp_path: Path, broken: str, text: str) -> None:
    """The shim alone has to find the words, from Python's C functions."""
    (tmp_path / "vsfdatrd").mkdir()
    (tmp_path / "vsfdatrd" / "__init__.py").write_text(broken)
    script = f"""
import gc, sys
sys.path.insert(0, {str(tmp_path)!r})
import vapoursynth as vs
clip = vs.core.std.BlankClip(length=1)
def text():
    try:
        clip.fdatrd.upscale()
    except vs.Error as error:
        return str(error)
def exceptions():
    gc.collect()
    return sum(isinstance(thing, Exception) for thing in gc.get_objects())
before = exceptions()
(text,) = {{text() for _ in range(100)}}
print(exceptions() - before)
print(text)
"""
    left_over, said = run(script, PYTHONIOENCODING="utf-8").splitlines()
    assert said.startswith("fdatrd.upscale: cannot import vsfdatrd: " + text)
    assert said.endswith("(pip install vsfdatrd).")
    assert "\\" not in said, "cut between characters, not within one"
    assert int(left_over) == 0


def test_every_thread_gets_its_own_function(clip: vs.VideoNode, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls side by side, each returning the clip of its own thread, errors among them."""
    wrong: list[object] = []
    bind = _plugin.bind

    def slow_bind() -> None:
        time.sleep(0.001)  # others come in between
        bind()

    monkeypatch.setattr(_plugin, "bind", slow_bind)

    def work(number: int) -> None:
        mine = clip.resize.Point(width=64 + 2 * number)
        for turn in range(50):
            try:
                if turn % 5 == 0:
                    with pytest.raises(vs.Error, match="upside down"):
                        upscale(mine, model="clip error", streams=number)
                elif (width := upscale(mine, streams=number).width) != 2 * (64 + 2 * number):
                    wrong.append((number, width))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert Counter(call["streams"] for call in calls) == dict.fromkeys(range(8), 50)


def test_a_call_inside_a_call(clip: vs.VideoNode, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def stack(clip: vs.VideoNode, **arguments: Any) -> vs.VideoNode:
        calls.append(arguments)
        return upscale(upscale(clip)) if len(calls) == 1 else vs.core.std.StackVertical([clip, clip])

    monkeypatch.setattr(sys.modules["vsfdatrd.filter"], "upscale", stack)
    assert upscale(clip).height == 4 * clip.height


def test_a_thousand_calls_leave_nothing_behind(clip: vs.VideoNode, calls: Calls) -> None:
    process = psutil.Process()

    def objects() -> Counter[str]:
        gc.collect()
        return Counter(type(thing).__name__ for thing in gc.get_objects())

    def call_often(times: int) -> None:
        for turn in range(times):
            upscale(clip, device=[0, 1], cache="somewhere").get_frame(0).close()
            with pytest.raises(vs.Error):
                upscale(clip, model=("clip error", "vapoursynth")[turn % 2])
        calls.clear()

    call_often(200)
    before, references, memory = objects(), sys.getrefcount(_plugin), process.memory_info().rss
    call_often(1000)
    grown = objects() - before
    assert sys.getrefcount(_plugin) == references
    for name in ("FuncData", "Func", "VideoNode", "VideoFrame", "Plugin", "Function", "Error", "traceback"):
        assert grown[name] == 0, grown
    assert grown.total() < 20, grown
    assert process.memory_info().rss - memory < 4 * 2**20


def test_several_cores_side_by_side() -> None:
    script = f"""
{SEVERAL_CORES}
{STAND_IN}
def work(environment, width, times, wrong):
    for _ in range(times):
        with environment.use():
            clip = vs.core.std.BlankClip(width=width, height=32, length=1)
            if clip.fdatrd.upscale().get_frame(0).width != 2 * width:
                wrong.append(width)

first, second = open_environment(), open_environment()
wrong = []
for _ in range(10):
    work(first[1], 32, 1, wrong)
    work(second[1], 64, 1, wrong)
threads = [threading.Thread(target=work, args=(e[1], w, 50, wrong)) for e, w in ((first, 128), (second, 256)) * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not wrong, wrong

with first[1].use():
    foreign = vs.core.fdatrd.upscale
    clip = vs.core.std.BlankClip(length=1)
with second[1].use():
    try:
        foreign(clip)
    except vs.Error as error:
        print(error)
del foreign, clip
policy.api.destroy_environment(first[0])
work(second[1], 32, 3, wrong)
policy.api.destroy_environment(second[0])
assert not wrong, wrong
assert not messages, messages
policy.api.unregister_policy()
"""
    text = run(script)
    assert text.startswith("fdatrd.upscale: cannot hand the call over to Python: Error: ")
    assert "another core" in text


def test_a_hundred_cores_one_after_another() -> None:
    """VapourSynth says so when nodes or frames outlive their core; none may, and the objects must go with it."""
    script = f"""
import gc
{SEVERAL_CORES}
{STAND_IN}
def reload():
    data, environment = open_environment()
    with environment.use():
        clip = vs.core.std.BlankClip(width=32, height=32, length=1).fdatrd.upscale()
        clip.get_frame(0).close()
        try:
            clip.fdatrd.upscale(model="no")
        except vs.Error as error:
            assert str(error) == "fdatrd.upscale: RuntimeError: no", error
        del clip
    policy.api.destroy_environment(data)

import logging
logging.disable()
for _ in range(20): reload()
gc.collect()
before = len(gc.get_objects())
for _ in range(100): reload()
gc.collect()
print(len(gc.get_objects()) - before, messages)
policy.api.unregister_policy()
"""
    grown, messages = run(script).split(maxsplit=1)
    assert int(grown) < 20
    assert messages.strip() == "[]"


def test_vspipe_needs_no_import(tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        f"{STAND_IN}\nfrom vapoursynth import core\n"
        "core.fdatrd.upscale(core.std.BlankClip(format=0x30080101, width=64, height=48, length=2)).set_output()\n"
    )
    done = subprocess.run(
        [Path(vs.__file__).with_name("vspipe"), "-c", "y4m", script, "-"], capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    header, frames = done.stdout.split(b"\n", 1)
    assert b"W128 H96" in header
    assert len(frames) == 2 * (len(b"FRAME\n") + 128 * 96 * 3 // 2)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tests/host.c, compiled: a program that is not Python and uses VapourSynth through its C interfaces."""
    folder = tmp_path_factory.mktemp("host")
    source = Path(__file__).with_name("host.c")
    compiler = system_compiler() or [sys.executable, "-m", "ziglang", "cc"]
    vapoursynth = Path(vs.__file__).parent
    options = ["-I", str(vapoursynth / "include"), "-ldl", "-lpthread"]
    subprocess.run([*compiler, source, *options, "-o", folder / "host"], check=True)
    libraries = [vapoursynth / "libvapoursynth.so.4", vapoursynth / "libvsscript.so"]
    script = folder / "script.vpy"
    script.write_text(
        f"{STAND_IN}\nfrom vapoursynth import core\nclip = core.std.BlankClip(width=64, height=48, length=1)\n"
        "for _ in range(10):\n    out = clip.fdatrd.upscale()\nout.set_output()\n"
    )

    def start(mode: str, *arguments: str) -> str:
        command = map(str, [folder / "host", mode, *libraries, script, *arguments])
        done = subprocess.run([*command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout

    return start


def test_program_without_python(host: Callable[..., str]) -> None:
    assert host("no-python").startswith("fdatrd.upscale: there is no running Python")


@pytest.mark.parametrize("mode", ["no-environment", "other-thread"])
def test_thread_that_runs_no_script(host: Callable[..., str], mode: str) -> None:
    text = host(mode)
    assert text.startswith("fdatrd.upscale: cannot hand the call over to Python: Error: No environment")
    assert "Call it from a VapourSynth script" in text


def test_a_hundred_script_reloads(host: Callable[..., str]) -> None:
    """In a VSScript host: ten calls and a frame each; memory is compared with what it was half-way."""
    count, width, grown_kib = map(int, host("reload", "100").split())
    assert (count, width) == (100, 128)
    assert grown_kib < 2048
