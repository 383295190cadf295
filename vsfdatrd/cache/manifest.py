"""Identity and integrity of cached engines.

``manifest.json`` is stored with an engine's files. It contains the fields of the key, and size and sha256 of every
file.
"""

import contextlib
import hashlib
import json
import secrets
import stat
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vsfdatrd.errors import EngineBuildError
from vsfdatrd.system.files import sha256_file, sync_file, sync_folder


@dataclass(frozen=True, slots=True)
class Key:
    """All properties that distinguish one built engine from another. All fields are strings."""

    weights: str
    """sha256 of the weights file."""
    graph: str
    """Version of the code that turns the weights into the graph that the engine runs."""
    shape: str
    """Padded frame size, as ``720x540``."""
    precision: str
    """Arithmetic inside the network."""
    engine: str
    """Name of the backend, and name and version of its library."""
    device: str
    """The device the engine was built for."""
    options: str = ""
    """Anything else that changes the result of the build."""

    @property
    def digest(self) -> str:
        """Sha256 of the canonical JSON of all fields, 64 hexadecimal digits."""
        return digest_of(asdict(self))

    def __str__(self) -> str:
        return f"{self.engine}, {self.shape}, {self.precision}, {self.device}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine in the cache."""

    path: Path
    """The directory of its files."""
    fields: Mapping[str, str]
    """Fields of its key; empty if its manifest is damaged."""
    size: int
    """Size on disk in bytes."""
    built: float
    """Time of the build in seconds since the epoch."""
    used: float
    """Time of the last use in seconds since the epoch."""
    build: str
    """Random text that distinguishes one build of a key from the next."""

    @property
    def digest(self) -> str:
        """Digest of its key."""
        return self.path.name


class DamagedError(Exception):
    """An entry is damaged; the message says how, as the end of a sentence."""


def digest_of(data: Mapping[str, Any]) -> str:
    """Return the sha256 of the canonical JSON of some fields, 64 hexadecimal digits.

    Args:
        data: Values that JSON can represent.
    """
    text = json.dumps(dict(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(directory: Path, key: Key) -> None:
    """Write the manifest of a finished build and fsync all files.

    If the directory is renamed afterwards, the new name cannot reach the disk before the data.

    Args:
        directory: The files of the build.
        key: Identity of the engine.

    Raises:
        EngineBuildError: The build wrote no file, or one named ``manifest.json``.
    """
    manifest = directory / "manifest.json"
    if manifest.exists():
        raise EngineBuildError(f"building the engine ({key}) wrote manifest.json, a name reserved for the cache")
    files = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file() and not path.is_symlink():
            files[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
            sync_file(path)
    if not files:
        raise EngineBuildError(f"building the engine ({key}) left no file behind")
    content = {"key": asdict(key), "build": secrets.token_hex(8), "built": time.time(), "files": files}
    manifest.write_text(json.dumps(content, indent=1), encoding="utf-8")
    sync_file(manifest)
    sync_folder(directory)


def verify_entry(path: Path) -> Entry:
    """Read an entry and verify size and sha256 of all its files.

    Args:
        path: Directory of the entry.

    Raises:
        DamagedError: The entry is damaged.
    """
    if path.is_symlink() or not path.is_dir():
        raise DamagedError("it is not a directory")
    key, files, built, build = _read_manifest(path)
    total = 0
    for name, (size, sha256) in files.items():
        if any(part in ("", ".", "..") or set(part) & {"\\", ":", "\0"} for part in name.split("/")):
            raise DamagedError(f"manifest.json names {name!r}, which is not inside it")
        file = path / name
        try:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{name} is not a file")
            if status.st_size != size:
                raise DamagedError(f"{name} has {status.st_size} bytes instead of {size}")
            # Hashing takes 0.1 s for 100 MB with SHA instructions, little compared with reading and compiling the
            # files. Nothing else detects a flipped bit in the weights, which would load and give a wrong image.
            if sha256_file(file) != sha256:
                raise DamagedError(f"{name} has changed since it was built")
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
        total += status.st_size
    return Entry(path, key, total, built, time.time(), build)


def _read_manifest(path: Path) -> tuple[Mapping[str, str], dict[str, tuple[int, str]], float, str]:
    """Return an entry's key, size and sha256 of its files, time of the build, and random text of the build.

    Raises:
        DamagedError: The manifest cannot be read, or belongs to another engine.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        key, files = manifest["key"], {name: (of["size"], of["sha256"]) for name, of in manifest["files"].items()}
        built, build = float(manifest["built"]), str(manifest["build"])
        sound = bool(files) and digest_of(key) == path.name
    except OSError as error:
        raise DamagedError(f"manifest.json cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError("manifest.json is damaged") from error
    if not sound:
        raise DamagedError("manifest.json belongs to another engine")
    return key, files, built, build


def read_entry(path: Path) -> Entry:
    """Read an entry's manifest and file times, without reading its files.

    Args:
        path: Directory of the entry.

    Raises:
        FileNotFoundError: The entry does not exist.
    """
    fields: Mapping[str, str] = {}
    built = used = path.lstat().st_mtime
    build = ""
    with contextlib.suppress(OSError, DamagedError):
        used = (path / "manifest.json").lstat().st_mtime
        fields, _, built, build = _read_manifest(path)
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.lstat().st_size if not file.is_dir() else 0
    return Entry(path, fields, size, built, used, build)
