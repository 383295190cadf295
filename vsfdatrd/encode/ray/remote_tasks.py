"""Tasks that run on the machines of a Ray cluster, in Ray's worker processes. Each task yields messages as tuples.

<temporary folder>/vsfdatrd-encode-<user>/<output>/<run>/
  index*          BestSource's index of the source, sent once
  script.vpy
  <random>/       folder of one chunk, until it has been sent back

All tasks have the arguments ``machine``, Ray's node ID of the machine they run on, ``index``, the contents of
BestSource's index files by name (only for `trial` and `part`), and ``order``. Machines in ``passed`` have passed
`preflight` and are not checked again. A message is ``(kind, ...)``, with kind one of begun, frames, encoded, props,
fit, verified, block, failed, unfit and cleared.
"""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode import script
from vsfdatrd.encode.chunk import EncodeParams, accept_file
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError, EngineError
from vsfdatrd.system.files import is_private, write_atomic
from vsfdatrd.workers.client import Worker

BLOCK_BYTES = 8 << 20
"""Block size in bytes for sending a chunk's file."""

type Message = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class EncodeOrder:
    """Parameters common to all tasks of an encode."""

    output: str
    """Unique name of the output."""
    run: str
    """Unique name of this run; folders of other runs for the same output are removed."""
    expected: Environment
    script: str
    """Text of the VapourSynth script."""
    index: Path
    """Path prefix of BestSource's index in the script."""
    cpus: int | None
    """Number of CPUs a task may use; None for all of them, if tasks are limited by GPUs."""


def preflight(machine: str, index: Mapping[str, bytes], order: EncodeOrder) -> Iterator[Message]:
    """Check that this machine has everything that is needed; yield ``fit``, or ``unfit`` with the reason.

    Args:
        machine: Ray node ID of this machine.
        index: Not used.
        order: Parameters common to all tasks.
    """
    for answer in _run_supervised({"do": "preflight", "expected": asdict(order.expected)}):
        mismatch = answer.get("mismatch") or answer.get("failed")
        yield ("unfit", mismatch) if mismatch else ("fit",)


def trial(
    machine: str, index: Mapping[str, bytes], order: EncodeOrder, passed: frozenset[str], *_: Any
) -> Iterator[Message]:
    """Render the first frame. Further arguments, which `part` has, are ignored.

    Args:
        machine: Ray node ID of this machine.
        index: Contents of BestSource's index files by name.
        order: Parameters common to all tasks.
        passed: Machines that have passed `preflight` and are not checked again.

    Yields:
        ``begun``, then ``props`` with the color properties, or ``failed`` or ``unfit`` with the reason.
    """
    yield from _run_job(machine, index, order, passed, {"do": "trial"})


def part(
    machine: str,
    index: Mapping[str, bytes],
    order: EncodeOrder,
    passed: frozenset[str],
    chunk: Chunk,
    options: tuple[str, ...],
    rate: Fraction,
) -> Iterator[Message]:
    """Encode a chunk, without verifying it.

    Args:
        machine: Ray node ID of this machine.
        index: Contents of BestSource's index files by name.
        order: Parameters common to all tasks.
        passed: Machines that have passed `preflight` and are not checked again.
        chunk: The frames to encode.
        options: ffmpeg output options.
        rate: Frames per second in the chunk's file.

    Yields:
        ``begun``, ``frames`` with the number of frames several times, then ``encoded`` with the file's path on this
        machine and the encoding time in seconds; or ``failed`` or ``unfit`` with the reason.
    """
    job = {"do": "chunk", "options": options, "rate": str(rate), "chunk": [chunk.number, chunk.start, chunk.stop]}
    yield from _run_job(machine, index, order, passed, job)


