"""Memory, streams, events and CUDA graphs on a real NVIDIA GPU, and frames that pass through them.

Needs cuda-bindings only, neither TensorRT nor PyTorch.
"""

import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from vsfdatrd.backends.gpu import cuda
from vsfdatrd.backends.gpu.copy_pipeline import Slot, TransferPipeline
from vsfdatrd.errors import EngineError

pytestmark = pytest.mark.gpu

BYTES = 5 << 20


@pytest.fixture(autouse=True)
def _first_gpu() -> None:
    cuda.require_driver()
    cuda.set_device(0)


@pytest.fixture
def held() -> Iterator[ExitStack]:
    """Stack that frees the GPU resources of a test."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("pinned", [True, False])
def test_frames_through_a_graph_and_back(held: ExitStack, pinned: bool) -> None:
    """As the worker of TensorRT has it, with a copy for the network."""
    memory = mmap.mmap(-1, 6 * BYTES)
    frames = np.frombuffer(memory, np.uint8).reshape(3, 2, BYTES)
    if pinned:
        held.enter_context(cuda.PinnedMemory(cuda.host_address(memory), len(memory)))
    there, network, back = (held.enter_context(cuda.Stream()) for _ in range(3))
    source, result = (held.enter_context(cuda.DeviceMemory(BYTES)) for _ in range(2))
    graph = held.enter_context(network.capture(lambda: network.copy(result, source)))
    slots = [
        Slot(
            frame[0].ctypes.data,
            frame[1].ctypes.data,
            held.enter_context(cuda.DeviceMemory(BYTES)),
            held.enter_context(cuda.DeviceMemory(BYTES)),
            held.enter_context(cuda.Event()),
            held.enter_context(cuda.Event()),
            held.enter_context(cuda.Event()),
        )
        for frame in frames
    ]

    def launch(number: int) -> None:
        network.copy(source, slots[number].device_source)
        graph.launch(network)
        network.copy(slots[number].device_result, result)

    pipeline = TransferPipeline(there, network, back, slots, launch)
    random = np.random.default_rng(1)
    for _ in range(20):
        pictures = random.integers(0, 256, (3, BYTES), np.uint8)
        for number, picture in enumerate(pictures):
            frames[number, 0] = picture
            pipeline.submit(number)
        for number, picture in enumerate(pictures):
            pipeline.wait(number)
            assert np.array_equal(frames[number, 1], picture)


def test_memory_comes_back() -> None:
    before = cuda.free_memory(0)
    with cuda.DeviceMemory(256 << 20):
        assert before - cuda.free_memory(0) >= 256 << 20
    assert before - cuda.free_memory(0) <= 4 << 20


def test_what_cannot_be_is_a_sentence_and_spoils_nothing(held: ExitStack) -> None:
    with pytest.raises(EngineError, match=r"choosing GPU 99 failed: .* \(cudaErrorInvalidDevice\)"):
        cuda.set_device(99)
    with pytest.raises(EngineError, match=r"MiB on the GPU failed: out of memory \(cudaErrorMemoryAllocation\)"):
        cuda.DeviceMemory(1 << 50)
    with pytest.raises(EngineError, match="pinning 0 MiB failed: "):
        cuda.PinnedMemory(0, 4096)
    stream = held.enter_context(cuda.Stream())
    with pytest.raises(EngineError, match=r"computing on the GPU failed: .* \(cudaErrorStreamCapture"):
        stream.capture(stream.synchronize)  # which no capture bears
    picture, result = np.arange(BYTES, dtype=np.uint8), np.zeros(BYTES, np.uint8)
    place = held.enter_context(cuda.DeviceMemory(BYTES))
    stream.upload(place, picture.ctypes.data)
    stream.download(result.ctypes.data, place)
    stream.synchronize()
    assert np.array_equal(result, picture)


def test_python_runs_while_a_frame_is_waited_for(held: ExitStack) -> None:
    source, target = (held.enter_context(cuda.DeviceMemory(1 << 29)) for _ in range(2))
    stream, event = held.enter_context(cuda.Stream()), held.enter_context(cuda.Event())
    beats: list[float] = []
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.002):
            beats.append(time.perf_counter())

    for _ in range(400):
        stream.copy(target, source)
    stream.record(event)
    thread = threading.Thread(target=beat)
    thread.start()
    start = time.perf_counter()
    event.wait()
    seconds = time.perf_counter() - start
    ended.set()
    thread.join()
    assert seconds > 0.02, "there was nothing to wait for"
    assert len(beats) >= seconds / 0.02, "Python stood still"
