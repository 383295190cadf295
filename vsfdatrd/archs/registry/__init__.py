"""The architectures that weights files can hold. Each is one file in this folder and one line of `ARCHITECTURES`."""

from collections.abc import Mapping
from typing import Any

from vsfdatrd.archs.config import from_plain
from vsfdatrd.archs.registry.artcnn import ArtCnn
from vsfdatrd.archs.registry.base import Architecture, ModelDescriptor
from vsfdatrd.archs.registry.fdat import Fdat
from vsfdatrd.archs.registry.fdat_rd import FdatRd
from vsfdatrd.archs.registry.onnx import Onnx
from vsfdatrd.archs.registry.spandrel import Spandrel

ARCHITECTURES: tuple[Architecture[Any], ...] = (FdatRd(), ArtCnn(), Fdat(), Onnx(), Spandrel())
"""In the order in which tensors are compared with them."""


def restore_descriptor(plain: Mapping[str, Any]) -> ModelDescriptor:
    """Restore a descriptor from the result of `ModelDescriptor.to_dict`, possibly after a round trip through JSON.

    Args:
        plain: Plain values, perhaps from another version of this package.

    Raises:
        ValueError: A value is missing or has the wrong type, or the architecture is unknown.
    """
    architecture = next((candidate for candidate in ARCHITECTURES if candidate.name == plain.get("architecture")), None)
    if architecture is None:
        raise ValueError(f"{plain.get('architecture')!r} is not a known architecture")
    config = from_plain(architecture.config, plain.get("config"))
    dtype, sha256, part = (from_plain(str, plain.get(name)) for name in ("dtype", "sha256", "part"))
    return ModelDescriptor(architecture, config, from_plain(int, plain.get("parameters")), dtype, sha256, part)
