"""``vsfdatrd models`` and ``vsfdatrd info``: list models, describe files, verify checksums, manage aliases."""

import json
from pathlib import Path
from typing import Any

from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import ArgumentError, CheckpointError, FdatrdError
from vsfdatrd.system.home import expand_user
from vsfdatrd.weights import aliases
from vsfdatrd.weights.aliases import ModelAlias
from vsfdatrd.weights.catalog import CATALOG, find_installed, resolve_model
from vsfdatrd.weights.files import sha256

_NO_VALUE = "-"


def list_models() -> int:
    """Print every named model with its scale, license, architecture and file."""
    rows = [("name", "scale", "license", "")]
    rows += [(model.name, f"{model.scale}x", model.license, model.file) for model in CATALOG.values()]
    for alias in aliases.read_aliases().values():
        try:
            descriptor = open_checkpoint(alias.file, cache=EngineCache(None).metadata("checkpoint")).descriptor
            scale, description = f"{descriptor.scale}x", f"{descriptor.name}, {alias.file}"
        except FdatrdError as error:
            scale, description = _NO_VALUE, str(error)
        rows.append((alias.name, scale, _NO_VALUE, description))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, (*widths, 0), strict=True)).rstrip())
    return 0


def print_info(file: str, as_json: bool) -> int:
    """Print a description of a model file.

    Args:
        file: Name or path of the model.
        as_json: Print JSON instead of a table.

    Returns:
        The exit status, 0.

    Raises:
        FdatrdError: The file cannot be read.
    """
    path = resolve_model(file)
    checkpoint = open_checkpoint(path)
    rows = _info_rows(path, checkpoint)
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value:,}" if isinstance(value, int) else f"{name:<{width}}  {value}")
    return 0


def verify_models() -> int:
    """Compare every file with its checksum; return 1 if one is missing or differs, else 0."""
    damaged = 0
    for model in CATALOG.values():
        try:
            print(f"{model.name}: as released, {find_installed(model)}")
        except CheckpointError as error:
            damaged += 1
            print(f"{model.name}: {error}")
    for alias in aliases.read_aliases().values():
        damaged += not _verify_alias(alias)
    return 1 if damaged else 0


def add_alias(file: Path, name: str) -> int:
    """Define an alias for a model file, after checking that the file can be used."""
    aliases.check_name(name, CATALOG)
    path = expand_user(file).absolute()
    model = open_checkpoint(path).descriptor
    aliases.add_alias(ModelAlias(name, path, model.sha256), CATALOG)
    print(f'{name}: {model.name}, {model.scale}x, {path}; in scripts model="{name}"')
    return 0


def remove_alias(name: str) -> int:
    """Remove an alias; its file stays."""
    if name in CATALOG:
        raise ArgumentError(f"{name!r} ships with the package and cannot be removed; only models that were added can")
    print(f"{name} removed; its file {aliases.remove_alias(name).file} stays")
    return 0


def _verify_alias(alias: ModelAlias) -> bool:
    """Print whether an alias's file is unchanged, and return it."""
    try:
        unchanged = alias.sha256 is None or sha256(alias.file) == alias.sha256
    except CheckpointError as error:
        print(f"{alias.name}: {error}")
        return False
    if alias.sha256 is None:
        text = "no checksum was written down"
    elif unchanged:
        text = "as it was when it was added"
    else:
        text = "not the file that was added; remove the name and add it again"
    print(f"{alias.name}: {text}, {alias.file}")
    return unchanged


def _info_rows(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    model = checkpoint.descriptor
    rows: dict[str, Any] = {
        "file": str(path),
        "sha256": model.sha256,
        "architecture": model.name,
        "works on": model.planes,
        "scale": model.scale,
        "parameters": model.parameters,
        "padded to multiples of": model.size.multiple_of,
    }
    if model.part:
        rows["part of the file"] = model.part.rstrip("/.*")
    rows |= model.config.info()
    if (work := model.config.flops(540, 720)) is not None:
        rows["TFLOP per 720×540 frame"] = round(work / 1e12, 3)
    return rows | model.architecture.weights_info(model.config, checkpoint)
