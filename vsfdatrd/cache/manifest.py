"""What the cache keeps of one engine: its identity, and a manifest by which damage shows.

``manifest.json`` lies beside an engine's files: the fields of its key, and size and sha256 of every file.
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
    """Everything that makes one built engine differ from another. All fields are plain text."""

    weights: str
    """sha256 of the weights file."""
    graph: str
    """Version of the code that turns weights into what the engine runs."""
    shape: str
    """Padded frame size, as ``720x540``."""
    precision: str
    """Arithmetic inside the network."""
    engine: str
    """Name of the engine, name and version of the library behind it."""
    device: str
    """The device it was built for."""
    options: str = ""
    """Whatever else changes the result of the build."""

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON of all fields, 64 hexadecimal digits."""
        return digest_of(asdict(self))

    def __str__(self) -> str:
        return f"{self.engine}, {self.shape}, {self.precision}, {self.device}"


@dataclass(frozen=True, slots=True)
class Entry:
    """An engine in the cache."""

    path: Path
    """The directory that holds its files."""
    fields: Mapping[str, str]
    """The fields of its key; empty if its manifest is damaged."""
    size: int
    """Bytes on disk."""
    built: float
    """When it was built, in seconds since the epoch."""
    used: float
    """When it was last opened, in seconds since the epoch."""
    build: str
    """Differs between one build of an engine and the next."""

    @property
    def digest(self) -> str:
        """The digest of its key."""
        return self.path.name


class DamagedError(Exception):
    """What is wrong with an entry, as the end of a sentence."""


def digest_of(data: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of some fields, 64 hexadecimal digits."""
    text = json.dumps(dict(data), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def seal(directory: Path, key: Key) -> None:
    """Write the manifest of a finished build and make all of it durable, so that a rename cannot outrun the data."""
    manifest = directory / "manifest.json"
    if manifest.exists():
        raise EngineBuildError(f"building the engine ({key}) wrote manifest.json, a name that belongs to the cache")
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


def verified(path: Path) -> Entry:
    """The entry, after reading all of it. Raises DamagedError.

    Files are hashed each time: 0.1 s for 100 MB with SHA instructions, little beside reading and compiling them, and
    the only way to notice a flipped bit in weights, which would load well and give a wrong picture.
    """
    if path.is_symlink() or not path.is_dir():
        raise DamagedError("it is not a directory")
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
            if sha256_file(file) != sha256:
                raise DamagedError(f"{name} has changed since it was built")
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from error
        total += status.st_size
    return Entry(path, key, total, built, time.time(), build)


def describe(path: Path) -> Entry:
    """The entry as far as it can be told without reading its files. Raises FileNotFoundError if it is gone."""
    status = path.lstat()
    fields: Mapping[str, str] = {}
    built = used = status.st_mtime
    build = ""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        used = (path / "manifest.json").lstat().st_mtime
        manifest = json.loads((path / "manifest.json").read_bytes())
        if digest_of(manifest["key"]) == path.name:
            fields, built, build = manifest["key"], float(manifest["built"]), str(manifest["build"])
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.lstat().st_size if not file.is_dir() else 0
    return Entry(path, fields, size, built, used, build)