def send_file(
    machine: str,
    index: Mapping[str, bytes],
    order: EncodeOrder,
    rate: Fraction,
    chunk: Chunk,
    path: Path,
    seconds: float,
) -> Iterator[Message]:
    """Verify a chunk, send its file, and remove it.

    Args:
        machine: Ray node ID of this machine.
        index: Not used.
        order: Parameters common to all tasks.
        rate: Frames per second in the chunk's file.
        chunk: The frames it must contain.
        path: The file, as sent with ``encoded``.
        seconds: The encoding time.

    Yields:
        ``verified`` with the chunk's record, then ``block`` with each block of the file; ``failed`` with the reason.
    """
    folder = path.parent
    try:
        done = accept_file(path, chunk, EncodeParams(Path(), (), rate, folder), seconds)
        yield ("verified", done)
        with (folder / chunk.name).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield ("block", block)
    except (EncodeError, OSError) as error:
        yield ("failed", str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear(machine: str, index: Mapping[str, bytes], order: EncodeOrder) -> Iterator[Message]:
    """Remove the files of the encode from this machine; yield ``cleared``.

    Args:
        machine: Ray node ID of this machine.
        index: Not used.
        order: Parameters common to all tasks.
    """
    folder = _encode_folder(order).parent
    with contextlib.suppress(OSError):  # the folder does not exist
        if is_private(folder.parent):
            shutil.rmtree(folder, ignore_errors=True)
    yield ("cleared",)


def _run_job(
    machine: str, index: Mapping[str, bytes], order: EncodeOrder, passed: frozenset[str], job: dict[str, Any]
) -> Iterator[Message]:
    """Check this machine if necessary, write the encode's files, and run a job of `supervisor` with them.

    Here, the job lacks the paths and resources that are the same for all jobs.

    Yields:
        ``begun``, then the answers of the job as messages.
    """
    yield ("begun",)
    if machine not in passed:
        for message in preflight(machine, index, order):
            if message[0] == "unfit":
                yield message
                return
    try:
        home = _encode_folder(order)
        _make_private(home.parent.parent)
        _prepare_files(order, home, index)
        folder = home / secrets.token_hex(4)
        folder.mkdir()
    except EncodeError as error:
        yield ("unfit", str(error))
        return
    except OSError as error:
        yield ("unfit", f"cannot write into {tempfile.gettempdir()} ({error.strerror}); free some space")
        return
    job |= {
        "script": str(home / "script.vpy"),
        "folder": str(folder),
        "device": "0",
        "cpus": order.cpus,
        "locks": str(home.parent.parent),
    }
    encoded = False
    try:
        for answer in _run_supervised(job):
            match answer:
                case {"frames": frames}:
                    yield ("frames", frames)
                case {"encoded": path, "seconds": seconds}:
                    encoded = True
                    yield ("encoded", Path(path), seconds)
                case {"props": props}:
                    yield ("props", props)
                case {"failed": text} if "no space is left" in text:
                    yield ("unfit", f"has no space left in {tempfile.gettempdir()}, where chunks are made; free some")
                case {"failed": text}:
                    yield ("failed", text)
    finally:
        if not encoded:
            shutil.rmtree(folder, ignore_errors=True)


def _encode_folder(order: EncodeOrder) -> Path:
    """Return the folder of this run on this machine; see the top of this module."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = ""
        if sys.platform != "win32":  # in containers, a user ID may have no name
            user = str(os.getuid())
    return Path(tempfile.gettempdir()) / f"vsfdatrd-encode-{user}" / order.output / order.run


def _make_private(folder: Path) -> None:
    """Create the folder for this user's encodes, writable by this user only.

    In a world-writable temporary directory, another user may have created the folder first, to have vspipe run a script
    of theirs. Raises EncodeError, phrased to follow the machine's name, if another user can write the folder.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not is_private(folder):
        raise EncodeError(
            f"has a folder {folder} that is a link, or that another user owns or can write; "
            "remove it there, or set TMPDIR to a folder of your own"
        )
    if os.name != "nt":
        folder.chmod(0o700)  # earlier versions created it readable by others


def _prepare_files(order: EncodeOrder, home: Path, index: Mapping[str, bytes]) -> None:
    """Write the script and the index, and remove folders of earlier runs. Safe to run in several workers at once."""
    home.mkdir(parents=True, exist_ok=True)
    for entry in home.parent.iterdir():
        if entry.name != order.run:
            shutil.rmtree(entry, ignore_errors=True)
    text = script.with_index(order.script, order.index, home / order.index.name)
    for name, content in {**index, "script.vpy": text.encode()}.items():
        if not (home / name).exists():
            write_atomic(home / name, content, durable=False)


def _run_supervised(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run a job in a `supervisor` process, which exits together with this process; yield its answers."""
    worker = Worker("vsfdatrd.encode.ray.supervisor", "encode")
    last: dict[str, Any] = {}
    try:
        with contextlib.suppress(EngineError):  # the process has died, which is reported below
            worker.send(**job)
        for line in worker.replies:
            last = json.loads(line)
            yield last
        if not last or last.keys() == {"frames"}:
            yield {"failed": worker.exit_reason()}
    finally:
        worker.close()
