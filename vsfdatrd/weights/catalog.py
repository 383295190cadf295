"""Catalog of the built-in models: files, licenses, checksums, and where the files are installed.

User-defined names are in `aliases.py` and cannot override these.
"""

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from vsfdatrd.errors import ArgumentError, CheckpointError, did_you_mean
from vsfdatrd.system.home import expand_user
from vsfdatrd.weights import aliases
from vsfdatrd.weights.files import sha256


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of the catalog."""

    name: str
    """Name used in scripts."""
    file: str
    """File name of the weights in models/."""
    scale: int
    """Output pixels per input pixel, along each side."""
    license: str
    """SPDX identifier of the license of the weights."""
    sha256: str
    """SHA-256 of the weights file."""
    card: str
    """File name in models/ of the model card: training data and purpose."""


_FILES = {
    ("small",): "c314ea45993c8dcabb908ab8a28328e343a08156f4b302ebdefe4384cd0cf81c",
    ("medium", "dvd", "aligned"): "ae7d9fd34aa6f15373f8116531a24c70f50d8d3a135a0fd7f970bda2e789bf9f",
    ("large",): "7b4e580877bb321df45b8dd1b3febc428c06143bb5ec16f46f0eb62707e30d3f",
    ("ld",): "b17464037bcd57bb865f583e88102c221bd8c73b352735aa0d371fb3cdb1922d",
    ("clean",): "71931fbd0ee2938914b01434e79e0cf91b657bf62e7c1e4b862c7e84cf0fab0c",
}
"""Names of each model -> SHA-256 of its file. File, card and tables use the first name; the others are older, or name a
purpose.
"""
CATALOG = {
    name: Model(name, f"fdat_rd_{names[0]}_2x.safetensors", 2, "CC-BY-4.0", digest, f"{names[0]}.md")
    for names, digest in _FILES.items()
    for name in names
}
"""Every model by each of its names."""


def weights_folders() -> tuple[Path, ...]:
    """Folders to search for built-in weights: inside an installed package, or next to the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return (package / "models", package.parent / "models")


def resolve_model(model: str | PathLike[str]) -> Path:
    """Resolve a model name or path to a weights file.

    Names in the catalog have priority, then user-defined names; everything else is a path, relative to the current
    directory, with ``~`` as the home directory. Built-in files are compared with their checksum; other paths are not
    checked here (see `checkpoint.open_checkpoint`).

    Args:
        model: Name or path.

    Raises:
        ArgumentError: The name is unknown, or the list of user-defined models cannot be read.
        CheckpointError: The installation is damaged.
    """
    text = fspath(model)
    name = text.lower()
    if entry := CATALOG.get(name):
        return find_installed(entry)
    own = aliases.read_aliases() if aliases.NAME_PATTERN.fullmatch(name) else {}
    own = {alias.lower(): model for alias, model in own.items()}  # written by hand, a name may have capitals
    if name in own:
        return own[name].file
    try:
        path = expand_user(text)
        is_path = len(path.parts) > 1 or bool(path.suffix) or text.startswith((".", "~")) or path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # no such user; too long; a zero byte
        raise ArgumentError(f"model={text!r} cannot be a path ({error}); give the path of a weights file") from error
    if not is_path:
        names = [*CATALOG, *own]
        raise ArgumentError(
            f"model={text!r} is neither a name of the catalog nor a file{did_you_mean(name, names) or '.'} "
            f"Give one of {', '.join(names)}, or the path of a .safetensors, .pth, .onnx or .glsl file"
        )
    return path


def find_installed(model: Model) -> Path:
    """Locate the weights file of a built-in model.

    Args:
        model: Entry of the catalog.

    Raises:
        CheckpointError: The file is missing or differs from the released one.
    """
    for folder in weights_folders():
        path = folder / model.file
        if path.is_file():
            if sha256(path) != model.sha256:
                raise CheckpointError(
                    f"the weights of model={model.name!r}, {str(path)!r}, are not those that were released; "
                    "reinstall the package: pip install --force-reinstall vsfdatrd"
                )
            return path
    inside, beside = map(str, weights_folders())
    raise CheckpointError(
        f"the weights of model={model.name!r} are missing: {model.file} is neither in {inside!r} nor in {beside!r}; "
        "reinstall the package: pip install --force-reinstall vsfdatrd"
    )
