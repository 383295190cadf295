"""Double buffering on a GPU: frames are uploaded, computed and downloaded by three streams at the same time.

While frame n comes back, n + 1 is computed and n + 2 goes there. Each slot has memory of its own on both sides, so the
only order to keep is that of one frame: its upload, then its computing, then its download. Events say so to the
streams; nobody on this side waits for anything but a finished frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Event(Protocol):
    """A point in a stream; see `cuda.Event`."""

    def wait(self) -> None:
        """Wait, on this side, until the stream has come past it."""


class Stream[E: Event](Protocol):
    """Work done in order, beside other streams; see `cuda.Stream`."""

    def upload(self, memory: Any, address: Any) -> None:
        """Copy to the device."""

    def download(self, address: Any, memory: Any) -> None:
        """Copy from the device."""

    def record(self, event: E) -> None:
        """Let the event stand for all work so far."""

    def wait_for(self, event: E) -> None:
        """Let further work wait for the event."""


@dataclass(frozen=True, slots=True)
class Slot[E: Event]:
    """One frame's places on both sides, and how far it has come."""

    source: Any
    """Where the frame is written on this side."""
    result: Any
    """Where it comes back on this side."""
    device_source: Any
    device_result: Any
    uploaded: E
    computed: E
    done: E


class TransferPipeline[E: Event]:
    """The slots of one device and its three streams. A slot is submitted again only after it was waited for."""

    def __init__(
        self, upload: Stream[E], compute: Stream[E], download: Stream[E],
        slots: Sequence[Slot[E]], launch: Callable[[int], None],
    ) -> None:  # fmt: skip
        """launch: start the network for a slot, by its number, in the `compute` stream, and return at once."""
        self._upload, self._compute, self._download = upload, compute, download
        self._slots, self._launch = slots, launch

    def submit(self, number: int) -> None:
        """Send a slot's frame on its way, and return at once."""
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
        """Wait until a slot's frame has come back."""
        self._slots[number].done.wait()
