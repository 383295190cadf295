"""Files of a training, written so that a crash at any moment leaves the previous content or the new one."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vsfdatrd.system.files import replace_file


def write(file: Path, content: Callable[[BinaryIO], Any]) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it."""
    with replace_file(file) as partial, partial.open("wb") as opened:
        content(opened)


def save_state(file: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers and text in dicts and lists."""
    write(file, lambda opened: torch.save(dict(state), opened))


def load_state(file: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, onto the CPU. Nothing in the file is executed."""
    return cast(dict[str, Any], torch.load(file, map_location="cpu", weights_only=True))


def save_slim(file: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write weights as fp16 with numbers and text as one .safetensors file, from which a training can continue.

    The state of the optimizers is omitted.

    Raises:
        ValueError: A weight is not finite in fp16.
    """
    export(file, tensors, json.dumps(state))


def load_slim(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_slim` wrote, onto the CPU."""
    # Not as "pt", which opens the file twice: a training that replaces it in between would leave two different files.
    with safe_open(file, "numpy") as opened:
        tensors = {name: torch.from_numpy(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118  (no mapping)
        return tensors, cast(dict[str, Any], json.loads(opened.metadata()["about"]))


def export(file: Path, tensors: Mapping[str, Tensor], about: str) -> None:
    """Write the tensors of a network as .safetensors: weights as fp16, integer buffers unchanged.

    Args:
        file: The file to write.
        tensors: Tensors by their names in the network.
        about: Text for the file's metadata.

    Raises:
        ValueError: A weight is not finite in fp16.
    """
    half = {name: (t.half() if t.is_floating_point() else t).cpu().contiguous() for name, t in tensors.items()}
    for name, tensor in half.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite in half precision; train with a lower learning_rate")
    content = save(half, {"about": about})  # one entry: several would come in any order
    write(file, lambda opened: opened.write(content))
