"""Writes ArtCNN's weights as shaders for mpv, in the layouts that have been published. For tests."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LAYOUTS = ("fragment", "compute", "registers")
"""A pass for every four channels; one for every convolution, in a row; the same in a grid, through variables."""


def write(tensors: Mapping[str, NDArray[Any]], layout: str, chroma: bool = False) -> str:
    """A shader that computes what a network of the C family with these tensors does."""
    writer = _Fragment if layout == "fragment" else _Compute
    return writer(tensors, chroma, grid=layout == "registers").text()


class _Shader:
    def __init__(self, tensors: Mapping[str, NDArray[Any]], chroma: bool, grid: bool) -> None:
        self.weights = [np.asarray(tensors[f"conv{i}.weight"]) for i in range(len(tensors) // 2)]
        self.biases = [np.asarray(tensors[f"conv{i}.bias"]) for i in range(len(self.weights))]
        self.chroma, self.grid = chroma, grid
        self.picture = "NATIVE" if chroma else "LUMA"
        filters = len(self.weights[0])
        self.title = f"ArtCNN C{len(self.weights) - 3}F{filters}{' Chroma' if chroma else ''}"

    def text(self) -> str:
        parts = ["// MIT License\n"]
        if self.chroma:
            parts.append(self.head("Doubling Chroma", "", ["CHROMA"]).replace("HOOK NATIVE", "HOOK CHROMA"))
            parts.append("vec4 hook() {\n    return CHROMA_texOff(0.0);\n}\n\n")
        parts += [self.convolution(i) for i in range(len(self.weights))]
        if self.chroma:
            parts.append(self.head("Merging", "", ["NATIVE", self.saved(len(self.weights) - 1)[0]]))
            parts.append("vec4 hook() {\n    vec4 o = NATIVE_texOff(0.0);\n    return clamp(o, 0.0, 1.0);\n}\n")
        else:
            scale = int(np.sqrt(len(self.weights[-1])))
            parts.append(self.head("Depth-To-Space", "", [self.saved(len(self.weights) - 1)[0]], f"{scale}.0 *"))
            parts.append("vec4 hook() {\n    vec4 result = vec4(0.0, 0.0, 0.0, 1.0);\n    return result;\n}\n")
        return "\n".join(parts)

    def head(self, what: str, save: str, bind: list[str], wider: str = "") -> str:
        lines = [f"//!DESC {self.title} ({what})", f"//!HOOK {self.picture}"]
        lines += [f"//!BIND {name}" for name in bind]
        lines += [f"//!SAVE {save}"] if save else []
        return "\n".join([*lines, f"//!WIDTH {self.picture}.w {wider}".rstrip(), "//!COMPONENTS 4", ""])

    def saved(self, i: int) -> list[str]:
        raise NotImplementedError

    def convolution(self, i: int) -> str:
        raise NotImplementedError

    def name(self, i: int) -> str:
        return f"Conv2D-{i}-ReLU" if self.relu(i) else f"Conv2D-{i}"

    def relu(self, i: int) -> bool:
        return 0 < i < len(self.weights) - 2

    def block(self, i: int, k: int, g: int, y: int, x: int) -> tuple[str, str]:
        """(kind, numbers) of the weights from channels 4g.. to channels 4k.. at one pixel of the kernel."""
        part = np.zeros((4, 4), np.float32)
        have = self.weights[i][4 * k : 4 * k + 4, 4 * g : 4 * g + 4, y, x]
        part[: have.shape[0], : have.shape[1]] = have
        single = i == 0 and not self.chroma
        values = part[:, 0] if single else part.T.reshape(-1)
        return ("vec4" if single else "mat4"), ", ".join(str(value) for value in values)

    def bias(self, i: int, k: int) -> str:
        part = np.zeros(4, np.float32)
        have = self.biases[i][4 * k : 4 * k + 4]
        part[: len(have)] = have
        return ", ".join(str(value) for value in part)

    def outputs(self, i: int) -> int:
        return -(-len(self.weights[i]) // 4)

    def inputs(self, i: int) -> int:
        return -(-int(self.weights[i].shape[1]) // 4)


class _Fragment(_Shader):
    def saved(self, i: int) -> list[str]:
        stem = "conv2d" if i == 0 else f"conv2d_{i}"
        return [f"{stem}_{k}" for k in range(self.outputs(i))]

    def convolution(self, i: int) -> str:
        sources = [self.picture] if i == 0 else self.saved(i - 1)
        last, side = i == len(self.weights) - 1, self.weights[i].shape[-1]
        passes = []
        for k in range(self.outputs(i)):
            lines = [self.head(self.name(i), self.saved(i)[k], sources + (self.saved(0) if last else []))]
            lines.append(f"vec4 hook() {{\n    vec4 result = vec4({self.bias(i, k)});")
            for g, source in enumerate(sources):
                for y in range(side):
                    for x in range(side):
                        at = f"_texOff(vec2({x - side // 2}, {y - side // 2}))"
                        pixel = source + at
                        if last:
                            pixel = f"({pixel} + {self.saved(0)[g]}{at})"
                        elif i == 0 and not self.chroma:
                            pixel += ".x"
                        kind, numbers = self.block(i, k, g, y, x)
                        lines.append(f"    result += {kind}({numbers}) * {pixel};")
            lines.append(f"    return {'max(result, vec4(0.0))' if self.relu(i) else 'result'};\n}}\n")
            passes.append("\n".join(lines))
        return "\n".join(passes)


class _Compute(_Shader):
    def saved(self, i: int) -> list[str]:
        return ["conv2d" if i == 0 else f"conv2d_{i}"]

    def place(self, i: int, k: int) -> tuple[str, str]:
        """(size of the grid, place in it) of channels 4k.. of a convolution's results."""
        count = self.outputs(i)
        wide = 2 if self.grid and count % 2 == 0 else count
        return f"ivec2({wide}, {count // wide})", f"ivec2({k % wide}, {k // wide})"

    def fetch(self, name: str, i: int, k: int) -> str:
        """Channels 4k.. of convolution i; i = -1 is the picture."""
        grid, place = self.place(i, k) if i >= 0 else ("ivec2(1, 1)", "ivec2(0, 0)")
        return f"{name}_mul * texelFetch({name}_raw, (base + ivec2(x,y) - offset) * {grid} + {place}, 0)"

    def convolution(self, i: int) -> str:
        last, side = i == len(self.weights) - 1, self.weights[i].shape[-1]
        source = self.picture if i == 0 else self.saved(i - 1)[0]
        lines = [self.head(self.name(i), self.saved(i)[0], ["conv2d", source] if last else [source])]
        lines.append("//!COMPUTE 16 16 4 16\n#define V4 vec4\n#define M4 mat4\n#define F float\nvoid hook() {")
        lines.append("    for (uint y = gl_LocalInvocationID.y; y < isize.y; y += gl_WorkGroupSize.y) {")
        for g in range(self.inputs(i)):
            loaded = self.fetch(source, i - 1, g)
            if last:
                loaded += " + " + self.fetch("conv2d", 0, g)
            lines.append(f"        inp[{g}][y][x] = V4({loaded});")
        lines.append("    }\n    barrier();")
        at = "gl_LocalInvocationID"
        pixels = {}
        for g in range(self.inputs(i)):
            for y in range(side):
                for x in range(side):
                    local = f"inp[{g}][{at}.y + {y}][{at}.x + {x}]"
                    if self.grid:
                        lines.append(f"    V4 inp_{g}_{x}_{y} = {local};")
                        local = f"inp_{g}_{x}_{y}"
                    pixels[g, y, x] = local
        for k in range(self.outputs(i)):
            lines.append(f"    V4 result{k} = V4({self.bias(i, k)});")
            for (g, y, x), pixel in pixels.items():
                kind, numbers = self.block(i, k, g, y, x)
                lines.append(f"    result{k} += {'V4' if kind == 'vec4' else 'M4'}({numbers}) * {pixel};")
            grid, place = self.place(i, k)
            value = f"max(result{k}, V4(0.0))" if self.relu(i) else f"result{k}"
            if self.grid:
                lines.append(f"    imageStore(out_image, ivec2(gl_GlobalInvocationID) * {grid} + {place}, {value});")
            else:
                lines.append(f"    ivec2 store_pos{k} = ivec2(gl_GlobalInvocationID) * {grid} + {place};")
                lines.append(f"    imageStore(out_image, store_pos{k}, {value});")
        return "\n".join([*lines, "}\n"])
