"""ArtCNN as an mpv shader: reads the weights from the constants in the text. No shader code is compiled or run.

A shader file is a list of passes, each with a header of ``//!`` lines and a function. A convolution is written as a sum
of ``mat4(...) * pixel`` (``vec4(...) * pixel.x`` for a single input channel), four channels at a time, in one of two
layouts:

    fragment shaders   one pass for every four channels; pixels are ``conv2d_0_texOff(vec2(-1, 0))``
    compute shaders    one pass for every convolution; its channels are stored side by side in one texture, at the
                       offsets given by ``ivec2(x, y)``; pixels are ``inp[2][... + 1][... + 0]`` or a variable holding
                       that value

The result must match the C family of `archs.artcnn` in every pass, term and connection; otherwise the file is rejected.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vsfdatrd.weights.files import Array, Entry, check_file, decode_values, refusal

MAX_BYTES = 2 << 20
"""Largest accepted file in bytes; the largest published shader is under one megabyte."""
MAX_LINE = 1000
"""Longest accepted line in characters; a line with sixteen numbers and their factor takes 400."""
MAX_KERNEL_RADIUS = 4
"""Largest kernel radius in pixels (distance from the center to the border)."""

type TextureSlice = tuple[str, str]
"""Four channels: texture name and their offset in it (empty if they fill the whole texture)."""
type Source = frozenset[TextureSlice]
"""Textures whose sum a pixel is: one, or two at the end of a skip connection."""
type SourcePixel = tuple[Source, int, int]
"""Source of a pixel and its offset (y, x), relative to an arbitrary corner."""

_LINE = re.compile(r"^//!([A-Z]+)[ \t]+(.+)$", re.M)
_TYPE = r"(?:f16)?(?:vec4|mat4|V4|M4)"
_BIAS = re.compile(rf"\b{_TYPE} (result\d*) = {_TYPE}\(([^()\n]*)\);")
_TERM = re.compile(rf"\b(result\d*) \+= ({_TYPE})\(([^()\n]*)\) \* ([^;\n]+);")
_TEXEL = re.compile(r"(\w+)_texOff\((?:vec2\((-?\d+)(?:\.0)?, (-?\d+)(?:\.0)?\)|0\.0)\)")
_LOCAL = re.compile(r"inp\[(\d+)\]\[[\w.]+\.y \+ (\d+)\]\[[\w.]+\.x \+ (\d+)\]")
_DEFINED = re.compile(r"\b(\w+) = ([^;\n]+);")
_LOAD = re.compile(r"\binp\[(\d+)\]\[y\]\[x\] = ([^;\n]+);")
_FETCH = re.compile(r"texelFetch\((\w+)_raw, [^;]*?(?:\+ ivec2\((\d+), (\d+)\))?, 0\)")
_STORE = re.compile(r"imageStore\(out_image, (.+)$", re.M)
_RELU = re.compile(r"max\((result\d*), (?:vec4|V4)\(0\.0\)\)")
_LAST_OFFSET = re.compile(r"ivec2\((\d+), (\d+)\)[^()]*$")


@dataclass(slots=True)
class _Pass:
    """One pass of a shader, as parsed."""

    desc: str
    hook: str
    save: str
    width: str
    code: str
    biases: dict[str, list[float]] = field(default_factory=dict)
    """By result name."""
    terms: dict[str, dict[SourcePixel, tuple[bool, list[float]]]] = field(default_factory=dict)
    """By result name and pixel: whether the factor is a matrix, and its numbers."""
    sources: frozenset[Source] = frozenset()
    """All sources that the pixels of this pass are read from."""


@dataclass(slots=True)
class _Layer:
    """A convolution, assembled from its passes."""

    sources: frozenset[Source]
    places: list[TextureSlice]
    """Where the results are stored, in channel order."""
    relu: bool
    parts: list[tuple[_Pass, str]]
    """For each group of four channels, the pass and the result name."""


class _NotArtCnn(Exception):
    """Deviation from ArtCNN. The message completes "cannot be read as an ArtCNN shader: "."""


def is_shader(head: bytes, suffix: str) -> bool:
    """Return whether a file with these first bytes and this suffix is an mpv shader, of ArtCNN or another network.

    Args:
        head: First bytes of the file.
        suffix: Suffix of its name, such as ``.glsl``.
    """
    return suffix.lower() in (".glsl", ".hook") or re.search(rb"^//!(?:DESC|HOOK|BIND) ", head, re.M) is not None


class GlslFile:
    """An ArtCNN shader as a `weights.files.WeightsFile` with tensors named ``conv0.weight``, ``conv0.bias``, ...

    Raises:
        CheckpointError: The file is not an ArtCNN shader of a known layout.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if check_file(path).st_size > MAX_BYTES:
            raise refusal(path, f"is a text of more than {MAX_BYTES >> 20} MiB, which no ArtCNN shader is")
        try:
            text = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
        except (OSError, UnicodeDecodeError) as error:
            raise refusal(path, f"cannot be read as a shader ({error}); download it again") from error
        if max(map(len, text.split("\n"))) > MAX_LINE:
            raise refusal(
                path, f"cannot be read as a shader (a line has over {MAX_LINE:,} characters); download it again"
            )
        passes = _split_passes(text)
        if not any("ArtCNN" in shader_pass.desc for shader_pass in passes):
            first = f"{passes[0].desc!r}" if passes else "no pass of its own"
            raise refusal(
                path,
                f"is a shader for mpv, but not ArtCNN's (its first pass is {first}); only ArtCNN's shaders can "
                "be read, give another network's .safetensors, .pth or .onnx file",
            )
        try:
            self._tensors = _extract_tensors(passes)
        except _NotArtCnn as error:
            raise refusal(
                path,
                f"cannot be read as an ArtCNN shader: {error}; download it again, or give the network's .onnx file",
            ) from error
        self.entries = {name: Entry("fp32", values.shape) for name, values in self._tensors.items()}

    def read(self, names: Mapping[str, str]) -> Iterator[tuple[str, Array]]:
        """Read tensors; see `WeightsFile.read`."""
        for name, key in names.items():
            yield name, decode_values(self.path, name, self._tensors[key], "fp32")


