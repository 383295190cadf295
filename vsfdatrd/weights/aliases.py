"""User-defined model names, stored in a TOML file that can also be edited by hand.

    [models.sharp]
    file = "/films/ArtCNN_C4F32_DS.onnx"
    sha256 = "..."         # optional: `vsfdatrd models verify` compares it

The file is in the user's configuration directory, or at the path in $FDATRD_MODELS.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import write_atomic
from vsfdatrd.system.home import expand_user, user_directory

VARIABLE = "FDATRD_MODELS"
"""Environment variable with the path of the file, overriding the default."""
MAX_BYTES = 1 << 17
"""Largest accepted file in bytes; a thousand models need less."""
MAX_LINE = 5000
"""Longest accepted line in characters; tomllib's time for a dotted key grows with the square of the number of dots."""
NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

_LOCK_SECONDS = 10.0  # how long to wait for another program that changes the file, which takes milliseconds

_FILE_COMMENT = (
    '# Names for models of your own: model="name" in scripts. `vsfdatrd models add FILE --name NAME` writes here.\n'
)


@dataclass(frozen=True, slots=True)
class ModelAlias:
    """A user-defined model name and its file."""

    name: str
    file: Path
    sha256: str | None = None
    """SHA-256 of the weights file when it was added; None if it is not recorded."""


def aliases_path() -> Path:
    """Locate the TOML file, which may not exist.

    Raises:
        ArgumentError: The user has no home directory.
    """
    if override := os.environ.get(VARIABLE):
        return expand_user(override)
    if (folder := user_directory("config")) is None:
        raise ArgumentError(
            f"there is no home directory to keep a list of your own models in; set ${VARIABLE} to a file"
        )
    return folder / "models.toml"


def read_aliases() -> dict[str, ModelAlias]:
    """Read all entries.

    Returns:
        Entries by name; empty if there is no file.

    Raises:
        ArgumentError: The file is invalid. The message has its path, and the line if it is known.
    """
    if not os.environ.get(VARIABLE) and user_directory("config") is None:
        return {}
    text = _read_file()
    models = _parse(text).get("models", {})
    if not isinstance(models, dict):
        raise _file_error(f'"models" is not a table but {str(models)[:40]}{_line_phrase(text, "models")}')
    return {name: _parse_entry(name, value, text) for name, value in models.items()}


