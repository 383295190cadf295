"""ArtCNN: found from names and shapes, and the network against its formula."""

import numpy as np
import pytest
import torch

from tests.artcnns import C_LUMA, KINDS, R_LUMA, compute_by_formula, notebook_names, random_picture, random_tensors
from vsfdatrd.archs.artcnn import ArtCnnConfig, canonical_names, config_from_shapes, layer_names, tensor_shapes
from vsfdatrd.errors import CheckpointError
from vsfdatrd.nn.artcnn import ArtCnn

NAMES = {
    ArtCnnConfig(16, 4, False, 1, 1, 2): "ArtCNN C4F16",
    ArtCnnConfig(64, 8, True, 1, 1, 2): "ArtCNN R8F64",
    ArtCnnConfig(96, 16, True, 3, 2, 1): "ArtCNN R16F96 Chroma",
    ArtCnnConfig(96, 16, True, 3, 3, 4): "ArtCNN R16F96 RGB 4x",
}


@pytest.mark.parametrize("config", NAMES)
def test_its_name_is_its_authors(config: ArtCnnConfig) -> None:
    assert config.name == NAMES[config]


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("layout", ["own", "notebook"])
def test_the_configuration_is_found(config: ArtCnnConfig, layout: str) -> None:
    tensors = random_tensors(config)
    stored = tensors if layout == "own" else notebook_names(config, tensors)
    result = canonical_names(stored)
    assert result is not None
    assert config_from_shapes({name: stored[key].shape for name, key in result.items()}) == config
    assert all(stored[key] is tensors[name] for name, key in result.items())


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_the_network_is_its_formula(config: ArtCnnConfig, one_thread: None) -> None:
    tensors = random_tensors(config)
    network = ArtCnn(config).eval()
    network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
    x = random_picture(config)
    with torch.inference_mode():
        out = network(torch.from_numpy(x)[None])[0].numpy()
    assert out.shape == (config.out_channels, 24 * config.scale, 20 * config.scale)
    np.testing.assert_allclose(out, compute_by_formula(config, tensors, x), atol=2e-6)


def test_its_reach_is_how_far_it_looks() -> None:
    for config in (C_LUMA, R_LUMA):
        network = ArtCnn(config).double().eval()
        for parameter in network.parameters():
            parameter.data.fill_(0.5)  # everything that is seen counts
        x = torch.zeros(1, 1, 1, 64, dtype=torch.float64)
        x[..., 32] = 1
        with torch.inference_mode():
            change = (network(x) - network(x * 0))[0, 0, ::2, ::2].abs().amax(0)
        assert torch.nonzero(change).flatten().tolist() == list(
            range(32 - config.receptive_radius, 33 + config.receptive_radius)
        )


def test_its_work_counts_every_product() -> None:
    config = ArtCnnConfig(32, 4, False, 1, 1, 2)
    products = sum(int(np.prod(shape)) for name, shape in tensor_shapes(config).items() if name.endswith("weight"))
    assert config.flops(10, 20) == 2 * 10 * 20 * products


@pytest.mark.parametrize(
    "names",
    [
        ["conv0.weight", "conv0.bias"],
        ["conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "conv3.weight", "conv3.bias", "fc.weight"],
        ["conv_first.weight", "body.0.weight", "upsampler.0.weight"],
    ],
)
def test_other_networks_are_not_taken_for_it(names: list[str]) -> None:
    assert canonical_names(names) is None


def broken(name: str) -> dict[str, tuple[int, ...]]:
    shapes = tensor_shapes(R_LUMA)
    match name:
        case "missing":
            del shapes["res_block.1.conv.0.0.bias"]
        case "extra":
            shapes["attention.weight"] = (8, 8)
        case "shape":
            shapes["res_block.0.conv.1.0.weight"] = (8, 9, 3, 3)
        case "no body":
            shapes = {key: shape for key, shape in shapes.items() if not key.startswith("res_block.")}
        case "even kernel":
            shapes["conv0.weight"] = (8, 1, 4, 4)
        case "features":
            shapes["depth_to_space.upscale.0.weight"] = (5, 8, 3, 3)
        case "channels":
            shapes["conv0.weight"] = (8, 4, 3, 3)
        case "nothing":
            shapes["conv0.weight"] = (8, 0, 3, 3)
        case "flat":
            shapes["conv0.weight"] = (8,)
    return shapes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing", "lacks 'res_block.1.conv.0.0.bias'"),
        ("extra", "also has 'attention.weight'"),
        ("shape", r"'res_block.0.conv.1.0.weight' has shape \(8, 9, 3, 3\)"),
        ("no body", "has no body"),
        ("even kernel", "not a convolution with a square kernel of odd size"),
        ("features", "turns 1 channels into 5 features"),
        ("channels", "turns 4 channels into 4 features"),
        ("nothing", "not a convolution"),
        ("flat", "not a convolution"),
    ],
)
def test_what_contradicts_itself_is_refused(name: str, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        config_from_shapes(broken(name))


def test_a_chain_is_named_in_the_order_it_runs() -> None:
    assert layer_names(C_LUMA) == [f"conv{i}" for i in range(7)]
    assert layer_names(R_LUMA)[:3] == ["conv0", "res_block.0.conv.0.0", "res_block.0.conv.1.0"]