def _split_passes(text: str) -> list[_Pass]:
    """Split the shader into passes; each begins with a ``//!DESC`` line."""
    result = []
    for part in re.split(r"(?m)^(?=//!DESC )", text)[1:]:
        directives = {name: value.strip() for name, value in _LINE.findall(part)}
        desc, hook, save, width = (directives.get(name, "") for name in ("DESC", "HOOK", "SAVE", "WIDTH"))
        result.append(_Pass(desc, hook, save, width, _LINE.sub("", part)))
    return result


def _extract_tensors(passes: Sequence[_Pass]) -> dict[str, Array]:
    """Extract weights (O, I, k, k) and biases (O,) of the convolutions."""
    for shader_pass in passes:
        _read_terms(shader_pass)
    layers = _group_layers([shader_pass for shader_pass in passes if shader_pass.terms])
    remaining = [shader_pass for shader_pass in passes if not shader_pass.terms]
    chroma = any("NATIVE" in shader_pass.hook for shader_pass in passes)
    _check_connections(layers, "NATIVE" if chroma else passes[0].hook)
    channels = 2 if chroma else 4 * len(layers[-1].places)
    if not chroma:
        _check_pixel_shuffle(remaining, channels)
    tensors: dict[str, Array] = {}
    for i, layer in enumerate(layers):
        before = layers[i - 1].places if i else None
        outputs = channels if i == len(layers) - 1 else None
        weight, bias = _assemble_convolution(layer, before, 3 if chroma else 1, outputs)
        tensors |= {f"conv{i}.weight": weight, f"conv{i}.bias": bias}
    return tensors


