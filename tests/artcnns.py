"""Small ArtCNNs of every kind, for tests: configurations, random weights, other names for them, and the formula."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch.nn.functional import conv2d, pixel_shuffle

from vsfdatrd.archs.artcnn import ArtCnnConfig, tensor_shapes

type Tensors = dict[str, NDArray[Any]]

C_LUMA = ArtCnnConfig(8, 4, False, 1, 1, 2)
R_LUMA = ArtCnnConfig(8, 2, True, 1, 1, 2)
C_CHROMA = ArtCnnConfig(8, 4, False, 3, 2, 1)
R_CHROMA = ArtCnnConfig(8, 2, True, 3, 2, 1)
R_RGB = ArtCnnConfig(8, 2, True, 3, 3, 2)
KINDS = {"C": C_LUMA, "R": R_LUMA, "C chroma": C_CHROMA, "R chroma": R_CHROMA, "R RGB": R_RGB}


def random_tensors(config: ArtCnnConfig, seed: int = 0) -> Tensors:
    """Float32 weights whose result stays near the range of a picture."""
    random = np.random.default_rng(seed)
    tensors: Tensors = {}
    for name, shape in tensor_shapes(config).items():
        spread = 0.02 if name.endswith(".bias") else 0.8 * float(np.prod(shape[1:])) ** -0.5
        tensors[name] = (spread * random.standard_normal(shape)).astype(np.float32)
    return tensors


def repeating_tensors(config: ArtCnnConfig = C_LUMA) -> Tensors:
    """Tensors of a luma doubler that returns its input with every pixel repeated, exactly."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    middle = config.kernel // 2
    last = next(name for name, shape in tensor_shapes(config).items() if shape[0] == config.scale**2)
    tensors["conv0.weight"][0, 0, middle, middle] = 1
    tensors[last][:, 0, middle, middle] = 1
    return tensors


def identity_tensors(config: ArtCnnConfig = C_CHROMA) -> Tensors:
    """Tensors of a chroma model that returns Cb and Cr unchanged."""
    tensors = {name: np.zeros(shape, np.float32) for name, shape in tensor_shapes(config).items()}
    last = next(name for name, shape in tensor_shapes(config).items() if shape[0] == config.out_channels)
    for i in range(2):
        tensors["conv0.weight"][i, 1 + i, 1, 1] = 1
        tensors[last][i, i, 1, 1] = 1
    return tensors


def compute_by_formula(
    config: ArtCnnConfig, tensors: Mapping[str, Any], picture: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute an ArtCNN in float64 from its formula alone. picture: (C, H, W) -> (C', H·s, W·s)."""
    weights = {name: torch.from_numpy(np.asarray(values, np.float64)) for name, values in tensors.items()}

    def conv(x: torch.Tensor, name: str) -> torch.Tensor:
        return conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=config.kernel // 2)

    a = y = conv(torch.from_numpy(np.asarray(picture, np.float64))[None], "conv0")
    if config.residual:
        for i in range(config.blocks):
            inner = torch.relu(conv(y, f"res_block.{i}.conv.0.0"))
            y = y + conv(torch.relu(conv(inner, f"res_block.{i}.conv.1.0")), f"res_block.{i}.conv.2")
        out = conv(a + conv(y, f"res_block.{config.blocks}"), "depth_to_space.upscale.0")
    else:
        for i in range(config.blocks):
            y = torch.relu(conv(y, f"conv{i + 1}"))
        out = conv(a + conv(y, f"conv{config.blocks + 1}"), f"conv{config.blocks + 2}")
    return np.asarray(pixel_shuffle(out, config.scale)[0].numpy(), np.float32)


def run_graph(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[Any]:
    """Run a graph on a batch of one with ONNX's reference evaluator."""
    (out,) = ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x[None]})
    result: NDArray[Any] = np.asarray(out)[0]
    return result


def notebook_names(config: ArtCnnConfig, tensors: Mapping[str, Any]) -> Tensors:
    """The tensors as the project's own PyTorch notebooks name them."""
    renamed = {}
    for name, values in tensors.items():
        if config.residual:
            name = re.sub(r"^res_block\.(\d+)\.conv\.([01])\.0\.", r"res_blocks.\1.conv\2.", name)
            name = re.sub(r"^res_block\.(\d+)\.conv\.2\.", r"res_blocks.\1.conv2.", name)
            name = re.sub(rf"^res_block\.{config.blocks}\.", "conv1.", name)
            name = name.replace("depth_to_space.upscale.0.", "feats_conv.")
        else:
            number, _, part = name.removeprefix("conv").partition(".")
            roles = {0: "conv_skip1", config.blocks + 1: "conv_skip2", config.blocks + 2: "conv_out"}
            name = f"{roles.get(int(number), f'conv_inner.{int(number) - 1}')}.{part}"
        renamed[name] = values
    return renamed


def random_picture(config: ArtCnnConfig, height: int = 24, width: int = 20, seed: int = 0) -> NDArray[np.float32]:
    """Noise in [0, 1], (C, H, W)."""
    return np.random.default_rng(seed).random((config.in_channels, height, width), np.float32)
