"""FDAT-RD with the kernels of `_native/cpu_*.c`.

It computes the same function as `nn.fdat_rd.FdatRd`, with feature maps as (H·W, C). `Weights` holds everything that
depends on the checkpoint alone. A `FrameContext` owns the memory of one frame and the threads that compute its layers.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsfdatrd.archs import zero_branches
from vsfdatrd.archs.fdat_rd import FdatRdConfig, blocks_with_windows
from vsfdatrd.backends.base import FramePlanes
from vsfdatrd.backends.native.blocks import BLOCK_CLASSES, HEAD_DIM, Block, Doubles
from vsfdatrd.backends.native.kernels import Floats, KernelArrays, c_function, nonzero_share
from vsfdatrd.backends.native.threads import RowThreads
from vsfdatrd.graph.weights import Weights as Tensors

MAX_CHANNELS = 1024
"""Largest number of channels for which 32-bit sums leave at least ten bits for the weights."""

WINOGRAD_OVERHEAD = 0.9
"""Time of the transforms of the kernel ``winograd``, relative to a dense product of all tokens with one tap."""


def unsupported_config_reason(config: FdatRdConfig) -> str | None:
    """Explain why the kernels cannot run a network; None if they can.

    Args:
        config: The network.
    """
    if config.upsampler != "transpose+conv" or config.tail_scale not in (2, 4):
        return f"its tail ({config.upsampler}, {config.tail_scale} times) is not supported"
    if config.embed_dim != config.heads * HEAD_DIM:
        return f"its heads have {config.embed_dim // config.heads} channels, not {HEAD_DIM}"
    if config.dict_tokens % 16 or config.ffn_dim % 16:
        counts = f"{config.dict_tokens} dictionary tokens and {config.ffn_dim} hidden channels"
        return f"its {counts} are not multiples of 16"
    if max(config.embed_dim, config.dict_tokens, config.ffn_dim) > MAX_CHANNELS:
        return f"it is wider than {MAX_CHANNELS} channels"
    if config.in_channels != 3 or config.out_channels != 3:
        return "it is not for RGB"
    return None


class Convolution:
    """A 3×3 convolution, packed for the kernel that needs fewer products."""

    def __init__(self, arrays: KernelArrays, weight: Doubles) -> None:
        """Pack the weights.

        Args:
            arrays: Owner of the packed arrays.
            weight: (O, C, 3, 3).
        """
        taps = [weight[:, :, i // 3, i % 3] for i in range(9)]
        points = _winograd_matrices(weight)
        self._minimal = nonzero_share(points) / 4 + WINOGRAD_OVERHEAD < nonzero_share(taps)
        self._matrices = arrays.matrices(points if self._minimal else taps)

    def run(self, threads: RowThreads, tokens: Floats, skip: Floats, out: Floats) -> None:
        """Compute out = convolution(tokens) + skip.

        Args:
            threads: The threads.
            tokens: Feature map, (N, C).
            skip: Feature map, (N, C).
            out: Output, (N, C); must not be `tokens`.
        """
        run = c_function("winograd" if self._minimal else "conv")
        count = threads.height // 2 if self._minimal else threads.height
        threads.run_ranges(count, lambda a, b, s: run(tokens, skip, out, *threads.size, a, b, self._matrices, s))


class Weights:
    """Weights of a checkpoint, packed for the kernels."""

    def __init__(self, config: FdatRdConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Pack the weights.

        Args:
            config: The network.
            tensors: Its tensors by name.

        Raises:
            ValueError: The kernels cannot run the network; see `unsupported_config_reason`.
        """
        if reason := unsupported_config_reason(config):
            raise ValueError(f"the native kernels cannot run this network: {reason}")
        self.config = config
        self._arrays = arrays = KernelArrays()
        every = Tensors(tensors)
        first = every.below("conv_first" if config.unshuffle == 1 else "conv_first.1")
        u, c = config.unshuffle, config.embed_dim
        # Channel (p, y, x) of the unshuffled image at tap (i, j) is pixel (u·i + y, u·j + x) of the patch of plane p.
        patch = first["weight"].reshape(c, 3, u, u, 3, 3).transpose(0, 1, 4, 2, 5, 3).reshape(c, -1)
        self.first, self.first_bias = arrays.matrix(patch), arrays.floats(first["bias"])
        self.groups: list[tuple[list[Block], Convolution]] = []
        for i, kinds in enumerate(blocks_with_windows(config.groups, config.windows)):
            group = every.below(f"groups.{i}")
            blocks = [
                BLOCK_CLASSES[kind](config, group.below(f"blocks.{j}"), arrays, window)
                for j, (kind, window) in enumerate(kinds)
            ]
            self.groups.append((blocks, Convolution(arrays, group["conv.weight"])))
        self.after = Convolution(arrays, every["conv_after.weight"])
        tail = every.below("upsampler")
        self.squares = self.square_bias = None
        layer = 0
        if config.tail_scale == 4:
            used = zero_branches.used_channels(tail)  # channels that later layers use; set the others to zero
            self.squares = arrays.matrices(_transposed_taps(tail["0.weight"] * used[:, None, None]))
            self.square_bias = arrays.floats(tail["0.bias"] * used)
            layer = 2
        self.planes = arrays.matrices(_last_layer_matrices(tail[f"{layer}.weight"]))
        self.planes_bias = arrays.floats(tail[f"{layer}.bias"])
        self.last = arrays.floats(tail[f"{layer + 1}.weight"])
        self.last_bias = arrays.floats(tail[f"{layer + 1}.bias"])


