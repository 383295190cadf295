"""Overlapped transfers: frames are uploaded, computed and downloaded concurrently on three CUDA streams.

Download of frame n overlaps compute of n + 1 and upload of n + 2. Each slot has its own host and device memory, so
the only order to keep is that within a frame: upload, compute, download. Events enforce it between the streams; the
host waits for finished frames only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsfdatrd.backends.gpu.cuda import Event, Stream


@dataclass(frozen=True, slots=True)
class Slot:
    """Buffers and events of one frame in flight."""

    source: Any
    """Host address of the input."""
    result: Any
    """Host address of the output."""
    device_source: Any
    device_result: Any
    uploaded: "Event"
    computed: "Event"
    done: "Event"


@dataclass(frozen=True, slots=True)
class TransferPipeline:
    """The slots of one device and its three streams. A slot must be waited for before it is submitted again."""

    upload: "Stream"
    compute: "Stream"
    download: "Stream"
    slots: Sequence[Slot]
    launch: Callable[[int], None]
    """Queues the network for a slot, by its number, on the `compute` stream, and returns at once."""

    def submit(self, number: int) -> None:
        """Queue upload, network and download of a slot's frame, and return at once.

        Args:
            number: Number of the slot.
        """
        slot = self.slots[number]
        self.upload.upload(slot.device_source, slot.source)
        self.upload.record(slot.uploaded)
        self.compute.wait_for(slot.uploaded)
        self.launch(number)
        self.compute.record(slot.computed)
        self.download.wait_for(slot.computed)
        self.download.download(slot.result, slot.device_result)
        self.download.record(slot.done)

    def wait(self, number: int) -> None:
        """Wait for a slot's output.

        Args:
            number: Number of the slot.
        """
        self.slots[number].done.wait()
