"""Find out scale, channels, value range and size requirements of an ONNX file: read it and run it on small images.

This happens in a process of its own (`probe_worker`).
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from vsfdatrd.archs import onnx_checks, onnx_range
from vsfdatrd.archs.onnx import Layout, OnnxConfig, Range
from vsfdatrd.backends import accuracy
from vsfdatrd.backends.openvino import probe_range
from vsfdatrd.backends.openvino.library import openvino
from vsfdatrd.backends.openvino.worker import compile_settings, last_line
from vsfdatrd.graph.adapt_io import wrap_io
from vsfdatrd.weights.files import refusal

MULTIPLES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 15, 16, 20, 24, 28, 30, 32, 36, 40, 48, 56, 60, 64, 96, 128)
"""Multiples of height and width to try if the network declares none."""
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 131, 137)
"""Primes by which a multiple is scaled to get test sizes.

Height and width use different primes, so their greatest common divisor is exactly the multiple.
"""
MIN_SIDE = 40
"""Smallest height or width in pixels in the first round of trials."""
MAX_SCALE = 8
MAX_MARGIN = 128
"""Maximum number of pixels that a network may drop from the frame in each dimension."""


class TrialFailure(Exception):
    """The network does not run at a size, or its output is not an image of that size; the message says why."""


def describe(path: Path, multiple: int | None, input_range: Range | None) -> dict[str, Any]:
    """Inspect an ONNX file and run it on small images.

    Args:
        path: The ONNX file.
        multiple: Number of which height and width must be multiples; None to find it by trying.
        input_range: Value of white in the input; None to find it out.

    Returns:
        `config`, `parameters` and `dtype` of a `ModelDescriptor`, and `remarks`, sentences for the user.

    Raises:
        CheckpointError: The file cannot be used.
    """
    model, external = onnx_checks.read_model(path)
    configs = onnx_checks.io_spec(path, model)
    declared = input_range or onnx_range.white_value(model.graph, configs[0].input)
    configs = [replace(config, external=external, range=declared or "1") for config in configs]
    frame = next(value for value in model.graph.input if value.name == configs[0].input)
    core = openvino.Core()
    tried: list[str] = []
    for config, step, height, width in _trials(configs, multiple):
        in_channels = config.channels
        try:
            result, largest = _run_on_test_image(core, model, config, height, width)
            config, out_channels, scale = _describe_output(result, config, height, width, step)
            cropped = config.margin or config.crop or config.crop_end
            if cropped:
                height, width = config.fixed_size or (height, width)
                result, largest = _run_on_test_image(core, model, config, height, width)
                if result.shape != (1, out_channels, height * scale, width * scale):
                    raise TrialFailure(f"a margin is missing in its output, {list(result.shape)}, with any frame")
        except TrialFailure as why:
            tried.append(f"{width}×{height}: {why}")
            continue
        _check_supported(path, in_channels, out_channels, scale)
        remarks = []
        if declared == "255" != input_range and frame.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            remarks.append('white is assumed to be 255, as its first operators imply; input_range="1" overrides that')
        if in_channels == out_channels != 2 and config.style is None:

            def run_with(candidate: OnnxConfig, height: int = height, width: int = width) -> NDArray[np.float32]:
                planes: NDArray[np.float32] = _run_on_test_image(core, model, candidate, height, width)[0][0]
                return planes

            picture = accuracy.draw_line_art(height, width)[:in_channels]
            # (C, H, W); if cropped, it ran with the final config
            first = result[0] if cropped or config.output_layout == "NCHW" else result[0].transpose(2, 0, 1)
            with contextlib.suppress(TrialFailure):  # the network may fail on values up to 255; keep the default then
                config, remark = probe_range.determine_ranges(
                    config, declared is not None, picture, scale, first, run_with
                )
                remarks += [remark] if remark else []
        else:
            config = replace(config, output_range=config.range)
        config = replace(config, scale=scale, out_channels=out_channels, multiple=step, largest=largest)
        config = replace(config, minimum=0 if config.fixed_size else min(height, width))
        return {
            "config": asdict(config),
            "parameters": sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.dims),
            "dtype": "+".join(sorted(_tensor_dtypes(model))) or "fp32",
            "remarks": remarks,
        }
    cure = "" if multiple or configs[0].fixed_size else "; if its sides must be multiples of a number, give multiple="
    if "a margin" in tried[-1]:
        cure = "; export it with padding in its convolutions"
    elif len(configs) > 1:
        cure = "; it does not state its channels, so 3, 1 and 2 were tried: export it with a fixed number"
    raise refusal(path, f"does not run as an image network; the last trial was {tried[-1]}{cure}")


def _trial_sizes(config: OnnxConfig, multiple: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield the input sizes to try in order: (multiple, height, width), with both sides divisible by the multiple."""
    if config.fixed_size:
        yield 1, *config.fixed_size
        return
    for least in (MIN_SIDE, 3 * MIN_SIDE):
        for step in (multiple,) if multiple else MULTIPLES:
            first = next(i for i, factor in enumerate(PRIMES) if factor * step >= least)
            yield step, PRIMES[first] * step, PRIMES[first + 1] * step


def _trials(configs: Sequence[OnnxConfig], multiple: int | None) -> Iterator[tuple[OnnxConfig, int, int, int]]:
    """Yield (config, multiple, height, width): every config at one size of `_trial_sizes`, then at the next size."""
    for sizes in zip_longest(*(_trial_sizes(config, multiple) for config in configs)):
        for config, size in zip(configs, sizes, strict=True):
            if size is not None:
                yield config, *size


