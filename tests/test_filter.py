"""``core.fdatrd.upscale`` as scripts call it: results compared with the network itself."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from onnx import TensorProto, helper

import vsfdatrd
from tests.clips import picture, planes_of
from tests.onnx_files import write_doubler, write_onnx
from vsfdatrd import filter as upscaling
from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import count_levels, draw_sky
from vsfdatrd.errors import InsufficientMemory

BACKENDS = ["openvino", "torch"]


pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("width", "height"), [(60, 60), (8, 8), (37, 45), (100, 64), (130, 31)])
def test_it_computes_what_the_network_computes(tiny_model: Path, backend: str, width: int, height: int) -> None:
    import torch

    clip = picture(width, height)
    out = vs.core.fdatrd.upscale(clip, model=str(tiny_model), backend=backend, precision="fp32").get_frame(0)
    assert (out.width, out.height, out.format.id) == (2 * width, 2 * height, vs.RGBS)
    source = torch.from_numpy(planes_of(clip.get_frame(0)))[None].clamp(0, 1)
    with torch.inference_mode():
        raw = vsfdatrd.load_model(tiny_model)(source)[0].numpy()
    # Values clamped away still tell: the comparison is only worth something where the output varies.
    assert np.clip(raw, 0, 1).std() > 0.05
    np.testing.assert_allclose(planes_of(out), np.clip(raw, 0, 1), atol=2e-4)


def test_the_python_function_is_the_same(tiny_model: Path) -> None:
    clip = picture(64, 48, vs.YUV420P8)
    ours = vsfdatrd.upscale(clip, model=tiny_model, streams=1).get_frame(0)
    plugin = vs.core.fdatrd.upscale(clip, model=str(tiny_model), streams=1).get_frame(0)
    for i in range(3):
        np.testing.assert_array_equal(np.asarray(ours[i]), np.asarray(plugin[i]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (vs.YUV420P8, vs.YUV420P16),
        (vs.YUV422P10, vs.YUV422P16),
        (vs.YUV444P16, vs.YUV444P16),
        (vs.YUV444PS, vs.YUV444PS),
        (vs.YUV420PH, vs.YUV420PH),
        (vs.GRAY8, vs.GRAY16),
        (vs.GRAYS, vs.GRAYS),
        (vs.GRAYH, vs.GRAYH),
        (vs.RGB24, vs.RGB48),
        (vs.RGBS, vs.RGBS),
        (vs.RGBH, vs.RGBH),
    ],
)
def test_the_output_follows_the_input(identity_2x: Path, given: int, expected: int) -> None:
    clip = picture(64, 48, given, _SARNum=8, _SARDen=9, keep="this")
    out = vs.core.fdatrd.upscale(clip, model=str(identity_2x))
    assert out.format is not None
    assert (out.format.id, out.width, out.height, out.num_frames, out.fps) == (expected, 128, 96, 1, clip.fps)
    props = out.get_frame(0).props
    assert (props["_SARNum"], props["_SARDen"], props["keep"], props["_FieldBased"]) == (8, 9, "this", 0)


def test_format_and_matrix_override(identity_2x: Path) -> None:
    clip = picture(64, 48, vs.YUV420P8)
    for arguments in (vs.YUV444P10, "yuv444p10", int(vs.YUV444P10)):
        # VapourSynth turns numbers into text on the way; its stubs do not know that.
        out = vs.core.fdatrd.upscale(clip, model=str(identity_2x), format=arguments, matrix=1)  # type: ignore[arg-type]
        assert out.format is not None
        assert out.format.id == vs.YUV444P10
        assert out.get_frame(0).props["_Matrix"] == 1


def test_sizes_that_pad_alike_share_an_engine(tiny_model: Path, cache: Path) -> None:
    for width, height in ((60, 60), (57, 41), (31, 60)):
        vs.core.fdatrd.upscale(picture(width, height), model=str(tiny_model), backend="openvino").get_frame(0)
    assert len(list(cache.glob("store-1/engines/*"))) == 1


def test_two_filters_of_one_script_share_one_engine(tiny_model: Path) -> None:
    first = vs.core.fdatrd.upscale(picture(60, 60, length=4), model=str(tiny_model))
    before = len(selection._shared_pools)
    second = vs.core.fdatrd.upscale(picture(50, 44, length=4), model=str(tiny_model))
    assert len(selection._shared_pools) == before
    frames = [clip.get_frame_async(n) for n in range(4) for clip in (first, second)]
    assert {(f.result().width, f.result().height) for f in frames} == {(120, 120), (100, 88)}


@pytest.mark.parametrize(("reuse", "computed"), [(None, 3), ("exact", 3), ("off", 6), (0.0, 3), (0.05, 3)])
def test_held_pictures_are_computed_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, reuse: Any, computed: int
) -> None:
    from vsfdatrd.backends.remote_engine import RemoteEngine

    submitted: list[int] = []
    original = RemoteEngine.submit

    def submit(engine: RemoteEngine, slot: int) -> None:
        submitted.append(slot)
        original(engine, slot)

    monkeypatch.setattr(RemoteEngine, "submit", submit)
    moving = picture(60, 60, vs.YUV420P8, length=3, _Matrix=6, _Range=0)
    twos = vs.core.std.Interleave([moving, moving])
    out = vs.core.fdatrd.upscale(twos, model=str(tiny_model), backend="openvino", reuse=reuse)
    frames = [np.asarray(frame[0]).copy() for frame in out.frames(close=True)]
    assert len(submitted) == computed
    for n in (0, 2, 4):
        np.testing.assert_array_equal(frames[n], frames[n + 1])
    assert np.abs(frames[0].astype(np.int32) - frames[2]).max() > 100


def test_tiles_are_announced_and_close_to_the_whole(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = picture(140, 100)
    whole = planes_of(vs.core.fdatrd.upscale(clip, model=str(tiny_model)).get_frame(0))
    tiled = planes_of(vs.core.fdatrd.upscale(clip, model=str(tiny_model), tile=[90, 60]).get_frame(0))
    assert "tiles of 90×60 pixels" in caplog.text
    assert np.abs(whole - tiled).mean() < 0.05


def limit_memory(monkeypatch: pytest.MonkeyPatch, pixels: int, divide: bool = True) -> list[tuple[int, int]]:
    """Let no engine for frames of more pixels fit into memory; return the list of the sizes that are tried."""
    tried: list[tuple[int, int]] = []

    def open_engine(checkpoint: Any, height: int, width: int, *others: Any) -> Any:
        tried.append((height, width))
        if height * width <= pixels:
            return selection.open_engine(checkpoint, height, width, *others)
        error = InsufficientMemory(f"a frame of {width}×{height} pixels does not fit")
        error.divide = divide
        raise error

    monkeypatch.setattr(upscaling, "open_engine", open_engine)
    return tried


def test_a_frame_too_large_for_a_gpu_is_divided_into_the_fewest_tiles_that_fit(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clip = picture(140, 100)
    whole = planes_of(vsfdatrd.upscale(clip, model=tiny_model, backend="openvino").get_frame(0))
    tried = limit_memory(monkeypatch, 6000)
    tiled = planes_of(vsfdatrd.upscale(clip, model=tiny_model, backend="openvino").get_frame(0))
    assert tried == [(100, 140), (100, 86), (66, 86)]
    assert "upscaling in 4 tiles of 86×66 pixels" in caplog.text
    assert np.abs(whole - tiled).mean() < 0.05


@pytest.mark.parametrize(
    ("pixels", "divide", "tile", "tried"),
    [
        (0, True, None, [(100, 140), (100, 86), (66, 86), (66, 68)]),
        (6000, False, None, [(100, 140)]),
        (6000, True, 90, [(90, 90)]),
    ],
    ids=["no tile fits", "main memory", "tiles of the user"],
)
def test_a_frame_that_cannot_be_divided_is_an_error_of_its_size(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixels: int,
    divide: bool,
    tile: int | None,
    tried: list[tuple[int, int]],
) -> None:
    found = limit_memory(monkeypatch, pixels, divide)
    height, width = tried[0]
    with pytest.raises(vs.Error, match=f"^fdatrd.upscale: a frame of {width}×{height} pixels does not fit"):
        vsfdatrd.upscale(picture(140, 100), model=tiny_model, tile=tile)
    assert found == tried


@pytest.mark.parametrize("name", ["small", "repeating", "resize", "layers"])
def test_a_sky_has_no_bands_by_default(name: str, identity_2x: Path, tmp_path: Path) -> None:
    """Whatever engine and precision are taken: 97 % of the steps of ten bits, which is what encodes have."""
    model = {
        "repeating": str(identity_2x),
        "resize": _enlarging(tmp_path),
        "layers": str(write_doubler(tmp_path / "l.onnx")),
    }
    smooth = draw_sky(32, 256)
    blank = vs.core.std.BlankClip(width=256, height=32, format=vs.RGBS, length=1)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(smooth):
            np.copyto(np.asarray(out[i]), plane)
        return out

    out = vs.core.fdatrd.upscale(vs.core.std.ModifyFrame(blank, blank, draw), model=model.get(name, name))
    assert count_levels(planes_of(out.get_frame(0))) >= 0.97 * count_levels(smooth)


def _enlarging(folder: Path) -> str:
    """Write a network that consists of one resize."""
    node = helper.make_node(
        "Resize",
        ["x", "", "s"],
        ["y"],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, f"{n}h", f"{n}w"]) for n in "xy"]
    return str(write_onnx(folder / "r.onnx", [node], ends[:1], ends[1], {"s": np.array([1, 1, 2, 2], np.float32)}))


def test_a_tile_larger_than_the_frame_is_the_frame(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = picture(60, 44)
    whole = vs.core.fdatrd.upscale(clip, model=str(tiny_model)).get_frame(0)
    tiled = vs.core.fdatrd.upscale(clip, model=str(tiny_model), tile=400).get_frame(0)
    np.testing.assert_array_equal(planes_of(whole), planes_of(tiled))
    assert "tiles" not in caplog.text


def test_an_engine_in_the_cache_that_is_damaged_is_built_again(tiny_model: Path, cache: Path) -> None:
    clip = picture(90, 60)

    def render() -> Any:
        out = vs.core.fdatrd.upscale(clip, model=str(tiny_model), backend="openvino", precision="fp32", streams=1)
        return planes_of(out.get_frame(0))

    first = render()
    selection._shared_pools.clear()
    for file in cache.glob("store-1/engines/*/*"):
        if file.name != "manifest.json":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
    again = render()
    np.testing.assert_array_equal(first, again)


def test_a_warm_start_imports_no_torch(tiny_model: Path, cache: Path) -> None:
    script = (
        "import sys, vapoursynth as vs\n"
        "clip = vs.core.std.BlankClip(width=60, height=60, format=vs.YUV420P8, length=1)\n"
        f"vs.core.fdatrd.upscale(clip, model={str(tiny_model)!r}, backend='openvino').get_frame(0)\n"
        "print([name for name in ('torch', 'onnx', 'spandrel') if name in sys.modules])\n"
    )
    result = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        result.append(done.stdout.strip())
    assert result[1] == "[]"
    assert "torch" not in result[0], "not even the first start needs torch for an FDAT-RD in .safetensors"
