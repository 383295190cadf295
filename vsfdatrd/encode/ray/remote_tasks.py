"""What happens on a machine of a Ray cluster. Everything here runs in a worker of Ray's, as a task that tells tuples.

<temporary folder>/vsfdatrd-encode-<user>/<output>/<run>/
  index*          BestSource's index of the film, sent once
  script.vpy
  <random>/       of one part, until it has been handed over

What is told is ``(kind, ...)``: begun, frames, whole, props, fit, made, piece, failed or unfit.
"""

import contextlib
import getpass
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from vsfdatrd.encode import script
from vsfdatrd.encode.chunk import EncodeParams, accept
from vsfdatrd.encode.ray.preflight import Environment
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import is_private, write_atomic
from vsfdatrd.workers.spawn import ending, no_window

PIECE = 8 << 20
"""Bytes of a part's file that travel at once."""

type Message = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What tasks of one encode have in common."""

    output: str
    """A name for the output that no other one has."""
    run: str
    """A name for this run, which sweeps away what earlier ones left."""
    expected: Environment
    script: str
    """Its text."""
    index: Path
    """Where the script looks for the index."""
    cpus: int | None
    """How many CPUs a task may use; None if all of them, since it is the GPU that is dealt out."""


def look(machine: str, index: Mapping[str, bytes], order: Order) -> Iterator[Message]:
    """Whether this machine has all that is needed: ``fit``, or ``unfit`` with a sentence."""
    for answer in _leashed({"do": "look", "expected": asdict(order.expected)}):
        complaint = answer.get("complaint") or answer.get("failed")
        yield ("unfit", complaint) if complaint else ("fit",)


def trial(machine: str, index: Mapping[str, bytes], order: Order, known: frozenset[str], *_: Any) -> Iterator[Message]:
    """The first frame: ``props``. known: machines with which `look` was content already."""
    yield from _work(machine, index, order, known, {"do": "trial"})


def part(
    machine: str, index: Mapping[str, bytes], order: Order, known: frozenset[str], chunk: Chunk,
    options: tuple[str, ...], rate: Fraction,
) -> Iterator[Message]:  # fmt: skip
    """A part, not looked through yet: ``frames`` several times, at last ``whole`` with its path here and seconds."""
    errand = {"do": "chunk", "options": options, "rate": str(rate), "chunk": [chunk.number, chunk.start, chunk.stop]}
    yield from _work(machine, index, order, known, errand)


def hand_over(
    machine: str, index: Mapping[str, bytes], order: Order, rate: Fraction, chunk: Chunk, path: Path, seconds: float
) -> Iterator[Message]:
    """Look a part through and tell of it (``made``), then its file (``piece``), which is removed."""
    folder = path.parent
    try:
        made = accept(path, chunk, EncodeParams(Path(), (), rate, folder), seconds)
        yield ("made", made)
        with (folder / chunk.name).open("rb") as file:
            while piece := file.read(PIECE):
                yield ("piece", piece)
    except (EncodeError, OSError) as error:
        yield ("failed", str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear(machine: str, index: Mapping[str, bytes], order: Order) -> Iterator[Message]:
    """Remove what the encode has left here."""
    folder = _folder(order).parent
    with contextlib.suppress(OSError):  # there is none
        if is_private(folder.parent):
            shutil.rmtree(folder, ignore_errors=True)
    yield ("cleared",)


def _work(
    machine: str, index: Mapping[str, bytes], order: Order, known: frozenset[str], errand: dict[str, Any]
) -> Iterator[Message]:
    yield ("begun",)
    if machine not in known:
        for told in look(machine, index, order):
            if told[0] == "unfit":
                yield told
                return
    try:
        home = _folder(order)
        _make_private(home.parent.parent)
        _prepare(order, home, index)
        folder = home / secrets.token_hex(4)
        folder.mkdir()
    except EncodeError as error:
        yield ("unfit", str(error))
        return
    except OSError as error:
        yield ("unfit", f"cannot write into {tempfile.gettempdir()} ({error.strerror}); see that there is space")
        return
    errand |= {"script": str(home / "script.vpy"), "folder": str(folder), "device": "0", "cpus": order.cpus,
               "locks": str(home.parent.parent)}  # fmt: skip
    whole = False
    try:
        for answer in _leashed(errand):
            match answer:
                case {"frames": frames}:
                    yield ("frames", frames)
                case {"whole": path, "seconds": seconds}:
                    whole = True
                    yield ("whole", Path(path), seconds)
                case {"props": props}:
                    yield ("props", props)
                case {"failed": text} if "no space is left" in text:
                    yield ("unfit", f"has no space left in {tempfile.gettempdir()}, where parts are made; free some")
                case {"failed": text}:
                    yield ("failed", text)
    finally:
        if not whole:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(order: Order) -> Path:
    return Path(tempfile.gettempdir()) / f"vsfdatrd-encode-{getpass.getuser()}" / order.output / order.run


def _make_private(folder: Path) -> None:
    """Make the folder that holds this user's encodes, for this user only.

    In a temporary folder that everybody can write, another user may have made it first, to put a script of their own
    where vspipe runs it. Raises EncodeError, as the end of a sentence about the machine, if somebody else can write it.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not is_private(folder):
        raise EncodeError(
            f"has a folder {folder} that is a link, or that another user owns or can write; "
            "remove it there, or set TMPDIR to a folder of your own"
        )
    if os.name != "nt":
        folder.chmod(0o700)  # earlier versions let others read it


def _prepare(order: Order, home: Path, index: Mapping[str, bytes]) -> None:
    """The script and the index, and nothing of earlier runs. Any number of workers may do this at once."""
    home.mkdir(parents=True, exist_ok=True)
    for entry in home.parent.iterdir():
        if entry.name != order.run:
            shutil.rmtree(entry, ignore_errors=True)
    text = script.with_index(order.script, order.index, home / order.index.name)
    for name, content in {**index, "script.vpy": text.encode()}.items():
        if not (home / name).exists():
            write_atomic(home / name, content, durable=False)


def _leashed(errand: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Have an errand done by a process of its own, which ends when this one does; its answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vsfdatrd.encode.ray.supervisor"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        encoding="utf-8", creationflags=no_window(),
    )  # fmt: skip
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a process was started without pipes")
    last: dict[str, Any] = {}
    try:
        with contextlib.suppress(OSError):  # it is gone: BrokenPipeError, on Windows "invalid argument"
            process.stdin.write(json.dumps(errand) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            last = json.loads(line)
            yield last
        if not last or last.keys() == {"frames"}:
            yield {"failed": f"its process ended with {ending(process.wait())}"}
    finally:
        with contextlib.suppress(OSError):  # it is gone, and what was written is still in the buffer
            process.stdin.close()
        process.stdout.close()
        process.wait()