def check_name(name: str, reserved: Collection[str]) -> None:
    """Check that a model can have this name.

    Args:
        name: The name.
        reserved: Names of the built-in models, which cannot be redefined.

    Raises:
        ArgumentError: The name is invalid or taken.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ArgumentError(
            f"the name {name!r} is not possible; use up to 64 lowercase letters, digits, - and _, beginning with a "
            "letter or a digit, such as sharp or artcnn-ds"
        )
    if name in reserved:
        raise ArgumentError(f"the name {name!r} belongs to a model that ships; choose another")


def add_alias(model: ModelAlias, reserved: Collection[str]) -> None:
    """Add an entry to the file; see `check_name`.

    Args:
        model: The entry.
        reserved: Names of the built-in models.

    Raises:
        ArgumentError: The name is invalid or taken, or the file cannot be written.
    """
    check_name(model.name, reserved)
    entry = {"file": str(model.file)} | ({"sha256": model.sha256} if model.sha256 else {})
    with _locked_file() as file:
        models = read_aliases()
        if other := models.get(model.name):
            raise ArgumentError(
                f"there is a model {model.name!r} already, {str(other.file)!r}; take another name, or remove it first: "
                f"vsfdatrd models remove {model.name}"
            )
        change = f"add {model.name!r}"
        _change_file(file, lambda table: table.update({model.name: entry}), change, models | {model.name: model})


def remove_alias(name: str) -> ModelAlias:
    """Remove an entry from the file and return it.

    Args:
        name: Its name.

    Raises:
        ArgumentError: There is no such entry, or the file cannot be written.
    """
    with _locked_file() as file:
        models = read_aliases()
        if name not in models:
            names = ", ".join(sorted(models)) or "none"
            raise ArgumentError(f"there is no model of your own called {name!r}; there are: {names} (in {str(file)!r})")
        removed = models.pop(name)
        _change_file(file, lambda table: table.pop(name), f"remove {name!r}", models)
    return removed


def _parse(text: str) -> dict[str, Any]:
    """Parse the file. Raises ArgumentError for invalid TOML, and for long lines that would take tomllib too long."""
    if (longest := max(map(len, text.splitlines()), default=0)) > MAX_LINE:
        raise _file_error(f"it has a line of {longest:,} characters, more than the limit of {MAX_LINE:,}")
    import tomllib  # takes 10 ms of a script's start, and most users have no such file

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also stands for a number with thousands of digits
        raise _file_error(str(error) or type(error).__name__) from error


def _read_file() -> str:
    file = aliases_path()
    try:
        if file.stat().st_size > MAX_BYTES:
            raise _file_error(f"it has more than {MAX_BYTES >> 10} KiB")
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise _file_error(str(error)) from error


def _parse_entry(name: str, value: object, text: str) -> ModelAlias:
    fields = value if isinstance(value, dict) else {}
    file, digest = fields.get("file"), fields.get("sha256")
    if not isinstance(file, str) or not file or not isinstance(digest, str | None):
        raise _file_error(
            f'its model {name!r} needs file = "..." as text, and a sha256, if it has one, as text{
                _line_phrase(text, name)
            }'
        )
    try:
        location = expand_user(file)
    except ArgumentError as error:
        raise _file_error(f"of its model {name!r}, {error}") from error
    return ModelAlias(name, location if location.is_absolute() else aliases_path().absolute().parent / location, digest)


def _line_phrase(text: str, name: str) -> str:
    """Line number at which a name first occurs, as a phrase for messages; empty if it is not found."""
    beginning = re.compile(rf"\s*(\[\s*models\s*\.\s*)?[\"']?{re.escape(name)}[\"']?\s*[].=]")
    for number, line in enumerate(text.splitlines(), 1):
        if beginning.match(line):
            return f" (at line {number})"
    return ""


def _file_error(reason: str) -> ArgumentError:
    return ArgumentError(
        f"the list of your own models, {str(aliases_path())!r}, cannot be read: {reason.rstrip('.')}; "
        "correct it, or move it away"
    )


@contextlib.contextmanager
def _locked_file() -> Iterator[Path]:
    """Yield the path of the file, which no other program changes meanwhile.

    Raises:
        ArgumentError: The folder cannot be written, or another program changes the file for too long.
    """
    from filelock import FileLock, Timeout  # scripts do not change the file

    file = aliases_path()
    lock = FileLock(file.with_name(f".{file.name}.lock"), timeout=_LOCK_SECONDS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ArgumentError(
            f"the list of your own models, {str(file)!r}, is being changed by another program; try again when that "
            "has finished"
        ) from error
    except (OSError, ValueError, NotImplementedError) as error:
        raise _write_error(file, error) from error
    try:
        yield file
    finally:
        lock.release()


def _change_file(file: Path, change: Callable[[Any], Any], change_phrase: str, expected: dict[str, ModelAlias]) -> None:
    """Change the table ``models``, so that it has the expected entries, and replace the file atomically.

    Comments and layout are preserved. `change_phrase` names the change in a message.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(_read_file() or _FILE_COMMENT)
        change(document.setdefault("models", tomlkit.table(is_super_table=True)))
        text = tomlkit.dumps(document)
        as_expected = {
            name: _parse_entry(name, value, text) for name, value in _parse(text).get("models", {}).items()
        } == expected
    except (TOMLKitError, ValueError, RecursionError):
        text, as_expected = "", False
    if not as_expected:
        raise ArgumentError(
            f"the list of your own models cannot be changed, because of how it is written; {change_phrase} by hand, "
            f"in {str(file)!r}"
        )
    try:
        write_atomic(file, text)
    except OSError as error:
        raise _write_error(file, error) from error


def _write_error(file: Path, error: Exception) -> ArgumentError:
    return ArgumentError(
        f"the list of your own models, {str(file)!r}, cannot be written ({error}); check its permissions, or set "
        f"${VARIABLE} to another file"
    )
