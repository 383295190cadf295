"""The native backend for CPUs with AVX2, with kernels of this package."""
