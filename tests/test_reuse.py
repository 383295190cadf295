"""Frames that repeat a picture are computed once, in any order of access, without other changes."""

import random
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import vapoursynth as vs
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("six_threads")

REACH = 12
"""Frames this far apart, or in different blocks of so many with a threshold, know nothing of each other."""


class Scene:
    """A clip whose frame n has the value `values[n]` everywhere, computed by networks that add 1 and count."""

    def __init__(
        self, values: Sequence[float], threshold: float | None = 0.0, slots: int = 2, broken: tuple[int, ...] = ()
    ) -> None:
        self.computed: list[int] = []
        self.read: list[int] = []
        self.lock = threading.Lock()
        blank = vs.core.std.BlankClip(width=32, height=16, format=vs.RGBS, length=len(values))

        def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
            if n in broken:
                raise ValueError(f"frame {n} cannot be read")
            with self.lock:
                self.read.append(n)
            out = f.copy()
            for plane in range(3):
                np.asarray(out[plane])[:] = values[n] if plane != 1 else 0.25
            out.props["number"] = n
            return out

        self.source = vs.core.std.ModifyFrame(blank, blank, draw).std.RemoveFrameProps("_Nothing")
        self.clip = vs.core.fdatrd.ReuseFrames(
            self.source, [self._network() for _ in range(slots)], threshold=threshold
        )

    def _network(self) -> vs.VideoNode:
        def compute(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
            with self.lock:
                self.computed.append(n)
            time.sleep(0.003)  # a network takes longer than a comparison
            out = vs.core.create_video_frame(f.format, 64, 32)
            for plane in range(3):
                np.asarray(out[plane])[:] = np.asarray(f[plane])[0, 0] + 1
            out.props.update(f.props)
            return out

        return vs.core.fdatrd.PerFrame(self.source, func=compute, width=64, height=32)

    def value(self, n: int) -> float:
        """Return the output value of frame n, and check that it has its own properties."""
        frame = self.clip.get_frame(n)
        assert frame.props["number"] == n
        assert (frame.width, frame.height) == (64, 32)
        return float(np.asarray(frame[2])[31, 63]) - 1

    def all(self) -> list[float]:
        result = []
        for n, frame in enumerate(self.clip.frames(prefetch=8)):
            assert frame.props["number"] == n
            result.append(float(np.asarray(frame[0])[0, 0]) - 1)
        return result


def anchors(values: Sequence[float], threshold: float) -> list[int]:
    """Return the frame that each frame repeats within a threshold, computed by definition."""
    result: list[int] = []
    for n, value in enumerate(values):
        again = n % REACH and abs(np.float32(value) - np.float32(values[result[-1]])) <= np.float32(threshold)
        result.append(result[-1] if again else n)
    return result


def on(times: int, length: int) -> list[float]:
    return [n // times / 100 for n in range(length)]


@pytest.mark.parametrize("times", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_drawing_is_computed_once(times: int, slots: int) -> None:
    values = on(times, 60)
    scene = Scene(values, slots=slots)
    assert scene.all() == pytest.approx(values)
    drawings = 60 if times == 1 else 60 // times + (60 % times > 0) if times < REACH else 60 // REACH
    assert drawings <= len(scene.computed) <= drawings + 2


def test_drawings_that_return_are_known() -> None:
    values = [0.1, 0.2, 0.3] * 8
    scene = Scene(values, slots=1)
    assert scene.all() == pytest.approx(values)
    assert len(scene.computed) <= 9


def test_off_computes_every_frame() -> None:
    values = on(3, 30)
    scene = Scene(values, threshold=None)
    assert scene.all() == pytest.approx(values)
    assert sorted(scene.computed) == list(range(30))


def test_what_differs_a_little_is_shown_as_it_is() -> None:
    values = [0.5 + n * 1e-6 for n in range(12)]
    scene = Scene(values)
    assert scene.all() == pytest.approx(values, abs=2e-7)
    assert len(scene.computed) == 12


def test_within_a_threshold_pictures_do_not_drift() -> None:
    """A slow fade: every step is within the threshold, its sum is not."""
    values = [0.3 + n * 0.004 for n in range(36)]
    scene = Scene(values, threshold=0.01)
    shown = scene.all()
    assert np.abs(np.array(shown) - values).max() <= 0.0101
    assert sorted(scene.computed) == sorted(set(anchors(values, 0.01)))
    assert 12 <= len(scene.computed) < 20


VALUES = st.lists(st.sampled_from([0.1, 0.1, 0.1, 0.104, 0.108, 0.5, 0.5]), min_size=1, max_size=40)


@settings(max_examples=12)
@given(values=VALUES, threshold=st.sampled_from([0.0, 0.005, 0.1]), seed=st.integers(0, 99))
def test_the_order_of_access_changes_nothing(values: list[float], threshold: float, seed: int) -> None:
    expected = [values[a] for a in anchors(values, threshold)] if threshold else values
    scene = Scene(values, threshold)
    order = list(range(len(values))) * 2
    random.Random(seed).shuffle(order)
    for n in order:
        assert scene.value(n) == pytest.approx(expected[n])
    if threshold:
        assert set(scene.computed) <= set(anchors(values, threshold))
    assert Scene(values, threshold).all() == pytest.approx(expected)


def test_seeking_far_reads_only_what_it_must() -> None:
    scene = Scene(on(2, 1200))
    assert scene.value(1001) == pytest.approx(5.0)
    assert set(scene.read) == {1001}
    within = Scene(on(2, 1200), threshold=0.001)
    assert within.value(1001) == pytest.approx(5.0)
    assert set(within.read) == set(range(996, 1002))
    assert within.computed == [1000]


def test_not_a_number_is_within_no_threshold() -> None:
    scene = Scene([0.5, np.nan, 0.5], threshold=0.1)
    for n in range(3):
        scene.clip.get_frame(n)
    assert sorted(scene.computed) == [0, 1, 2]


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_source_that_fails_fails_alone(threshold: float | None) -> None:
    scene = Scene([0.5] * 11, threshold, broken=(5,))
    for n in range(11):
        if n == 5:
            for _ in range(2):
                with pytest.raises(vs.Error, match="frame 5 cannot be read"):
                    scene.clip.get_frame(n)
        else:
            assert scene.value(n) == pytest.approx(0.5)


def test_within_a_threshold_the_one_after_it_fails_once() -> None:
    """It is compared with it; the core lets nobody go on after that."""
    scene = Scene([0.5] * 14, 0.01, broken=(5,))
    with pytest.raises(vs.Error, match="frame 5 cannot be read"):
        scene.clip.get_frame(6)
    for n in range(6, 14):
        assert scene.value(n) == pytest.approx(0.5)


def test_a_result_that_fails_is_asked_for_again() -> None:
    failing = [True]
    source = vs.core.std.BlankClip(width=32, height=16, format=vs.RGBS, length=6)

    def compute(n: int, f: vs.VideoFrame) -> vs.VideoFrame | str:
        return "the device is on fire" if failing[0] else f

    clip = vs.core.fdatrd.ReuseFrames(source, [vs.core.fdatrd.PerFrame(source, func=compute)], threshold=0)
    for n in (0, 3):
        with pytest.raises(vs.Error, match="the device is on fire"):
            clip.get_frame(n)
    failing[0] = False
    clip.get_frame(3)
    clip.get_frame(0)


def test_gray_clips_are_held_by_their_one_plane() -> None:
    computed = []

    def compute(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        computed.append(n)
        return f

    parts = [vs.core.std.BlankClip(width=32, height=16, format=vs.GRAYS, length=3, color=c) for c in (0.2, 0.7)]
    source = vs.core.std.RemoveFrameProps(parts[0] + parts[1], "_Nothing")
    clip = vs.core.fdatrd.ReuseFrames(source, [vs.core.fdatrd.PerFrame(source, func=compute)], threshold=0)
    result = [float(np.asarray(clip.get_frame(n)[0])[3, 5]) for n in range(6)]
    assert result == pytest.approx([0.2] * 3 + [0.7] * 3)
    assert computed == [0, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: vs.core.std.BlankClip(width=32, height=16, format=vs.YUV420P8, length=2),
        lambda: vs.core.std.BlankClip(width=32, height=16, format=vs.RGB24, length=2),
    ],
)
def test_other_clips_are_refused(make: Callable[[], vs.VideoNode]) -> None:
    with pytest.raises(vs.Error, match="ReuseFrames takes RGBS or GRAYS clips of one size"):
        vs.core.fdatrd.ReuseFrames(make(), [make()], threshold=0)
