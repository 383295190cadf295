"""Pack the compressed weights and the training data for a visit, in one folder that git ignores.

The tree and this folder are copied to the GPU machine and may have 64 MiB together. Weights files are most of the tree,
so they are moved to a folder that is not copied, and `restore` puts them back, whatever happened in between.
"""

import contextlib
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.record import ROOT
from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.report import current_commit
from models.training.recipe import Recipe

PACK = ROOT / ".gpu_visit"
"""Folder that is copied to the GPU machine."""
KEPT = ROOT / ".gpu_visit_kept"
"""Folder for the weights files during the visit; not copied."""
MODELS = ROOT / "models"
START = MODELS / "fdat_rd_medium_2x.safetensors"
"""The weights that are measured, and from which the training starts."""
COMMIT, TILES, VALIDATION = PACK / "commit.txt", PACK / "tiles.zip", PACK / "validation.npz"
CHECKPOINT = PACK / "checkpoint.safetensors"
"""Checkpoint of an earlier visit, from which the training continues."""
RECIPE = ROOT / "models" / "training" / "medium_visit.toml"
MOST = 62 << 20
"""Bytes of tree and pack together; 64 MiB would be refused."""
ROOM = 5 << 20
"""Bytes reserved for data whose size is not known in advance: the validation pairs, 3.3 MiB of 24 crops."""
PICTURES = ROOT.parent / "shared" / "data" / "train"
TINY = {
    "variant": "tiny",
    "batch": 2,
    "size": 60,
    "pairs": 0,
    "validate_crops": 1,
    "sprites": 4,
    "ramp": 2,
    "checkpoint_minutes": 0.02,
}
"""Recipe values for a rehearsal."""


class PackError(Exception):
    """The problem, and what to do about it."""


def recipe_values(sizes: Sizes) -> dict[str, Any]:
    """The recipe of the visit, as in its TOML file."""
    values = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    return values | TINY if sizes.small else values


def recipe_for(sizes: Sizes) -> Recipe:
    """The visit's recipe."""
    return Recipe.from_mapping(recipe_values(sizes))


def recipe_file(sizes: Sizes, folder: Path) -> Path:
    """The recipe file of the visit; for a rehearsal it is written into `folder`."""
    if not sizes.small:
        return RECIPE
    file = folder / "recipe.toml"
    lines = (f"{name} = {json.dumps(value)}\n" for name, value in recipe_values(sizes).items())
    file.write_text("".join(lines), encoding="utf-8")
    return file


def files_to_copy(root: Path) -> list[Path]:
    """Return the files of a tree that are copied: existing files that git tracks or does not ignore.

    Args:
        root: The tree.

    Raises:
        PackError: Git does not list them.
    """
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PackError(f"git does not list the files of {root}, which are copied: {error}") from error
    names = dict.fromkeys(name for name in done.stdout.decode().split("\0") if name)
    return [file for name in names if (file := root / name).is_file()]


def total_bytes(files: list[Path]) -> int:
    """Bytes of files."""
    return sum(file.stat().st_size for file in files)


def weights_files() -> list[Path]:
    """Those in the tree."""
    return sorted(MODELS.glob("*.safetensors"))


