"""Overlapped transfers: frames are uploaded, computed and downloaded concurrently on three CUDA streams.

Download of frame n overlaps compute of n + 1 and upload of n + 2. Each slot has its own host and device memory, so
the only order to keep is that within a frame: upload, compute, download. Events enforce it between the streams; the
host waits for finished frames only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Event(Protocol):
    """A point in a stream; see `cuda.Event`."""

    def wait(self) -> None:
        """Block the calling thread until the stream has passed the event."""


class Stream[E: Event](Protocol):
    """Work executed in order, concurrently with other streams; see `cuda.Stream`."""

    def upload(self, memory: Any, address: Any) -> None:
        """Queue a copy from the host to the device.

        Args:
            memory: Device memory.
            address: Host address.
        """

    def download(self, address: Any, memory: Any) -> None:
        """Queue a copy from the device to the host.

        Args:
            address: Host address.
            memory: Device memory.
        """

    def record(self, event: E) -> None:
        """Record an event after all work queued so far.

        Args:
            event: The event.
        """

    def wait_for(self, event: E) -> None:
        """Make work queued later wait for an event.

        Args:
            event: The event.
        """


@dataclass(frozen=True, slots=True)
class Slot[E: Event]:
    """Buffers and events of one frame in flight."""

    source: Any
    """Host address of the input."""
    result: Any
    """Host address of the output."""
    device_source: Any
    device_result: Any
    uploaded: E
    computed: E
    done: E


class TransferPipeline[E: Event]:
    """The slots of one device and its three streams. A slot must be waited for before it is submitted again."""

    def __init__(
        self,
        upload: Stream[E],
        compute: Stream[E],
        download: Stream[E],
        slots: Sequence[Slot[E]],
        launch: Callable[[int], None],
    ) -> None:
        """Create a pipeline.

        Args:
            upload: Stream for uploads.
            compute: Stream for the network.
            download: Stream for downloads.
            slots: The slots.
            launch: Queues the network for a slot, by its number, on the `compute` stream, and returns at once.
        """
        self._upload, self._compute, self._download = upload, compute, download
        self._slots, self._launch = slots, launch

    def submit(self, number: int) -> None:
        """Queue upload, network and download of a slot's frame, and return at once.

        Args:
            number: Number of the slot.
        """
        slot = self._slots[number]
        self._upload.upload(slot.device_source, slot.source)
        self._upload.record(slot.uploaded)
        self._compute.wait_for(slot.uploaded)
        self._launch(number)
        self._compute.record(slot.computed)
        self._download.wait_for(slot.computed)
        self._download.download(slot.result, slot.device_result)
        self._download.record(slot.done)

    def wait(self, number: int) -> None:
        """Wait for a slot's output.

        Args:
            number: Number of the slot.
        """
        self._slots[number].done.wait()
