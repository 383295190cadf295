"""Weights to measure with: those that ship, else random ones of the right shapes.

Speed does not depend on the values, except for branches that add nothing (`vsfdatrd.archs.zero_branches`) and blocks of
zeros, which backends leave out. Networks are measured with all branches active, as a fully trained network has them.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from vsfdatrd.archs import artcnn
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, VARIANTS, FdatFamilyConfig, FdatRdConfig, variant_config
from vsfdatrd.archs.fdat_shapes import tensor_shapes
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.errors import FdatrdError
from vsfdatrd.weights.catalog import CATALOG, resolve_model

PERIOD = 3
"""Blocks after which their kinds repeat."""


def random_weights(config: FdatFamilyConfig) -> dict[str, NDArray[np.float32]]:
    """Return weights of the right shapes and approximately the right magnitude."""
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(shape) / math.sqrt(max(1, math.prod(shape[1:])))).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }


def random_artcnn(config: artcnn.ArtCnnConfig) -> dict[str, NDArray[np.float32]]:
    """The same for an ArtCNN."""
    random = np.random.default_rng(0)
    return {
        name: (random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)
        for name, shape in artcnn.tensor_shapes(config).items()
    }


def random_tensors(config: FdatFamilyConfig) -> dict[str, NDArray[Any]]:
    """Return `random_weights` with the buffer that identifies the tail, as in a weights file."""
    meta = [3, UPSAMPLERS.index(config.upsampler), config.tail_scale, config.embed_dim, config.out_channels]
    return dict(random_weights(config)) | {META_UPSAMPLE: np.array([*meta, config.mid_dim, 4], np.uint8)}


def _without_zeros(file: Path, folder: Path, config: FdatRdConfig | None) -> Path:
    """Return the file itself, or a copy in which small random values replace zeros.

    Args:
        file: A weights file.
        folder: Where the copy is written.
        config: The complete network, if the file may lack blocks at the end of its groups; those are added.
    """
    tensors = load_file(file)
    missing = [name for name in tensor_shapes(config) if name not in tensors] if config else []
    for name in missing:
        same_kind = re.sub(r"(?<=blocks\.)\d+", lambda index: str(int(index[0]) - PERIOD), name)
        # An output projection that is not trained is zero; the others are copied, with their magnitudes.
        tensors[name] = 0 * tensors[same_kind] if name.endswith("ffn.fc2.weight") else tensors[same_kind].copy()
    zeros = {name: values == 0 for name, values in tensors.items() if name != META_UPSAMPLE and not values.all()}
    if not zeros:
        return file
    random = np.random.default_rng(0)
    for name, where in zeros.items():
        tensors[name][where] = 1e-3 * random.standard_normal(int(where.sum()))
    path = folder / f"{file.stem}_without_zeros.safetensors"
    if not path.exists():
        save_file(tensors, path)
    return path


def weights_file(model: str, folder: Path) -> tuple[Path, bool]:
    """Return a weights file for a model, and whether its weights are trained.

    The author's variants have all their blocks, although the shipped files contain only those that are trained.

    Args:
        model: ``small``, ``medium``, ``large``, or the path of a file, which is used unchanged.
        folder: Where weights are written, if the shipped ones are missing or have zeros.

    Raises:
        FdatrdError: The file does not exist.
    """
    same_file = (name for name in VARIANTS if name in CATALOG and CATALOG[name].file == CATALOG[model].file)
    variant_name = next(same_file, None) if model in CATALOG else model
    variant = variant_config(variant_name) if variant_name in VARIANTS else None
    try:
        file = resolve_model(model)
        return (_without_zeros(file, folder, variant) if model in CATALOG else file), True
    except FdatrdError:
        if variant is None:
            raise
    path = folder / f"fdat_rd_{model}_random.safetensors"
    if not path.exists():
        save_file(random_tensors(variant), path)
    return path, False
