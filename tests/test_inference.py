"""The pipeline in VapourSynth with a fake engine: order, overlap, failures, seeking, several filters."""

import gc
import threading
import time

import numpy as np
import pytest
import vapoursynth as vs

from vsfdatrd import inference
from vsfdatrd.backends.base import FramePlanes, SlotPool
from vsfdatrd.errors import EngineError
from vsfdatrd.video import tiling as geometry

pytestmark = pytest.mark.usefixtures("six_threads")

SCALE = 2


class CountingEngine:
    """Repeats every pixel. A frame takes `seconds` from its submission on; one whose first value is `poison` fails."""

    def __init__(self, height: int, width: int, slots: int = 3, seconds: float = 0.0, poison: float = -1.0) -> None:
        self.slots, self.seconds, self.poison = slots, seconds, poison
        self.inputs = [np.zeros((3, height, width), np.float32) for _ in range(slots)]
        self.running = [threading.Event() for _ in range(slots)]
        self.ready = [0.0] * slots
        self.in_flight = self.most = self.closed = 0
        self.lock = threading.Lock()

    def input(self, slot: int) -> FramePlanes:
        return self.inputs[slot]

    def submit(self, slot: int) -> None:
        with self.lock:
            assert not self.running[slot].is_set(), "a slot was submitted twice"
            self.running[slot].set()
            self.in_flight += 1
            self.most = max(self.most, self.in_flight)
        self.ready[slot] = time.perf_counter() + self.seconds

    def collect(self, slot: int) -> FramePlanes:
        time.sleep(max(0.0, self.ready[slot] - time.perf_counter()))
        with self.lock:
            self.in_flight -= 1
            self.running[slot].clear()
        if abs(self.inputs[slot][0, 0, 0] - self.poison) < 1e-6:
            raise EngineError("the device is on fire")
        return self.inputs[slot].repeat(SCALE, 1).repeat(SCALE, 2)

    def close(self) -> None:
        self.closed += 1


def numbered(length: int, width: int = 70, height: int = 50, broken: tuple[int, ...] = ()) -> vs.VideoNode:
    """RGBS frames whose red is n / 100 and whose property `number` is n; `broken` ones raise."""
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n in broken:
            raise ValueError(f"source frame {n} cannot be decoded")
        out = f.copy()
        np.asarray(out[0])[:] = n / 100
        np.asarray(out[1])[:] = np.linspace(-0.5, 1.5, width)[None]
        out.props["number"] = n
        return out

    return vs.core.std.ModifyFrame(blank, blank, draw)


def upscaled(clip: vs.VideoNode, engine: CountingEngine) -> vs.VideoNode:
    tiling = geometry.single_tile(clip.height, clip.width, SCALE)
    return inference.upscale_frames(clip, SlotPool(engine), tiling, SCALE)


def red(frame: vs.VideoFrame) -> float:
    return float(np.asarray(frame[0])[0, 0])


@pytest.mark.parametrize("slots", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 2, 7])
def test_frames_come_in_order_with_their_properties(slots: int, length: int) -> None:
    clip = upscaled(numbered(length), CountingEngine(60, 120, slots))
    assert (clip.num_frames, clip.width, clip.height, clip.fps) == (length, 140, 100, numbered(1).fps)
    for n, frame in enumerate(clip.frames(close=False)):
        assert frame.props["number"] == n
        assert red(frame) == pytest.approx(n / 100)


def test_values_outside_are_clamped() -> None:
    green = np.asarray(upscaled(numbered(1), CountingEngine(60, 120)).get_frame(0)[1])
    assert (green.min(), green.max()) == (0, 1)
    expected = np.clip(np.linspace(-0.5, 1.5, 70, dtype=np.float32), 0, 1).repeat(2)
    np.testing.assert_allclose(green[7], expected, atol=1e-6)


def test_random_access_and_seeking() -> None:
    clip = upscaled(numbered(40), CountingEngine(60, 120))
    for n in (7, 3, 39, 0, 12, 12, 38, 1):
        assert red(clip.get_frame(n)) == pytest.approx(n / 100)
    assert [round(red(f) * 100) for f in clip[30:10:-3].frames(close=False)] == list(range(30, 10, -3))


class MeetingEngine(CountingEngine):
    """An engine that gives no frame before all its slots are in flight and waited for."""

    def __init__(self, height: int, width: int, slots: int) -> None:
        super().__init__(height, width, slots)
        self.meeting = threading.Barrier(slots, timeout=60)

    def collect(self, slot: int) -> FramePlanes:
        try:
            self.meeting.wait()
        except threading.BrokenBarrierError:
            raise EngineError(f"only {self.most} frames are in flight, or not all are waited for") from None
        return super().collect(slot)


def test_copies_and_waiting_overlap_up_to_the_number_of_slots() -> None:
    engine = MeetingEngine(60, 120, slots=3)
    clip = upscaled(numbered(12), engine)
    found = [red(frame) for frame in clip.frames(prefetch=6, close=False)]
    assert found == pytest.approx([n / 100 for n in range(12)])
    assert engine.most == 3