@contextlib.contextmanager
def restore_on_failure() -> Iterator[None]:
    """Put the weights files back if the block fails or receives a signal to end."""

    def stop_on_sigterm(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop_on_sigterm)
    try:
        yield
    except BaseException:
        restore()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def pack(
    sizes: Sizes, *, pictures: Path | None = None, tiles: Path | None = None, checkpoint: Path | None = None
) -> list[tuple[str, int]]:
    """Fill the pack and move the weights files out of the tree.

    Args:
        sizes: Of the visit; a rehearsal's recipe is another one.
        pictures: A folder of pictures and drawings, from which the training's tiles are made.
        tiles: Instead of it, a file that `models.training.pack` has made.
        checkpoint: Of an earlier visit's training, which is to go on.

    Returns:
        (description, bytes) of every item, the tree first.

    Raises:
        PackError: The pack would be too large, or something is missing. The tree is then unchanged.
    """
    restore()
    with restore_on_failure():
        PACK.mkdir(exist_ok=True)
        COMMIT.write_text(current_commit() or "", encoding="utf-8")
        (PACK / "models").mkdir(exist_ok=True)
        compress(START, PACK / "models" / f"{START.name}.xz")
        _copy_into_pack(checkpoint, CHECKPOINT)
        tree = total_bytes([file for file in files_to_copy(ROOT) if file not in weights_files()])
        left = MOST - ROOM - tree - total_bytes([file for file in packed_files() if file not in (TILES, VALIDATION)])
        if tiles or pictures:
            pack_training(sizes, pictures, tiles, left)
        else:  # an earlier pack's
            TILES.unlink(missing_ok=True)
            VALIDATION.unlink(missing_ok=True)
        contents = [("the tree without weights files", tree)]
        contents += [(str(file.relative_to(ROOT)), file.stat().st_size) for file in packed_files()]
        total = sum(count for _, count in contents)
        if total > MOST:
            raise PackError(
                f"the tree and {PACK.name}/ have {total / 2**20:.1f} MiB, and {MOST >> 20} are the most: remove files "
                "that git does not ignore, or give fewer pictures"
            )
        KEPT.mkdir(exist_ok=True)
        for file in weights_files():
            file.replace(KEPT / file.name)
    return contents


def packed_files() -> list[Path]:
    """The pack's files."""
    return sorted(file for file in PACK.rglob("*") if file.is_file())


def compress(source: Path, target: Path) -> None:
    """Write a file's content as .xz; an existing file with the same content is kept."""
    content = source.read_bytes()
    if target.exists() and lzma.decompress(target.read_bytes()) == content:
        return
    target.write_bytes(lzma.compress(content, preset=6))


def pack_training(sizes: Sizes, pictures: Path | None, tiles: Path | None, room: int) -> None:
    """Pack the training tiles within `room` bytes, and the held-back pairs for validation."""
    made = PACK.parent / f"{PACK.name}_tiles.zip"  # outside of the pack until it is complete
    if tiles is None:
        limits = ["--budget", f"{room / 2**20:.1f}", "--quality", "95"]
        limits += ["--lettering", "4", "--scales", "1"] if sizes.small else []
        _run("models.training.pack", str(pictures), str(made), *limits)
    elif not tiles.is_file():
        raise PackError(f"{tiles} is no file")
    result = tiles or made
    if (count := result.stat().st_size) > room:
        raise PackError(
            f"the training's tiles have {count / 2**20:.1f} MiB, and there is room for {room / 2**20:.1f}; pack fewer "
            "(python -m models.training.pack --budget)"
        )
    if tiles:
        _copy_into_pack(tiles, TILES)
    else:
        made.replace(TILES)
    VALIDATION.unlink(missing_ok=True)
    recipe = recipe_file(sizes, PACK)
    _run("models.training.validate", "--recipe", str(recipe), "--data", str(TILES), "--out", str(VALIDATION))


def _run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise PackError(f"python -m {module} failed (status {done.returncode}); what it said stands above")


def _copy_into_pack(source: Path | None, target: Path) -> None:
    """Copy a file into the pack; without a source, remove the file of an earlier pack."""
    if source is None:
        target.unlink(missing_ok=True)
    elif not source.is_file():
        raise PackError(f"{source} is no file")
    elif source.resolve() != target.resolve():
        shutil.copyfile(source, target)


def restore() -> list[str]:
    """Put the weights files back into the tree, if there are any; return their names.

    Raises:
        PackError: Another file is in a weights file's place.
    """
    names = []
    for kept in sorted(KEPT.glob("*.safetensors")):
        place = MODELS / kept.name
        if place.exists() and place.read_bytes() != kept.read_bytes():
            raise PackError(f"{place} is another file than {kept}, which belongs there; remove one of them")
        kept.replace(place)
        names.append(kept.name)
    with contextlib.suppress(OSError):  # not there, or not empty
        KEPT.rmdir()
    return names


def unpack() -> None:
    """On the GPU machine: write the weights files that are missing from the tree."""
    for source in sorted((PACK / "models").glob("*.xz")):
        target = MODELS / source.stem
        if not target.exists():
            partial = target.with_name(f".{target.name}.{os.getpid()}")
            partial.write_bytes(lzma.decompress(source.read_bytes()))
            partial.replace(target)
