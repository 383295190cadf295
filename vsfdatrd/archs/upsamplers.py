"""The tails of FDAT-RD and FDAT, which turn tokens into pixels: their names, and the shapes of their tensors."""

import math
from typing import Literal, get_args

type Upsampler = Literal[
    "conv", "pixelshuffledirect", "pixelshuffle", "nearest+conv", "dysample", "transpose+conv", "lda", "pa_up"
]

# Order matters: the checkpoint's `MetaUpsample` buffer stores an index into it.
UPSAMPLERS: tuple[Upsampler, ...] = get_args(Upsampler.__value__)

GROUPS = 4
"""Number of channel groups in the dysample tail, each with its own sampling offsets."""

type TailTensors = dict[str, tuple[tuple[int, ...], int]]
"""Name -> shape, and the number of positions per token at which the tensor is multiplied with a map."""


def tail_tensors(upsampler: Upsampler, embed_dim: int, mid_dim: int, out_channels: int, scale: int) -> TailTensors:
    """List the tensors of a tail by their index in its `torch.nn.Sequential`.

    Args:
        upsampler: Name of the tail.
        embed_dim: Channels of a token.
        mid_dim: Inner channels of the tails that have an inner width.
        out_channels: Channels of the output.
        scale: Upscaling factor from the token map to the output; 1 is a plain convolution in every tail.

    Raises:
        ValueError: The tail is not possible with these widths or this scale.
    """

    def conv(name: str, inputs: int, outputs: int, side: int = 3, at: int = 1) -> TailTensors:
        return {f"{name}.weight": ((outputs, inputs, side, side), at), f"{name}.bias": ((outputs,), 0)}

    def norm(name: str, width: int) -> TailTensors:
        return {f"{name}.weight": ((width,), 0), f"{name}.bias": ((width,), 0)}

    c, m, o, s = embed_dim, mid_dim, out_channels, scale
    pixels = s * s
    i = 0 if m == c else 2  # index of the module after `begin`
    begin = conv("0", c, m) if i else {}  # first convolution of dysample and lda, from C to their inner width
    match "conv" if s == 1 else upsampler:
        case "conv":
            if s != 1:
                raise ValueError(f"its tail is a plain convolution, which cannot enlarge {s} times")
            return conv("0", c, o)
        case "pixelshuffledirect":
            return conv("0", c, o * pixels)
        case "pixelshuffle":
            tensors, at, n = conv("0", c, m), 1, 2
            for factor in upscaling_steps(s, upsampler):
                tensors |= conv(f"{n}", m, factor * factor * m, at=at)
                at, n = at * factor * factor, n + 2
            return tensors | conv(f"{n}", m, o, at=pixels)
        case "nearest+conv":
            tensors, at, n = {}, 1, 0
            for factor in upscaling_steps(s, upsampler):
                tensors |= conv(f"{n}", c, c, at=at)
                at, n = at * factor * factor, n + 3
            return tensors | conv(f"{n}", c, c, at=pixels) | conv(f"{n + 2}", c, o, at=pixels)
        case "transpose+conv":
            # ConvTranspose2d weights are (in, out, k, k). Scale 2: 4×4 with stride 2; scale 3: 3×3 with stride 3.
            if s == 4:
                tensors = {"0.weight": ((c, c, 4, 4), 1), "0.bias": ((c,), 0)}
                tensors |= {"2.weight": ((c, o, 4, 4), 4), "2.bias": ((o,), 0)}
                return tensors | conv("3", o, o, at=pixels)
            if s > 4:
                raise ValueError(f"its tail is a transposed convolution, which cannot enlarge {s} times")
            side = 4 if s == 2 else 3
            return {"0.weight": ((c, o, side, side), 1), "0.bias": ((o,), 0)} | conv("1", o, o, at=pixels)
        case "dysample":
            if m <= GROUPS or m % GROUPS:
                raise ValueError(f"its dysample tail needs a multiple of {GROUPS} channels above {GROUPS}, not {m}")
            places = 2 * GROUPS * pixels
            tensors = begin | conv(f"{i}.end_conv", m, o, 1, pixels) | conv(f"{i}.offset", m, places, 1)
            return tensors | {f"{i}.scope.weight": ((places, m, 1, 1), 1), f"{i}.init_pos": ((1, places, 1, 1), 0)}
        case "lda":
            hidden, part = m // 4, m // 8
            if not part or m % 8:
                raise ValueError(f"its lda tail needs a multiple of 8 channels, not {m}")
            tensors = begin | {f"{i}.proj_{name}.weight": ((hidden, m, 1, 1), 1) for name in "qk"}
            tensors |= {f"{i}.conv_offset.0.weight": ((part, 1, 3, 3), 0)} | norm(f"{i}.conv_offset.1", part)
            tensors |= conv(f"{i}.conv_offset.3", part, 18, at=pixels) | norm(f"{i}.layer_norm", m)
            tensors |= {f"{i}.relative_position_bias_table": ((1, 1, 1, 9, hidden), 0)}
            return tensors | conv(f"{i + 1}", m, o, at=pixels)
        case "pa_up":
            tensors, at, n, width = {}, 1, 0, c
            for factor in upscaling_steps(s, upsampler):
                at *= factor * factor
                tensors |= conv(f"{n + 1}", width, m, at=at) | conv(f"{n + 2}.conv.0", m, m, 1, at)
                tensors |= conv(f"{n + 4}", m, m, at=at)
                width, n = m, n + 6
            return tensors | conv(f"{n}", m, o, at=pixels)


def upscaling_steps(scale: int, upsampler: str) -> list[int]:
    """Factorize a scale into the successive upscaling steps of a tail; 4 is [2, 2].

    Args:
        scale: Upscaling factor: a power of two, or 3.
        upsampler: Name of the tail, for the error message.

    Raises:
        ValueError: The scale is neither a power of two nor 3.
    """
    if scale == 3:
        return [3]
    if scale > 0 and scale & (scale - 1) == 0:
        return [2] * int(math.log2(scale))
    raise ValueError(f"the {upsampler} tail cannot enlarge {scale} times: possible are powers of two and 3")
