"""The CUDA kernels in NumPy: one function for each kernel, with its name.

Each takes the kernel's compile-time constants, its grid, and its arguments. Pointers are flat arrays that begin there,
of the parameter's type, and may be longer than what is there. Sums are float32 or better; what is stored is rounded to
the type of its array. The kernels themselves are compared with float64 elsewhere; these serve to evaluate plans.
"""

from collections.abc import Callable

from tests.backends.numpy_kernels import (
    channel_attention,
    convolutions,
    dictionary_attention,
    feed_forward,
    sampling,
    upsampler,
    window_attention,
)

MODULES = (
    convolutions,
    window_attention,
    channel_attention,
    dictionary_attention,
    feed_forward,
    upsampler,
    sampling,
)
KERNELS: dict[str, Callable[..., None]] = {
    name: function
    for module in MODULES
    for name, function in vars(module).items()
    if getattr(function, "__module__", "") == module.__name__ and not name.startswith("_")
}
