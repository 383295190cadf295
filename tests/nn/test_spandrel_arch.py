"""FDAT-RD in programs that use spandrel, and other architectures loaded through spandrel."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

spandrel = pytest.importorskip("spandrel")

from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.FDAT import FDAT  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402

from vsfdatrd.archs.size import SizeRequirements  # noqa: E402
from vsfdatrd.checkpoint import load_model, open_checkpoint  # noqa: E402
from vsfdatrd.errors import CheckpointError  # noqa: E402
from vsfdatrd.nn.fdat_rd import FdatRd  # noqa: E402
from vsfdatrd.nn.spandrel_arch import ID, register  # noqa: E402
from vsfdatrd.nn.spandrel_network import DeterministicOps  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def _saved(network: torch.nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def _compact(inputs: int, outputs: int, scale: int) -> torch.nn.Module:
    make: Any = Compact  # has no annotations
    return cast(torch.nn.Module, make(num_in_ch=inputs, num_out_ch=outputs, num_feat=8, num_conv=2, upscale=scale))


@pytest.fixture
def fdat(tmp_path: Path) -> Path:
    """A small FDAT, FDAT-RD's ancestor."""
    return _saved(
        FDAT(embed_dim=32, num_heads=2, num_groups=1, depth_per_group=1, scale=2), tmp_path / "fdat.safetensors"
    )


@pytest.fixture
def compact(tmp_path: Path) -> Callable[[int, int], Path]:
    """Factory of small Compact networks with the given numbers of input and output channels, 2x."""

    def make(inputs: int, outputs: int) -> Path:
        network = _compact(inputs, outputs, 2)
        return _saved(network, tmp_path / f"compact_{inputs}_{outputs}.safetensors")

    return make


def test_every_fixture_loads_and_computes_the_same(shared: Path) -> None:
    paths = sorted((shared / "fixtures").glob("*.safetensors"))
    assert paths
    for path in paths:
        model = spandrel.ModelLoader().load_from_file(path)
        assert isinstance(model, spandrel.ImageModelDescriptor), path.name
        assert isinstance(model.model, FdatRd), path.name
        assert (model.architecture.id, model.architecture.name) == (ID, "FDAT-RD")
        assert model.scale == int(path.name.removeprefix("fdatrd_")[0]), path.name
        assert model.purpose == ("Restoration" if model.scale == 1 else "SR")
        assert (model.input_channels, model.output_channels) == (3, 3)
        assert model.supports_half
        assert model.supports_bfloat16
        assert model.tiling is spandrel.ModelTiling.DISCOURAGED
        assert ("unshuffle" in model.tags) == ("unshuffle" in path.name)
        with np.load(path.with_suffix(".npz")) as pictures:
            name = next(name for name in pictures if name.startswith("in_"))
            out = model(torch.from_numpy(pictures[name]))
            expected = pictures[name.replace("in_", "out_")]
        np.testing.assert_allclose(out.numpy(), expected.clip(0, 1), atol=1e-4 * expected.std())


def test_sizes_are_named_in_the_tags(shared: Path) -> None:
    model = spandrel.ModelLoader().load_from_file(shared / "weights/fdat_rd_medium_2x_standin.safetensors")
    assert model.tags == ["medium", "128dim", "transpose+conv", "unshuffle"]


def test_registering_again_changes_nothing() -> None:
    register()
    before = [support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures("detection")]
    register()
    assert [support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures("detection")] == before
    assert before.count(ID) == 1
    assert before.index(ID) < before.index("FDAT")


def test_registering_elsewhere() -> None:
    registry = spandrel.ArchRegistry()  # without FDAT
    register(registry)
    assert [support.architecture.id for support in registry] == [ID]


def test_fdat_stays_fdat(fdat: Path) -> None:
    assert spandrel.ModelLoader().load_from_file(fdat).architecture.id == "FDAT"
    result = open_checkpoint(fdat).descriptor
    assert (result.name, result.scale, result.architecture.name) == ("FDAT", 2, "FDAT")
    model = load_model(fdat)
    x = torch.rand(1, 3, 24, 40)
    torch.testing.assert_close(model(x), spandrel.ModelLoader().load_from_file(fdat)(x))