def _run_on_test_image(
    core: openvino.Core, model: onnx.ModelProto, config: OnnxConfig, height: int, width: int
) -> tuple[NDArray[np.float32], int]:
    """Run the network on the test picture, `accuracy.draw_line_art`.

    Returns:
        The output, and the elements of the largest tensor per input pixel (`OnnxConfig.largest`).

    Raises:
        TrialFailure: The network does not run at this size.
    """
    graph = wrap_io(model, config, height, width)
    try:
        readable = core.read_model(graph.SerializeToString())
        largest = -(-_largest_tensor(readable) // (height * width))
        compiled = core.compile_model(readable, "CPU", compile_settings("fp32", 1))
        _, channels, rows, _ = compiled.input(0).shape
        picture = np.pad(
            accuracy.draw_line_art(height, width)[:channels], ((0, 0), (0, rows - height), (0, 0)), "symmetric"
        )
        result = np.array(compiled(picture[None])[0], np.float32)
        return result, max(largest, -(-result.size // (height * width)))  # tensors inside branches are not counted
    except (RuntimeError, ValueError, MemoryError) as error:
        raise TrialFailure(last_line(error)[:200].rstrip(".") or "memory ran out") from error


def _describe_output(
    result: NDArray[np.float32], config: OnnxConfig, height: int, width: int, step: int
) -> tuple[OnnxConfig, int, int]:
    """Derive layout, channels, scale and margins from the shape of the output for an input of `height` × `width`.

    `step` is the number of which the sides of frames must be multiples.

    Returns:
        The completed config, the number of output channels, the scale.

    Raises:
        TrialFailure: The output is not an image of the expected size.
    """
    if result.ndim != 4 or result.shape[0] != 1:
        raise TrialFailure(f"its output has the shape {list(result.shape)}, which is not an image")
    layouts: tuple[tuple[Layout, tuple[int, int, int]], ...] = (("NCHW", (1, 2, 3)), ("NHWC", (3, 1, 2)))
    for layout, axes in layouts:
        out_channels, out_height, out_width = (result.shape[axis] for axis in axes)
        scale = out_height // height
        if 1 <= out_channels <= 3 and scale and (out_height, out_width) == (height * scale, width * scale):
            if not np.isfinite(result).all():
                raise TrialFailure("its output is not finite")
            return replace(config, output_layout=layout), int(out_channels), int(scale)
    for layout, axes in layouts:
        out_channels, out_height, out_width = (int(result.shape[axis]) for axis in axes)
        if (
            1 <= out_channels <= 3
            and config.style is None
            and (margins := _find_margins(height, width, out_height, out_width, step))
        ):
            scale, margin, crop, crop_end = margins
            config = replace(config, output_layout=layout, margin=margin, crop=crop, crop_end=crop_end)
            if config.fixed_size:
                config = replace(config, height=height - 2 * margin, width=width - 2 * margin)
            return config, out_channels, scale
    raise TrialFailure(f"its output has the shape {list(result.shape)}, not an integer multiple of the frame's")


def _find_margins(
    height: int, width: int, out_height: int, out_width: int, step: int
) -> tuple[int, int, int, int] | None:
    """Find scale and margins of a network whose output is not exactly an integer multiple of its input.

    The output is assumed to be a constant number of pixels smaller or larger than the scaled input, and centered in
    it, as for convolutions without padding. `step` is the number of which the sides of frames must be multiples.

    Returns:
        Scale, pixels to add on each side of the frame, pixels to crop from the output at the start and at the end of
        each dimension; None if the sizes do not fit such a network.
    """
    scale, uneven = (
        divmod(out_width - out_height, width - height) if width != height else (round(out_height / height), 0)
    )
    missing = scale * height - out_height
    if uneven or scale < 1 or missing != scale * width - out_width or abs(missing) > MAX_MARGIN * scale or missing % 2:
        return None
    around = 0  # total padding in one dimension, a multiple of `step`, so that the input remains one
    while around * scale < missing or around % 2:
        around += step
    crop = (scale * around - missing) // 2
    if min(height, width) <= around:
        return None
    return scale, around // 2, crop, crop


def _largest_tensor(model: openvino.Model) -> int:
    """Return the number of elements of the largest floating-point tensor that is not a constant."""
    return max(
        (
            math.prod(output.get_partial_shape().to_shape())
            for operator in model.get_ordered_ops()
            if operator.get_type_name() != "Constant"
            for output in operator.outputs()
            if output.get_partial_shape().is_static and output.get_element_type().is_real()
        ),
        default=0,
    )


def _check_supported(path: Path, in_channels: int, out_channels: int, scale: int) -> None:
    if scale > MAX_SCALE:
        raise refusal(path, f"enlarges {scale} times; at most {MAX_SCALE} times is supported")
    if (in_channels, out_channels) not in ((1, 1), (3, 3), (2, 2), (3, 2)):
        raise refusal(
            path,
            f"is a network from {in_channels} to {out_channels} channels; only RGB to RGB (3 to 3), luma to luma "
            "(1 to 1) and chroma to chroma (2 or 3 to 2) can be used",
        )
    if out_channels == 2 and scale != 1:
        raise refusal(path, f"is a chroma network that enlarges {scale} times; only those of 1× are supported")


def _tensor_dtypes(model: onnx.ModelProto) -> set[str]:
    names = {1: "fp32", 10: "fp16", 11: "fp64", 16: "bf16"}
    return {names[tensor.data_type] for tensor in model.graph.initializer if tensor.data_type in names}
