"""ArtCNN from a file to frames: every kind of file, both engines of this machine, quality, colors, vspipe."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import vapoursynth as vs
from safetensors.numpy import save_file

from benchmarks.quality_degradations import read_truths
from benchmarks.quality_measures import remove_border
from tests import shaders
from tests.artcnns import (
    C_CHROMA,
    C_LUMA,
    KINDS,
    R_LUMA,
    R_RGB,
    Tensors,
    compute_by_formula,
    identity_tensors,
    notebook_names,
    random_picture,
    random_tensors,
    repeating_tensors,
)
from tests.clips import Array, blank, clip_of, core, planes, props_of, yuv
from vsfdatrd import load_model
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.registry import restore_descriptor
from vsfdatrd.backends.base import EngineSpec
from vsfdatrd.backends.tensorrt import backend as tensorrt
from vsfdatrd.backends.tensorrt.library import RTX
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.commands import build
from vsfdatrd.nn.artcnn import ArtCnn
from vsfdatrd.options import Options
from vsfdatrd.system.programs import vspipe

BACKENDS = ["openvino", "torch"]
type Upscale = Callable[..., vs.VideoNode]


pytestmark = pytest.mark.usefixtures("cache")


def saved(folder: Path, config: ArtCnnConfig, kind: str, tensors: Tensors) -> Path:
    """The weights as a file of some kind."""
    path = folder / f"artcnn{len(list(folder.iterdir()))}.{kind.split()[-1]}"
    match kind:
        case "safetensors":
            save_file(tensors, path)
        case "notebook pth":
            state = {name: torch.from_numpy(v) for name, v in notebook_names(config, tensors).items()}
            torch.save({"params_ema": state}, path)
        case _:
            path.write_text(shaders.write(tensors, kind.split()[0], config.out_channels == 2))
    return path


FILES = ["safetensors", "notebook pth", "fragment glsl", "compute glsl", "registers glsl"]


# ---- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("config", [C_LUMA, C_CHROMA], ids=["luma", "chroma"])
def test_every_kind_of_file_is_the_same_model(tmp_path: Path, config: ArtCnnConfig, kind: str) -> None:
    tensors = random_tensors(config)
    checkpoint = open_checkpoint(saved(tmp_path, config, kind, tensors))
    result = checkpoint.descriptor
    assert (result.name, result.config) == (config.name, config)
    assert (result.scale, result.config.in_channels, result.config.out_channels) == (
        config.scale,
        config.in_channels,
        config.out_channels,
    )
    assert result.planes == ("chroma" if config is C_CHROMA else "luma")
    assert result.parameters == sum(values.size for values in tensors.values())
    read = checkpoint.tensors()
    assert read.keys() == tensors.keys()
    assert all(np.array_equal(read[name], tensors[name]) for name in tensors)
    assert isinstance(load_model(checkpoint.path), ArtCnn)


@pytest.mark.parametrize("config", [R_LUMA, R_RGB], ids=["luma", "rgb"])
@pytest.mark.parametrize("kind", FILES[:2])
def test_so_is_the_r_family(tmp_path: Path, config: ArtCnnConfig, kind: str) -> None:
    checkpoint = open_checkpoint(saved(tmp_path, config, kind, random_tensors(config)))
    assert checkpoint.descriptor.config == config
    assert checkpoint.descriptor.planes == ("rgb" if config is R_RGB else "luma")


def test_its_description_can_be_remembered(tmp_path: Path) -> None:
    for config in KINDS.values():
        result = open_checkpoint(saved(tmp_path, config, "safetensors", random_tensors(config))).descriptor
        assert restore_descriptor(result.to_dict()) == result


@pytest.mark.parametrize(("name", "architecture"), [("c4f16", "ArtCNN C4F16"), ("c4f32", "ArtCNN C4F32")])
def test_the_released_files_are_known(shared: Path, name: str, architecture: str) -> None:
    result = open_checkpoint(shared / "data/artcnn" / f"artcnn_{name}.safetensors").descriptor
    assert (result.name, result.scale, result.planes) == (architecture, 2, "luma")


def broken(folder: Path, name: str) -> Path:
    tensors = random_tensors(R_LUMA)
    path = folder / "broken.safetensors"
    match name:
        case "incomplete":
            del tensors["res_block.1.conv.2.bias"]
        case "contradictory":
            tensors["res_block.1.conv.2.bias"] = np.zeros(5, np.float32)
        case "not finite":
            tensors["conv0.bias"][0] = np.nan
        case "another shader":
            path = folder / "broken.glsl"
            path.write_text("//!DESC Anime4K\n//!HOOK LUMA\n//!BIND LUMA\nvec4 hook() { return LUMA_tex(LUMA_pos); }\n")
            return path
        case "half a shader":
            path = folder / "broken.glsl"
            path.write_text(shaders.write(random_tensors(C_LUMA), "compute")[:-4000])
            return path
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("incomplete", "incomplete ArtCNN R2F8"),
        ("contradictory", r"has shape \(5,\)"),
        ("not finite", "not finite"),
        ("another shader", "but not ArtCNN's"),
        ("half a shader", "cannot be read as an ArtCNN shader"),
    ],
)
def test_bad_files_are_sentences(tmp_path: Path, name: str, message: str) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(vs.Error, match=message) as caught:
        core.fdatrd.upscale(blank(_Matrix=6), model=str(path), backend="openvino")
    assert str(caught.value).startswith(f"fdatrd.upscale: the weights file {str(path)!r} ")


# ---- frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("config", [C_LUMA, R_LUMA], ids=["C", "R"])
def test_luma_is_what_the_formula_says(tmp_path: Path, config: ArtCnnConfig, backend: str) -> None:
    tensors, x = random_tensors(config), random_picture(config)
    clip = clip_of(core.get_video_format(vs.GRAYS), [list(x)])
    path = saved(tmp_path, config, "safetensors", tensors)
    out = core.fdatrd.upscale(clip, model=str(path), backend=backend, precision="fp32")
    np.testing.assert_allclose(planes(out)[0], compute_by_formula(config, tensors, x)[0].clip(0, 1), atol=5e-6)


def test_all_files_give_equal_frames(tmp_path: Path) -> None:
    tensors = random_tensors(C_LUMA)
    clip = clip_of(core.get_video_format(vs.GRAYS), [list(random_picture(C_LUMA))])
    result = [
        planes(core.fdatrd.upscale(clip, model=str(saved(tmp_path, C_LUMA, kind, tensors)), precision="fp32"))[0]
        for kind in FILES
    ]
    for other in result[1:]:
        np.testing.assert_array_equal(other, result[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_chroma_is_what_the_formula_says(tmp_path: Path, backend: str) -> None:
    tensors = random_tensors(C_CHROMA)
    path = saved(tmp_path, C_CHROMA, "safetensors", tensors)
    random = np.random.default_rng(0)
    codes = [random.integers(16, 236, (24, 20)), *random.integers(16, 241, (2, 12, 10))]
    clip = clip_of(yuv(8, "420"), [codes], _Matrix=6, _Range=0, _ChromaLocation=0)
    out = core.fdatrd.upscale(clip, model=str(path), backend=backend, precision="fp32", format="YUV444PS")
    y, u, v = planes(clip.resize.Bilinear(format=vs.YUV444PS))
    result = (
        compute_by_formula(C_CHROMA, tensors, np.stack([y, u + np.float32(0.5), v + np.float32(0.5)])).clip(0, 1) - 0.5
    )
    np.testing.assert_array_equal(planes(out)[0], y)
    np.testing.assert_allclose(planes(out)[1:], result, atol=5e-6)
    assert props_of(out)["_Matrix"] == 6


def test_rgb_models_take_rgb(tmp_path: Path) -> None:
    tensors, x = random_tensors(R_RGB), random_picture(R_RGB)
    clip = clip_of(core.get_video_format(vs.RGBS), [list(x)])
    path = saved(tmp_path, R_RGB, "safetensors", tensors)
    out = core.fdatrd.upscale(clip, model=str(path), backend="openvino", precision="fp32")
    np.testing.assert_allclose(planes(out), compute_by_formula(R_RGB, tensors, x).clip(0, 1), atol=5e-6)


def test_tiles_leave_no_seam(tmp_path: Path) -> None:
    """Parts overlap by more than the network looks, so that their middles are those of the whole frame."""
    tensors = random_tensors(C_LUMA)
    path = saved(tmp_path, C_LUMA, "safetensors", tensors)
    clip = clip_of(core.get_video_format(vs.GRAYS), [list(random_picture(C_LUMA, 160, 200))])
    whole = planes(core.fdatrd.upscale(clip, model=str(path), backend="openvino", precision="fp32"))[0]
    parts = planes(core.fdatrd.upscale(clip, model=str(path), backend="openvino", precision="fp32", tile=[120, 100]))[0]
    assert np.sqrt(np.mean((whole - parts) ** 2)) < 0.01
    assert np.median(np.abs(whole - parts)) < 1e-6


def test_chroma_models_refuse_what_they_are_not_for(tmp_path: Path) -> None:
    path = saved(tmp_path, C_CHROMA, "safetensors", random_tensors(C_CHROMA))
    for form, message in (
        (vs.YUV444P8, "needs no such model"),
        (vs.RGB24, "needs no such model"),
        (vs.GRAY8, "luma model"),
    ):
        with pytest.raises(vs.Error, match=f"^fdatrd.upscale: the model reconstructs the chroma of 4:2:0.*{message}"):
            core.fdatrd.upscale(blank(form), model=str(path))


# ---- the released weights -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def c4f32(shared: Path) -> str:
    return str(shared / "data" / "artcnn" / "artcnn_c4f32.safetensors")


def psnr(truth: Array, result: Array) -> float:
    return float(-10 * np.log10(np.mean(remove_border(truth - result.clip(0, 1)) ** 2)))


def test_it_is_far_above_lanczos_on_halved_drawings(shared: Path, c4f32: str) -> None:
    """Nine held-out pictures, luma (709) halved with a box filter; at least 1.4 dB are asked for, on each of them."""
    lumas = [shot @ np.array([0.2126, 0.7152, 0.0722]) / 255 for shot in read_truths(shared / "data" / "eval").values()]
    halved = [y.reshape(y.shape[0] // 2, 2, y.shape[1] // 2, 2).mean((1, 3)) for y in lumas]
    clip = clip_of(core.get_video_format(vs.GRAYS), [[y] for y in halved])
    doubled = core.fdatrd.upscale(clip, model=c4f32, backend="openvino")
    lanczos = clip.resize.Lanczos(clip.width * 2, clip.height * 2)
    gains = [psnr(y, planes(doubled, n)[0]) - psnr(y, planes(lanczos, n)[0]) for n, y in enumerate(lumas)]
    print("dB above Lanczos:", [round(gain, 2) for gain in gains], "mean", round(float(np.mean(gains)), 2))
    assert len(gains) == 9
    assert min(gains) > 1.4
    assert np.mean(gains) > 6


@pytest.mark.parametrize("format", [vs.YUV420P8, vs.YUV444P16, vs.GRAY8, vs.RGB24])
def test_neutral_gray_stays_neutral(c4f32: str, format: int) -> None:
    form = core.get_video_format(format)
    gray = np.random.default_rng(0).integers(16, 236, (40, 48)) << (form.bits_per_sample - 8)
    neutral = np.full((40 >> form.subsampling_h, 48 >> form.subsampling_w), 1 << (form.bits_per_sample - 1))
    parts = [gray] * 3 if form.color_family == vs.RGB else [gray, neutral, neutral][: form.num_planes]
    tags = {} if form.color_family == vs.RGB else {"_Matrix": 5, "_Range": 0}
    out = core.fdatrd.upscale(clip_of(form, [parts], **tags), model=c4f32, backend="openvino")
    y, *rest = planes(out)
    assert (out.width, out.height, np.ptp(y) > 20000) == (96, 80, True)
    for plane in rest:
        np.testing.assert_array_equal(plane, y if form.color_family == vs.RGB else 32768)
    if tags:
        assert {name: props_of(out)[name] for name in tags} == tags


def test_vspipe_runs_it(c4f32: str, tmp_path: Path) -> None:
    script = tmp_path / "double.vpy"
    script.write_text(
        "from vapoursynth import core\n"
        "import vapoursynth as vs\n"
        "clip = core.std.BlankClip(width=72, height=48, format=vs.YUV420P8, length=3, color=[90, 110, 150])\n"
        "clip = core.std.SetFrameProps(clip, _Matrix=6, _Range=0, _ChromaLocation=0)\n"
        f"core.fdatrd.upscale(clip, model={c4f32!r}).set_output()\n",
        encoding="utf-8",
    )
    done = subprocess.run([vspipe(), "-c", "y4m", str(script), "-"], capture_output=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr.decode()
    head, _, rest = done.stdout.partition(b"\n")
    assert head.startswith(b"YUV4MPEG2 C420p16 W144 H96 ")
    size = 144 * 96 * 3  # two bytes a sample, one and a half samples a pixel
    assert len(rest) == 3 * (size + len(b"FRAME\n"))
    frame = np.frombuffer(rest[len(b"FRAME\n") : len(b"FRAME\n") + size], "<u2")
    chroma = frame[144 * 96 :]
    np.testing.assert_array_equal(np.unique(chroma), [110 * 256, 150 * 256])
    assert abs(float(np.median(frame[: 144 * 96])) / 256 - 90) < 1


def test_a_script_starts_without_torch_and_onnx(tmp_path: Path) -> None:
    """With an engine in the cache, nothing heavy is imported for it."""
    path = saved(tmp_path, C_LUMA, "safetensors", random_tensors(C_LUMA))
    code = (
        "import sys, vapoursynth as vs\n"
        "clip = vs.core.std.BlankClip(width=32, height=32, format=vs.GRAYS, length=1, color=0.5)\n"
        f"vs.core.fdatrd.upscale(clip, model={str(path)!r}, backend='openvino').get_frame(0)\n"
        "print([name for name in ('torch', 'onnx', 'openvino', 'spandrel') if name in sys.modules])\n"
    )
    message = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=250).stdout
        for _ in range(2)
    ]
    assert message[1] == "[]\n"


def test_luma_then_chroma(tmp_path: Path) -> None:
    """The chain of docs/artcnn.md: 4:2:0, doubled as 4:2:0, then 4:4:4, with its tags and without a shift of chroma."""
    luma = saved(tmp_path, C_LUMA, "safetensors", repeating_tensors())
    chroma = saved(tmp_path, C_CHROMA, "safetensors", identity_tensors())
    y, x = np.mgrid[0:48, 0:64]
    codes = [np.full((48, 64), 120), 100 + y[::2, ::2] / 2, 110 + x[::2, ::2] / 2]
    clip = clip_of(yuv(16, "420"), [[256 * part for part in codes]], _Matrix=5, _Range=0, _ChromaLocation=0)
    for path in (luma, chroma):
        clip = core.fdatrd.upscale(clip, model=str(path), backend="openvino", precision="fp32")
    tags = props_of(clip)
    assert (clip.format.id, clip.width, clip.height, tags["_Matrix"], tags["_Range"]) == (vs.YUV444P16, 128, 96, 5, 0)
    result = planes(clip)
    np.testing.assert_allclose(result[0][8:-8, 8:-8], 120 * 256, atol=2)
    rows, columns = np.mgrid[0:96, 0:128]
    # a row of 4:2:0 lies between two luma rows, a column (left) on the first of two luma columns
    expected = [100 + ((rows - 0.5) / 2 - 0.5) / 2, 110 + ((columns - 0.5) / 2) / 2]
    for plane, requested in zip(result[1:], expected, strict=True):
        np.testing.assert_allclose(plane[16:-16, 16:-16] / 256, requested[16:-16, 16:-16], atol=0.05)


@pytest.mark.skipif(not RTX.installed, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize(
    "config", [ArtCnnConfig(32, 4, False, 1, 1, 2), ArtCnnConfig(64, 2, True, 3, 2, 1)], ids=["luma", "chroma"]
)
def test_engines_for_gpus_are_built(tmp_path: Path, cache: Path, config: ArtCnnConfig) -> None:
    path = saved(tmp_path, config, "safetensors", random_tensors(config))
    (engine,) = build.build_for(Options(model=str(path), cache=cache), 320, 240, ["sm89"])
    facts = json.loads((engine.path / "facts.json").read_text())
    estimate = tensorrt.needed_bytes(EngineSpec(open_checkpoint(path), 240, 320, "fp16")) - tensorrt.PROCESS_BYTES
    assert 0.5 * estimate < facts["activation_bytes"] < estimate
    reference = np.load(engine.path / "reference.npy")
    assert reference.shape == (config.out_channels, 240 * config.scale, 320 * config.scale)
    assert np.isfinite(reference).all()
