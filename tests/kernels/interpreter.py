"""Launches the kernels in Triton's interpreter, on NumPy arrays. Triton reads ``TRITON_INTERPRET=1`` when imported.

`python -m tests.kernels.interpreter FILE` runs what ``cases_FILE.py`` yields, and writes a line of JSON for each case.
"""

import dataclasses
import importlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import ml_dtypes
import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle, interpreter_builder

from vsfdatrd.kernels import catalog

type Array = NDArray[Any]

TYPES: Mapping[str, np.dtype[Any]] = {
    "*fp16": np.dtype(np.float16),
    "*bf16": np.dtype(ml_dtypes.bfloat16),
    "*fp32": np.dtype(np.float32),
}
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
"""Largest relative error of rounding to a precision."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a kernel computed, and what it should have."""

    name: str
    got: Array
    expected: Array
    limit: float
    """Largest root of the mean squared error, relative to the expected values' own."""

    @property
    def errors(self) -> tuple[float, float]:
        """The root of the mean squared error, and the largest error, both relative to the root of the mean square."""
        got, expected = np.asarray(self.got, np.float64), np.asarray(self.expected, np.float64)
        assert got.shape == expected.shape, self.name
        size = np.sqrt(np.mean(expected**2)) or 1.0
        error = np.abs(got - expected) / size
        return float(np.sqrt(np.mean(error**2))), float(error.max())


def _dot(a: Any, b: Any, sums: Any, precision: Any, *_: Any) -> Any:
    """Multiply in fp32, of operands cut off to tf32 where the kernel says so.

    The interpreter's own product takes the bits of bf16 for integers, and ignores tf32 (Triton 3.9).
    """
    left, right = (_operand(each, precision.name == "TF32") for each in (a, b))
    return TensorHandle(left @ right + sums.data, sums.dtype.scalar)


def _operand(handle: Any, tf32: bool) -> Array:
    if handle.dtype.scalar == tl.bfloat16:
        return np.asarray(handle.data.view(ml_dtypes.bfloat16), np.float32)
    if handle.dtype.scalar == tl.float32 and tf32:
        return np.asarray((handle.data.view(np.int32) & -0x2000).view(np.float32))
    return np.asarray(handle.data, np.float32)


def _cast(source: Any, target: Any, cast: Any = interpreter_builder.cast_impl) -> Any:
    """Round to bf16 to the nearest, as GPUs do: the interpreter cuts off the bits (Triton 3.9)."""
    if target.scalar == tl.bfloat16 and source.dtype.scalar == tl.float32:
        return TensorHandle(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), tl.bfloat16)
    return cast(source, target)


_type_of_scalar = cache(interpreter._get_np_dtype)


def _numpy_type(kind: Any) -> Any:
    """Return NumPy's type of numbers or addresses; the interpreter makes its table of all types anew for each."""
    return np.dtype(np.uint64) if isinstance(kind.scalar, tl.pointer_type) else _type_of_scalar(kind.scalar)


def _patch_language(function: Any, patch: Any = interpreter._patch_lang) -> Any:
    """Replace the language's functions for a kernel, and not again for every function that it calls (Triton 3.9)."""
    modules = [module for module in function.__globals__.values() if module is tl or module is tl.core]
    unchanged = any(tl.core.is_builtin(module.load) for module in modules)
    return patch(function) if unchanged else interpreter._LangPatchScope()


interpreter_builder.create_dot = _dot
interpreter_builder.cast_impl = _cast
# Takes up to two fifths of the time, and no address in maps of so few pixels overflows.
interpreter_builder.options = dataclasses.replace(interpreter_builder.options, sanitize_overflow=False)
interpreter._patch_lang = _patch_language
interpreter._get_np_dtype = _numpy_type


@cache
def variant(kernel: str, channels: int, precision: str) -> catalog.Variant:
    """Return the variant that ships."""
    return next(each for each in catalog.variants(channels, precision) if each.kernel == kernel)


