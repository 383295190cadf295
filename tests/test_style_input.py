"""Networks with a second picture, and networks of one size, through VapourSynth."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import vapoursynth as vs
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from tests.onnx_files import write_doubler, write_onnx
from vsfdatrd import style_input
from vsfdatrd.errors import ArgumentError
from vsfdatrd.filter import upscale

core = vs.core
value, node = helper.make_tensor_value_info, helper.make_node


def upscale_by_name(clip: vs.VideoNode, **given: Any) -> vs.VideoNode:
    """Call the plugin's function, whose variable arguments have no static types."""
    function: Any = core.fdatrd.upscale
    result: vs.VideoNode = function(clip, **given)
    return result


pytestmark = pytest.mark.usefixtures("cache")


def pictures(width: int, height: int, length: int = 2, seed: int = 0) -> vs.VideoNode:
    """Smooth random RGBS frames."""
    values = np.random.default_rng(seed).random((length, 3, 8, 8), np.float32)
    return clip_of(values).resize.Bilinear(width, height)


def clip_of(values: Any) -> vs.VideoNode:
    """(N, 3, H, W) as an RGBS clip."""
    length, _, height, width = values.shape
    blank = core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=length)

    def fill(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        frame = f.copy()
        for i in range(3):
            np.copyto(np.asarray(frame[i]), values[n, i])
        return frame

    return core.std.ModifyFrame(blank, blank, fill)


def array(clip: vs.VideoNode, n: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    frame = clip.get_frame(n)
    return np.stack([np.asarray(frame[i]) for i in range(frame.format.num_planes)])


def toned(path: Path, style: tuple[int, int] | None = None, frame: tuple[int, int] | None = None) -> Path:
    """A network that gives each channel of the frame half its own value and half the style's mean."""
    nodes = [
        node("ReduceMean", ["s", "axes"], ["mean"], keepdims=1),
        node("Mul", ["mean", "half"], ["m"]),
        node("Mul", ["x", "half"], ["h"]),
        node("Add", ["h", "m"], ["y"]),
    ]
    return write_onnx(
        path,
        nodes,
        [
            value("x", TensorProto.FLOAT, [1, 3, *(frame or ("h", "w"))]),
            value("s", TensorProto.FLOAT, [1, 3, *(style or ("sh", "sw"))]),
        ],
        value("y", TensorProto.FLOAT, [1, 3, *(frame or ("h", "w"))]),
        {"axes": np.array([2, 3], np.int64), "half": np.float32(0.5)},
    )


def transfer(path: Path, size: int = 32, dim: int = 16) -> Path:
    """Write a network of the building blocks of a photorealism network.

    Embedding of 4×4 patches, linear attention of the frame's tokens over the style's, a layer norm whose scale and
    shift come from the style's statistics, and the patches as an image again.
    """
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {
        name: (random.standard_normal(shape) * scale).astype(np.float32)
        for name, shape, scale in (
            ("patch", (dim, 3, 4, 4), 0.2),
            ("q", (dim, dim), 0.3),
            ("k", (dim, dim), 0.3),
            ("v", (dim, dim), 0.3),
            ("to_scale", (dim, dim), 0.1),
            ("to_shift", (dim, dim), 0.1),
            ("out", (dim, 3, 4, 4), 0.1),
        )
    } | {
        "one": np.float32(1),
        "ones": np.ones(dim, np.float32),
        "zeros": np.zeros(dim, np.float32),
        "tokens": np.array([1, dim, -1], np.int64),
        "maps": np.array([1, dim, size // 4, size // 4], np.int64),
        "axes": np.array([1], np.int64),
        "small": np.float32(1e-4),
    }
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(node(kind, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    def tokens(picture: str) -> str:
        patches = op("Conv", picture, "patch", kernel_shape=[4, 4], strides=[4, 4])
        return op("Transpose", op("Reshape", patches, "tokens"), perm=[0, 2, 1])  # (1, N, dim)

    def positive(x: str) -> str:
        return op("Add", op("Elu", x), "one")

    content, style = tokens("content"), tokens("style")
    mean = op("ReduceMean", style, "axes", keepdims=1)
    normed = op("LayerNormalization", content, "ones", "zeros", axis=-1)
    adapted = op(
        "Add", op("Mul", normed, op("Add", op("MatMul", mean, "to_scale"), "one")), op("MatMul", mean, "to_shift")
    )
    q, k, v = positive(op("MatMul", adapted, "q")), positive(op("MatMul", style, "k")), op("MatMul", style, "v")
    context = op("MatMul", op("Transpose", k, perm=[0, 2, 1]), v)  # (1, dim, dim)
    total = op("Transpose", op("ReduceSum", k, "axes", keepdims=1), perm=[0, 2, 1])
    attended = op("Div", op("MatMul", q, context), op("Add", op("MatMul", q, total), "small"))
    maps = op("Reshape", op("Transpose", op("Add", content, attended), perm=[0, 2, 1]), "maps")
    change = op("ConvTranspose", maps, "out", kernel_shape=[4, 4], strides=[4, 4])
    nodes.append(node("Add", ["content", change], ["y"]))
    shape = [1, 3, size, size]
    return write_onnx(
        path,
        nodes,
        [value("content", TensorProto.FLOAT, shape), value("style", TensorProto.FLOAT, shape)],
        value("y", TensorProto.FLOAT, shape),
        constants,
    )


def reference(path: Path, content: Any, style: Any) -> Any:
    """What the file computes, by ONNX's own evaluator."""
    session: Any = ReferenceEvaluator(str(path))
    first, second = (given.name for given in session.proto_.graph.input)
    return session.run(None, {first: content[None], second: style[None]})[0][0].clip(0, 1)


def test_the_style_is_the_frame_itself_by_default(tmp_path: Path) -> None:
    clip = pictures(56, 48)
    result = upscale(clip, model=toned(tmp_path / "x.onnx"), backend="openvino", precision="fp32")
    for n in range(2):
        source = array(clip, n)
        np.testing.assert_allclose(array(result, n), source / 2 + source.mean((1, 2), keepdims=True) / 2, atol=2e-3)
    assert "_FdatrdStyle" not in result.get_frame(0).props


@pytest.mark.parametrize("size", [(24, 40), (64, 96), None])
def test_the_style_is_resized_as_the_network_wants(tmp_path: Path, size: tuple[int, int] | None) -> None:
    clip, style = pictures(56, 48), pictures(90, 70, length=1, seed=5)
    model = toned(tmp_path / "x.onnx", style=size)
    result = upscale(clip, model=model, backend="openvino", precision="fp32", style=style)
    tall, wide = size or (48, 56)
    mean = array(style.resize.Spline36(wide, tall)).clip(0, 1).mean((1, 2), keepdims=True)
    for n in range(2):
        np.testing.assert_allclose(array(result, n), array(clip, n) / 2 + mean / 2, atol=2e-5)


def test_a_clip_of_styles_goes_along_frame_by_frame_even_where_the_picture_stands_still(tmp_path: Path) -> None:
    clip = pictures(56, 48, length=1) * 4
    style = pictures(56, 48, length=3, seed=5)
    result = upscale_by_name(
        clip, model=str(toned(tmp_path / "x.onnx")), backend="openvino", precision="fp32", style=style
    )
    for n in range(4):
        mean = array(style, min(n, 2)).clip(0, 1).mean((1, 2), keepdims=True)
        np.testing.assert_allclose(array(result, n), array(clip) / 2 + mean / 2, atol=2e-5)


def test_a_longer_clip_of_styles_does_not_lengthen_the_result(tmp_path: Path) -> None:
    clip, style = pictures(56, 48, length=2), pictures(56, 48, length=5)
    result = upscale(clip, model=toned(tmp_path / "x.onnx"), backend="openvino", precision="fp32", style=style)
    assert result.num_frames == 2


def test_a_picture_gives_the_style(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.full((20, 30, 3), (255, 0, 51), np.uint8)
    image.fromarray(pixels).save(tmp_path / "red.png")
    clip = pictures(56, 48)
    model = str(toned(tmp_path / "x.onnx", style=(24, 24)))
    result = upscale_by_name(clip, model=model, backend="openvino", precision="fp32", style=str(tmp_path / "red.png"))
    expected = array(clip) / 2 + np.array([0.5, 0, 0.1], np.float32)[:, None, None]
    np.testing.assert_allclose(array(result), expected, atol=2e-5)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])  # older versions of Pillow return int32 for 16-bit PNGs
def test_a_gray_picture_of_sixteen_bits_is_not_white(tmp_path: Path, kind: type[np.integer[Any]]) -> None:
    image = pytest.importorskip("PIL.Image")
    image.fromarray(np.full((20, 30), 13107, kind)).save(tmp_path / "gray.tif")
    (gray,) = set(array(style_input._read_picture(tmp_path / "gray.tif")).ravel().tolist())
    assert gray == pytest.approx(0.2)


def test_a_picture_for_which_there_is_no_memory_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    monkeypatch.setattr(image.Image, "convert", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ArgumentError, match=r"cannot be read as a picture \(MemoryError\); give another"):
        style_input._read_picture(tmp_path / "x.png")


def test_attention_between_frame_and_style(tmp_path: Path) -> None:
    model = transfer(tmp_path / "x.onnx")
    clip, style = pictures(32, 32), pictures(32, 32, length=1, seed=3)
    result = upscale(clip, model=model, backend="openvino", precision="fp32", style=style)
    results, expected = array(result, 1), reference(model, array(clip, 1), array(style))
    assert np.abs(expected - array(clip, 1)).max() > 0.05, "the network does nothing"
    np.testing.assert_allclose(results, expected, atol=1e-4)


@pytest.mark.parametrize("fit", ["tiles", "resize"])
def test_a_network_of_one_size_takes_larger_frames(tmp_path: Path, fit: str) -> None:
    model = transfer(tmp_path / "x.onnx")
    clip, style = pictures(75, 50), pictures(32, 32, length=1, seed=3)
    result = upscale(clip, model=model, backend="openvino", precision="fp32", style=style, fit=fit)
    assert (result.width, result.height) == (75, 50)
    if fit == "resize":
        small = array(clip.resize.Spline36(32, 32)).clip(0, 1)
        expected = reference(model, small, array(style))
        np.testing.assert_allclose(array(result), array(clip_of(expected[None]).resize.Spline36(75, 50)), atol=1e-3)
    else:
        np.testing.assert_allclose(
            array(result)[:, :16, :16], reference(model, array(clip)[:, :32, :32], array(style))[:, :16, :16], atol=1e-4
        )


def test_smaller_frames_are_padded_to_the_one_size(tmp_path: Path) -> None:
    clip = pictures(40, 30, length=1)
    whole = upscale(clip, model=write_doubler(tmp_path / "x.onnx", size=(48, 64)), backend="openvino", precision="fp32")
    free = upscale(clip, model=write_doubler(tmp_path / "y.onnx"), backend="openvino", precision="fp32")
    # at the right and bottom edges one is padded by mirroring and the other by zeros
    np.testing.assert_allclose(array(whole)[:, :56, :76], array(free)[:, :56, :76], atol=1e-5)


REFUSED: list[tuple[Callable[[Path], Any], dict[str, Any], str]] = [
    (toned, {"style": "nowhere.png"}, r"style='nowhere.png' cannot be read as a picture \(No such file"),
    (toned, {"style": core.std.BlankClip(width=4, height=4)}, "the style cannot be used: the clip is 4×4 pixels"),
    (write_doubler, {"style": "x.png"}, "style= is for networks with a second input"),
    (write_doubler, {"fit": "resize"}, "is for networks of one fixed size"),
    (transfer, {"fit": "resize", "tile": [32, 32]}, 'contradicts fit="resize"'),
    (transfer, {"tile": [64, 64]}, "takes frames of 32×32 pixels only, and 56×48 are more"),
    (write_doubler, {"fit": "stretch"}, "fit='stretch' is unknown"),
    (write_doubler, {"input_range": "1023"}, "input_range='1023' is unknown"),
    (write_doubler, {"multiple": 0}, "multiple=0 is out of range"),
    (write_doubler, {"backend": "torch"}, "backend='torch' cannot run 'x.onnx'"),
    (write_doubler, {"styles": "x.png"}, "there is no argument 'styles'; did you mean 'style'"),
]


@pytest.mark.parametrize(("make", "given", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_what_cannot_be_asked_for_is_a_sentence(
    tmp_path: Path, make: Callable[[Path], Any], given: dict[str, Any], message: str
) -> None:
    clip = pictures(56, 48)
    with pytest.raises(vs.Error, match=message) as caught:
        upscale_by_name(clip, model=str(make(tmp_path / "x.onnx")), **({"backend": "openvino"} | given))
    assert str(caught.value).startswith("fdatrd.upscale: ")
    assert "\n" not in str(caught.value)
