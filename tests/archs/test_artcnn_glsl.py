"""ArtCNN shaders: every layout gives the exact weights; other shaders are refused with a reason."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import shaders
from tests.artcnns import C_CHROMA, C_LUMA, Tensors, random_tensors
from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.artcnn_glsl import GlslFile, is_shader
from vsfdatrd.errors import CheckpointError


def read(path: Path) -> Tensors:
    file = GlslFile(path)
    tensors = dict(file.read({name: name for name in file.entries}))
    assert {name: values.shape for name, values in tensors.items()} == {n: e.shape for n, e in file.entries.items()}
    return tensors


def shader(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "shader.glsl"
    path.write_text(text, encoding="utf-8", newline="")
    return path


CONFIGS = {
    "luma": C_LUMA,
    "chroma": C_CHROMA,
    "deep": ArtCnnConfig(16, 6, False, 1, 1, 2),
    "5×5": ArtCnnConfig(4, 4, False, 1, 1, 2, 5),
}


@pytest.mark.parametrize("layout", shaders.LAYOUTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_layout_gives_the_weights(tmp_path: Path, layout: str, config: ArtCnnConfig) -> None:
    tensors = random_tensors(config)
    result = read(shader(tmp_path, shaders.write(tensors, layout, chroma=config is C_CHROMA)))
    assert result.keys() == tensors.keys()
    assert all(np.array_equal(result[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["c4f16", "c4f32"])
def test_released_weights_come_back(tmp_path: Path, shared: Path, name: str) -> None:
    tensors = load_file(shared / "data" / "artcnn" / f"artcnn_{name}.safetensors")
    for layout in shaders.LAYOUTS:
        result = read(shader(tmp_path, shaders.write(tensors, layout)))
        assert all(np.array_equal(result[key], tensors[key]) for key in tensors)


def test_line_ends_and_marks_do_no_harm(tmp_path: Path) -> None:
    tensors = random_tensors(C_LUMA)
    text = "\ufeff" + shaders.write(tensors, "compute").replace("\n", "\r\n")
    assert np.array_equal(read(shader(tmp_path, text))["conv3.weight"], tensors["conv3.weight"])


def test_channels_go_where_textures_lie(tmp_path: Path) -> None:
    """Passes in another order, with the names that textures have in it, are the same network."""
    tensors = random_tensors(C_LUMA)
    text = shaders.write(tensors, "fragment")
    swapped = text.replace("conv2d_1_0", "X").replace("conv2d_1_1", "conv2d_1_0").replace("X", "conv2d_1_1")
    assert np.array_equal(read(shader(tmp_path, swapped))["conv2.weight"], tensors["conv2.weight"])


def changed(change: str) -> str:
    text = shaders.write(random_tensors(C_LUMA), "registers" if change.startswith("compute") else "fragment")
    lines = text.splitlines()
    term = next(i for i, line in enumerate(lines) if re.search(r"\+= (mat4|M4)\(", line))
    match change:
        case "another network":
            return text.replace("ArtCNN", "FSRCNNX")
        case "no passes":
            return "// a shader\nvoid main() {}\n"
        case "a term is missing":
            del lines[term]
        case "a term is there twice":
            lines.insert(term, lines[term])
        case "a number is missing":
            lines[term] = lines[term].replace("mat4(", "mat4(9").replace(", ", " ", 1)
        case "code in a constant":
            lines[term] = "    result += mat4(1.0, sin(2.0)) * conv2d_0_texOff(vec2(0, 0));"
        case "a name for a number":
            lines[term] = "    result += mat4(" + ", ".join(["a"] * 16) + ") * conv2d_0_texOff(vec2(0, 0));"
        case "another pixel":
            lines[term] = lines[term].replace("_texOff(vec2(-1, -1))", "_gather(vec2(-1, -1))")
        case "a far pixel":
            lines[term] = lines[term].replace("vec2(-1, -1)", "vec2(-1000000000, -1)")
        case "a pixel aside":
            lines[term] = lines[term].replace("vec2(-1, -1)", "vec2(2, -1)")
        case "no ReLU":
            return text.replace("return max(result, vec4(0.0));", "return result;")
        case "one ReLU less":
            return text.replace("return max(result, vec4(0.0));", "return result;", 1)
        case "another activation":
            return text.replace("max(result, vec4(0.0))", "max(result, result * 0.2)")
        case "no skip":
            return text.replace(" + conv2d_0_texOff", " + conv2d_4_0_texOff")
        case "no bias":
            return text.replace("vec4 result = vec4(", "vec4 result = vec4(0) + vec4(")
        case "too few passes":
            return "//!DESC".join(text.split("//!DESC")[:3])
        case "no end":
            return text[: text.rindex("//!DESC")]
        case "another size":
            return text.replace("LUMA.w 2.0 *", "LUMA.w 3.0 *")
        case "not a number":
            lines[term] = "    result += mat4(1e999" + ", 0.0" * 15 + ") * conv2d_0_texOff(vec2(-1, -1));"
        case "compute: not loaded":
            return text.replace("inp[1][y][x] =", "other =")
        case "compute: another place":
            return text.replace("+ ivec2(1, 0), 0)", "+ ivec2(0, 0), 0)")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("another network", "not ArtCNN's"),
        ("no passes", "not ArtCNN's"),
        ("a term is missing", "square kernel"),
        ("a term is there twice", "twice"),
        ("a number is missing", "not 16 numbers"),
        ("code in a constant", "not a weight times a pixel"),
        ("a name for a number", "not 16 numbers"),
        ("another pixel", "multiplies"),
        ("a far pixel", "square kernel"),
        ("a pixel aside", "square kernel"),
        ("no ReLU", "lacks its ReLU"),
        ("one ReLU less", "a different activation"),
        ("another activation", "lacks its ReLU"),
        ("no skip", "does not read what"),
        ("no bias", "bias"),
        ("too few passes", "convolutions"),
        ("no end", "does not end"),
        ("another size", "does not end"),
        ("not a number", "not finite"),
        ("compute: not loaded", "does not load"),
        ("compute: another place", "twice"),
    ],
)
def test_what_is_no_artcnn_is_a_sentence(tmp_path: Path, change: str, reason: str) -> None:
    path = shader(tmp_path, changed(change))
    with pytest.raises(CheckpointError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)
    assert ";" in str(error.value) or "use an earlier checkpoint" in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "inp[0][y][x] = " * 60,
        "imageStore(out_image, " * 40,
        "    result += mat4(" * 45,
        "vec4 result = vec4(" * 45,
        "max(result" * 90,
        "result0 = result0 + " * 45,
        "//!BIND a" + " " * 980 + "a",
    ],
)
def test_large_nonsense_is_refused_soon(tmp_path: Path, text: str) -> None:
    line = f"{text}\n"
    path = shader(tmp_path, "//!DESC ArtCNN\n//!HOOK LUMA\n" + line * ((2 << 20) // len(line.encode()) - 1))
    start = time.process_time()
    with pytest.raises(CheckpointError):
        read(path)
    assert time.process_time() - start < 10


def test_many_results_are_refused_soon(tmp_path: Path) -> None:
    lines = [
        f"vec4 result{i} = vec4(0, 0, 0, 0);\nresult{i} += vec4(0, 0, 0, 0) * LUMA_texOff(0.0).x;" for i in range(20000)
    ]
    path = shader(tmp_path, "//!DESC ArtCNN\n//!HOOK LUMA\n//!BIND LUMA\n" + "\n".join(lines))
    start = time.process_time()
    with pytest.raises(CheckpointError, match="convolutions"):
        read(path)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("text", "message"), [("x" * 1001, "a line has over"), ("//" + "\n" * (2 << 20), "more than 2 MiB")]
)
def test_what_is_too_long_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        GlslFile(shader(tmp_path, text))


def test_bytes_that_are_no_text_are_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "shader.glsl"
    path.write_bytes(b"//!DESC ArtCNN\xff\xfe\n")
    with pytest.raises(CheckpointError, match="cannot be read as a shader"):
        GlslFile(path)


def test_shaders_are_told_by_what_they_say() -> None:
    assert is_shader(b"// MIT\n//!HOOK LUMA\n", ".txt")
    assert is_shader(b"void main() {}", ".GLSL")
    assert not is_shader(b"\x80\x02 //!HOOK", ".pth")
