"""The user's directories. There may be none: a container may run as any UID, without a passwd entry or HOME."""

import os
import stat
import sys
import tempfile
from os import PathLike
from pathlib import Path
from typing import Literal

from vsfdatrd.errors import ArgumentError


def expand_user(path: str | PathLike[str]) -> Path:
    """Return a path with ``~`` expanded.

    Raises:
        ArgumentError: There is no such home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ArgumentError(
            f"the path {os.fspath(path)!r} cannot be used, as there is no such home directory; give the full path"
        ) from error


def user_directory(kind: Literal["cache", "config"]) -> Path | None:
    """Return the platform's cache or config directory for vsfdatrd; None for a user without a home directory."""
    import platformdirs

    find = platformdirs.user_cache_dir if kind == "cache" else platformdirs.user_config_dir
    try:
        result = Path(find("vsfdatrd", False))
    except RuntimeError:
        return None
    return None if result.parts[:1] == ("~",) else result  # os.path.expanduser leaves "~" if it finds no home directory


def private_temporary_directory(name: str) -> Path:
    """Return a directory below the temporary directory that only this user can access; create it if missing.

    Args:
        name: Its name; on POSIX the user ID is appended, so the path is the same at every start.

    Raises:
        OSError: It cannot be created, or the path belongs to another user or is accessible to others.
    """
    if sys.platform != "win32":
        path = Path(tempfile.gettempdir(), f"{name}-{os.getuid()}")
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(f"{path} is not private to this user")
    else:  # the temporary directory is the user's own
        path = Path(tempfile.gettempdir(), name)
        path.mkdir(exist_ok=True)
    return path
