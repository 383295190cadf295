"""The folder beside an output in which it is made: one process at a time, and nothing in it that is not ours.

film.mkv.vsfdatrd/
  lock             held by the process at work; freed with it
  journal.json     what has been done
  script.vpy       what vspipe runs
  index*           BestSource's index of the source
  chunks/          the parts
  joined.mkv       all of them, until it takes the output's name
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vsfdatrd.encode.chunk import EncodeParams, accept
from vsfdatrd.encode.journal import DamagedJournalError, DoneChunk, Journal
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import is_plain, longest_name, sha256_file, shortened

_SUFFIX = ".vsfdatrd"
_JOURNAL = "journal.json"


class Workspace:
    """The folder of one output, locked."""

    def __init__(self, folder: Path, target: Path) -> None:
        self.folder = folder
        self.chunks = folder / "chunks"
        self.script = folder / "script.vpy"
        self.index = folder / "index"
        self.frame = folder / "frame.json"
        self.joined = folder / f"joined{target.suffix.lower()}"

    def journal(self, say: Callable[[str], None]) -> Journal:
        """The journal; a damaged one is put away, after saying so."""
        path = self.folder / _JOURNAL
        try:
            return Journal(path)
        except OSError as error:
            raise EncodeError(f"the journal {path} cannot be read ({error.strerror}); check its permissions") from error
        except DamagedJournalError as error:
            say(f"the journal {path} is damaged ({error}); beginning anew")
            path.unlink()
            self.forget()
            return Journal(path)

    def forget(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.chunks, ignore_errors=True)
        self.joined.unlink(missing_ok=True)
        self.frame.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the folder: the output is done."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def workplace(target: Path) -> Iterator[Workspace]:
    """The folder for an output, made if it is not there.

    Raises EncodeError if another process is at work in it, or there are links in it.
    """
    folder = target.with_name(shortened(target.name, _SUFFIX, longest_name(target.parent)))
    try:
        _check_links(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_links(folder)  # once more: somebody may have been faster
        lock = FileLock(folder / "lock")
        lock.acquire(blocking=False)
    except Timeout as error:
        raise EncodeError(
            f"another process is making {target} already (it holds {folder / 'lock'}); "
            "wait for it, or give another output"
        ) from error
    except OSError as error:
        raise EncodeError(
            f"the folder {folder} cannot be used ({error.strerror}); give an output where you may write"
        ) from error
    try:
        if not (folder / "lock").exists():  # the other one finished between our two steps, and removed it
            raise EncodeError(f"another process has just finished {target}; run the same command again")
        yield Workspace(folder, target)
    finally:
        if not (folder / _JOURNAL).exists():  # nothing was begun, or all is done
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        if sys.platform == "win32":  # which does not remove what is open: the lock, and so the folder
            with contextlib.suppress(OSError):  # there is a journal in it
                folder.rmdir()


def _check_links(folder: Path) -> None:
    """Raise EncodeError if the folder or anything in it leads elsewhere: in a folder that others can write, somebody
    may have made it first, and what is written or removed in it would be a file of their choice."""
    for path in _contents(folder):
        # Hard links too, but not of chunks, whose files are never written twice: a copy of the folder may have those.
        linked = path.parent == folder and path.is_file() and path.lstat().st_nlink > 1
        if linked or not is_plain(path):
            raise EncodeError(
                f"{path} is a link (or a device), which encode does not follow; remove it, or give another output"
            )


def _contents(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            yield path
            if path.name == "chunks" and path.is_dir() and not path.is_symlink():
                yield from path.iterdir()


def resume(place: Workspace, journal: Journal, recipe: EncodeParams) -> list[DoneChunk]:
    """What is done and still as it was; the rest is swept away, and forgotten in the journal."""
    place.chunks.mkdir(exist_ok=True)
    kept: list[DoneChunk] = []
    wanted = {chunk.number: chunk for chunk in journal.chunks()}
    for made in journal.made():
        path = place.chunks / made.chunk.name
        if path.is_file() and path.stat().st_size == made.bytes and sha256_file(path) == made.sha256:
            kept.append(made)
            del wanted[made.chunk.number]
        else:
            path.unlink(missing_ok=True)  # damaged since; not to be taken for a chunk that is whole but not recorded
    found = [whole for chunk in wanted.values() if (whole := _unrecorded(place, chunk, recipe))]
    journal.lose(*wanted.values())
    journal.add(*found)
    kept += found
    names = {made.chunk.name for made in kept}
    for entry in os.scandir(place.chunks):
        if entry.name not in names:
            Path(entry.path).unlink(missing_ok=True)
    return sorted(kept, key=lambda made: made.chunk.number)


def _unrecorded(place: Workspace, chunk: Chunk, recipe: EncodeParams) -> DoneChunk | None:
    """A part that was whole when the process was killed, between its last byte and its row in the journal."""
    whole = place.chunks / f"{chunk.number + 1:05}.whole.mkv"
    final = place.chunks / chunk.name
    if final.is_file():  # looked through once, but by whom nobody noted
        os.replace(final, whole)
    if not whole.is_file():
        return None
    try:
        return accept(whole, chunk, recipe, 0.0)
    except EncodeError:
        return None
