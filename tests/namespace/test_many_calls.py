"""Concurrent and nested calls, and calls in several cores, which must not leak objects."""

import gc
import sys
import threading
import time
from collections import Counter
from typing import Any

import psutil
import pytest
import vapoursynth as vs

from tests.namespace.conftest import STAND_IN, Calls, run, upscale
from vsfdatrd import _plugin

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


def test_every_thread_gets_its_own_function(clip: vs.VideoNode, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent calls, some of which fail, each return the clip of their thread."""
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
        thread.join(200)
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
    before, references = objects(), sys.getrefcount(_plugin)
    larger: list[int] = []
    # The allocator may grow at one time or another; a leak grows always.
    while len(larger) < 4 and (not larger or larger[-1] >= 4 * 2**20):
        memory = process.memory_info().rss
        call_often(1000)
        larger.append(process.memory_info().rss - memory)
    grown = objects() - before
    assert sys.getrefcount(_plugin) == references
    for name in ("FuncData", "Func", "VideoNode", "VideoFrame", "Plugin", "Function", "Error", "traceback"):
        assert grown[name] == 0, grown
    assert grown.total() < 20, grown
    assert larger[-1] < 4 * 2**20, larger


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