def _read_terms(shader_pass: _Pass) -> None:
    """Fill in the biases and terms of a pass. Raises _NotArtCnn for a sum in any other form."""
    loads = {number: _parse_source(loaded) for number, loaded in _LOAD.findall(shader_pass.code)}
    defined = dict(_DEFINED.findall(shader_pass.code))
    shader_pass.biases = {
        result: _parse_numbers(text, 4, shader_pass) for result, text in _BIAS.findall(shader_pass.code)
    }
    for result, kind, text, pixel in _TERM.findall(shader_pass.code):
        matrix = kind[-4:] == "mat4" or kind[-2:] == "M4"
        at = _parse_pixel(defined.get(pixel, pixel), loads, shader_pass)
        terms = shader_pass.terms.setdefault(result, {})
        if at in terms:
            raise _NotArtCnn(f"its pass {shader_pass.desc!r} has the pixel ({at[2]}, {at[1]}) twice")
        terms[at] = (matrix, _parse_numbers(text, 16 if matrix else 4, shader_pass))
    shader_pass.sources = frozenset(source for terms in shader_pass.terms.values() for source, _, _ in terms)
    if len(re.findall(r"\bresult\d* \+=", shader_pass.code)) != sum(map(len, shader_pass.terms.values())):
        raise _NotArtCnn(f"its pass {shader_pass.desc!r} adds a term that is not a weight times a pixel")


def _parse_pixel(text: str, loads: Mapping[str, Source], shader_pass: _Pass) -> SourcePixel:
    """Parse the pixel that a term multiplies."""
    if match := _LOCAL.fullmatch(text):
        number, y, x = match.groups()
    else:
        texels = _TEXEL.findall(text)
        plain = _TEXEL.sub("t", text)
        if plain not in ("t", "t.x", "(t + t)") or len({(x, y) for _, x, y in texels}) != 1:
            raise _NotArtCnn(f"its pass {shader_pass.desc!r} multiplies {text[:60]!r}")
        _, x, y = texels[0]
        return frozenset((name, "") for name, _, _ in texels), int(y or 0), int(x or 0)
    if number not in loads:
        raise _NotArtCnn(f"its pass {shader_pass.desc!r} uses {text[:60]!r}, which it does not load")
    return loads[number], int(y), int(x)


def _parse_source(loaded: str) -> Source:
    """Collect the textures and offsets that a statement filling ``inp`` reads from."""
    return frozenset((name, f"{x},{y}" if x else "") for name, x, y in _FETCH.findall(loaded))


def _parse_numbers(text: str, count: int, shader_pass: _Pass) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count:
        raise _NotArtCnn(f"its pass {shader_pass.desc!r} has a constant that is not {count} numbers: {text[:60]!r}")
    return values


def _group_layers(passes: Sequence[_Pass]) -> list[_Layer]:
    """Group passes into convolutions in execution order; consecutive passes with the same sources belong together."""
    layers: list[_Layer] = []
    for shader_pass in passes:
        defined = dict(_DEFINED.findall(shader_pass.code))
        stores = {}
        for store in _STORE.findall(shader_pass.code):
            if name := re.search(r"\bresult\d*", store):
                position = store[: name.start()].removesuffix("max(").rstrip(", ")
                stores[name[0]] = _store_offset(defined.get(position, position))
        activated = set(_RELU.findall(shader_pass.code))
        new = not layers or layers[-1].sources != shader_pass.sources
        if new:
            layers.append(_Layer(shader_pass.sources, [], relu=False, parts=[]))
        layer = layers[-1]
        for result in shader_pass.biases:
            relu = result in activated
            if layer.places and relu != layer.relu:
                raise _NotArtCnn(f"its pass {shader_pass.desc!r} has a different activation from the passes next to it")
            layer.relu = relu
            layer.places.append((shader_pass.save, stores.get(result, "")))
            layer.parts.append((shader_pass, result))
        if shader_pass.biases.keys() != shader_pass.terms.keys():
            raise _NotArtCnn(f"its pass {shader_pass.desc!r} does not begin each sum with a bias")
    return layers


def _store_offset(position: str) -> str:
    """Return the offset at which ``imageStore`` writes four channels, as ``x,y``; empty if there is none."""
    match = _LAST_OFFSET.search(position)
    return f"{match[1]},{match[2]}" if match else ""


