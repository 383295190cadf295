"""Several frames at the same time in TensorRT: streams, GPUs and execution contexts, on a GPU made of Python."""

import json
from pathlib import Path

import pytest

from tests.backends.on_fake_gpu import Upscale, run_with_fake_gpu, state
from vsfdatrd.backends.gpu.contexts import CONTEXTS_VARIABLE, requested_contexts


@pytest.mark.parametrize("streams", [2, 5])
def test_streams(upscale: Upscale, streams: int) -> None:
    assert upscale(streams=streams, length=24).sound


def test_two_gpus_share_the_frames(upscale: Upscale) -> None:
    outcome = upscale(gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=24)
    assert outcome.sound, outcome


def test_frames_through_pinned_buffers_keep_apart(upscale: Upscale) -> None:
    """And it is said once, however many GPUs there are."""
    assert upscale("register", streams=4, length=40).sound
    two = upscale("register hostalloc", gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1])
    assert two.sound, two
    assert two.stderr.count("copies wait for each other") == two.stderr.count("pinning") == 1
    assert upscale("register", gpu={"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=24).sound


@pytest.mark.parametrize("gpus", ["Fake RTX 8.9", "Fake RTX 8.9,Fake RTX 8.9"])
def test_two_networks_at_the_same_time(upscale: Upscale, gpus: str) -> None:
    """Each with a context, stream, graph and places of its own: frames do not meet."""
    gpu = {"FAKE_GPUS": gpus, "FDATRD_GPU_CONTEXTS": "2"}
    outcome = upscale(gpu=gpu, device=[0, 1][: gpus.count("RTX")], streams=4, length=40)
    assert outcome.sound, outcome
    assert "no memory" not in outcome.stderr


def test_a_second_network_needs_memory(upscale: Upscale) -> None:
    outcome = upscale("large", gpu={"FDATRD_GPU_CONTEXTS": "2"})
    assert outcome.sound, outcome
    assert "fdatrd: GPU 0 has no memory for one more network at the same time" in outcome.stderr


MEASURED = {"FDATRD_GPU_CONTEXTS": "", "FAKE_MS": "4"}
TWO_FIT = MEASURED | {"FAKE_AT_ONCE": "2"}
"""A GPU that computes two networks in the time of one."""


def contexts(tmp_path: Path) -> list[int]:
    """Return the chosen number of execution contexts for each measured GPU."""
    content = state(tmp_path).get("contexts.json", b"{}")
    return [entry["contexts"] for entry in json.loads(content).values()]


def test_two_networks_that_are_faster_are_measured_once_and_kept(upscale: Upscale, tmp_path: Path) -> None:
    first = upscale(gpu=TWO_FIT, length=40)
    assert first.sound, first
    assert "; used on Fake RTX, driver 590.1" in first.stderr
    assert contexts(tmp_path) == [2]

    again = upscale(gpu=MEASURED, length=40)  # would lose now
    assert again.sound, again
    assert "two frames at a time" not in again.stderr, "it was measured again"

    alone = upscale("second", gpu=MEASURED)
    assert alone.sound, alone
    assert "GPU 0 computes one network less at the same time: TensorRT cannot prepare the engine" in alone.stderr
    assert contexts(tmp_path) == [2], "what was chosen is forgotten for one failure"

    other = upscale(gpu=MEASURED | {"FAKE_GPUS": "Other RTX 8.9"})
    assert "; not used on Other RTX" in other.stderr
    assert contexts(tmp_path) == [2, 1]


def test_two_networks_that_are_no_faster_are_not_kept(upscale: Upscale, tmp_path: Path) -> None:
    first = upscale(gpu=MEASURED, length=40)
    assert first.sound, first
    assert "; not used on Fake RTX" in first.stderr
    assert contexts(tmp_path) == [1]
    again = upscale("second", gpu=MEASURED)
    assert again.sound, again
    assert "at a time" not in again.stderr
    assert "one network less" not in again.stderr, "a second one was tried"


@pytest.mark.parametrize(
    ("fault", "message"), [("second", "computes one network less at the same time"), ("large", "")]
)
def test_one_network_where_a_second_cannot_be(upscale: Upscale, tmp_path: Path, fault: str, message: str) -> None:
    """Nothing is measured, and nothing remembered that free memory may change."""
    outcome = upscale(fault, gpu=TWO_FIT)
    assert outcome.sound, outcome
    assert message in outcome.stderr
    assert ("network" in outcome.stderr) == bool(message)
    assert contexts(tmp_path) == []


def test_few_streams_mean_one_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured for more streams does not matter then, and an explicit number matters more than either."""
    assert [requested_contexts(streams, {}) for streams in (1, 3, 4, None)] == [1, 1, None, None]
    kept = {"contexts": 2, "fps": [1.0, 2.0]}
    assert [requested_contexts(streams, kept) for streams in (3, 4, None)] == [1, 2, 2]
    assert requested_contexts(None, {"contexts": "many"}) is None, "a damaged note is believed"
    monkeypatch.setenv(CONTEXTS_VARIABLE, "3")
    assert requested_contexts(2, kept) == 3


def test_two_networks_on_each_of_two_gpus(upscale: Upscale, tmp_path: Path) -> None:
    outcome = upscale(gpu=TWO_FIT | {"FAKE_GPUS": "Fake RTX 8.9,Fake RTX 8.9"}, device=[0, 1], length=40)
    assert outcome.sound, outcome
    assert contexts(tmp_path) == [2]


def test_a_gpu_that_is_lost_while_it_is_measured_is_left(upscale: Upscale, tmp_path: Path) -> None:
    outcome = upscale("launch", gpu=TWO_FIT)
    assert outcome.sound, outcome
    assert (
        "The tensorrt engine cannot be used: computing on the GPU failed: unspecified launch failure" in outcome.stderr
    )
    assert contexts(tmp_path) == []


@pytest.mark.parametrize(
    ("fault", "message"), [("launch", "unspecified launch failure"), ("crash", "ended unexpectedly")]
)
def test_two_networks_on_a_gpu_that_is_lost_fail_frames(upscale: Upscale, fault: str, message: str) -> None:
    two = {"FDATRD_GPU_CONTEXTS": "2"}
    upscale(gpu=two)  # builds and verifies
    outcome = upscale(fault, gpu=two, backend="tensorrt", streams=4, length=40)
    outcome.assert_frames_fail(message)


def test_a_network_that_is_not_kept_frees_its_memory(upscale: Upscale, tmp_path: Path) -> None:
    upscale()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*")
    script = (
        "import sys\n"
        "from cuda.bindings import runtime\n"
        "from vsfdatrd.backends.tensorrt.worker import TensorRtServer\n"
        "side = TensorRtServer(sys.stdout)\n"
        "given = 'tensorrt_rtx', sys.argv[1], [0], None, None\n"
        "assert side.do_load(*given, 2)['slots'] == 4\n"
        "assert (len(side._contexts), len(runtime._memory), runtime._contexts[0]) == (2, 4, 2)\n"
        "side._remove_contexts(0)\n"
        "assert (len(runtime._memory), runtime._contexts[0]) == (0, 0)\n"
        "loaded = side.do_load(*given, None)\n"
        "assert (loaded['contexts'], loaded['slots'], len(side._contexts)) == (1, 3, 1), loaded\n"
        "assert (len(runtime._memory), runtime._contexts[0]) == (2, 1)\n"
        "assert side.do_verify(sys.argv[1], 'fp16') >= 50\n"
        "assert side.do_load(*given, 1, [2000, 3000])['slots'] == 5, 'the rate was not taken from before'\n"
    )
    run_with_fake_gpu(script, str(engine), FAKE_MS="4")


def test_two_networks_are_measured_only_if_every_gpu_has_room(upscale: Upscale, tmp_path: Path) -> None:
    upscale()
    (engine,) = (tmp_path / "cache").glob("store-1/engines/*")
    script = (
        "import sys\n"
        "from cuda.bindings import runtime\n"
        "from vsfdatrd.backends.gpu import cuda\n"
        "from vsfdatrd.backends.tensorrt.worker import TensorRtServer\n"
        "cuda.set_device(0)\n"
        "other_program = cuda.DeviceMemory(150 << 20)\n"
        "side = TensorRtServer(sys.stdout)\n"
        "loaded = side.do_load('tensorrt_rtx', sys.argv[1], [0, 1], None, None, None)\n"
        "assert (loaded['contexts'], loaded['measured']) == (1, None), loaded\n"
        "assert [network.index for network in side._contexts] == [0, 1]\n"
        "assert (len(runtime._memory), dict(runtime._contexts)) == (5, {0: 1, 1: 1})\n"
    )
    run_with_fake_gpu(script, str(engine), FAKE_MS="4", FAKE_FREE=str(400 << 20), FAKE_GPUS="Fake RTX 8.9,Fake RTX 8.9")


def test_a_wrong_number_of_networks(upscale: Upscale) -> None:
    outcome = upscale(gpu={"FDATRD_GPU_CONTEXTS": "two"}, backend="tensorrt")
    assert "FDATRD_GPU_CONTEXTS='two' is not a number of execution contexts" in (outcome.error or "")
