"""Encode chunks on the devices of this machine: one worker thread per device, events in order of occurrence."""

import queue
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from functools import partial

from vsfdatrd.encode.chunk import EncodeParams, Pipeline, PipelineStopped, try_encoder
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.encode.trial import first_frame
from vsfdatrd.encode.workers import Attempts, ChunkInputs, ChunkProgress, Event
from vsfdatrd.errors import EncodeError


class Devices:
    """The `Workers` of this machine: its GPUs with these numbers, or its CPU."""

    def __init__(self, numbers: Sequence[int]) -> None:
        """Use these devices.

        Args:
            numbers: GPU numbers.
        """
        self._numbers = numbers

    @property
    def name(self) -> str:
        """Names of the GPUs, for the progress line; ``CPU`` if there are none."""
        from vsfdatrd.backends.gpu.devices import list_gpus

        available = list_gpus()
        names = Counter(available[n].name.removeprefix("NVIDIA ") for n in self._numbers if n < len(available))
        return ", ".join(f"{count}× {name}" if count > 1 else name for name, count in names.items()) or "CPU"

    def try_encoder(self, options: Sequence[str], pixel_format: str, size: tuple[int, int]) -> None:
        """See `chunk.try_encoder`."""
        try_encoder(options, pixel_format, size)

    def first_frame(self, inputs: ChunkInputs) -> dict[str, int]:
        """See `Workers.first_frame`; rendered on the first GPU."""
        return first_frame(inputs.script, str(self._numbers[0]), inputs.script.with_name("frame.json"))

    def make(self, inputs: ChunkInputs, chunks: Sequence[Chunk], params: EncodeParams) -> Generator[Event]:
        """See `Workers.make`; one chunk at a time per device.

        While ffmpeg finishes a chunk and its file is verified, the device already renders the next one.
        """
        scheduler = ChunkScheduler(chunks, params)
        devices = map(str, self._numbers[: len(chunks)])
        workers = [threading.Thread(target=scheduler.work, args=(device,), daemon=True) for device in devices]
        for worker in workers:
            worker.start()
        working = len(workers)
        try:
            while working:
                try:
                    event = scheduler.events.get(timeout=0.5)  # so that Ctrl-C is noticed while it waits
                except queue.Empty:
                    continue
                if event is None:
                    working -= 1
                elif isinstance(event, BaseException):
                    raise event
                else:
                    yield event
        finally:
            scheduler.stop()
            for worker in workers:
                worker.join()


class ChunkScheduler:
    """Assigns chunks to the devices of this machine, and retries a chunk once if it fails."""

    def __init__(self, chunks: Sequence[Chunk], params: EncodeParams) -> None:
        """Queue the chunks.

        Args:
            chunks: The chunks to encode.
            params: Parameters common to all chunks.
        """
        self.events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        """Events in order; an error that ends the encode; None for each worker that has finished."""
        self._params = params
        self._waiting: queue.SimpleQueue[tuple[Chunk, Attempts]] = queue.SimpleQueue()
        for chunk in chunks:
            self._waiting.put((chunk, Attempts()))
        self._running: set[Pipeline] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def work(self, device: str) -> None:
        """Encode chunks on one device, the script's argument, until the queue is empty; then put None into `events`.

        Args:
            device: The script's ``device`` argument.
        """
        finisher: threading.Thread | None = None
        try:
            while True:
                try:
                    chunk, attempts = self._waiting.get_nowait()
                except queue.Empty:
                    if finisher is None:
                        break
                    finisher.join()  # if the chunk fails, it is queued again
                    finisher = None
                    continue
                pipeline = self._start(chunk, device)
                pipeline.feed(partial(self._report_progress, chunk))
                if finisher is not None:
                    finisher.join()
                finisher = threading.Thread(target=self._finish, args=(pipeline, attempts), daemon=True)
                finisher.start()
                if pipeline.failed:  # report the error before the next chunk fails for the same reason
                    finisher.join()
        except PipelineStopped:
            pass
        except BaseException as error:
            self.events.put(error)
        finally:
            if finisher is not None:
                finisher.join()
            self.events.put(None)

    def stop(self) -> None:
        """Terminate running pipelines and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for pipeline in running:
            pipeline.stop()

    def _start(self, chunk: Chunk, device: str) -> Pipeline:
        with self._lock:
            if self._stopped:
                raise PipelineStopped
            pipeline = Pipeline(chunk, self._params, device)
            self._running.add(pipeline)
        return pipeline

    def _report_progress(self, chunk: Chunk, frames: int) -> None:
        self.events.put(ChunkProgress(chunk, frames))

    def _finish(self, pipeline: Pipeline, attempts: Attempts) -> None:
        """Wait for ffmpeg, verify the chunk and report it; if it failed, queue it again or report the error."""
        try:
            self.events.put(pipeline.finish())
        except PipelineStopped:
            pass
        except EncodeError as error:
            try:
                if self._stopped or "no space is left" in str(error):
                    raise
                self.events.put(attempts.retry(pipeline.chunk, error))
                self._waiting.put((pipeline.chunk, attempts))
            except EncodeError as last:
                self.events.put(last)
        except BaseException as error:
            self.events.put(error)
        finally:
            with self._lock:
                self._running.discard(pipeline)