def _check_connections(layers: Sequence[_Layer], picture: str) -> None:
    """Raise _NotArtCnn unless the layers are connected and activated like those of the C family."""
    if len(layers) < 4:
        raise _NotArtCnn(f"it has {len(layers)} convolutions, and ArtCNN has at least 4")
    first, closing = layers[0], layers[-2]
    if {name for source in first.sources for name, _ in source} != {picture} or len(first.sources) != 1:
        raise _NotArtCnn(f"its first convolution does not read {picture}")
    for i, layer in enumerate(layers[1:], 1):
        last = layer is layers[-1]
        if last:
            expected = {frozenset(pair) for pair in zip(first.places, closing.places, strict=False)}
        else:
            expected = {frozenset([position]) for position in layers[i - 1].places}
        if layer.sources != expected or len(layer.sources) != len(layers[i - 1].places):
            raise _NotArtCnn(f"its convolution {i} does not read what convolution {i - 1} writes")
        if layer.relu != (layer not in (closing, layers[-1])):
            raise _NotArtCnn(f"its convolution {i} {'has a' if layer.relu else 'lacks its'} ReLU")
    if first.relu:
        raise _NotArtCnn("its convolution 0 has a ReLU")


def _check_pixel_shuffle(remaining: Sequence[_Pass], features: int) -> None:
    """Raise _NotArtCnn unless the only pass that is no convolution is a pixel shuffle of all features."""
    last = remaining[0] if len(remaining) == 1 and "Depth-To-Space" in remaining[0].desc else None
    width = re.fullmatch(r"\w+\.w (\d)(?:\.0)? \*", last.width) if last else None
    if not width or int(width[1]) ** 2 != features:
        raise _NotArtCnn(f"it does not end in a pass that turns {features} features into pixels")


def _assemble_convolution(
    layer: _Layer, input_places: Sequence[TextureSlice] | None, inputs: int, outputs: int | None
) -> tuple[Array, Array]:
    """Assemble the weight (O, I, k, k) and bias (O,) of a layer.

    Args:
        layer: The convolution.
        input_places: Storage of its input channels, in order; None if the input is the image.
        inputs: Number of channels of the image.
        outputs: Number of output channels to keep; None for all.
    """
    used = [at for part, result in layer.parts for at in part.terms[result]]
    top, left = min(y for _, y, _ in used), min(x for _, _, x in used)
    side = max(y for _, y, _ in used) - top + 1
    groups = 1 if input_places is None else len(input_places)
    if side % 2 == 0 or side > 2 * MAX_KERNEL_RADIUS + 1 or len(used) != len(layer.parts) * groups * side**2:
        raise _NotArtCnn(
            f"its pass {layer.parts[0][0].desc!r} has {len(used)} terms, which do not form a square kernel"
        )
    order = {position: i for i, position in enumerate(input_places or ())}
    weight = np.zeros((4 * len(layer.parts), 4 * groups, side, side), np.float64)
    bias = np.zeros(4 * len(layer.parts), np.float64)
    for k, (part, result) in enumerate(layer.parts):
        bias[4 * k : 4 * k + 4] = part.biases[result]
        for (source, y, x), (matrix, values) in part.terms[result].items():
            if x - left >= side:
                raise _NotArtCnn(f"its pass {part.desc!r} has no square kernel")
            g = 0 if input_places is None else min(order[position] for position in source if position in order)
            at = weight[4 * k : 4 * k + 4, 4 * g : 4 * g + 4, y - top, x - left]
            if matrix:  # column-major: four numbers for each channel of the pixel
                at[...] = np.reshape(values, (4, 4)).T
            else:
                at[:, 0] = values
    if np.any(weight[:, inputs:]) and input_places is None:
        raise _NotArtCnn(f"its first convolution reads more than {inputs} channels")
    if outputs is not None and (np.any(weight[outputs:]) or np.any(bias[outputs:])):
        raise _NotArtCnn(f"its last convolution gives more than {outputs} channels")
    return weight[:outputs, : inputs if input_places is None else None], bias[:outputs]
