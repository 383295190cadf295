"""Receive a chunk's file from another machine, block by block."""

import contextlib
import errno
import hashlib
import secrets
from pathlib import Path

from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.errors import EncodeError
from vsfdatrd.system.files import commit_file


class ChunkDownload:
    """A chunk file being received. It gets its final name only when it is complete and fsynced."""

    def __init__(self, folder: Path, done: DoneChunk) -> None:
        """Create the temporary file.

        Args:
            folder: Folder of the chunk files.
            done: Record of the chunk, with the file's size and checksum.

        Raises:
            EncodeError: The file cannot be created.
        """
        self._done = done
        self._final = folder / done.chunk.name
        self._path = folder / f"{done.chunk.number + 1:05}.{secrets.token_hex(4)}.tmp.mkv"
        self._digest = hashlib.sha256()
        try:
            self._file = self._path.open("xb")
        except OSError as error:
            raise _write_error(self._path, error) from error

    def add(self, block: bytes) -> bool:
        """Append the next bytes of the file; return True if it is now complete.

        Args:
            block: The next bytes of the file.

        Raises:
            EncodeError: The block cannot be written.
        """
        self._digest.update(block)
        try:
            self._file.write(block)
        except OSError as error:
            self.discard()
            raise _write_error(self._path, error) from error
        return self._file.tell() >= self._done.bytes

    def finish(self) -> DoneChunk:
        """Verify the checksum, give the file its final name, and return the record of the chunk.

        Raises:
            EncodeError: The checksum differs, or the file cannot be written.
        """
        try:
            self._file.close()
            if self._digest.hexdigest() != self._done.sha256:
                raise EncodeError(f"chunk {self._done.chunk.number + 1} was damaged in transfer")
            commit_file(self._path, self._final)
        except OSError as error:
            raise _write_error(self._final, error) from error
        finally:
            self.discard()
        return self._done

    def discard(self) -> None:
        """Close and remove the temporary file. Errors are ignored."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> EncodeError:
    if error.errno == errno.ENOSPC:
        return EncodeError(
            "no space is left on the disk; free some, then run the same command again: what is done is kept"
        )
    return EncodeError(f"{path} cannot be written ({error.strerror})")