def test_a_source_frame_that_fails_fails_alone() -> None:
    clip = upscaled(numbered(12, broken=(5,)), CountingEngine(60, 120))
    good = 0
    for n in range(12):
        if n == 5:
            with pytest.raises(vs.Error, match="source frame 5 cannot be decoded"):
                clip.get_frame(n)
        else:
            good += red(clip.get_frame(n)) == pytest.approx(n / 100)
    assert good == 11


def test_a_frame_the_engine_fails_on_is_named_and_the_slot_lives_on() -> None:
    engine = CountingEngine(60, 120, slots=1, poison=0.05)
    clip = upscaled(numbered(12), engine)
    with pytest.raises(vs.Error) as caught:
        clip.get_frame(5)
    assert str(caught.value) == "fdatrd.upscale: frame 5: the device is on fire"
    assert red(clip.get_frame(6)) == pytest.approx(0.06)
    assert engine.in_flight == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_source_that_is_not_finite_is_named(value: float) -> None:
    blank = vs.core.std.BlankClip(width=64, height=48, format=vs.RGBS, length=9)

    def poison(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        if n == 4:
            np.asarray(out[2])[40, 60] = value
        return out

    clip = upscaled(vs.core.std.ModifyFrame(blank, blank, poison), CountingEngine(60, 120))
    if np.isnan(value):
        with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: frame 4: the source is not finite"):
            clip.get_frame(4)
    else:  # infinity is clamped to 1, as any value above it
        assert np.asarray(clip.get_frame(4)[2])[80, 120] == 1
    clip.get_frame(5)


class OneFormEngine(CountingEngine):
    """A fake engine with `planes` planes that writes `value` into one pixel of its output."""

    def __init__(self, planes: int, place: tuple[int, int, int], value: float) -> None:
        super().__init__(60, 120, slots=1)
        self.inputs = [np.zeros((planes, 60, 120), np.float32)]
        self.place, self.value = place, value

    def collect(self, slot: int) -> FramePlanes:
        result = super().collect(slot)
        result[self.place] = self.value
        return result


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("form", "plane"), [(vs.RGBS, 0), (vs.RGBS, 2), (vs.GRAYS, 0)])
@pytest.mark.parametrize("tiles", [False, True])
def test_an_output_that_is_not_finite_is_named(
    value: float, form: vs.PresetVideoFormat, plane: int, tiles: bool
) -> None:
    """In the last pixel that is kept; what is cut off may hold anything."""
    source = vs.core.std.BlankClip(width=70, height=50, format=form, length=2)
    tiling = geometry.tile_frame(50, 70, 50, 64, SCALE) if tiles else geometry.single_tile(50, 70, SCALE)
    height, width = tiling.height * SCALE, tiling.width * SCALE
    for place, kept in [
        ((plane, height - 1, width - 1), True),
        ((plane, height, 0), False),
        ((plane, 0, width), False),
    ]:
        engine = OneFormEngine(source.format.num_planes, place, value)
        clip = inference.upscale_frames(source, SlotPool(engine), tiling, SCALE)
        if kept:
            with pytest.raises(vs.Error, match=r"^fdatrd\.upscale: frame 1: the network's output for it is not finite"):
                clip.get_frame(1)
        else:
            assert max(np.asarray(clip.get_frame(1)[i]).max() for i in range(source.format.num_planes)) == 0


def test_two_filters_share_an_engine_and_its_slots() -> None:
    engine = CountingEngine(60, 120, slots=2, seconds=0.005)
    pool = SlotPool(engine)
    tiling = geometry.single_tile(50, 70, SCALE)
    first = inference.upscale_frames(numbered(20), pool, tiling, SCALE)
    second = inference.upscale_frames(numbered(20), pool, tiling, SCALE)
    both = vs.core.std.Interleave([first, second])
    assert [round(red(f) * 100) for f in both.frames(prefetch=6, close=False)] == [n // 2 for n in range(40)]
    assert engine.most <= 2


def test_tiles_give_the_whole_picture_without_a_seam() -> None:
    source = numbered(3, 150, 90)
    tiling = geometry.tile_frame(90, 150, 64, 64, SCALE)
    assert len(tiling.tiles) > 4
    clip = inference.upscale_frames(source, SlotPool(CountingEngine(90, 90)), tiling, SCALE)
    expected = np.clip(np.asarray(source.get_frame(2)[1]), 0, 1).repeat(SCALE, 0).repeat(SCALE, 1)
    np.testing.assert_allclose(np.asarray(clip.get_frame(2)[1]), expected, atol=1e-5)


def test_requests_that_nobody_waits_for_do_no_harm() -> None:
    engine = CountingEngine(60, 120, slots=2, seconds=0.01)
    clip = upscaled(numbered(60), engine)
    for future in [clip.get_frame_async(n) for n in range(0, 60, 7)][:2]:
        future.result()
    assert red(clip.get_frame(59)) == pytest.approx(0.59)


def test_the_engine_is_closed_with_its_last_filter() -> None:
    engine = CountingEngine(60, 120)
    clip = upscaled(numbered(4), engine)
    clip.get_frame(0)
    assert engine.closed == 0
    del clip
    end = time.monotonic() + 60
    while not engine.closed and time.monotonic() < end:
        gc.collect()
        time.sleep(0.02)
    assert engine.closed == 1
