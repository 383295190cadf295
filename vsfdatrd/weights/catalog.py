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

SMALL_SHA256 = "c314ea45993c8dcabb908ab8a28328e343a08156f4b302ebdefe4384cd0cf81c"
"""SHA-256 of models/fdat_rd_small_2x.safetensors."""
MEDIUM_SHA256 = "ae7d9fd34aa6f15373f8116531a24c70f50d8d3a135a0fd7f970bda2e789bf9f"
"""SHA-256 of models/fdat_rd_medium_2x.safetensors."""
LARGE_SHA256 = "34a18329242666f99aa0a84817474b2b77a5d18982dcdd44411fe563bee7d678"
"""SHA-256 of models/fdat_rd_large_2x.safetensors."""
LD_SHA256 = "b17464037bcd57bb865f583e88102c221bd8c73b352735aa0d371fb3cdb1922d"
"""SHA-256 of models/fdat_rd_ld_2x.safetensors."""
CLEAN_SHA256 = "71931fbd0ee2938914b01434e79e0cf91b657bf62e7c1e4b862c7e84cf0fab0c"
"""SHA-256 of models/fdat_rd_clean_2x.safetensors."""


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


def _catalog_entries(file: str, digest: str, card: str, *names: str) -> list[Model]:
    """Create a catalog entry for each name of a model file of scale 2."""
    return [Model(name, file, 2, "CC-BY-4.0", digest, card) for name in names]


# One line per file. The first name is the one that model cards and tables use; the others name a purpose or are older.
_MODELS = (
    *_catalog_entries("fdat_rd_small_2x.safetensors", SMALL_SHA256, "small.md", "small"),
    *_catalog_entries("fdat_rd_medium_2x.safetensors", MEDIUM_SHA256, "medium.md", "medium", "dvd", "aligned"),
    *_catalog_entries("fdat_rd_large_2x.safetensors", LARGE_SHA256, "large.md", "large"),
    *_catalog_entries("fdat_rd_ld_2x.safetensors", LD_SHA256, "ld.md", "ld"),
    *_catalog_entries("fdat_rd_clean_2x.safetensors", CLEAN_SHA256, "clean.md", "clean"),
)
CATALOG = {model.name: model for model in _MODELS}
"""Every model by its names; ``dvd`` and ``aligned`` are other names of ``medium``."""


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

    Returns:
        Path of the weights file.

    Raises:
        ArgumentError: The name is unknown, or the list of user-defined models cannot be read.
        CheckpointError: The installation is damaged.
    """
    text = fspath(model)
    name = text.lower()
    if entry := CATALOG.get(name):
        return find_installed(entry)
    own = aliases.read_aliases() if aliases.NAME_PATTERN.fullmatch(name) else {}
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
    """Locate the weights of a built-in model.

    Args:
        model: Entry of the catalog.

    Returns:
        Path of the weights file.

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
