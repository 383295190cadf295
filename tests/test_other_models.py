"""Models of other origins from a script: the right size, the right picture, on the engines there are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vapoursynth as vs
from safetensors.numpy import save_file as numpy_file
from safetensors.torch import save_file

pytest.importorskip("spandrel")

from spandrel.architectures.Compact import Compact
from spandrel.architectures.FDAT import FDAT

from benchmarks.architectures import save_network
from tests import fdats
from tests.conftest import tiny_tensors
from tests.onnx_files import write_doubler
from vsfdatrd.checkpoint import load_model
from vsfdatrd.filter import upscale

pytestmark = [pytest.mark.usefixtures("one_thread", "cache"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]
core = vs.core


def film(width: int, height: int, format: int = vs.YUV420P8) -> vs.VideoNode:
    """A frame with something in every corner."""
    clip = core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=1, color=[0.1, 0.5, 0.8])
    part = core.std.BlankClip(clip, width=width // 2, height=height // 2, color=[0.9, 0.3, 0.2])
    left = part.std.AddBorders(bottom=height - height // 2)
    mixed = core.std.StackHorizontal([left, clip.std.CropRel(left=width // 2)])
    if format == vs.RGBS:
        return mixed
    return mixed.resize.Bilinear(format=format, matrix=6).std.SetFrameProps(_FieldBased=0)


def array(clip: vs.VideoNode) -> np.ndarray[Any, np.dtype[np.float32]]:
    frame = clip.get_frame(0)
    return np.stack([np.asarray(frame[i]) for i in range(frame.format.num_planes)])


def fdat(path: Path) -> Path:
    network = FDAT(embed_dim=32, num_heads=2, num_groups=1, depth_per_group=2, scale=2)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def test_fdat_is_the_same_on_openvino_and_torch(tmp_path: Path) -> None:
    model, clip = fdat(tmp_path / "fdat.safetensors"), film(50, 38, vs.RGBS)
    results = [array(upscale(clip, model=model, backend=name, precision="fp32")) for name in ("openvino", "torch")]
    assert results[0].shape == (3, 76, 100)
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


def one_channel(kind: str, folder: Path) -> Path:
    """A network from one channel to one."""
    path = folder / f"{kind}.safetensors"
    if kind == "fdat_rd":
        numpy_file(tiny_tensors(in_channels=1, out_channels=1, unshuffle=2, tail_scale=4), path)
    elif kind == "fdat":
        path = fdats.fdat(path, num_in_ch=1, num_out_ch=1, unshuffle_mod=True).path
    else:
        make: Any = Compact
        save_file(make(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=2).state_dict(), path)
    return path


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("kind", ["fdat_rd", "fdat", "compact"])
def test_networks_of_one_channel_work_on_luma(tmp_path: Path, kind: str, backend: str) -> None:
    """What ArtCNN and ONNX files of one channel do: Y through the network, chroma as the resizer has it."""
    path, clip = one_channel(kind, tmp_path), film(48, 32)
    luma = np.asarray(clip.std.ShufflePlanes(0, vs.GRAY).resize.Point(format=vs.GRAYS).get_frame(0)[0])
    with torch.inference_mode():
        expected = load_model(path)(torch.from_numpy(luma.copy())[None, None])[0, 0].clamp(0, 1).numpy()
    assert expected.std() > 0.01, "the network gives nothing, so nothing was compared"

    def up(given: vs.VideoNode) -> vs.VideoNode:
        return upscale(given, model=path, backend=backend, precision="fp32")

    gray = clip.std.ShufflePlanes(0, vs.GRAY).resize.Point(format=vs.GRAYS)
    np.testing.assert_allclose(array(up(gray))[0], expected, atol=1e-4)
    full = clip.resize.Point(format=vs.YUV444PS)
    result, plain = array(up(full)), array(full.resize.Spline36(96, 64))
    np.testing.assert_allclose(result[0], expected, atol=1e-4)
    np.testing.assert_allclose(result[1:], plain[1:], atol=1e-6)
    rgb = array(up(film(48, 32, vs.RGBS)))
    assert rgb.shape == (3, 64, 96)
    neutral = array(up(core.std.ShufflePlanes([gray] * 3, [0] * 3, vs.RGB)))
    np.testing.assert_array_equal(neutral[0], neutral[1])
    np.testing.assert_array_equal(neutral[0], neutral[2])


def test_the_native_engine_says_that_it_is_not_for_luma(tmp_path: Path) -> None:
    path = one_channel("fdat_rd", tmp_path)
    with pytest.raises(vs.Error, match=r"^fdatrd.upscale: .*native.*not for RGB; leave it out"):
        upscale(film(48, 32), model=path, backend="native")


@pytest.mark.parametrize("name", ["SAFMN", "HAT", "Uformer"])
def test_frames_are_padded_to_what_the_network_asks_for(tmp_path: Path, name: str) -> None:
    """SAFMN: multiples of 8; HAT: 16 at least; Uformer: squares of 128."""
    checkpoint, clip = save_network(name, tmp_path), film(44, 12, vs.RGBS)
    results = [
        array(upscale(clip, model=checkpoint.path, backend=backend, precision="fp32"))
        for backend in ("openvino", "torch")
    ]
    scale = checkpoint.descriptor.scale
    assert results[0].shape == (3, 12 * scale, 44 * scale)
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


def test_video_comes_out_as_video(tmp_path: Path) -> None:
    clip = film(48, 32)
    for model in (fdat(tmp_path / "fdat.safetensors"), write_doubler(tmp_path / "rgb.onnx")):
        result = upscale(clip, model=model, backend="openvino", precision="fp32")
        assert (result.width, result.height, result.format.id) == (96, 64, vs.YUV420P16)
        assert result.get_frame(0).props["_Matrix"] == 6


def test_a_luma_network_out_of_a_file_leaves_gray_gray(tmp_path: Path) -> None:
    gray = core.std.BlankClip(format=vs.YUV420P8, width=48, height=32, length=1, color=[120, 128, 128])
    result = upscale(
        gray, model=write_doubler(tmp_path / "luma.onnx", channels=1), backend="openvino", precision="fp32"
    )
    frame = result.get_frame(0)
    assert (result.width, result.height) == (96, 64)
    for plane in (1, 2):
        assert (np.asarray(frame[plane]) == 128 << 8).all()


def test_a_chroma_network_of_two_channels(tmp_path: Path) -> None:
    clip = film(48, 32)
    model = write_doubler(tmp_path / "chroma.onnx", channels=2, scale=1)
    result = upscale(clip, model=model, backend="openvino", precision="fp32")
    assert (result.width, result.height) == (48, 32)
    assert (result.format.subsampling_w, result.format.subsampling_h) == (0, 0)
