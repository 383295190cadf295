"""What `core.fdatrd.upscale` answers to arguments, clips, files and frames that it cannot use."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vapoursynth as vs
from safetensors.numpy import save_file

from tests.clips import picture, planes_of
from vsfdatrd.backends import selection

type Maker = Callable[..., dict[str, np.ndarray[Any, np.dtype[Any]]]]


pytestmark = pytest.mark.usefixtures("cache")


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

    possible = selection.import_backend("openvino").precisions(open_checkpoint(identity_2x))
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
    name: str, tmp_path: Path, tiny_model: Path, make_tensors: Maker, cache: Path, engines: Path
) -> None:
    path = broken_file(name, tmp_path, tiny_model, make_tensors)
    text = refusal(picture(60, 60), model=str(path))
    assert path.name in text
    assert ";" in text or "," in text, "a cure is missing"
    assert not (tmp_path / "it_ran").exists()
    assert not list(cache.glob("store-1/engines/*"))
    vs.core.fdatrd.upscale(picture(60, 60), model=str(tiny_model), cache=str(engines)).get_frame(0)


def test_a_cache_directory_that_is_a_file(tiny_model: Path, tmp_path: Path) -> None:
    selection._shared_pools.clear()  # an engine that is open already needs no cache
    (tmp_path / "file").write_text("x")
    text = refusal(picture(60, 60), model=str(tiny_model), cache=str(tmp_path / "file"), backend="openvino")
    assert str(tmp_path / "file") in text
    assert "cache=" in text


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