class FrameContext:
    """Memory for one frame in flight, and the threads that compute it."""

    def __init__(self, weights: Weights, height: int, width: int, threads: int) -> None:
        """Allocate the memory and start the threads.

        Args:
            weights: The weights.
            height: Height of the padded frame in pixels, a multiple of `config.multiple`.
            width: Width of the padded frame in pixels, a multiple of `config.multiple`.
            threads: Number of threads.
        """
        self.weights, config = weights, weights.config
        self._pool = pool = RowThreads(height // config.unshuffle, width // config.unshuffle, config, threads)
        self._maps = [np.empty((pool.count, config.embed_dim), np.float32) for _ in range(4)]
        s = config.tail_scale
        self._planes = np.empty((3, pool.height * s, pool.width * s), np.float32)

    def run(self, picture: FramePlanes, result: FramePlanes) -> None:
        """Upscale one frame.

        Args:
            picture: Input, (3, H·unshuffle, W·unshuffle) float32, C-contiguous.
            result: Output, (3, H·tail_scale, W·tail_scale) float32, C-contiguous; overwritten.

        Raises:
            ValueError: An array has another shape, type or layout.
        """
        w, pool = self.weights, self._pool
        first, u = c_function("first"), w.config.unshuffle
        for frame, shape in ((picture, (3, pool.height * u, pool.width * u)), (result, self._planes.shape)):
            if frame.shape != shape or frame.dtype != np.float32 or not frame.flags.c_contiguous:
                raise ValueError(
                    f"the frame is {frame.dtype} of shape {frame.shape}, not contiguous float32 of {shape}"
                )
        shallow, *free = self._maps
        pool.run_rows(lambda a, b, s: first(picture, shallow, *pool.size, u, a, b, w.first, w.first_bias, s))
        deep = shallow
        for blocks, convolution in w.groups:
            tokens, buffer, source = free[0], free[1], deep
            for block in blocks:
                block.run(pool, source, tokens, buffer)
                source = tokens
            convolution.run(pool, source, deep, buffer)
            deep = buffer
            free = [each for each in self._maps[1:] if each is not deep]
        out, planes = free[0], self._planes
        w.after.run(pool, deep, shallow, out)
        if w.squares is not None:
            four, squares = c_function("four_times"), (w.squares, w.square_bias)
            pool.run_rows(lambda a, b, s: four(out, planes, *pool.size, a, b, *squares, w.planes, w.planes_bias, s))
        else:
            twice = c_function("twice")
            pool.run_rows(lambda a, b, s: twice(out, planes, *pool.size, a, b, w.planes, w.planes_bias, s))
        last, (rows, columns) = c_function("last"), planes.shape[1:]
        pool.run_ranges(rows, lambda a, b, s: last(planes, result, rows, columns, a, b, w.last, w.last_bias))


def _winograd_matrices(weight: Doubles) -> list[Doubles]:
    """Transform (O, C, 3, 3) to sixteen matrices (O, C) for the kernel ``winograd``; see `_native/cpu_conv.c`."""
    g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    # g · W · gᵀ for every 3×3 matrix W as one product: the Kronecker product of g with itself, times all W as columns
    points = np.kron(g, g) @ weight.reshape(-1, 9).T
    return list(points.reshape(16, *weight.shape[:2]))


def _source_tap(pixel: int, source: int) -> int | None:
    """Return the tap of a transposed convolution of width 4 from source pixel i + `source` to output 2i + `pixel`.

    None if the output pixel does not depend on the source pixel.
    """
    return {(0, -1): 3, (0, 0): 1, (1, 0): 2, (1, 1): 0}.get((pixel, source))


def _transposed_taps(weight: Doubles) -> list[Doubles]:
    """Split a transposed convolution (C, O, 4, 4) into 16 matrices (O, C).

    They are ordered by pixel (a, b) of a 2×2 square of outputs, source row i and source column j.
    """
    return [
        weight[:, :, _source_tap(a, i - 1 + a), _source_tap(b, j - 1 + b)].T for a, b, i, j in product((0, 1), repeat=4)
    ]


def _last_layer_matrices(weight: Doubles) -> list[Doubles]:
    """Split a transposed convolution (C, 3, 4, 4) into nine matrices (12, C).

    There is one for each source pixel that contributes to a 2×2 square of outputs.
    """
    result = []
    for y, x in product((-1, 0, 1), repeat=2):
        matrix = np.zeros((2, 2, 3, len(weight)))
        for a, b in product((0, 1), repeat=2):
            row, column = _source_tap(a, y), _source_tap(b, x)
            if row is not None and column is not None:
                matrix[a, b] = weight[:, :, row, column].T
        result.append(matrix.reshape(12, -1))
    return result