def test_rgb_network_of_another_architecture(compact: Callable[[int, int], Path]) -> None:
    checkpoint = open_checkpoint(compact(3, 3))
    result = checkpoint.descriptor
    assert (result.name, result.scale, result.size, result.dtype) == ("Compact", 2, SizeRequirements(), "fp32")
    network = checkpoint.network()
    assert result.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert not network.training
    out = network(torch.rand(1, 3, 9, 14))
    assert out.shape == (1, 3, 18, 28)
    assert network.to(torch.bfloat16)(torch.rand(1, 3, 9, 14).bfloat16()).dtype is torch.bfloat16


def test_one_channel_network_is_for_luma(compact: Callable[[int, int], Path]) -> None:
    checkpoint = open_checkpoint(compact(1, 1))
    assert (checkpoint.descriptor.planes, checkpoint.descriptor.frame_channels) == ("luma", (1, 1))
    assert checkpoint.network()(torch.rand(1, 1, 8, 12)).shape == (1, 1, 16, 24)


def test_other_channels_are_refused_for_clips_alone(compact: Callable[[int, int], Path]) -> None:
    path = compact(4, 4)
    with pytest.raises(CheckpointError, match=r"compact_4_4.safetensors' is a network from 4 to 4 channels; only"):
        open_checkpoint(path)
    assert open_checkpoint(path, any_channels=True).descriptor.config.in_channels == 4
    assert load_model(path)(torch.rand(1, 4, 8, 8)).shape == (1, 4, 16, 16)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # spandrel's SwinIR calls it the old way
def test_size_requirements(tmp_path: Path) -> None:
    network = SwinIR(
        img_size=16,
        window_size=8,
        embed_dim=12,
        depths=[1],
        num_heads=[2],
        mlp_ratio=2,
        upscale=2,
        upsampler="pixelshuffledirect",
        resi_connection="1conv",
    )
    path = _saved(network, tmp_path / "swinir.safetensors")
    descriptor = spandrel.ModelLoader().load_from_file(path)
    checkpoint = open_checkpoint(path)
    assert checkpoint.descriptor.size.multiple_of == descriptor.size_requirements.multiple_of
    assert checkpoint.descriptor.size.minimum == descriptor.size_requirements.minimum
    assert checkpoint.network()(torch.rand(1, 3, 11, 17)).shape == (1, 3, 22, 34)


def test_network_that_needs_a_mask(compact: Callable[[int, int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    network = _compact(3, 3, 1)
    masked = spandrel.MaskedImageModelDescriptor(
        network, network.state_dict(), spandrel.MAIN_REGISTRY["LaMa"].architecture, "Inpainting", [], False, False, 3, 3
    )
    monkeypatch.setattr(spandrel.MAIN_REGISTRY, "load", lambda state: masked)
    with pytest.raises(CheckpointError, match="is LaMa, which needs a mask as a second input"):
        open_checkpoint(compact(3, 3))


def test_resembling_network_that_does_not_load(fdat: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = load_file(fdat)
    del state["conv_after.weight"]
    save_file(state, path := tmp_path / "cut.safetensors")
    with pytest.raises(
        CheckpointError, match=r"cut.safetensors' resembles a known network but does not load \(.*; dow"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize("how", [{"stable": False}, {"dim": -1, "descending": True}, {}])
def test_the_order_of_equals_is_not_left_to_the_machine(how: dict[str, Any]) -> None:
    """Without ``stable``, PyTorch sorts by what the processor has."""
    kinds = torch.randint(0, 5, (1, 5000))
    expected = torch.sort(kinds, **(how | {"stable": True})).indices
    with DeterministicOps():
        assert torch.equal(torch.sort(kinds, **how).indices, expected)
        assert torch.equal(kinds.sort(-1, bool(how.get("descending"))).indices, expected)
