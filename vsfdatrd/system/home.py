"""Directories of the user, who may have none: a container runs as any number, without an entry in passwd and HOME."""

import os
import stat
import sys
import tempfile
from os import PathLike
from pathlib import Path
from typing import Literal

from vsfdatrd.errors import ArgumentError


def expand_user(path: str | PathLike[str]) -> Path:
    """A path with its ``~`` replaced. Raises ArgumentError if that is nobody's home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ArgumentError(
            f"the path {os.fspath(path)!r} cannot be used, as there is no such home directory; write the whole path"
        ) from error


def user_directory(kind: Literal["cache", "config"]) -> Path | None:
    """Where this system keeps a program's files of this kind; None for a user without a home directory."""
    import platformdirs

    find = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_config_dir
    try:
        found = Path(find("vsfdatrd", False))
    except RuntimeError:
        return None
    return None if found.parts[:1] == ("~",) else found  # what os.path.expanduser leaves where it knows no home


def private_temporary_directory(name: str) -> Path:
    """A directory of this user alone below the temporary one, the same at every start; made if it is not there.

    Raises OSError if it cannot be made, or if what has its name is another user's or open to others.
    """
    if sys.platform != "win32":
        path = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"{path} is not a directory of this user alone")
    else:  # the temporary directory is the user's own
        path = Path(tempfile.gettempdir(), name)
        path.mkdir(exist_ok=True)
    return path
