"""`core.fdatrd.upscale` as scripts call it: results against the network itself, and what is said of bad input."""

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from onnx import TensorProto, helper
from safetensors.numpy import save_file

import vsfdatrd
from tests.onnx_files import doubler, write
from vsfdatrd.backends import selection
from vsfdatrd.backends.accuracy import count_levels, sky

type Maker = Callable[..., dict[str, np.ndarray[Any, np.dtype[Any]]]]

BACKENDS = ["openvino", "torch"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(width: int, height: int, format: int = vs.RGBS, length: int = 1, **props: Any) -> vs.VideoNode:
    """A clip of smooth colors with a few edges."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    planes = [
        0.5 + 0.4 * np.sin(x / 7 + i) * np.cos(y / 9 - i) + 0.1 * ((x // 11 + y // 7) % 2) - 0.05 for i in range(3)
    ]
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=length)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(planes):
            np.copyto(np.asarray(out[i]), np.roll(plane, 3 * n, 1))
        return out

    clip = vs.core.std.ModifyFrame(blank, blank, draw)
    if format != vs.RGBS:
        matrix = None if vs.core.get_video_format(format).color_family == vs.RGB else "170m"
        clip = clip.resize.Bicubic(format=format, matrix_s=matrix)
    return clip.std.SetFrameProps(**props) if props else clip


def planes_of(frame: vs.VideoFrame) -> np.ndarray[Any, np.dtype[Any]]:
    return np.stack([np.asarray(frame[i]) for i in range(frame.format.num_planes)])


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
    for asked in (vs.YUV444P10, "yuv444p10", int(vs.YUV444P10)):
        # VapourSynth turns numbers into text on the way; its stubs do not know that.
        out = vs.core.fdatrd.upscale(clip, model=str(identity_2x), format=asked, matrix=1)  # type: ignore[arg-type]
        assert out.format is not None
        assert out.format.id == vs.YUV444P10
        assert out.get_frame(0).props["_Matrix"] == 1


def test_sizes_that_pad_alike_share_an_engine(tiny_model: Path, cache: Path) -> None:
    for width, height in ((60, 60), (57, 41), (31, 60)):
        vs.core.fdatrd.upscale(picture(width, height), model=str(tiny_model), backend="openvino").get_frame(0)
    assert len(list(cache.glob("store-1/engines/*"))) == 1


def test_two_filters_of_one_script_share_one_engine(tiny_model: Path) -> None:
    first = vs.core.fdatrd.upscale(picture(60, 60, length=4), model=str(tiny_model))
    before = len(selection._shared)
    second = vs.core.fdatrd.upscale(picture(50, 44, length=4), model=str(tiny_model))
    assert len(selection._shared) == before
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


@pytest.mark.parametrize("name", ["small", "repeating", "resize", "layers"])
def test_a_sky_has_no_bands_by_default(name: str, identity_2x: Path, tmp_path: Path) -> None:
    """Whatever engine and precision are taken: 97 % of the steps of ten bits, which is what encodes have."""
    model = {"repeating": str(identity_2x), "resize": _enlarging(tmp_path), "layers": str(doubler(tmp_path / "l.onnx"))}
    smooth = sky(32, 256)
    blank = vs.core.std.BlankClip(width=256, height=32, format=vs.RGBS, length=1)

    def draw(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(smooth):
            np.copyto(np.asarray(out[i]), plane)
        return out

    out = vs.core.fdatrd.upscale(vs.core.std.ModifyFrame(blank, blank, draw), model=model.get(name, name))
    assert count_levels(planes_of(out.get_frame(0))) >= 0.97 * count_levels(smooth)


def _enlarging(folder: Path) -> str:
    """A network that is a resize and nothing else."""
    node = helper.make_node(
        "Resize",
        ["x", "", "s"],
        ["y"],
        mode="nearest",
        nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, f"{n}h", f"{n}w"]) for n in "xy"]
    return str(write(folder / "r.onnx", [node], ends[:1], ends[1], {"s": np.array([1, 1, 2, 2], np.float32)}))


def test_a_tile_larger_than_the_frame_is_the_frame(tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = picture(60, 44)
    whole = vs.core.fdatrd.upscale(clip, model=str(tiny_model)).get_frame(0)
    tiled = vs.core.fdatrd.upscale(clip, model=str(tiny_model), tile=400).get_frame(0)
    np.testing.assert_array_equal(planes_of(whole), planes_of(tiled))
    assert "tiles" not in caplog.text


# ---- bad input ---------------------------------------------------------------------------------------------------


def refusal(clip: vs.VideoNode, **arguments: Any) -> str:
    """What core.fdatrd.upscale says when it refuses; it must be one clean sentence with the prefix, once."""
    with pytest.raises(vs.Error) as caught:
        vs.core.fdatrd.upscale(clip, **arguments)
    text = str(caught.value)
    assert text.startswith("fdatrd.upscale: ")
    assert text.count("fdatrd.upscale: ") == 1
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("arguments", "value", "cure"),
    [
        ({"backend": "tensorflow"}, "backend='tensorflow'", "one of auto, tensorrt, native, openvino, torch, cuda"),
        ({"precision": "double"}, "precision='double'", "choose one of auto, fp32, bf16, fp16"),
        ({"device": [7]}, "device=[7]", "device 0"),
        ({"device": [0, 0]}, "device=[0, 0]", "device=[0, 1]"),
        ({"device": -2}, "device=[-2]", "give each once"),
        ({"format": "YUV430P8"}, "YUV430P8", "YUV420P10"),
        ({"format": "99"}, "99", "YUV420P10"),
        ({"matrix": "7o9"}, "7o9", "709"),
        ({"matrix": "-3"}, "-3", "709"),
        ({"streams": 0}, "streams=0", "give 1 to"),
        ({"tile": [4]}, "tile=[4, 4]", "at least 32"),
        ({"model": "mediun"}, "mediun", "medium"),
    ],
)
def test_wrong_arguments(identity_2x: Path, arguments: dict[str, Any], value: str, cure: str) -> None:
    text = refusal(picture(60, 60), **({"model": str(identity_2x)} | arguments))
    assert value in text
    assert cure in text


def test_a_precision_the_machine_lacks(identity_2x: Path) -> None:
    from vsfdatrd.checkpoint import open_checkpoint

    possible = selection.backend("openvino").precisions(open_checkpoint(identity_2x))
    lacking = [p for p in ("fp16", "bf16") if p not in possible]
    if not lacking:
        pytest.skip("this CPU computes in every precision")
    text = refusal(picture(60, 60), model=str(identity_2x), backend="openvino", precision=lacking[0])
    assert f"precision={lacking[0]!r} is not possible" in text
    assert "fp32" in text


def test_a_backend_that_is_not_installed(identity_2x: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "openvino" else real(name, *a))
    text = refusal(picture(60, 60), model=str(identity_2x), backend="openvino")
    assert "backend='openvino' cannot be used here" in text
    assert "pip install" in text


def bad_clip(name: str) -> vs.VideoNode:
    core = vs.core
    blank = core.std.BlankClip
    match name:
        case "variable size":
            return core.std.Splice([blank(width=64, height=64), blank(width=80, height=64)], mismatch=True)
        case "variable format":
            return core.std.Splice([blank(format=vs.YUV420P8), blank(format=vs.YUV444P8)], mismatch=True)
        case "interlaced":
            return core.std.SetFieldBased(blank(width=720, height=480, format=vs.YUV420P8), 2)
        case "32-bit":
            return blank(format=vs.GRAY32, width=64, height=64)
        case "4x4":
            return blank(width=4, height=4, format=vs.RGB24)
        case "16k":
            return blank(width=16384, height=16384, format=vs.YUV420P8, length=1)
    raise ValueError(name)


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("variable size", "size", "resize"),
        ("variable format", "format", "resize"),
        ("interlaced", "_FieldBased", "vivtc"),
        ("32-bit", "Gray32", "16"),
        ("4x4", "4×4", "8"),
        ("16k", "16384×16384|16410×16410|16400×16400", "tile="),
    ],
)
def test_clips_that_cannot_be_upscaled(tiny_model: Path, name: str, value: str, cure: str) -> None:
    text = refusal(bad_clip(name), model=str(tiny_model))
    assert re.search(value, text, re.IGNORECASE), text
    assert cure.lower() in text.lower(), text


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.file,))


def broken_file(name: str, folder: Path, good: Path, make: Maker) -> Path:
    data = good.read_bytes()
    path = folder / f"{name.replace(' ', '_')}.safetensors"
    match name:
        case "missing":
            pass
        case "directory":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "random bytes":
            path.write_bytes(np.random.default_rng(1).bytes(4096))
        case "wrong header":
            path.write_bytes((2**62).to_bytes(8, "little") + data[8:])
        case "pickle with code":
            path = path.with_suffix(".pth")
            path.write_bytes(pickle.dumps({"params": Payload(folder / "it_ran")}))
        case "no image network":
            save_file({"bert.encoder.weight": np.zeros((8, 8), np.float32)}, path)
        case "NaN weights":
            tensors = make()
            tensors["groups.0.conv.weight"][0, 0, 0, 0] = np.nan
            save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "missing",
        "directory",
        "empty",
        "truncated",
        "random bytes",
        "wrong header",
        "pickle with code",
        "no image network",
        "NaN weights",
    ],
)
def test_files_that_are_no_weights(
    name: str, tmp_path: Path, tiny_model: Path, make_tensors: Maker, cache: Path
) -> None:
    path = broken_file(name, tmp_path, tiny_model, make_tensors)
    text = refusal(picture(60, 60), model=str(path))
    assert path.name in text
    assert ";" in text or "," in text, "a cure is missing"
    assert not (tmp_path / "it_ran").exists()
    assert not list(cache.glob("store-1/engines/*"))
    vs.core.fdatrd.upscale(picture(60, 60), model=str(tiny_model)).get_frame(0)


def test_a_cache_directory_that_is_a_file(tiny_model: Path, tmp_path: Path) -> None:
    selection._shared.clear()  # an engine that is open already needs no cache
    (tmp_path / "file").write_text("x")
    text = refusal(picture(60, 60), model=str(tiny_model), cache=str(tmp_path / "file"), backend="openvino")
    assert str(tmp_path / "file") in text
    assert "cache=" in text


def test_an_engine_in_the_cache_that_is_damaged_is_built_again(tiny_model: Path, cache: Path) -> None:
    clip = picture(90, 60)
    first = planes_of(vs.core.fdatrd.upscale(clip, model=str(tiny_model), backend="openvino", streams=1).get_frame(0))
    selection._shared.clear()
    for file in cache.glob("store-1/engines/*/*"):
        if file.name != "manifest.json":
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 0xFF
            file.write_bytes(data)
    again = planes_of(vs.core.fdatrd.upscale(clip, model=str(tiny_model), backend="openvino", streams=1).get_frame(0))
    np.testing.assert_array_equal(first, again)


def test_a_source_that_raises_in_the_middle_spoils_only_its_frame(identity_2x: Path) -> None:
    source = picture(60, 60, length=9)

    def fail(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        if n == 4:
            raise RuntimeError("sector 4 is scratched")
        return f

    out = vs.core.fdatrd.upscale(
        vs.core.std.ModifyFrame(source, source, fail), model=str(identity_2x), precision="fp32"
    )
    for n in range(9):
        if n == 4:
            with pytest.raises(vs.Error, match="sector 4 is scratched"):
                out.get_frame(n)
        else:
            expected = planes_of(source.get_frame(n)).clip(0, 1).repeat(2, 1).repeat(2, 2)
            np.testing.assert_allclose(planes_of(out.get_frame(n)), expected, atol=1e-5)


def test_an_interlaced_frame_in_the_middle_is_named(identity_2x: Path) -> None:
    clip = picture(60, 60, vs.YUV420P8, length=3)
    mixed = clip[:1] + vs.core.std.SetFieldBased(clip[1:2], 1) + clip[2:]
    out = vs.core.fdatrd.upscale(mixed, model=str(identity_2x))
    out.get_frame(0)
    with pytest.raises(vs.Error) as caught:
        out.get_frame(1)
    assert str(caught.value).startswith("fdatrd.upscale: ")
    assert "frame 1" in str(caught.value)
    out.get_frame(2)


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