def launch(kernel: catalog.Variant, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
    """Run a kernel on arrays or addresses.

    Args:
        kernel: The kernel.
        grid: Number of programs along up to three axes.
        arguments: All arguments by name: arrays of exactly the types that its signature names, addresses, or integers.
    """
    assert set(arguments) == set(kernel.signature), set(arguments) ^ set(kernel.signature)
    given = {}
    for name, type_name in kernel.signature.items():
        value = arguments[name]
        if type_name != "i32":
            if not isinstance(value, int):
                assert value.dtype == TYPES[type_name], f"{kernel.kernel}: {name} is {value.dtype}, not {type_name}"
                assert value.flags.c_contiguous, name
                value = value.ctypes.data
            pointer = tl.pointer_type({"*fp16": tl.float16, "*bf16": tl.bfloat16, "*fp32": tl.float32}[type_name])
            value = tl.tensor(TensorHandle(np.array([value], np.uint64), pointer), pointer)
        given[name] = value
    with np.errstate(over="ignore"):  # exp of a large number is inf, as on a GPU
        kernel.function[grid](**given, **kernel.constants)


class Runner:
    """Launches the kernels of a network, with arrays rounded to the types of their arguments.

    Args:
        channels: C.
        precision: Precision of the network.
        seed: Seed of its random numbers.
    """

    def __init__(self, channels: int, precision: str, seed: int = 0) -> None:
        self.channels, self.precision = channels, precision
        self.generator = np.random.default_rng(seed)

    def random(self, *shape: int, scale: float = 1.0) -> Array:
        """Draw normally distributed numbers that the precision holds exactly."""
        return self.rounded(self.generator.standard_normal(shape) * scale)

    def rounded(self, values: Array) -> Array:
        """Round to the precision, in float64."""
        return np.asarray(np.asarray(values).astype(np.float32).astype(TYPES[f"*{self.precision}"]), np.float64)

    @property
    def limit(self) -> float:
        """The limit of a result that is rounded a few times on its way."""
        return 1.5 * ROUNDING[self.precision]

    def run(
        self, kernel: str, grid: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]], **arguments: Any
    ) -> dict[str, Array]:
        """Run a kernel.

        Args:
            kernel: Its name.
            grid: Number of programs.
            shapes: Shapes of its results by name. They start as NaN, so that what is not written shows.
            arguments: Arrays in any type, and integers.

        Returns:
            The results by name, in float64.
        """
        chosen = variant(kernel, self.channels, self.precision)
        given: dict[str, Any] = {name: value for name, value in arguments.items() if isinstance(value, int)}
        for name, value in arguments.items():
            if not isinstance(value, int):
                given[name] = np.ascontiguousarray(np.asarray(value, np.float32).astype(TYPES[chosen.signature[name]]))
        results = {name: np.full(shape, np.nan, TYPES[chosen.signature[name]]) for name, shape in shapes.items()}
        launch(chosen, grid, given | results)
        return {name: np.asarray(value, np.float64) for name, value in results.items()}

    def constant(self, kernel: str, name: str) -> int:
        """Return a constant of a kernel."""
        return variant(kernel, self.channels, self.precision).constants[name]


def cdiv(count: int, size: int) -> int:
    """Return how many pieces of `size` hold `count`."""
    return -(-count // size)


def stats(tokens: Array) -> Array:
    """Return mean and reciprocal standard deviation of tokens, (N, 2)."""
    return np.asarray(np.stack([tokens.mean(1), 1 / np.sqrt(tokens.var(1) + 1e-5)], 1))


def normalized(tokens: Array) -> Array:
    """Return tokens normalized without weights."""
    mean, rstd = stats(tokens).T
    return np.asarray((tokens - mean[:, None]) * rstd[:, None])


def gelu(x: Array) -> Array:
    """Return the exact GELU."""
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))))


def softmax(x: Array) -> Array:
    """Return softmax over the last axis."""
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def depthwise(maps: Array, weight: Array) -> Array:
    """Return a depthwise 3×3 convolution with zeros around: maps (H, W, C), weight (9, C)."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    shifted = (padded[tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width] * weight[tap] for tap in range(9))
    return np.asarray(sum(shifted))


def convolution(maps: Array, weight: Array) -> Array:
    """Return a 3×3 convolution with zeros around: maps (H, W, C), weight (9, C, O)."""
    height, width, _ = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    shifted = (padded[tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width] @ weight[tap] for tap in range(9))
    return np.asarray(sum(shifted))


def report(cases: Iterator[Case]) -> None:
    """Write each case as a line of JSON."""
    for case in cases:
        error, worst = case.errors
        print(json.dumps({"case": case.name, "error": error, "worst": worst, "limit": case.limit}), flush=True)


if __name__ == "__main__":
    report(importlib.import_module(f"tests.kernels.cases_{sys.argv[1]}").cases())
