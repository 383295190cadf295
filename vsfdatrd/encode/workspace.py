"""The working folder next to an output, locked by one process and without links to files elsewhere.

film.mkv.vsfdatrd/
  lock             held by the encoding process; released when it exits
  journal.json     settings, and records of finished chunks
  script.vpy       the script that vspipe runs
  index*           BestSource's index of the source
  chunks/          the chunk files
  frame.json       properties of the first frame
  joined.mkv       the muxed film, until it is renamed to the output
"""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vsfdatrd.encode.chunk import EncodeParams, accept_file
from vsfdatrd.encode.journal import DamagedJournalError, DoneChunk, Journal
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import is_regular, max_name_bytes, sha256_file, shorten_name

_FOLDER_SUFFIX = ".vsfdatrd"
_JOURNAL = "journal.json"


class Workspace:
    """The folder of one output, locked by `open_workspace`."""

    def __init__(self, folder: Path, target: Path) -> None:
        """Define the paths of the files in the folder; nothing is created.

        Args:
            folder: The working folder, locked by `open_workspace`.
            target: The output file, whose suffix the muxed file gets.
        """
        self.folder = folder
        self.chunks = folder / "chunks"
        self.script = folder / "script.vpy"
        self.index = folder / "index"
        self.frame = folder / "frame.json"
        self.joined = folder / f"joined{target.suffix.lower()}"

    def journal(self, report: Callable[[str], None]) -> Journal:
        """Open the journal, or start one. A damaged one is reported and deleted, together with all chunks.

        Args:
            report: Receives a message if the journal is damaged.

        Raises:
            EncodeError: The journal cannot be read.
        """
        path = self.folder / _JOURNAL
        try:
            return Journal(path)
        except OSError as error:
            raise EncodeError(f"the journal {path} cannot be read ({error.strerror}); check its permissions") from error
        except DamagedJournalError as error:
            report(f"the journal {path} is damaged ({error}); starting over")
            path.unlink()
            self.forget()
            return Journal(path)

    def forget(self) -> None:
        """Remove all chunks and the muxed file."""
        shutil.rmtree(self.chunks, ignore_errors=True)
        self.joined.unlink(missing_ok=True)
        self.frame.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the folder, once the output is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def open_workspace(target: Path) -> Iterator[Workspace]:
    """Create (if necessary) and lock the working folder of an output, for the duration of the ``with``.

    Args:
        target: The output file.

    Raises:
        EncodeError: Another process uses the folder, it cannot be written, or it contains links.
    """
    folder = target.with_name(shorten_name(target.name, _FOLDER_SUFFIX, max_name_bytes(target.parent)))
    try:
        _check_links(folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        _check_links(folder)  # again: another user may have created it in the meantime
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
        if not (folder / "lock").exists():  # another process finished and removed the folder before we had the lock
            raise EncodeError(f"another process has just finished {target}; run the same command again")
        yield Workspace(folder, target)
    finally:
        if not (folder / _JOURNAL).exists():  # nothing was started, or the output is finished
            shutil.rmtree(folder, ignore_errors=True)
        lock.release()
        if sys.platform == "win32":  # Windows cannot remove open files: the lock file, and thus the folder
            with contextlib.suppress(OSError):  # not empty: it contains a journal
                folder.rmdir()


def _check_links(folder: Path) -> None:
    """Raise EncodeError if the folder, or anything in it, is a link.

    In a directory that others can write, another user may have created the folder first, so that we would overwrite or
    remove files of their choice.
    """
    for path in _list_contents(folder):
        # Hard links are refused too, except for chunks: their files are never written twice, and a hard-linked copy of
        # the folder has them.
        linked = path.parent == folder and path.is_file() and path.lstat().st_nlink > 1
        if linked or not is_regular(path):
            raise EncodeError(
                f"{path} is a link (or a device), which encode does not follow; remove it, or give another output"
            )


def _list_contents(folder: Path) -> Iterator[Path]:
    yield folder
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            yield path
            if path.name == "chunks" and path.is_dir() and not path.is_symlink():
                yield from path.iterdir()


def resume_chunks(workspace: Workspace, journal: Journal, params: EncodeParams) -> list[DoneChunk]:
    """Return the finished chunks whose files are unchanged, in order; remove other files and their records.

    Chunks whose files are complete but not recorded are verified and recorded.

    Args:
        workspace: The working folder.
        journal: Its journal, which is updated.
        params: Parameters common to all chunks.

    Raises:
        EncodeError: The journal cannot be written.
    """
    workspace.chunks.mkdir(exist_ok=True)
    valid: list[DoneChunk] = []
    missing = {chunk.number: chunk for chunk in journal.chunks()}
    for record in journal.done_chunks():
        path = workspace.chunks / record.chunk.name
        if path.is_file() and path.stat().st_size == record.bytes and sha256_file(path) == record.sha256:
            valid.append(record)
            del missing[record.chunk.number]
        else:
            path.unlink(missing_ok=True)  # damaged; otherwise `_accept_unrecorded` would accept it as complete
    unrecorded = [_accept_unrecorded(workspace, chunk, params) for chunk in missing.values()]
    accepted = [record for record in unrecorded if record]
    journal.forget(*missing.values())
    journal.add(*accepted)
    valid += accepted
    names = {record.chunk.name for record in valid}
    for path in workspace.chunks.iterdir():
        if path.name not in names:
            path.unlink(missing_ok=True)
    return sorted(valid, key=lambda record: record.chunk.number)


def _accept_unrecorded(workspace: Workspace, chunk: Chunk, params: EncodeParams) -> DoneChunk | None:
    """Verify a chunk whose process was killed after writing the file but before recording it.

    Returns:
        The record of the chunk; None if there is no complete file, or it is not valid.
    """
    unverified = workspace.chunks / f"{chunk.number + 1:05}.whole.mkv"
    final = workspace.chunks / chunk.name
    if final.is_file():  # renamed but not recorded: verify it again
        os.replace(final, unverified)
    if not unverified.is_file():
        return None
    try:
        return accept_file(unverified, chunk, params, 0.0)
    except EncodeError:
        return None
